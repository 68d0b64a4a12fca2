"""The last line of a command that writes a run folder."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..runs.results import Results


def print_certified(args: argparse.Namespace, run: Results, seconds: float) -> None:
    """Print what a run certifies; of one that stopped sampling early first what it decided, and of the rest bounds."""
    from ..runs import results

    if run.stopping.radius is not None:
        print(f"{results.share_decided(run, run.stopping.radius):.1%} certified at radius {run.stopping.radius}")
    at_least = "at least " if run.stopping else ""
    acr = f"{at_least}{results.average_certified_radius(run):.3f}"
    score = f"mean radius {acr}, no labels"
    if run.labelled:
        accuracy = f"{at_least}{results.clean_accuracy(run):.1%}"
        score = f"certified accuracy at radius 0 {accuracy}, average certified radius {acr}"
    print_summary(args, run, seconds, score)


def print_summary(args: argparse.Namespace, run: Results, seconds: float, score: str) -> None:
    from ..runs.results import abstention_rate, progress

    abstained = f"{'at most ' if run.stopping else ''}{abstention_rate(run):.1%}"
    print(f"{args.out}: {progress(run)} images in {seconds:.1f} s, {score}, abstained {abstained}")
