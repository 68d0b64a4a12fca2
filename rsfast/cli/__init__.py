"""The command line: ``rsfast demo | certify | predict | recertify | merge | analyze | plot | doctor``.

Commands import what they need (torch takes seconds), so that ``--help`` and ``analyze`` do without it.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TextIO

from .. import __version__
from ..engine.plan import Certification, Prediction, StoppingRule, largest_radius, smallest_n
from ..heads import HEADS, Head, Votes
from ..noise import Gaussian
from ..runs.folder import CERTIFY_COLUMNS, PREDICT_COLUMNS
from ..stats.common import check_alpha
from ..stats.prediction import smallest_predictable_n
from ..stats.registry import BOUNDS
from ..stats.rules import RULES, CertificationSpec

if TYPE_CHECKING:
    from ..runs.results import Results
    from ..runs.run import Run

_HEADS: dict[str, Callable[..., Head]] = {head.option.partition(":")[0]: head for head in HEADS.values()}
_HEAD_OPTIONS = " or".join(", ".join(head.option for head in HEADS.values()).rsplit(",", 1))


class _Parser(argparse.ArgumentParser):
    """One line for an error, where argparse prints the usage too: a screenful for `certify`."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {textwrap.shorten(message, 600)}\n")


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) < 1 << 33:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer from 1 to 2^33 - 1")
    return int(text)


def _folder(text: str) -> str:
    if not text:  # an unset variable of the shell, mostly, and not meant to be the working directory
        raise argparse.ArgumentTypeError("'' is no folder")
    return text


def _batch_size(text: str) -> int | str:
    return text if text == "auto" else _count(text)


def _head(text: str) -> Head:
    name, *parameters = text.split(":")
    try:
        return _HEADS[name](*map(float, parameters))
    except (KeyError, TypeError, ValueError) as error:
        what = f" ({error})" if isinstance(error, ValueError) else ""
        raise argparse.ArgumentTypeError(f"{text!r} is not {_HEAD_OPTIONS}{what}") from error


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
    certify.add_argument(
        "-n", "--n", type=_count, default=100_000, help="estimation samples an image (default: %(default)s)"
    )
    certify.add_argument(
        "--head",
        type=_head,
        default=Votes(),
        help=f"score that is averaged: {_HEAD_OPTIONS} (default: votes)",
    )
    _add_bound_and_rule(certify, "auto")
    early = certify.add_mutually_exclusive_group()
    early.add_argument(
        "--radius", type=float, metavar="R", help="stop sampling an image once its radius is R or will not be"
    )
    early.add_argument("--rtol", type=float, metavar="X", help="stop once its radius is known to this share, such as 0.05")

    predict = command("predict", _predict, "Predict with the smoothed model on a file of images and write a run folder.")
    _add_sampling_options(predict)
    predict.add_argument("-n", "--n", type=_count, default=1000, help="samples an image (default: %(default)s)")

    again = command("recertify", _recertify, "Certify a run again from its counts: another rule, bound or alpha, no model.")
    again.add_argument("from_run", metavar="RUN", help="run folder of rsfast certify")
    again.add_argument("--out", type=_folder, required=True, metavar="FOLDER", help="run folder to write")
    again.add_argument("--alpha", type=float, help="failure probability an image (default: that of RUN)")
    _add_bound_and_rule(again, None)

    merge = command("merge", _merge, "Write one run folder with the rows of several, run over parts of the same images.")
    merge.add_argument(
        "parts", nargs="+", metavar="PART", help="run folder; all must agree in model, data, seed and settings"
    )
    merge.add_argument("--out", type=_folder, required=True, metavar="FOLDER", help="run folder to write")

    analyze = command(
        "analyze", _analyze, "Print certified accuracies of runs, and accuracies of predictions, one row a run."
    )
    analyze.add_argument("--radii", nargs="+", type=float, metavar="R", help="default: round steps up to the largest radius")
    analyze.add_argument("--format", choices=("text", "markdown", "latex", "csv"), default="text", help="default: text")

    plot = command("plot", _plot, "Plot certified accuracy against radius.")
    plot.add_argument("--out", required=True, action="append", metavar="FILE", help=".png, .pdf or .svg; may be repeated")
    plot.add_argument("--title", help="above the figure")

    for reader in (analyze, plot):
        reader.add_argument(
            "runs",
            nargs="+",
            metavar="RUN",
            help="run folder, or a TSV with the columns label, predict, correct and, unless it is of predictions, radius; "
            "NAME=RUN names it",
        )

    command("doctor", _doctor, "Report versions and test every backend against known answers.")
    return parser


def _add_bound_and_rule(parser: argparse.ArgumentParser, default: str | None) -> None:
    said = default or "that of RUN"
    parser.add_argument("--bound", choices=("auto", *BOUNDS), default=default, help=f"confidence bound (default: {said})")
    parser.add_argument("--rule", choices=("auto", *RULES), default=default, help=f"radius rule (default: {said})")
    parser.add_argument(
        "--lipschitz",
        type=float,
        metavar="L",
        help="l2 Lipschitz constant of every class's soft score, per unit of what the model takes",
    )


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
    add("--out", type=_folder, required=True, metavar="FOLDER", help="run folder to write")
    add(
        "--clamp",
        nargs=2,
        type=float,
        metavar=("LOW", "HIGH"),
        help="clamp noisy images to [LOW, HIGH], in the units of images, before mean and std (default: no clamp)",
    )
    add(
        "--mean",
        nargs="+",
        type=float,
        metavar="M",
        help="the model's normalisation, one number or one a channel; --std too",
    )
    add("--std", nargs="+", type=float, metavar="S", help="noisy images are fed to the model as (image - mean) / std")
    add("--seed", type=int, help="of the noise, in [0, 2^64) (default: from the operating system; recorded)")
    add(
        "--resume",
        action="store_true",
        help="go on with the run in --out, if there is one; where torchrun starts a job again, it does so by itself",
    )
    add(
        "--batch-size",
        type=_batch_size,
        metavar="B",
        help="samples in a batch (default: auto, the fastest for long runs)",
    )
    add("--start", type=int, default=0, metavar="I", help="first image (default: %(default)s)")
    add("--end", "--max", type=int, metavar="I", help="image to stop before (default: the number of images)")
    add("--skip", type=_count, default=1, metavar="K", help="take images 0, K, 2K, ... alone (default: %(default)s)")
    add(
        "--dtype",
        choices=("float32", "float16", "bfloat16", "float64"),
        default="float32",
        help="what the model takes (default: float32)",
    )
    add("--channels-last", action="store_true", help="feed the model batches in torch.channels_last")
    add("--autocast", choices=("float16", "bfloat16"), help="run the model under torch.autocast")
    add("--compile", action="store_true", help="run the model through torch.compile")
    add("--cuda-graph", action="store_true", help="replay the model as a CUDA graph")
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
    add(
        "--shard",
        choices=("inputs", "samples"),
        help="what the processes of torchrun divide: images (default), or the samples of each",
    )
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

    show_others = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if category is UserWarning:
            _warn(args, str(message))  # one line, without the place in the source
        else:
            show_others(message, category, filename, lineno, file, line)

    try:
        with warnings.catch_warnings():
            warnings.showwarning = show
            status: int = args.run(args)
    except (ImportError, OSError, TypeError, ValueError) as error:
        args.parser.error(str(error))
    except KeyboardInterrupt:
        args.parser.exit(130, f"{args.parser.prog}: interrupted\n")
    return status


def _demo(args: argparse.Namespace) -> int:
    from .. import demo

    demo.run(args.out, images=args.images, seed=args.seed)
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from .. import doctor

    text, healthy = doctor.report()
    print(text)
    return 0 if healthy else 1


def _analyze(args: argparse.Namespace) -> int:
    from ..runs import results

    runs = _read_runs(args)
    if args.format == "csv":  # which has no place for them
        for note in results.notes(runs):
            _warn(args, note)
    if args.radii is not None and not any(run.has_radius for run in runs.values()):
        _warn(args, "--radii has no effect: predictions have no radius")
    print(results.table(runs, results.round_radii(runs) if args.radii is None else args.radii, args.format))
    return 0


def _plot(args: argparse.Namespace) -> int:
    from ..runs.plot import check_path, plot

    for path in args.out:
        check_path(path)
    runs = _read_runs(args)
    for path in args.out:
        plot(runs, path, title=args.title)
    return 0


def _read_runs(args: argparse.Namespace) -> dict[str, Results]:
    """Read the runs that are named, leave out those without rows, and say what to know before comparing them."""
    from ..runs import results
    from ..runs.tables import EmptyTable

    runs: dict[str, Results] = {}
    empty: list[EmptyTable] = []
    for text in args.runs:
        name, path = _named(text)
        if name in runs:
            raise ValueError(f"two runs are named {name!r}; write NAME=RUN to tell them apart")
        try:
            runs[name] = results.read(path)
        except EmptyTable as error:
            empty.append(error)
    if not runs:
        raise empty[0]
    for each in empty:
        _warn(args, f"{each}; it is left out")
    for caveat in results.caveats(runs):
        _warn(args, caveat)
    return runs


def _named(text: str) -> tuple[str, str]:
    """Split NAME=RUN at the last = after which there is a file or folder, at the last of all if there is none.

    What exists as it stands has no name of its own.
    """
    parts = text.split("=")
    splits = [("=".join(parts[:i]), "=".join(parts[i:])) for i in range(len(parts) - 1, 0, -1)]
    splits = [(name, run) for name, run in splits if name and run]
    if Path(text).exists() or not splits:
        return text, text
    return next((split for split in splits if Path(split[1]).exists()), splits[0])


def _certify(args: argparse.Namespace) -> int:
    from ..runs import results
    from ..runs.run import Run

    stopping = StoppingRule(args.radius, args.rtol)
    noise, alpha = Gaussian(args.sigma), check_alpha(args.alpha)
    spec = CertificationSpec(noise, alpha, args.head, args.bound, args.rule, args.lipschitz, early=bool(stopping))
    run = Run(args)
    settings = {
        "n0": args.n0,
        "n": args.n,
        "alpha": alpha,
        "head": args.head.to_dict(),
        "bound": spec.bound,
        "rule": spec.rule,
        "lipschitz": args.lipschitz,
        "radius": stopping.radius,
        "rtol": stopping.rtol,
    }
    recorded = {"seed": run.seed, "backend": run.backend, "execution": run.execution}
    plan = Certification([spec], stopping, n0=args.n0, n=args.n, **recorded)
    _warn_of_radius(args, plan.specs[0], stopping)
    used = images = 0
    began = time.perf_counter()
    for _, certificate in run.rows(plan, settings, CERTIFY_COLUMNS):
        images += 1
        used += certificate.n0 + certificate.n
    if run.ranks.by_inputs:
        used, images = map(sum, zip(*run.ranks.gather((used, images)), strict=True))
    if not run.first:
        return 0
    found = results.read(args.out)
    _print_certified(args, found, _seconds(run, found, images, began))
    if stopping and images:
        print(f"{used / images:,.0f} samples an image, of {args.n0 + args.n:,}")
    return 0


def _recertify(args: argparse.Namespace) -> int:
    from ..doctor import versions
    from ..runs.recertify import recertify

    began = time.perf_counter()
    about = {"command": args.command_line, "versions": versions()}
    run = recertify(
        args.from_run, args.out, alpha=args.alpha, bound=args.bound, rule=args.rule, lipschitz=args.lipschitz, about=about
    )
    _print_certified(args, run, time.perf_counter() - began)
    return 0


def _merge(args: argparse.Namespace) -> int:
    from ..runs.merge import merge

    merged, missing = merge(args.parts, args.out)
    for gap in missing:
        _warn(args, f"idx {gap[0]} is missing" if gap[0] == gap[-1] else f"idx {gap[0]} to {gap[-1]} are missing")
    print(f"{args.out}: {len(merged)} images from {len(args.parts)} run folders")
    return 0


def _predict(args: argparse.Namespace) -> int:
    from ..runs import results
    from ..runs.run import Run

    alpha = check_alpha(args.alpha)
    _warn_if_hopeless(args, smallest_predictable_n(alpha))
    run = Run(args)
    began = time.perf_counter()
    images = sum(1 for _ in run.rows(Prediction(args.n, alpha), {"n": args.n, "alpha": alpha}, PREDICT_COLUMNS))
    if run.ranks.by_inputs:
        images = sum(run.ranks.gather(images))
    if run.first:
        found = results.read(args.out)
        score = f"accuracy {results.clean_accuracy(found):.1%}" if found.labelled else "no labels"
        _print_summary(args, found, _seconds(run, found, images, began), score)
    return 0


def _warn_if_hopeless(args: argparse.Namespace, smallest: int) -> None:
    if args.n < smallest:
        why = f"every image abstains, whatever the votes: at --alpha {args.alpha} it must be at least {smallest}"
        _warn(args, f"--n is {args.n}, and {why}")


def _warn(args: argparse.Namespace, text: str) -> None:
    print(f"{args.parser.prog}: warning: {text}", file=sys.stderr)


def _warn_of_radius(args: argparse.Namespace, spec: CertificationSpec, stopping: StoppingRule) -> None:
    largest = largest_radius(spec, stopping, n0=args.n0, n=args.n, num_classes=args.num_classes)
    if largest == 0:
        _warn_if_hopeless(args, smallest_n(spec, stopping, n0=args.n0, num_classes=args.num_classes))
    elif stopping.radius is not None and largest < stopping.radius:
        why = f"no image can reach it: at --sigma {args.sigma} and --alpha {args.alpha}, --n {args.n} unanimous votes prove"
        _warn(args, f"--radius is {stopping.radius}, and {why} {largest:.4g}")


def _print_certified(args: argparse.Namespace, run: Results, seconds: float) -> None:
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
    _print_summary(args, run, seconds, score)


def _print_summary(args: argparse.Namespace, run: Results, seconds: float, score: str) -> None:
    from ..runs.results import abstention_rate, progress

    abstained = f"{'at most ' if run.stopping else ''}{abstention_rate(run):.1%}"
    print(f"{args.out}: {progress(run)} images in {seconds:.1f} s, {score}, abstained {abstained}")


def _seconds(run: Run, found: Results, images: int, began: float) -> float:
    """Return the seconds since `began`, in which `images` rows were written; of a resumed run, those of all rows."""
    if images == len(found.idx) or found.seconds is None:
        return time.perf_counter() - began
    return found.seconds / (run.ranks.world if run.ranks.by_inputs else 1)  # which ran at once
