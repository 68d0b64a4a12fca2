"""``rsfast bench``."""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._check import as_real
from .._files import write_whole
from ..engine.options import ProofOptions, StoppingOptions, options_of
from .arguments import Commands, Parser, add_command, add_options, options_in, positive

if TYPE_CHECKING:
    import torch

    from ..bench.subject import Subject

_PROOF = ("n0", "n", "alpha")
_IMAGES = 8  # that the measurement keeps in memory
_HELP: dict[str, Any] = {"metavar": "M", "nargs": "+", "type": float}


def add(commands: Commands) -> None:
    parser = add_command(
        commands, "bench", run, "Measure the fastest way to certify a model here, and forecast how long a run takes."
    )
    _add_subject(parser)
    add = parser.add_argument
    proof = options_of(ProofOptions)
    add_options(parser, {name: proof[name] for name in _PROOF})
    stopping = options_of(StoppingOptions)
    help = "forecast a run with this option, too (default: %(default)s)"
    add("--radius", type=float, metavar="R", help=help.replace("%(default)s", "sigma"))
    add("--rtol", type=stopping["rtol"].parse, metavar="X", default=0.05, help=help)
    add("--from-run", metavar="RUN", help="run folder or table of certify, whose images stand for those of the forecast")
    add("--images", type=positive, default=10_000, metavar="I", help="images of the run (default: %(default)s)")
    add("--seconds", type=float, default=60.0, metavar="S", help="about how long to measure (default: %(default)g)")
    add("--json", metavar="FILE", help="write all that was measured as JSON; - for stdout, instead of the text")


def _add_subject(parser: Parser) -> None:
    """Add what names the model, its inputs and the noise, as for ``rsfast certify``."""
    add = parser.add_argument
    add("--model", required=True, metavar="MODULE:FACTORY", help="as in certify")
    add("--weights", metavar="FILE", help="as in certify")
    either = parser.add_mutually_exclusive_group(required=True)
    either.add_argument("--shape", type=positive, nargs="+", metavar="D", help="of an input, as 3 32 32: random inputs do")
    either.add_argument("--data", metavar="FILE.npz", help="as in certify; early decisions are forecast from these images")
    add("--num-classes", type=int, metavar="K", help="number of logits (default: as many as the model returns)")
    add("--sigma", type=float, required=True, help="standard deviation of Gaussian noise, in the units of images")
    add("--mean", help="as in certify", **_HELP)
    add("--std", help="as in certify", **_HELP | {"metavar": "S"})
    add("--device", default="cpu", help="where the model runs: cpu, cuda or cuda:N (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    from ..engine.plan import StoppingRule
    from ..noise import Gaussian

    as_real("--seconds", args.seconds, above=0)
    noise = Gaussian(args.sigma)
    if args.json not in (None, "-") and not Path(args.json).absolute().parent.is_dir():
        raise ValueError(f"--json must be a file in a folder that exists, or -, got {args.json}")
    radius = noise.sigma if args.radius is None else args.radius
    stopping = [StoppingRule(radius=radius), StoppingRule(rtol=args.rtol)]

    from ..bench.measure import Measurement
    from ..bench.run import bench

    say = partial(print, f"{args.parser.prog}:", file=sys.stderr, flush=True)
    data, subject = _subject(args, say)
    report = bench(
        Measurement(subject, seconds=args.seconds, say=say),
        data,
        name=args.model,
        certify=_certify(args, subject.num_classes),
        images=args.images,
        stopping=stopping,
        from_run=args.from_run,
    )
    found = json.dumps(report.to_dict(), indent=2, default=str) + "\n"
    if args.json == "-":
        print(found, end="")
        return 0
    if args.json is not None:
        write_whole(args.json, [found.encode()])
    print(report.text())
    return 0


def _subject(args: argparse.Namespace, say: Any) -> tuple[torch.Tensor | None, Subject]:
    """Load what the options name; return the images, if any, and what is to be measured."""
    from ..bench.run import classes_of, pick
    from ..bench.subject import Subject, random_inputs
    from ..noise import Gaussian
    from ..runs.settings import normalisation
    from .loading import find_device, load_data, load_model

    device, noise = find_device(args.device), Gaussian(args.sigma)
    data = None
    if args.data is not None:
        data, _ = load_data(args.data, args.num_classes or sys.maxsize, noise)
        images = pick(data, _IMAGES, device)
    else:
        images = random_inputs(_IMAGES, args.shape, device)
    model = load_model(args.model, args.weights, device)
    options = normalisation(args.mean, args.std, images.shape[1])
    num_classes = classes_of(model, args.model, images, noise, args.num_classes, options)
    if args.num_classes is None:
        say(f"--num-classes {num_classes}, as many logits as the model returns")
    return data, Subject(model, images, noise, num_classes, options, options_in(args, _PROOF))


def _certify(args: argparse.Namespace, num_classes: int) -> list[str]:
    """Return the words of the command ``rsfast certify`` that say what to certify."""
    words = ["rsfast", "certify", "--model", args.model]
    words += [] if args.weights is None else ["--weights", args.weights]
    words += ["--data", args.data or "FILE.npz", "--num-classes", str(num_classes), "--sigma", f"{args.sigma:g}"]
    for name in ("mean", "std"):
        if (values := getattr(args, name)) is not None:
            words += [f"--{name}", *map(repr, values)]
    defaults = {name: option.default for name, option in options_of(ProofOptions).items()}
    for name in _PROOF:
        if getattr(args, name) != defaults[name]:
            words += [f"--{name}", str(getattr(args, name))]
    words += [] if args.device == "cpu" else ["--device", args.device]
    return [*words, "--out", "run"]
