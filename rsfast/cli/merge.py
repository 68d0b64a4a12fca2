"""``rsfast merge``."""

from __future__ import annotations

import argparse

from .arguments import Commands, add_command, add_out, warn


def add(commands: Commands) -> None:
    parser = add_command(
        commands, "merge", run, "Write one run folder with the rows of several, run over parts of the same images."
    )
    parser.add_argument(
        "parts", nargs="+", metavar="PART", help="run folder; all must agree in model, data, seed and settings"
    )
    add_out(parser)


def run(args: argparse.Namespace) -> int:
    from ..runs.merge import merge

    merged, missing = merge(args.parts, args.out)
    for gap in missing:
        warn(args, f"idx {gap[0]} is missing" if gap[0] == gap[-1] else f"idx {gap[0]} to {gap[-1]} are missing")
    print(f"{args.out}: {len(merged)} images from {len(args.parts)} run folders")
    return 0
