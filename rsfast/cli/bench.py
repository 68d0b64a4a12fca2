"""``rsfast bench``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._check import as_real
from .._files import write_whole
from ..engine.options import ProofOptions, StoppingOptions, options_of
from .arguments import Commands, Parser, add_command, add_options, options_in, positive
from .sources import DATA, add_device, add_model_options, load_named_model, mean_and_std

if TYPE_CHECKING:
    from ..bench.subject import Subject
    from ..loading.dataset import Data

_PROOF = ("n0", "n", "alpha")
_IMAGES = 8  # that the measurement keeps in memory


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
    add("--radius", type=float, nargs="+", metavar="R", help=help.replace("%(default)s", "sigma"))
    add("--rtol", type=stopping["rtol"].parse, metavar="X", default=0.05, help=help)
    add("--from-run", metavar="RUN", help="run folder or table of certify, whose images stand for those of the forecast")
    add("--images", type=positive, default=10_000, metavar="I", help="images of the run (default: %(default)s)")
    add("--seconds", type=float, default=60.0, metavar="S", help="about how long to measure (default: %(default)g)")
    add("--json", metavar="FILE", help="write all that was measured as JSON; - for stdout, instead of the text")


def _add_subject(parser: Parser) -> None:
    """Add what names the model, its inputs and the noise, as for ``rsfast certify``."""
    add_model_options(parser)
    add = parser.add_argument
    either = parser.add_mutually_exclusive_group(required=True)
    either.add_argument("--data", metavar="NAME", help=f"{DATA}. Early decisions are forecast from its inputs")
    either.add_argument("--shape", type=positive, nargs="+", metavar="D", help="of an input, as 3 32 32: random inputs do")
    add("--sigma", type=float, required=True, help="standard deviation of Gaussian noise, in the units of images")
    add_device(parser)


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
    data, subject = _load(args, say)
    report = bench(
        Measurement(subject, seconds=args.seconds, say=say),
        data,
        name=args.model or args.checkpoint,
        certify=_certify(args, subject.num_classes),
        images=args.images,
        stopping=stopping,
        from_run=args.from_run,
    )
    found = json.dumps(report.to_dict(), indent=2) + "\n"
    if args.json == "-":
        print(found, end="")
        return 0
    if args.json is not None:
        write_whole(args.json, [found.encode()])
    print(report.text())
    return 0


def _load(args: argparse.Namespace, say: Callable[[str], object]) -> tuple[Data | None, Subject]:
    """Load what the options name; return the data, if there is any, and what is to be measured."""
    from ..bench.run import classes_of, pick
    from ..bench.subject import Subject, random_inputs
    from ..loading.data import load_data
    from ..noise import Gaussian
    from ..runs.settings import normalisation
    from .processes import find_device

    device, noise = find_device(args.device), Gaussian(args.sigma)
    loaded, how = load_named_model(args, device)
    data = None
    if args.data is not None:
        data = load_data(args.data, preprocessing=how, num_classes=loaded.num_classes)
    images = random_inputs(_IMAGES, args.shape, device) if data is None else pick(data, _IMAGES, device)
    options = normalisation(**mean_and_std(args, how), channels=images.shape[1])
    num_classes = classes_of(loaded.model, loaded.name, images, noise, loaded.num_classes, options)
    if loaded.num_classes is None:
        say(f"--num-classes {num_classes}, as many logits as the model returns")
    return data, Subject(loaded.model, images, noise, num_classes, options, options_in(args, _PROOF))


def _certify(args: argparse.Namespace, num_classes: int) -> list[str]:
    """Return the words of the command ``rsfast certify`` that say what to certify."""
    given: dict[str, Any] = {name: getattr(args, name) for name in ("model", "weights", "checkpoint")}
    given |= {"data": args.data or "FILE.npz", "num-classes": num_classes, "sigma": args.sigma}
    given |= {"mean": args.mean, "std": args.std, "image-size": args.image_size}
    defaults = {name: option.default for name, option in options_of(ProofOptions).items()}
    given |= {name: getattr(args, name) for name in _PROOF if getattr(args, name) != defaults[name]}
    given |= {"device": None if args.device == "cpu" else args.device, "out": "run"}
    words = ["rsfast", "certify"]
    for name, value in given.items():
        if value is not None:
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return words
