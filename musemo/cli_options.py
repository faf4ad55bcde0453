"""What commands share: options, and the configuration that they make."""

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from musemo.config import Config
from musemo.core import MusemoError, Run
from musemo.presets import make_config
from musemo.records import load_config

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


def be_quiet(quiet: bool) -> None:
    "Show no progress bars, in this process and in those that it starts."
    if quiet:
        os.environ |= dict.fromkeys(("MUSEMO_QUIET", "HF_HUB_DISABLE_PROGRESS_BARS"), "1")


Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress bars.", callback=be_quiet)]
Log = Annotated[
    Literal["tensorboard", "wandb"] | None,
    typer.Option(
        "--log",
        help="Also send the curves of each training to a tracker; tensorboard's lie in "
        "RUN/logs, wandb's in your account.",
    ),
]
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
    typer.Option(
        metavar="DIR",
        help="The run's folder; by default runs/PRESET, runs/DATA with preset demo, or runs/DATA-PRESET.",
    ),
]
Scale = Annotated[str | None, typer.Option(help="Scale of a table's labels: 1-9, -1-1 or 0-1.")]


def check_scale(scale: str | None, data: str) -> None:
    "Raise MusemoError for a scale without a table whose labels it could be of."
    if scale and not Path(data).expanduser().is_file():
        raise MusemoError(
            f"--scale {scale}: is the scale of a table; name one with --data TABLE.csv, or leave it "
            "out (DEAM's is 1-9)"
        )


def configure(preset: str, settings: list[str], **values: str | None) -> Config:
    "Build the configuration from SECTION.FIELD=VALUE settings and the options given."
    for setting in settings:
        if "=" not in setting:
            raise MusemoError(f"--set {setting!r}: must be SECTION.FIELD=VALUE")
    chosen = dict(setting.split("=", 1) for setting in settings)
    chosen |= {f"data.{name}": value for name, value in values.items() if value}
    check_scale(values.get("scale"), chosen.get("data.path", ""))
    # Sections run in folders of their own: a path must mean the same there.
    for name in ("data.path", "data.cache", "vit.weights", "quality.embedding"):
        path = Path(chosen.get(name, "")).expanduser()
        word = str(path) in ("scratch", "statistics", "vit")  # whatever folders lie here
        if name in chosen and (path.exists() and not word or name.startswith("data.")):
            chosen[name] = str(path.resolve())
    try:
        return make_config(preset, chosen)
    except ValueError as error:
        raise MusemoError(
            f"{error}; look at `musemo config`, which lists every field with its unit and meaning"
        ) from error


def run_folder(config: Config, preset: str, out: Path | None) -> Path:
    "Choose a run's folder: the one asked for, or one named like data and preset."
    if out is not None:
        return out.expanduser()
    if not config.data.path:
        return Path("runs", preset)
    data = Path(config.data.path)
    name = data.name if data.is_dir() else data.stem
    run = Run(Path("runs", f"{name}-{preset}".removesuffix("-demo")))
    if run.has("config.json") and (other := load_config(run).data.path) != config.data.path:
        raise MusemoError(
            f"{run.folder}: is a run of other songs ({other}); name a folder for this one, or the "
            f"same to make it anew: --out {run.folder}"
        )
    return run.folder
