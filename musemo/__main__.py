"""The way in: musemo, or python -m musemo. A package that is missing is one line."""

import sys


def main() -> None:
    "Run the command line."
    for stream in (sys.stdout, sys.stderr):  # names of files may be in any encoding
        stream.reconfigure(errors="backslashreplace")
    try:
        from musemo.cli import main as run

        run()
    except ModuleNotFoundError as error:
        extra = "[demo]" if error.name in ("midirenderer", "pretty_midi") else ""
        way_out = f"pip install 'musemo{extra}', or pip install -e '.{extra}' in a clone"
        print(f"musemo: {error.name} is missing: {way_out}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
