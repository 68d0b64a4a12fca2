"""``rsfast plot``."""

from __future__ import annotations

import argparse

from .analyze import add_envelope, add_runs, read_runs
from .arguments import Commands, add_command


def add(commands: Commands) -> None:
    parser = add_command(commands, "plot", run, "Plot certified accuracy against radius.")
    parser.add_argument("--out", required=True, action="append", metavar="FILE", help=".png, .pdf or .svg; may be repeated")
    parser.add_argument("--title", help="above the figure")
    add_envelope(parser)
    add_runs(parser)


def run(args: argparse.Namespace) -> int:
    from ..runs.plot import check_path, plot

    for path in args.out:
        check_path(path)
    runs = read_runs(args)
    for path in args.out:
        plot(runs, path, title=args.title, envelope=args.envelope)
    return 0
