"""The commands that use a trained model."""

from pathlib import Path
from typing import Annotated

import typer

from musemo.cli_options import Quiet
from musemo.core import MusemoError, progress

Model = Annotated[
    str | None,
    typer.Option(
        metavar="RUN|FOLDER|OWNER/NAME",
        help="A run's folder, a folder that `musemo export` made, or a model on the hub; "
        "by default runs/demo.",
    ),
]


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
    if out and not curve:
        raise MusemoError(f"--out {out}: is where curves go; add --curve, or leave it out")
    songs = [song.expanduser() for song in songs]
    opened = open_model(model or _last_run())
    out = out and out.expanduser()
    said = opened.predict_all(progress(songs, desc="songs"))
    if curve:
        said = answer_curves(opened.curve, progress(songs, desc="curves"), said, out)
    form = "json" if as_json else "csv" if as_csv else "table"
    if shown := show_answers(songs, said, form):
        typer.echo(shown)
    failed = [told for told in said if isinstance(told, MusemoError)]
    curveless = [told["no_curve"] for told in said if told not in failed and "no_curve" in told]
    lines = []
    for what, why in (("predicted", failed), ("followed in time", curveless)):
        if why:
            lines += [f"{len(why)} of {len(songs)} songs could not be {what}:", *map(str, why)]
    if lines:
        raise MusemoError("\n  ".join(lines))


def _last_run() -> str:
    "Name the demo's run; raises MusemoError where there is none."
    if not Path("runs/demo").is_dir():
        raise MusemoError("runs/demo is not there: name a --model, or make it with `musemo run`")
    return "runs/demo"


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
