"""``rsfast analyze``."""

from __future__ import annotations

import argparse

from .arguments import Commands, add_command, warn
from .named_runs import add_runs, read_runs


def add(commands: Commands) -> None:
    parser = add_command(
        commands, "analyze", run, "Print certified accuracies of runs, and accuracies of predictions, one row a run."
    )
    parser.add_argument("--radii", nargs="+", type=float, metavar="R", help="default: round steps up to the largest radius")
    parser.add_argument("--format", choices=("text", "markdown", "latex", "csv"), default="text", help="default: text")
    add_runs(parser)


def run(args: argparse.Namespace) -> int:
    from ..runs import results

    runs = read_runs(args)
    if args.format == "csv":  # which has no place for them
        for note in results.notes(runs):
            warn(args, note)
    if args.radii is not None and not any(run.has_radius for run in runs.values()):
        warn(args, "--radii has no effect: predictions have no radius")
    print(results.table(runs, results.round_radii(runs) if args.radii is None else args.radii, args.format))
    return 0
