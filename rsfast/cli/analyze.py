"""``rsfast analyze``, and the runs that it, `plot` and `report` compare: run folders or tables, NAME=RUN names one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .arguments import Commands, Parser, add_command, warn

if TYPE_CHECKING:
    from ..results import Results


def add(commands: Commands) -> None:
    parser = add_command(
        commands, "analyze", run, "Print certified accuracies of runs, and accuracies of predictions, one row a run."
    )
    add_radii(parser)
    add_envelope(parser)
    parser.add_argument("--format", choices=("text", "markdown", "latex", "csv"), default="text", help="default: text")
    add_runs(parser)


def run(args: argparse.Namespace) -> int:
    from .. import results

    runs = read_runs(args)
    if args.format == "csv":  # which has no place for them
        for note in results.notes(runs):
            warn(args, note)
    if args.radii is not None and not any(run.has_radius for run in runs.values()):
        warn(args, "--radii has no effect: predictions have no radius")
    radii = results.round_radii(runs) if args.radii is None else args.radii
    print(results.table(runs, radii, args.format, envelope=args.envelope))
    return 0


def add_radii(parser: Parser) -> None:
    parser.add_argument(
        "--radii",
        nargs="+",
        type=float,
        metavar="R",
        help="in the norm of the runs (default: round steps up to the largest radius)",
    )


def add_envelope(parser: Parser) -> None:
    text = "add the upper envelope of runs that differ in the size of their noise: at each radius the best of them"
    parser.add_argument("--envelope", action="store_true", help=text)


def add_runs(parser: Parser) -> None:
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="run folder, or a TSV with the columns label, predict, correct and, unless it is of predictions, radius; "
        "NAME=RUN names it",
    )


def read_runs(args: argparse.Namespace) -> dict[str, Results]:
    """Read the runs that are named, leave out those without rows, and warn of what makes them hard to compare."""
    from .. import results
    from ..runs.tables import EmptyTable

    runs: dict[str, Results] = {}
    empty: list[EmptyTable] = []
    for text in args.runs:
        name, path = _named(text)
        if name in runs:
            raise ValueError(f"runs must have different names, got {name!r} twice; write NAME=RUN to tell them apart")
        try:
            runs[name] = results.read(path)
        except EmptyTable as error:
            empty.append(error)
    if not runs:
        raise empty[0]
    for each in empty:
        warn(args, f"{each}; it is left out")
    for caveat in results.caveats(runs):
        warn(args, caveat)
    return runs


def _named(text: str) -> tuple[str, str]:
    """Split NAME=RUN at the last = after which there is a file or folder, at the last of all if there is none.

    What exists as it stands has no name of its own.
    """
    parts = text.split("=")
    splits = [("=".join(parts[:i]), "=".join(parts[i:])) for i in range(len(parts) - 1, 0, -1)]
    splits = [(name, run) for name, run in splits if name and run]
    if Path(text).exists() or not splits:
        return text, text
    return next((split for split in splits if Path(split[1]).exists()), splits[0])
