"""The command line: ``rsfast demo | certify | predict | analyze | plot | doctor``.

Commands import what they need (torch takes seconds), so that ``--help`` and ``analyze`` do without it.
"""

from __future__ import annotations

import argparse
import math
import secrets
import shlex
import signal
import sys
import textwrap
import threading
import time
from bisect import bisect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from . import __version__, bounds
from .certificate import ABSTAIN, Certificate, predictions, smallest_certifiable_n, smallest_predictable_n
from .evidence import BOUNDS
from .heads import ClippedLogits, Head, Softmax, Sparsemax, Votes
from .looks import Goal
from .looks import run as look
from .noise import STREAM_VERSION, Gaussian
from .rules import RULES, Method

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from .results import Results
    from .tally import Tally

_HEADS: dict[str, Callable[..., Head]] = {
    "votes": Votes,
    "softmax": Softmax,
    "sparsemax": Sparsemax,
    "clipped": ClippedLogits,
}
_MAX_COLUMNS = 8  # of certified accuracies in the table, after radius 0


class _Parser(argparse.ArgumentParser):
    """One line for an error, where argparse prints the usage too: a screenful for `certify`."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {textwrap.shorten(message, 600)}\n")


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) < 1 << 33:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer from 1 to 2^33 - 1")
    return int(text)


def _head(text: str) -> Head:
    name, *parameters = text.split(":")
    try:
        return _HEADS[name](*map(float, parameters))
    except (KeyError, TypeError, ValueError) as error:
        what = f" ({error})" if isinstance(error, ValueError) else ""
        raise argparse.ArgumentTypeError(
            f"{text!r} is not votes, softmax:T, sparsemax:T or clipped:LOW:HIGH{what}"
        ) from error


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="rsfast", description="Certify classifiers by randomized smoothing.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"rsfast {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(run=run, parser=sub)
        return sub

    demo = command("demo", _demo, "Train a small network, certify it, and time that against the 2019 loop.")
    demo.add_argument("--out", type=Path, default=Path("demo"), help="folder to write to (default: %(default)s)")
    demo.add_argument("--images", type=int, default=200, help="test images to certify (default: %(default)s)")
    demo.add_argument("--seed", type=int, default=2026, help="of training and certification (default: %(default)s)")

    certify = command("certify", _certify, "Certify a model on a file of images and write a run folder.")
    _add_sampling_options(certify)
    certify.add_argument("--n0", type=_count, default=100, help="selection samples an image (default: %(default)s)")
    certify.add_argument("--n", type=_count, default=100_000, help="estimation samples an image (default: %(default)s)")
    certify.add_argument(
        "--head",
        type=_head,
        default=Votes(),
        help="score that is averaged: votes, softmax:T, sparsemax:T or clipped:LOW:HIGH (default: votes)",
    )
    _add_bound_and_rule(certify, "auto")
    certify.add_argument("--resume", action="store_true", help="go on with the run in --out, if there is one")
    early = certify.add_mutually_exclusive_group()
    early.add_argument(
        "--radius", type=float, metavar="R", help="stop sampling an image once its radius is R or will not be"
    )
    early.add_argument("--rtol", type=float, metavar="X", help="stop once its radius is known to this share, such as 0.05")

    predict = command("predict", _predict, "Predict with the smoothed model on a file of images and write a run folder.")
    _add_sampling_options(predict)
    predict.add_argument("--n", type=_count, default=1000, help="samples an image (default: %(default)s)")

    again = command("recertify", _recertify, "Certify a run again from its counts: another rule, bound or alpha, no model.")
    again.add_argument("from_run", metavar="RUN", help="run folder of rsfast certify")
    again.add_argument("--out", required=True, metavar="FOLDER", help="run folder to write")
    again.add_argument("--alpha", type=float, help="failure probability an image (default: that of RUN)")
    _add_bound_and_rule(again, None)

    merge = command("merge", _merge, "Write one run folder with the rows of several, run over parts of the same images.")
    merge.add_argument(
        "parts", nargs="+", metavar="PART", help="run folder; all must agree in model, data, seed and settings"
    )
    merge.add_argument("--out", required=True, metavar="FOLDER", help="run folder to write")

    analyze = command("analyze", _analyze, "Print certified accuracies of runs, one row a run.")
    analyze.add_argument("--radii", nargs="+", type=float, metavar="R", help="default: round steps up to the largest radius")
    analyze.add_argument("--format", choices=("text", "markdown", "latex", "csv"), default="text", help="default: text")

    plot = command("plot", _plot, "Plot certified accuracy against radius.")
    plot.add_argument("--out", required=True, action="append", metavar="FILE", help=".png or .pdf; may be repeated")
    plot.add_argument("--title", help="above the figure")

    for reader in (analyze, plot):
        reader.add_argument(
            "runs", nargs="+", metavar="RUN", help="run folder, or TSV of Cohen et al.'s certify.py; NAME=RUN names it"
        )

    command("doctor", _doctor, "Report versions and test every backend against known answers.")
    return parser


def _add_bound_and_rule(parser: argparse.ArgumentParser, default: str | None) -> None:
    said = default or "that of RUN"
    parser.add_argument("--bound", choices=("auto", *BOUNDS), default=default, help=f"confidence bound (default: {said})")
    parser.add_argument("--rule", choices=("auto", *RULES), default=default, help=f"radius rule (default: {said})")
    parser.add_argument("--lipschitz", type=float, metavar="L", help="l2 Lipschitz constant of every class's soft score")


def _add_sampling_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", required=True, metavar="MODULE:FACTORY", help="function without arguments that returns the model")
    add(
        "--weights",
        metavar="FILE",
        help="state_dict for the model: .safetensors, or what torch.load(weights_only=True) reads",
    )
    add("--data", required=True, metavar="FILE.npz", help="arrays images, float32 [N, ...], and optionally labels, int [N]")
    add("--num-classes", required=True, type=int, metavar="K", help="number of logits")
    add("--sigma", required=True, type=float, help="standard deviation of the noise, in the units of images")
    add("--alpha", type=float, default=0.001, help="failure probability an image (default: %(default)s)")
    add("--out", required=True, metavar="FOLDER", help="run folder to write")
    add(
        "--mean",
        nargs="+",
        type=float,
        metavar="M",
        help="the model's normalisation, one number or one a channel; --std too",
    )
    add("--std", nargs="+", type=float, metavar="S", help="noisy images are fed to the model as (image - mean) / std")
    add("--seed", type=int, help="of the noise, in [0, 2^64) (default: from the operating system; recorded)")
    add("--batch-size", type=_count, metavar="B", help="samples in a batch (default: 16 MiB of noise)")
    add("--start", type=int, default=0, metavar="I", help="first image (default: %(default)s)")
    add("--end", "--max", type=int, metavar="I", help="image to stop before (default: the number of images)")
    add("--skip", type=_count, default=1, metavar="K", help="take images 0, K, 2K, ... alone (default: %(default)s)")
    add(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        default="float32",
        help="what the model takes (default: float32)",
    )
    add("--channels-last", action="store_true", help="feed the model batches in torch.channels_last")
    add("--device", default="cpu", help="where the model runs: cpu, cuda or cuda:N (default: %(default)s)")
    add("--backend", default="auto", help="auto, cpu, cuda, triton or reference (default: %(default)s)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments after the program's name; those of the process if left out.

    Raises
    ------
    SystemExit
        With code 2, after one line on stderr, for a mistake in the arguments or the files they name; with code 130 if
        interrupted, 143 if terminated.
    """
    argv = sys.argv[1:] if argv is None else argv
    args, unknown = _parser().parse_known_args(argv)
    if unknown:  # said here, so that the command's name stands before it
        args.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    args.command_line = shlex.join(["rsfast", *argv])
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: args.parser.exit(143, f"{args.parser.prog}: terminated\n"))
    try:
        status: int = args.run(args)
    except (ImportError, OSError, TypeError, ValueError) as error:
        args.parser.error(str(error))
    except KeyboardInterrupt:
        args.parser.exit(130, f"{args.parser.prog}: interrupted\n")
    return status


def _demo(args: argparse.Namespace) -> int:
    from . import demo

    demo.run(args.out, images=args.images, seed=args.seed)
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from . import doctor

    text, healthy = doctor.report()
    print(text)
    return 0 if healthy else 1


def _analyze(args: argparse.Namespace) -> int:
    from . import results

    runs = _read_runs(args.runs)
    print(results.table(runs, _default_radii(runs.values()) if args.radii is None else args.radii, args.format))
    return 0


def _plot(args: argparse.Namespace) -> int:
    from .plot import plot

    runs = _read_runs(args.runs)
    for path in args.out:
        plot(runs, path, title=args.title)
    return 0


def _read_runs(texts: Iterable[str]) -> dict[str, Results]:
    from . import results

    runs: dict[str, Results] = {}
    for text in texts:
        name, _, path = text.partition("=")
        if not path or Path(text).exists():
            name = path = text
        if name in runs:
            raise ValueError(f"two runs are named {name!r}; write NAME=RUN to tell them apart")
        runs[name] = results.read(path)
    return runs


def _default_radii(runs: Iterable[Results]) -> list[float]:
    """Return 0 and the multiples, at most _MAX_COLUMNS, of a round step up to the largest certified radius."""
    largest = max((float(run.radius[run.certified].max(initial=0)) for run in runs), default=0.0)
    if largest == 0:
        return [0.0]
    decade = 10.0 ** math.floor(math.log10(largest / _MAX_COLUMNS))
    step = next(step for step in (decade, 2.5 * decade, 5 * decade, 10 * decade) if largest / step <= _MAX_COLUMNS)
    return [float(f"{i * step:.6g}") for i in range(int(largest / step) + 1)]


def _certify(args: argparse.Namespace) -> int:
    from . import results

    goal = Goal(args.radius, args.rtol)
    noise, alpha = Gaussian(args.sigma), bounds.check_alpha(args.alpha)
    method = Method(noise, alpha, args.head, args.bound, args.rule, args.lipschitz, looks=bool(goal))
    if method.bound == "clopper_pearson":
        _warn_if_hopeless(args, smallest_certifiable_n(alpha))
    job = _Job(args, args.head)
    settings = {
        "n0": args.n0,
        "n": args.n,
        "alpha": alpha,
        "head": args.head.to_dict(),
        "bound": method.bound,
        "rule": method.rule,
        "lipschitz": args.lipschitz,
        "radius": goal.radius,
        "rtol": goal.rtol,
    }
    used = decided = 0
    began = time.perf_counter()
    with job.recorder(settings, results.CERTIFY_COLUMNS, args.n0 + args.n, resume=args.resume) as record:
        for index in job.left:
            drawn: list[Tally] = []

            def draw(
                _: object,
                samples: range,
                stream: str,
                tracked: NDArray[np.int64] | None,
                index: int = index,
                drawn: list[Tally] = drawn,
            ) -> Tally:
                drawn.append(job.draw(index, samples, stream, tracked))
                return drawn[-1]

            [[certificate]] = look(draw, [method], goal, n0=args.n0, n=args.n, seed=job.seed, input_ids=[index])
            record(index, certificate, drawn[:1], drawn[1:])
            used += certificate.n0 + certificate.n
            decided += certificate.radius >= (goal.radius or 0)
    _print_certified(args, results.read(args.out), time.perf_counter() - began)
    if goal.radius and job.left:
        print(f"{decided / len(job.left):.1%} certified at radius {goal.radius}")
    if goal and job.left:
        print(f"{used / len(job.left):,.0f} samples an image, of {args.n0 + args.n:,}")
    return 0


def _recertify(args: argparse.Namespace) -> int:
    from .doctor import versions
    from .recertify import recertify

    began = time.perf_counter()
    about = {"command": args.command_line, "versions": versions()}
    run = recertify(
        args.from_run, args.out, alpha=args.alpha, bound=args.bound, rule=args.rule, lipschitz=args.lipschitz, about=about
    )
    _print_certified(args, run, time.perf_counter() - began)
    return 0


def _merge(args: argparse.Namespace) -> int:
    from . import results

    merged, missing = results.merge(args.parts, args.out)
    for _, group in groupby(missing, key=lambda idx: bisect(merged, idx)):  # those between the same two rows
        gap = list(group)
        said = f"idx {gap[0]} is missing" if len(gap) == 1 else f"idx {gap[0]} to {gap[-1]} are missing"
        print(f"{args.parser.prog}: warning: {said}", file=sys.stderr)
    print(f"{args.out}: {len(merged)} images from {len(args.parts)} run folders")
    return 0


def _predict(args: argparse.Namespace) -> int:
    from . import results

    alpha = bounds.check_alpha(args.alpha)
    _warn_if_hopeless(args, smallest_predictable_n(alpha))
    job = _Job(args, Votes())
    predicted = []
    began = time.perf_counter()
    with job.recorder({"n": args.n, "alpha": alpha}, results.PREDICT_COLUMNS, args.n) as record:
        for index in job.left:
            tally = job.draw(index, range(args.n), "estimation")
            (prediction,) = predictions(tally, alpha)
            record(index, prediction, [], [tally])
            predicted.append(prediction)
    score = "no labels"
    if job.labels is not None:
        right = sum(prediction == job.labels[index] for index, prediction in zip(job.indices, predicted, strict=True))
        score = f"accuracy {right / len(predicted):.1%}"
    _print_summary(args, len(predicted), time.perf_counter() - began, score, predicted.count(ABSTAIN) / len(predicted))
    return 0


def _warn_if_hopeless(args: argparse.Namespace, smallest: int) -> None:
    if args.n < smallest:
        why = f"every image abstains, whatever the votes: at --alpha {args.alpha} it must be at least {smallest}"
        print(f"{args.parser.prog}: warning: --n is {args.n}, and {why}", file=sys.stderr)


def _print_certified(args: argparse.Namespace, run: Results, seconds: float) -> None:
    from . import results

    score = f"mean radius {run.radius.mean():.3f}, no labels"
    if (run.label >= 0).any():
        score = (
            f"certified accuracy at radius 0 {results.clean_accuracy(run):.1%}, "
            f"average certified radius {results.average_certified_radius(run):.3f}"
        )
    _print_summary(args, len(run.idx), seconds, score, results.abstention_rate(run))


def _print_summary(args: argparse.Namespace, images: int, seconds: float, score: str, abstained: float) -> None:
    print(f"{args.out}: {images} images in {seconds:.1f} s, {score}, abstained {abstained:.1%}")


class _Job:
    """The model, the images and the noise that `certify` and `predict` were asked for, loaded and tried on one sample."""

    def __init__(self, args: argparse.Namespace, head: Head) -> None:
        import torch

        from . import ops
        from .loading import find_device, load_data, load_model
        from .sampler import automatic_batch_size

        self.args, self.head, self.noise = args, head, Gaussian(args.sigma)
        self.started = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self.seed = _seed(args)
        self.images, self.labels = load_data(args.data, args.num_classes)
        self.indices = _indices(args.start, args.end, args.skip, len(self.images))
        self.device = find_device(args.device)
        self.model = load_model(args.model, args.weights, self.device)
        self.options: dict[str, Any] = {
            "batch_size": args.batch_size or automatic_batch_size(self.images.shape[1:]),
            "dtype": getattr(torch, args.dtype),
            "channels_last": args.channels_last,
            "backend": ops.backend_for(args.backend, self.device),
            **_normalisation(args.mean, args.std, self.images.shape[1]),
        }
        self.progress: Callable[[int], object] = lambda samples: None
        try:  # so that a model that does not fit fails before there is a run folder
            self.draw(self.indices[0], range(1), "user")
        except RuntimeError as error:
            shape = [1, *self.images.shape[1:]]
            raise ValueError(f"--model {args.model} fails on a batch {shape} of {args.dtype}: {error}") from error

    def draw(self, index: int, samples: range, stream: str, tracked: NDArray[np.int64] | None = None) -> Tally:
        """Sample one image, under its place in the file: other images change nothing, so neither does sharding."""
        from .api import sample

        return sample(
            self._forward,
            self.images[index : index + 1].to(self.device),
            self.noise,
            num_classes=self.args.num_classes,
            n=len(samples),
            start=samples.start,
            stream=stream,
            heads=(self.head,),
            tracked=tracked,
            seed=self.seed,
            input_ids=[index],
            **self.options,
        )

    def _forward(self, batch: torch.Tensor) -> torch.Tensor:
        logits = self.model(batch)
        self.progress(len(batch))
        return logits

    @contextmanager
    def recorder(
        self, settings: dict[str, Any], columns: tuple[str, ...], samples: int, *, resume: bool = False
    ) -> Iterator[Callable[..., None]]:
        """Open the run folder, show progress over `samples` samples an image, and yield what writes an image's row."""
        from tqdm import tqdm

        from .results import RunWriter

        with RunWriter(self.args.out, self._sidecar(settings), columns, resume=resume) as run:
            self.left = [index for index in self.indices if index not in run.done]
            began = time.perf_counter()

            def record(index: int, outcome: Certificate | int, selection: list[Tally], estimation: list[Tally]) -> None:
                nonlocal began
                counts: dict[str, Any] = {}
                for stream, tallies in (("selection", selection), ("estimation", estimation)):
                    ranges = [tally.integers(0) for tally in tallies]
                    counts |= {stream: ranges[0] if len(ranges) == 1 else ranges} if ranges else {}
                bar.total -= samples - sum(int(tally.n) for tally in selection + estimation)  # stopped early
                ended = time.perf_counter()
                run.write(index, None if self.labels is None else self.labels[index], outcome, ended - began, counts)
                began = ended

            with tqdm(total=len(self.left) * samples, unit="sample", unit_scale=True, disable=None) as bar:
                self.progress = bar.update
                yield record

    def _sidecar(self, settings: dict[str, Any]) -> dict[str, Any]:
        from .doctor import versions
        from .loading import file_sha256, state_dict_sha256

        args = self.args
        return {
            "command": args.command_line,
            "started": self.started,
            **settings,
            "noise": self.noise.to_dict(),
            "seed": self.seed,
            "stream_version": STREAM_VERSION,
            "num_classes": args.num_classes,
            "model": args.model,
            "state_dict_sha256": state_dict_sha256(self.model),
            "weights": args.weights,
            "weights_sha256": args.weights and file_sha256(args.weights),
            "data": args.data,
            "data_sha256": file_sha256(args.data),
            "start": self.indices.start,
            "end": self.indices.stop,
            "skip": self.indices.step,
            "mean": args.mean,
            "std": args.std,
            "batch_size": self.options["batch_size"],
            "dtype": args.dtype,
            "channels_last": args.channels_last,
            "device": str(self.device),
            "backend": self.options["backend"],
            "versions": versions(),
        }


def _seed(args: argparse.Namespace) -> int:
    """Return --seed, that of the run to resume, or one of the operating system's."""
    from . import ops, results

    if args.seed is None and getattr(args, "resume", False) and (Path(args.out) / results.SIDECAR).exists():
        return ops.check_seed(results.read_sidecar(Path(args.out) / results.SIDECAR).get("seed"))
    return ops.check_seed(secrets.randbits(64) if args.seed is None else args.seed)


def _indices(start: int, end: int | None, skip: int, count: int) -> range:
    """Return the multiples of skip from start to end, so that shards take what one run takes."""
    stop = count if end is None else end
    if not 0 <= start < stop <= count:
        raise ValueError(
            f"--start is {start} and --end is {stop}; they must be 0 <= start < end <= {count}, the images in --data"
        )
    indices = range(start + -start % skip, stop, skip)
    if not indices:
        raise ValueError(f"--skip is {skip}, and no multiple of it lies from --start {start} to before --end {stop}")
    return indices


def _normalisation(mean: list[float] | None, std: list[float] | None, channels: int) -> dict[str, list[float]]:
    """Return (y - mean) / std as the scale and shift of `ops.perturb`."""
    if mean is None and std is None:
        return {}
    if mean is None or std is None:
        raise ValueError("--mean and --std go together; give 0 for no mean, 1 for no std")
    for name, values in (("--mean", mean), ("--std", std)):
        if len(values) not in (1, channels):
            raise ValueError(f"{name} has {len(values)} numbers; it must have 1 or {channels}, one a channel")
    if not all(0 < s < math.inf for s in std):
        raise ValueError(f"--std is {std}; each must be positive and finite")
    mean, std = (values * (channels // len(values)) for values in (mean, std))
    return {"scale": [1 / s for s in std], "shift": [-m / s for m, s in zip(mean, std, strict=True)]}
