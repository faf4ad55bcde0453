"""python -m musemo is the command line."""

from musemo.cli import main

main()
