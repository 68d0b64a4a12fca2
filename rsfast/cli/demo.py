"""``rsfast demo``."""

from __future__ import annotations

import argparse
from pathlib import Path

from .arguments import Commands, add_command


def add(commands: Commands) -> None:
    parser = add_command(commands, "demo", run, "Train a small network, certify it, and time that against the 2019 loop.")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder to write to (default: %(default)s)")
    parser.add_argument("--images", type=int, default=200, help="test images to certify (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=2026, help="of training and certification (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    from .. import demo

    demo.run(args.out, images=args.images, seed=args.seed)
    return 0
