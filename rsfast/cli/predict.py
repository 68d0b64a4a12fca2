"""``rsfast predict``."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

from ..engine.options import CertifyOptions, options_of
from ..noise import Noise
from .arguments import Commands, add_command, add_options, options_in, without_defaults
from .run_options import Counts, add_run_options, make_run, print_summary
from .sources import Sources
from .sweep import sweep

if TYPE_CHECKING:
    from ..runs.run import Run


def add(commands: Commands) -> None:
    parser = add_command(commands, "predict", run, "Predict with the smoothed model on images and write a run folder.")
    add_run_options(parser)
    declared = options_of(CertifyOptions)
    n = replace(declared["n"], default=1000, help="samples of an input (default: %(default)s)")
    add_options(parser, without_defaults({"n": n, "alpha": declared["alpha"]}))


def run(args: argparse.Namespace) -> int:
    return sweep(args, lambda noise: _settings(args, noise), _predict)


def _settings(args: argparse.Namespace, noise: Noise) -> tuple[int, float]:
    from ..runs.settings import prediction

    return prediction(noise, **({"n": None, "alpha": None} | options_in(args, ("n", "alpha"))))


def _predict(args: argparse.Namespace, noise: Noise, sources: Sources) -> Run:
    from ..runs.results import clean_accuracy

    made = make_run(args, noise, sources)
    counts = Counts(made)
    found = made.predict(*_settings(args, noise), each=counts)
    counts.add_up()
    if made.ranks.rank == 0:
        score = f"accuracy {clean_accuracy(found):.1%}" if found.labelled else "no labels"
        print_summary(args, found, counts.seconds(found), score)
    return made
