"""What `certify` and `predict` share: their options, the `Run` that these make, and the line at the end."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ..engine.options import SamplingOptions, options_of
from ..noise import Noise, radius_label
from ..noise.text import forms
from .arguments import Parser, add_options, add_out, noise, options_in, positive

if TYPE_CHECKING:
    from ..runs.results import Results
    from ..runs.run import Run
    from ..stats.certificate import Certificate

_HELP: dict[str, Any] = {"metavar": "M", "nargs": "+", "type": float}


def add_run_options(parser: Parser) -> None:
    """Add what names the model, the data and the folder, and the options of `rsfast.Run`."""
    add = parser.add_argument
    add("--model", required=True, metavar="MODULE:FACTORY", help="function without arguments that returns the model")
    add(
        "--weights",
        metavar="FILE",
        help="state_dict for the model: .safetensors, or what torch.load(weights_only=True) reads",
    )
    add(
        "--data",
        required=True,
        metavar="FILE.npz",
        help="arrays images, float32 (or uint8, with gridgaussian) [N, ...], and optionally labels, int [N]",
    )
    add("--num-classes", required=True, type=int, metavar="K", help="number of logits")
    either = parser.add_mutually_exclusive_group(required=True)
    either.add_argument("--sigma", type=float, help="standard deviation of Gaussian noise, in the units of images")
    text = (
        f"any noise, in the units of images, with radii in its norm: {forms()}; for a .npy file of one axis numbers do, as "
        "0.1,0.2,0.3 (a path with = is KEY=PATH, as sigmas=a=b.npy, and none has a colon)"
    )
    either.add_argument("--noise", type=noise, help=text)
    add_out(parser)
    add("--mean", help="the model's normalisation, one number or one a channel; --std too", **_HELP)
    add("--std", help="noisy images are fed to the model as (image - mean) / std", **_HELP | {"metavar": "S"})
    add(
        "--resume",
        action="store_true",
        help="go on with the run in --out, if there is one; where torchrun starts a job again, it does so by itself",
    )
    add("--start", type=int, default=0, metavar="I", help="first image (default: %(default)s)")
    add("--end", "--max", type=int, metavar="I", help="image to stop before (default: the number of images)")
    add("--skip", type=positive, default=1, metavar="K", help="take only images 0, K, 2K, ... (default: %(default)s)")
    add("--device", default="cpu", help="where the model runs: cpu, cuda or cuda:N (default: %(default)s)")
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


def make_run(args: argparse.Namespace, noise: Noise) -> Run:
    """Load what the options name, and return the run."""
    from ..runs.environment import Environment
    from ..runs.run import Run
    from .loading import file_sha256, join, load_data, load_model, restarts

    device, shard = join(args.device, args.shard)
    images, labels = load_data(args.data, args.num_classes, noise)
    model = load_model(args.model, args.weights, device)
    about = {
        "command": args.command_line,
        "model": args.model,
        "weights": args.weights,
        "weights_sha256": args.weights and file_sha256(args.weights),
        "data": args.data,
        "data_sha256": file_sha256(args.data),
    }
    names = ("num_classes", "start", "end", "skip", "mean", "std", "log_json", "profile")
    options = options_in(args, [*names, *options_of(SamplingOptions)]) | {"labels": labels, "device": device, "shard": shard}
    say = partial(print, f"{args.parser.prog}:", file=sys.stderr)
    environment = replace(args.environment or Environment(), say=say)
    resume = args.resume or restarts() > 0
    return Run(model, images, noise, args.out, resume=resume, about=about, environment=environment, **options)


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
    print(f"{args.out}: {progress(run)} images in {seconds:.1f} s, {score}, abstained {abstained}")
