"""The commands that make music, runs and figures."""

import os
from pathlib import Path
from typing import Annotated

import typer

from musemo.cli_options import (
    Data,
    Log,
    Out,
    Preset,
    Quiet,
    Scale,
    Settings,
    be_quiet,
    check_scale,
    configure,
    run_folder,
)
from musemo.core import MusemoError, Run
from musemo.presets import field_table
from musemo.tracking import follow_with


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
    tracker: Log = None,
    quiet: Quiet = False,
) -> None:
    """Execute the twelve notebooks in order and write their reports.

    A run that was cut off goes on where it stopped.

    Example: musemo run --data ~/deam --preset full --out runs/deam
    """
    from musemo.pipeline import run_suite

    config = configure(preset, settings, path=data, scale=scale)
    out = run_folder(config, preset, out)
    if tracker:
        follow_with(tracker, out)
    index = run_suite(config, out, first=first, only=only, until=until)
    typer.echo(f"report: {index}")


def train(
    folder: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run whose sections 1 to 10 are done.")
    ],
    tracker: Log = None,
    quiet: Quiet = False,
) -> None:
    """Train a run's predictor without its notebook, in one process or in several.

    Several give the result of one. The run's sections before it are there after musemo run
    --until 10, and --only 12 judges what was trained.

    Example: accelerate launch --multi_gpu --num_processes 2 -m musemo train runs/deam-full
    """
    from musemo.pipeline import train_run

    run, first = Run(folder.expanduser()), os.environ.get("RANK", "0") == "0"
    be_quiet(not first)  # one bar is enough
    if tracker:
        follow_with(tracker, run.folder)
    record = train_run(run)
    if first:
        loss = f"validation loss {record['validation']['val_loss']:.4f}"
        typer.echo(f"{loss}, processes: {record['processes']}: {run.path('vit.safetensors')}")


def rerun(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run.")],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A new folder; by default RUN-again.")
    ] = None,
    tracker: Log = None,
    quiet: Quiet = False,
) -> None:
    """Make a run again from its configuration, and say which artifacts are the same.

    On the machine and with the versions of before all are, byte for byte on a CPU.

    Example: musemo rerun runs/demo
    """
    from musemo.pipeline import rerun as make_again

    run = Run(folder.expanduser().resolve())
    out = (out or run.folder.with_name(f"{run.folder.name}-again")).expanduser()
    if tracker:
        follow_with(tracker, out)
    index, found = make_again(run, out)
    typer.echo(f"{len(found['same'])} artifacts are the same")
    if found["differ"]:
        typer.echo(f"{len(found['differ'])} differ: {', '.join(found['differ'])}")
    typer.echo(f"report: {index}")


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
    tracker: Log = None,
    quiet: Quiet = False,
) -> None:
    """Judge the predictor by repeated folds, and whether generated songs help it.

    Each fold trains everything anew on songs that it is not judged by. What is done is kept: the
    command goes on where it was cut off. The figures of real songs alone come first.

    Example: musemo evaluate --data ~/deam --folds 5 --seeds 3 --no-generated
    """
    from musemo.protocol import evaluate_folds, show_folds, show_on_page, working_folds

    config = configure(preset, settings, path=data, scale=scale)
    arms = ["model", *["augmented", "generated"] * generated, *["leaky"] * leakage]
    folder = run_folder(config, preset, out)
    if tracker:
        follow_with(tracker, folder)
    with working_folds(config, folder) as (run, config):
        record = evaluate_folds(run, config, folds=folds, seeds=seeds, arms=arms, workers=workers)
    typer.echo(show_folds(record))
    typer.echo(f"figures: {run.path('folds.json')}")
    show_on_page(run, config)


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN...", help="Folders of runs.")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The page; by default compare.html beside the first."),
    ] = None,
) -> None:
    """Set runs side by side in one page: settings, figures, times, and what can be heard.

    Example: musemo compare runs/demo runs/deam --out both.html
    """
    from musemo.compare import compare_runs

    typer.echo(f"page: {compare_runs(runs, out)}")


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


def config(preset: Preset = "demo", settings: Settings = ()) -> None:
    """List every field of the configuration with its value, unit, meaning and source.

    Example: musemo config --preset full
    """
    typer.echo(field_table(configure(preset, settings)).to_string(index=False))


def doctor(
    data: Annotated[
        str, typer.Option(metavar="DIR", help="Where DEAM is; else the usual places.")
    ] = "",
    scale: Scale = None,
) -> None:
    """Say what is installed, which device, data and weights are found, and what to do about each.

    The exit code is 2 where something is missing that everything needs, or the data that you name.

    Example: musemo doctor --data ~/deam
    """
    from musemo.doctor import examine, show_findings

    check_scale(scale, data)
    findings = examine(data, scale)
    typer.echo(show_findings(findings))
    if any(finding.needed for finding in findings):
        raise MusemoError("something is missing that a run needs; follow the advice beside it")
