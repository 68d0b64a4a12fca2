"""What `certify` and `predict` share: their options, the `Run` that these make, and the line at the end."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..engine.options import SamplingOptions, options_of
from ..noise import Noise, radius_label
from ..noise.text import forms
from .arguments import Parser, add_options, add_out, noise, options_in, positive
from .sources import DATA, Sources, add_model_options, add_reading_options, mean_and_std

if TYPE_CHECKING:
    from ..runs.results import Results
    from ..runs.run import Run
    from ..stats.certificate import Certificate


def add_run_options(parser: Parser) -> None:
    """Add what names the model, the data and the folder, and the options of `rsfast.Run`."""
    add = parser.add_argument
    add_model_options(parser)
    add("--data", required=True, metavar="NAME", help=DATA)
    either = parser.add_mutually_exclusive_group(required=True)
    text = "standard deviation of Gaussian noise, in the units of images; for several, a run in OUT/sigma=S each"
    either.add_argument("--sigma", type=float, nargs="+", metavar="S", help=text)
    text = (
        f"any noise, in the units of images, with radii in its norm: {forms()}; for a .npy file of one axis numbers do, as "
        "0.1,0.2,0.3 (a path with = is KEY=PATH, as sigmas=a=b.npy, and none has a colon)"
    )
    either.add_argument("--noise", type=noise, help=text)
    add_out(parser)
    add_reading_options(parser)
    add("--start", type=int, default=0, metavar="I", help="first image (default: %(default)s)")
    add("--end", "--max", type=int, metavar="I", help="image to stop before (default: the number of images)")
    add("--skip", type=positive, default=1, metavar="K", help="take only images 0, K, 2K, ... (default: %(default)s)")
    add(
        "--log-json",
        metavar="FILE",
        help="append events as JSON lines, the figures of the progress bar with them, or - for stderr; "
        "of several processes each appends to its own file, log.0.jsonl for log.jsonl",
    )
    add(
        "--profile",
        action="store_true",
        help="write a torch.profiler trace of some batches to trace.json in the run folder (of the first process)",
    )
    add_options(parser, options_of(SamplingOptions))


def make_run(args: argparse.Namespace, noise: Noise, sources: Sources) -> Run:
    """Return the run of what was loaded, and say what that is."""
    from ..loading.models import RANDOM
    from ..loading.pictures import Pictures
    from ..runs.environment import Environment
    from ..runs.run import Run

    loaded, how, data, num_classes, device, shard = sources
    names = ("start", "end", "skip", "log_json", "profile")
    options = options_in(args, [*names, *options_of(SamplingOptions)]) | {"device": device, "shard": shard}
    options |= mean_and_std(args, how)
    say = partial(print, f"{args.parser.prog}:", file=sys.stderr)
    run = Run(
        loaded.model,
        data,
        noise,
        args.out,
        num_classes=num_classes,
        workers=args.workers if args.workers is not None else int(isinstance(data.items, Pictures)),
        resume=_resumes(args),
        about=_about(args, sources),
        environment=replace(args.environment or Environment(), say=say),
        **options,
    )
    if run.ranks.rank == 0 and how is not None:
        untrained = ", untrained" if args.weights == RANDOM else ""
        say(f"model: {loaded.name}{untrained}, {num_classes} classes; pictures: {how}")
        say(f"data: {data.description}")
    return run


def refuse_runs_in_out(args: argparse.Namespace) -> None:
    """Raise FileExistsError if --out holds a run that is not to be resumed: before anything is loaded."""
    from ..runs.merge import refuse_runs

    if not _resumes(args):
        refuse_runs(Path(args.out))


def _resumes(args: argparse.Namespace) -> bool:
    from .processes import restarts

    return args.resume or restarts() > 0


def _about(args: argparse.Namespace, sources: Sources) -> dict[str, Any]:
    """Return what the sidecar says of command, model and data."""
    loaded, how, data, num_classes, *_ = sources
    about = {
        "command": args.command_line,
        "model": loaded.name,
        "weights": args.weights,
        "weights_sha256": loaded.weights_sha256,
        "checkpoint": args.checkpoint,
        "data": args.data,
        "preprocessing": how and how.to_dict(),
    }
    if data.digest is not None:
        about["data_sha256"] = data.digest
    if len(data.class_names or ()) != num_classes:  # then the data's names are not those of the logits
        about["class_names"] = loaded.class_names
    return about


class Counts:
    """Images and samples of a command, over all processes, and the time that rows took; called with each row."""

    def __init__(self, run: Run) -> None:
        self._run, self._began = run, time.perf_counter()
        self.images = self.samples = 0

    def __call__(self, _: int, outcome: Certificate | int) -> None:
        self.images += 1
        self.samples += 0 if isinstance(outcome, int) else outcome.n0 + outcome.n

    def add_up(self) -> None:
        """Add the counts of the other processes."""
        if self._run.ranks.by_inputs:
            each = self._run.ranks.gather((self.images, self.samples))
            self.images, self.samples = map(sum, zip(*each, strict=True))

    def seconds(self, found: Results) -> float:
        """Return the seconds since the start, in which `images` rows were written; of a resumed run, those of all rows."""
        if self.images == len(found.idx) or found.seconds is None:
            return time.perf_counter() - self._began
        return found.seconds / (self._run.ranks.world if self._run.ranks.by_inputs else 1)  # which ran at once


def print_certified(args: argparse.Namespace, run: Results, seconds: float) -> None:
    """Print what a run certifies; of one that stopped sampling early first what it decided, and of the rest bounds."""
    from ..runs import results

    radius = radius_label(run.norm)
    if run.top_k > 1:
        print(f"radii are those within which the class is one of the {run.top_k} with the largest scores")
    for each in run.stopping.radii:
        print(f"{results.share_decided(run, each):.1%} certified at {radius} {each}")
    at_least = "at least " if run.stopping else ""
    acr = f"{at_least}{results.average_certified_radius(run):.3f}"
    score = f"mean {radius} {acr}, no labels"
    if run.labelled:
        accuracy = f"{at_least}{results.clean_accuracy(run):.1%}"
        score = f"certified accuracy at radius 0 {accuracy}, average certified {radius} {acr}"
    print_summary(args, run, seconds, score)


def print_summary(args: argparse.Namespace, run: Results, seconds: float, score: str) -> None:
    from ..runs.results import abstention_rate, progress

    abstained = f"{'at most ' if run.stopping else ''}{abstention_rate(run):.1%}"
    print(f"{args.out}: {progress(run, ' images')} in {seconds:.1f} s, {score}, abstained {abstained}")
