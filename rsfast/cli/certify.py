"""``rsfast certify``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ..engine.options import CertifyOptions, ProofOptions, SamplingOptions, StoppingOptions, options_of
from ..heads import Votes
from ..noise import Noise
from .arguments import HEAD_OPTIONS, Commands, add_command, add_options, head, options_in, without_defaults
from .run_options import Counts, add_run_options, make_run, print_certified
from .sources import Sources
from .sweep import sweep

if TYPE_CHECKING:
    from ..runs.run import Run

_OPTIONS = {name: option for name, option in options_of(CertifyOptions).items() if name not in options_of(SamplingOptions)}


def add(commands: Commands) -> None:
    parser = add_command(commands, "certify", run, "Certify a model on images and write a run folder.")
    add_run_options(parser)
    add_options(parser, without_defaults(options_of(ProofOptions)))
    text = f"score that is averaged: {HEAD_OPTIONS} (default: votes)"
    parser.add_argument("--head", type=head, default=Votes(), help=text)
    add_options(parser.add_mutually_exclusive_group(), options_of(StoppingOptions))


def run(args: argparse.Namespace) -> int:
    from ..runs.settings import certification

    options = options_in(args, _OPTIONS)
    return sweep(args, lambda noise: certification(noise, args.head, options), _certify)


def _certify(args: argparse.Namespace, noise: Noise, sources: Sources) -> Run:
    made = make_run(args, noise, sources)
    counts = Counts(made)
    found = made.certify(args.head, each=counts, **options_in(args, _OPTIONS))
    counts.add_up()
    if made.ranks.rank == 0:
        print_certified(args, found, counts.seconds(found))
        if found.stopping and counts.images and found.sidecar is not None:
            most = found.sidecar["n0"] + found.sidecar["n"]
            print(f"{counts.samples / counts.images:,.0f} samples an image, of {most:,}")
    return made
