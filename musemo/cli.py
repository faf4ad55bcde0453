"""The command line: it reads arguments and shows results; the work is done elsewhere."""

import sys

import typer

from musemo.cli_kaggle import kaggle
from musemo.cli_models import export, predict
from musemo.cli_runs import compare, config, demo, doctor, evaluate, rerun, run, train
from musemo.core import MusemoError

app = typer.Typer(
    help="Predict the emotion of music from its sound, and hear what a generator makes of it.\n\n"
    "Example: musemo run --data ~/deam",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (run, rerun, train, evaluate, compare, demo, predict, export, config, doctor):
    app.command()(command)
app.add_typer(kaggle, name="kaggle")


def main() -> None:
    "Run a command; what the user can mend is one line and exit code 2."
    try:
        app()
        return
    except MusemoError as error:
        reason = str(error)
    except OSError as error:
        reason = f"{error.filename or 'the system'}: {error.strerror or error}; "
        reason += "mend that, or name another place, and run it again"
    typer.echo(f"musemo: {reason}", err=True)
    sys.exit(2)
