"""``rsfast recertify``: a run again, from its counts; or a changed model, from the run of the model before."""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..engine.options import ProofOptions, SamplingOptions, options_of
from .arguments import Commands, Parser, add_command, add_options, add_out, options_in
from .run_options import Counts, make_run, print_certified, refuse_runs_in_out
from .sources import add_reading_options, load_sources

if TYPE_CHECKING:
    from ..runs.results import Results

_NAMES = ("alpha", "bound", "rule", "lipschitz", "top_k")
_OF_A_MODEL = ("weights", "checkpoint", "data", "workers", "rtol")


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "recertify",
        run,
        "Certify a run again from its counts: another rule, bound or alpha, no model. Or certify a changed model, from the "
        "run of the model before and few samples of both.",
    )
    parser.add_argument("from_run", metavar="RUN", help="run folder of rsfast certify")
    add_out(parser)
    declared = options_of(ProofOptions)
    of_run = {name: declared[name].help.replace("%(default)s", "that of RUN") for name in _NAMES}
    add_options(parser, {name: replace(declared[name], default=None, help=of_run[name]) for name in _NAMES})
    _add_model_options(parser)


def _add_model_options(parser: Parser) -> None:
    group = parser.add_argument_group("of a changed model", "quantised, pruned, compiled or fine-tuned a little")
    add = group.add_argument
    add("--model", metavar="NAME", help="the changed model, by name as in certify")
    add("--weights", metavar="FILE", help="its weights, as in certify")
    add("--checkpoint", metavar="FILE", help="its checkpoint, as in certify")
    add(
        "--rtol",
        type=float,
        metavar="X",
        help="what may be lost, as a share of a radius of RUN or of their mean (default: 0.03)",
    )
    add("--data", metavar="NAME", help="where the images of RUN are now (default: where RUN says)")
    add_reading_options(group)


def run(args: argparse.Namespace) -> int:
    began = time.perf_counter()
    changed = args.model is not None or args.checkpoint is not None
    for name in ("bound", "rule", "lipschitz", "top_k") if changed else _OF_A_MODEL:
        if getattr(args, name) is not None:
            what = "cannot be given with --model, whose radii follow from RUN's" if changed else "needs --model"
            raise ValueError(f"--{name} {what}")
    if changed:
        print_certified(args, *_certify_changed(args))
        return 0
    from ..runs.recertify import recertify

    found = recertify(args.from_run, args.out, about={"command": args.command_line}, **options_in(args, _NAMES))
    print_certified(args, found, time.perf_counter() - began)
    return 0


def _certify_changed(args: argparse.Namespace) -> tuple[Results, float]:
    """Certify the model that --model names from a run; return its rows and the seconds that took."""
    from .._digests import state_dict_sha256
    from ..loading.models import load_model
    from ..loading.preprocessing import Preprocessing
    from ..noise import from_dict
    from ..runs.layout import SIDECAR, read_sidecar

    refuse_runs_in_out(args)
    before = read_sidecar(Path(args.from_run) / SIDECAR)
    if missing := [name for name in ("model", "data", "noise", "num_classes") if before.get(name) is None]:
        raise ValueError(f"{args.from_run} must be a run of rsfast certify, got one without {', '.join(missing)}")
    named = [name for name, option in options_of(SamplingOptions).items() if option.flags != ()]
    same = ("num_classes", "mean", "std", "start", "end", "skip", *named)
    settings: dict[str, Any] = {name: before.get(name) for name in same} | {"batch_size": "auto", "backend": "auto"}
    settings |= {"image_size": None, "log_json": None, "profile": False, "data": args.data or before["data"]}
    how = before.get("preprocessing")
    as_before = argparse.Namespace(**{**vars(args), **settings})
    noise = from_dict(before["noise"])
    made = make_run(as_before, noise, load_sources(as_before, noise, how and Preprocessing.from_dict(how)))
    given = {name: before.get(name) for name in ("weights", "checkpoint", "num_classes")}
    first = load_model(before["model"], **given, device=args.device).model
    if state_dict_sha256(first) != before.get("state_dict_sha256"):
        raise ValueError(
            f"{before['model']} must have the weights of {args.from_run}, got others; were they saved again since?"
        )
    options = {name: value for name in ("alpha", "rtol") if (value := getattr(args, name)) is not None}
    counts = Counts(made)
    found = made.recertify(args.from_run, first, each=counts, **options)
    counts.add_up()
    return found, counts.seconds(found)
