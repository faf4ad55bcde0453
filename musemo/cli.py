"""The command line: it reads arguments and shows results; the work is done elsewhere."""

import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from musemo.config import Config
from musemo.presets import field_table, make_config
from musemo.core import MusemoError, Run, progress

app = typer.Typer(
    help="Predict the emotion of music from its sound, and hear what a generator makes of it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Preset = Annotated[
    Literal["smoke", "demo", "kaggle", "full"],
    typer.Option(
        help="Where the numbers start: smoke proves that all runs (3 minutes), demo is sized "
        "for two cores, kaggle a T4, full is the specification on DEAM."
    ),
]
Settings = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="SECTION.FIELD=VALUE",
        help="Set one field, as often as needed: --set gan.epochs=20. "
        "`musemo config` lists the fields.",
    ),
]


def _be_quiet(quiet: bool) -> None:
    "Show no progress bars, in this process and in those that it starts."
    if quiet:
        os.environ["MUSEMO_QUIET"] = "1"


Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress bars.", callback=_be_quiet)]
Data = Annotated[
    str,
    typer.Option(
        metavar="DIR|TABLE",
        help="A folder anywhere above DEAM's annotations, or a .csv with the columns file, "
        "valence, arousal. Without it the demo music is composed.",
    ),
]
Out = Annotated[
    Path,
    typer.Option(metavar="DIR", help="The run's folder; by default runs/PRESET or runs/DATA."),
]
Scale = Annotated[str | None, typer.Option(help="Scale of a table's labels: 1-9, -1-1 or 0-1.")]


def _configure(preset: str, settings: list[str], **values: str | None) -> Config:
    "Build the configuration from SECTION.FIELD=VALUE settings and the options given."
    for setting in settings:
        if "=" not in setting:
            raise MusemoError(f"--set {setting!r}: must be SECTION.FIELD=VALUE")
    chosen = dict(setting.split("=", 1) for setting in settings)
    chosen |= {f"data.{name}": value for name, value in values.items() if value}
    # Sections run in folders of their own: a path must mean the same there.
    for name in ("data.path", "data.cache", "vit.weights"):
        path = Path(chosen.get(name, "")).expanduser()
        if name in chosen and (path.exists() or name != "vit.weights"):
            chosen[name] = str(path.resolve())
    try:
        return make_config(preset, chosen)
    except ValueError as error:
        raise MusemoError(str(error)) from error


def _folder(config: Config, preset: str, out: Path | None) -> Path:
    "Choose a run's folder: the one asked for, or one named like data and preset."
    if out is not None:
        return out
    data = Path(config.data.path).stem
    return Path("runs") / (f"{data}-{preset}".removesuffix("-demo") if data else preset)


@app.command()
def run(
    data: Data = "",
    preset: Preset = "demo",
    out: Out = None,
    settings: Settings = (),
    scale: Scale = None,
    first: Annotated[
        int | None,
        typer.Option(
            "--from",
            min=1,
            max=12,
            help="Recompute from this section on; a generator whose songs and settings are "
            "unchanged is kept.",
        ),
    ] = None,
    only: Annotated[
        int | None, typer.Option(min=1, max=12, help="Execute this section alone.")
    ] = None,
    until: Annotated[int, typer.Option(min=1, max=12, help="Stop after this section.")] = 12,
    quiet: Quiet = False,
) -> None:
    """Execute the twelve notebooks in order and write their reports.

    A run that was cut off goes on where it stopped.

    Example: musemo run --data ~/deam --preset full --out runs/deam
    """
    from musemo.pipeline import run_suite

    config = _configure(preset, settings, path=data, scale=scale)
    out = _folder(config, preset, out)
    index = run_suite(config, out, first=first, only=only, until=until)
    typer.echo(f"report: {index}")


@app.command()
def train(
    folder: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run whose sections 1 to 10 are done.")
    ],
    quiet: Quiet = False,
) -> None:
    """Train a run's predictor without its notebook, in one process or in several.

    Several give the result of one. The run's sections before it are there after musemo run
    --until 10, and --only 12 judges what was trained.

    Example: accelerate launch --multi_gpu --num_processes 2 -m musemo train runs/deam-full
    """
    from musemo.pipeline import load_config
    from musemo.vit_training import fit_vit

    run, first = Run(folder.expanduser()), os.environ.get("RANK", "0") == "0"
    _be_quiet(not first)  # one bar is enough
    record = fit_vit(run, load_config(run))
    if first:
        loss = f"validation loss {record['validation']['val_loss']:.4f}"
        typer.echo(f"{loss}, processes: {record['processes']}: {run.path('vit.safetensors')}")


@app.command()
def evaluate(
    data: Data = "",
    preset: Preset = "demo",
    out: Out = None,
    settings: Settings = (),
    scale: Scale = None,
    folds: Annotated[int, typer.Option(min=2, help="Parts that are judged in turn.")] = 5,
    seeds: Annotated[int, typer.Option(min=1, help="How often all is done anew.")] = 3,
    generated: Annotated[
        bool, typer.Option(help="Train the generator in each fold, too: do its songs help?")
    ] = True,
    leakage: Annotated[
        bool, typer.Option("--leakage", help="Also measure how much leaking protocols flatter.")
    ] = False,
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0: as many as pay.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Judge the predictor by repeated folds, and whether generated songs help it.

    Each fold trains everything anew on songs that it is not judged by. What is done is kept: the
    command goes on where it was cut off. The figures of real songs alone come first.

    Example: musemo evaluate --data ~/deam --folds 5 --seeds 3 --no-generated
    """
    from musemo.protocol import evaluate_folds, prepare_folds, show_folds

    config = _configure(preset, settings, path=data, scale=scale)
    arms = ["model", *["augmented", "generated"] * generated, *["leaky"] * leakage]
    run, config = prepare_folds(config, _folder(config, preset, out))
    record = evaluate_folds(run, config, folds=folds, seeds=seeds, arms=arms, workers=workers)
    typer.echo(show_folds(record))
    typer.echo(f"figures: {run.path('folds.json')}")


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that is not there yet.")],
    songs: Annotated[int, typer.Option(help="How many songs.")] = 160,
    seconds: Annotated[float, typer.Option(help="Length of a song.")] = 30.0,
    seed: Annotated[int, typer.Option(help="Another seed, other music.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Compose demo music in DEAM's layout: deterministic, labelled by rule, rated by nobody.

    Example: musemo demo music --songs 40 --seconds 20
    """
    from musemo.demo import compose_demo

    typer.echo(compose_demo(folder.expanduser(), songs=songs, seconds=seconds, seed=seed))


Model = Annotated[
    str | None,
    typer.Option(
        metavar="RUN|FOLDER|OWNER/NAME",
        help="A run's folder, a folder that `musemo export` made, or a model on the hub; "
        "by default runs/demo.",
    ),
]


@app.command()
def predict(
    songs: Annotated[list[Path], typer.Argument(metavar="SONG...", help="Sound files.")],
    model: Model = None,
    curve: Annotated[
        bool, typer.Option("--curve", help="Also every half second: a picture and a .csv.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where curves go; by default beside each song."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Answer in JSON.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Answer in CSV.")] = False,
    quiet: Quiet = False,
) -> None:
    """Predict valence and arousal of songs, of any length and format that libsndfile reads.

    A song that cannot be heard does not stop the others: it is listed at the end with its reason,
    and the exit code is 2.

    Example: musemo predict *.mp3 --model runs/demo --curve
    """
    from musemo.answers import answer_curves, show_answers
    from musemo.prediction import open_model

    if as_json and as_csv:
        raise MusemoError("--json --csv: choose one of them")
    songs = [song.expanduser() for song in songs]
    opened = open_model(model or _last_run())
    said = opened.predict_all(progress(songs, desc="songs"))
    if curve:
        said = answer_curves(opened.curve, progress(songs, desc="curves"), said, out)
    form = "json" if as_json else "csv" if as_csv else "table"
    if shown := show_answers(songs, said, form):
        typer.echo(shown)
    failed = [str(told) for told in said if isinstance(told, MusemoError)]
    if failed:
        lines = [f"{len(failed)} of {len(songs)} songs could not be predicted:", *failed]
        raise MusemoError("\n  ".join(lines))


def _last_run() -> str:
    "Name the demo's run; raises MusemoError where there is none."
    if not Path("runs/demo").is_dir():
        raise MusemoError("runs/demo is not there: name a --model, or make it with `musemo run`")
    return "runs/demo"


@app.command()
def export(
    model: Annotated[str, typer.Argument(metavar="RUN", help="A run's folder.")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder that is new.")],
    push: Annotated[
        str | None,
        typer.Option(metavar="OWNER/NAME", help="Share it on the hub under this name, too."),
    ] = None,
) -> None:
    """Save a run's model as weights, configuration and a model card; share it with --push.

    Example: musemo export runs/deam my-model --push me/my-model
    """
    from musemo.prediction import export_model, open_model, push_model

    opened = open_model(model, device="cpu")
    typer.echo(f"model: {export_model(opened, folder.expanduser())}")
    if push:
        typer.echo(f"shared: {push_model(opened, push)}")


@app.command()
def config(preset: Preset = "demo", settings: Settings = ()) -> None:
    """List every field of the configuration with its value, unit, meaning and source.

    Example: musemo config --preset full
    """
    typer.echo(field_table(_configure(preset, settings)).to_string(index=False))


def main() -> None:
    "Run a command; what the user can mend is one line and exit code 2."
    try:
        app()
        return
    except MusemoError as error:
        reason = str(error)
    except OSError as error:
        reason = f"{error.filename or 'the system'}: {error.strerror or error}"
    typer.echo(f"musemo: {reason}", err=True)
    sys.exit(2)
