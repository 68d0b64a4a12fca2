"""``rsfast predict``."""

from __future__ import annotations

import argparse
from dataclasses import replace

from ..engine.options import CertifyOptions, options_of
from .arguments import Commands, add_command, add_options, noise_in, options_in, without_defaults
from .run_options import Counts, add_run_options, make_run, print_summary


def add(commands: Commands) -> None:
    parser = add_command(
        commands, "predict", run, "Predict with the smoothed model on a file of images and write a run folder."
    )
    add_run_options(parser)
    declared = options_of(CertifyOptions)
    n = replace(declared["n"], default=1000, help="samples of an input (default: %(default)s)")
    add_options(parser, without_defaults({"n": n, "alpha": declared["alpha"]}))


def run(args: argparse.Namespace) -> int:
    from ..runs import results, settings

    noise, given = noise_in(args), options_in(args, ("n", "alpha"))
    n, alpha = settings.prediction(
        noise, given.get("n"), given.get("alpha")
    )  # a mistake shows before model and data are read
    made = make_run(args, noise)
    counts = Counts(made)
    found = made.predict(n, alpha, each=counts)
    counts.add_up()
    if made.ranks.rank == 0:
        score = f"accuracy {results.clean_accuracy(found):.1%}" if found.labelled else "no labels"
        print_summary(args, found, counts.seconds(found), score)
    return 0
