"""``rsfast recertify``."""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

from ..engine.options import ProofOptions, options_of
from .arguments import Commands, add_command, add_options, add_out, options_in
from .run_options import print_certified

_NAMES = ("alpha", "bound", "rule", "lipschitz", "top_k")


def add(commands: Commands) -> None:
    parser = add_command(
        commands, "recertify", run, "Certify a run again from its counts: another rule, bound or alpha, no model."
    )
    parser.add_argument("from_run", metavar="RUN", help="run folder of rsfast certify")
    add_out(parser)
    declared = options_of(ProofOptions)
    of_run = {name: declared[name].help.replace("%(default)s", "that of RUN") for name in _NAMES}
    add_options(parser, {name: replace(declared[name], default=None, help=of_run[name]) for name in _NAMES})


def run(args: argparse.Namespace) -> int:
    from .._versions import versions
    from ..runs.recertify import recertify

    began = time.perf_counter()
    about = {"command": args.command_line, "versions": versions()}
    found = recertify(args.from_run, args.out, about=about, **options_in(args, _NAMES))
    print_certified(args, found, time.perf_counter() - began)
    return 0
