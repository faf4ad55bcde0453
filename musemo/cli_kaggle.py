"""The commands that run the suite on Kaggle."""

import shlex
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from musemo.cli_options import Preset, Quiet, Settings, configure

User = Annotated[
    str, typer.Option(metavar="NAME", help="Your name, as in your page's address kaggle.com/NAME.")
]
Title = Annotated[str, typer.Option(help="The kernel's title; its address is made of it.")]
TITLE = "musemo emotion of music"

kaggle = typer.Typer(
    help="Run the suite on a GPU of Kaggle's, and fetch what it leaves.\n\n"
    "Example: musemo kaggle push --user me",
    no_args_is_help=True,
)


@kaggle.command()
def push(
    user: User,
    title: Title = TITLE,
    public: Annotated[
        bool, typer.Option("--public/--private", help="Whether others see the kernel.")
    ] = False,
    preset: Preset = "kaggle",
    settings: Settings = (),
    gpu: Annotated[bool, typer.Option(help="Ask for a T4; smoke and demo need none.")] = True,
    internet: Annotated[
        bool, typer.Option(help="Let the kernel fetch the ViT's weights from the hub.")
    ] = True,
    data: Annotated[
        list[str],
        typer.Option(
            metavar="OWNER/NAME",
            help="A data set of Kaggle's in DEAM's layout; by default DEAM itself.",
        ),
    ] = (),
    weights: Annotated[
        list[str],
        typer.Option(
            metavar="SOURCE",
            help="A model (OWNER/MODEL/FRAMEWORK/VARIATION/VERSION) or data set (OWNER/NAME) of "
            "Kaggle's that holds a ViT as transformers saves it; found without the internet.",
        ),
    ] = (),
    folder: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write here what would be pushed, and push nothing."),
    ] = None,
) -> None:
    """Push the whole suite as one notebook to Kaggle, which runs it.

    You need an account and its token: `kaggle auth login` gets one.

    Example: musemo kaggle push --user me --set gan.epochs=20
    """
    from musemo.kaggle_client import push_kernel
    from musemo.kernel import kernel_name, write_kernel

    kernel, config = kernel_name(user, title), configure(preset, settings)
    options = {"public": public, "gpu": gpu, "internet": internet, "data": data}
    options["weights"] = weights
    if folder:
        folder = write_kernel(folder.expanduser(), kernel, title, config, **options)
        typer.echo(f"kernel: {folder}")
        return
    with tempfile.TemporaryDirectory() as temporary:
        place = push_kernel(write_kernel(Path(temporary), kernel, title, config, **options))
    named = "" if title == TITLE else f" --title {shlex.quote(title)}"
    typer.echo(f"pushed: {place}\nfollow it: musemo kaggle status --user {user}{named} --wait")


@kaggle.command()
def status(
    user: User,
    title: Title = TITLE,
    wait: Annotated[bool, typer.Option("--wait", help="Ask until it ends.")] = False,
    every: Annotated[
        float, typer.Option(min=0.01, help="Seconds between questions, with --wait.")
    ] = 60,
) -> None:
    """Say how the kernel stands; where it failed or was stopped, the exit code is 2.

    Example: musemo kaggle status --user me --wait
    """
    from musemo.kaggle_client import follow_kernel
    from musemo.kernel import kernel_name

    kernel = kernel_name(user, title)
    for state in follow_kernel(kernel, every if wait else None):
        typer.echo(f"{kernel}: {state}")


@kaggle.command()
def output(
    user: User,
    title: Title = TITLE,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="The run's folder, which must be new.")
    ] = Path("runs/kaggle"),
    quiet: Quiet = False,
) -> None:
    """Fetch what the kernel left into a run's folder: model, figures, sound, log, and its pages.

    The folder is there whole or not at all. `musemo predict --model` takes it.

    Example: musemo kaggle output --user me --out runs/kaggle
    """
    from musemo.kaggle_client import fetch_output
    from musemo.kernel import kernel_name

    kernel = kernel_name(user, title)
    typer.echo(f"fetched: {fetch_output(kernel, out.expanduser())}")
    typer.echo(f"executed notebook: https://www.kaggle.com/code/{kernel}")
