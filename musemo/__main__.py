"""The way in: musemo, or python -m musemo. A package that is missing is one line."""

import sys


def main() -> None:
    "Run the command line."
    try:
        from musemo.cli import main as run

        run()
    except ModuleNotFoundError as error:
        told = (
            f"musemo: {error.name} is missing: pip install musemo, or pip install -e . in a clone"
        )
        print(told, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
