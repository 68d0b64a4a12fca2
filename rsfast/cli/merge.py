"""``rsfast merge``."""

from __future__ import annotations

import argparse
from pathlib import Path

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
    from ..runs.layout import read_skipped
    from ..runs.merge import merge

    merged, missing = merge(args.parts, args.out)
    for gap in missing:
        warn(args, f"idx {gap[0]} is missing" if gap[0] == gap[-1] else f"idx {gap[0]} to {gap[-1]} are missing")
    unread = len(read_skipped(Path(args.out), set(merged)))
    skipped = f" and {unread} skipped" if unread else ""
    print(f"{args.out}: {len(merged)} images{skipped} from {len(args.parts)} run folders")
    return 0
