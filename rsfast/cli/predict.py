"""``rsfast predict``."""

from __future__ import annotations

import argparse
from dataclasses import replace

from .._check import check_count
from ..engine.options import CertifyOptions, options_of
from ..stats.common import check_alpha
from .arguments import Commands, add_command, add_options, noise_in
from .run_options import Counts, add_run_options, make_run, print_summary


def add(commands: Commands) -> None:
    parser = add_command(
        commands, "predict", run, "Predict with the smoothed model on a file of images and write a run folder."
    )
    add_run_options(parser)
    declared = options_of(CertifyOptions)
    n = replace(declared["n"], default=1000, help="samples of an input (default: %(default)s)")
    add_options(parser, {"n": n, "alpha": declared["alpha"]})


def run(args: argparse.Namespace) -> int:
    from ..runs import results

    check_alpha(args.alpha), check_count("n", args.n)  # a mistake shows before model and data are read
    made = make_run(args, noise_in(args))
    counts = Counts(made)
    found = made.predict(args.n, args.alpha, each=counts)
    counts.add_up()
    if made.ranks.rank == 0:
        score = f"accuracy {results.clean_accuracy(found):.1%}" if found.labelled else "no labels"
        print_summary(args, found, counts.seconds(found), score)
    return 0
