"""What names the model and the data on the command line and says how pictures are made, and what is loaded of these."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from ..noise import Noise
from .arguments import Parser, positive

if TYPE_CHECKING:
    import torch

    from ..loading.dataset import Data
    from ..loading.loaded import LoadedModel
    from ..loading.preprocessing import Preprocessing

DATA = (
    "FILE.npz (images and perhaps labels), FILE.npy, FILE.pt; a folder of pictures or of class folders; "
    "cifar10:DIR, cifar100:DIR, mnist:DIR, imagenet:DIR, hf:DIR; or MODULE:FACTORY, which returns a Dataset"
)
"""Help of --data."""
_HELP: dict[str, Any] = {"metavar": "M", "nargs": "+", "type": float}


def add_model_options(parser: Parser) -> None:
    """Add what names the model, and says how its pictures are made."""
    add = parser.add_argument
    add(
        "--model",
        metavar="NAME",
        help="MODULE:FACTORY, a function without arguments that returns the model; timm:NAME, torchvision:NAME, "
        "hf:FOLDER_OR_NAME, onnx:FILE, jit:FILE or export:FILE; may be left out with --checkpoint",
    )
    add(
        "--weights",
        metavar="FILE",
        help="state_dict for the model: .safetensors, or what torch.load(weights_only=True) reads; random: untrained "
        "(default: those that the library publishes)",
    )
    add(
        "--checkpoint",
        metavar="FILE",
        help="what training for randomized smoothing saves: arch, state_dict, and a normalising layer before the net",
    )
    add("--num-classes", type=positive, metavar="K", help="number of logits (default: as the model or the data say)")
    add("--mean", help="the model's normalisation, one number or one a channel; --std too", **_HELP)
    add(
        "--std",
        help="noisy images are fed to the model as (image - mean) / std (default of both: the model's own, if it is known)",
        **_HELP | {"metavar": "S"},
    )
    add(
        "--image-size",
        type=positive,
        metavar="S",
        help="make the shorter side of pictures S and crop them to S x S (default: as the model says)",
    )


def add_reading_options(parser: Any) -> None:
    """Add where the model runs, what reads pictures, and whether to go on."""
    add = parser.add_argument
    add(
        "--resume",
        action="store_true",
        help="go on with the run in --out, if there is one; where torchrun starts a job again, it does so by itself",
    )
    add_device(parser)
    add("--workers", type=int, metavar="N", help="processes that read pictures (default: 1 for files of pictures, else 0)")


def add_device(parser: Any) -> None:
    text = "where the model runs: cpu, cuda or cuda:N (default: %(default)s)"
    parser.add_argument("--device", default="cpu", help=text)


class Sources(NamedTuple):
    """What the options name, loaded."""

    model: LoadedModel
    how: Preprocessing | None
    data: Data
    num_classes: int
    device: torch.device
    shard: str | None


def load_sources(args: argparse.Namespace, noise: Noise, how: Preprocessing | None = None) -> Sources:
    """Load the model and the data that the options name; pictures are made as the model says, or as `how`."""
    import torch

    from ..loading.arrays import MappedRows
    from ..loading.data import load_data
    from .processes import join

    device, shard = join(args.device, args.shard)
    loaded, own = load_named_model(args, device)
    how = how or own
    data = load_data(args.data, preprocessing=how, num_classes=loaded.num_classes, bytes=noise.takes_bytes)
    if how is not None and isinstance(data.items, (torch.Tensor, MappedRows)):  # arrays, which are fed as they are
        how = replace(how, size=None, resize=None)
    warn_of_other_classes(args.data, data.class_names or (), loaded.class_names or ())
    num_classes = loaded.num_classes or len(data.class_names or ())
    if not num_classes:
        raise ValueError("--num-classes must be given, the number of logits: neither --model nor --data says it")
    return Sources(loaded, how, data, num_classes, device, shard)


def warn_of_other_classes(name: str, given: Sequence[str], own: Sequence[str]) -> None:
    """Warn if the data and the model both name a class, and its label is not that of the logit."""
    for label, one in enumerate(given):
        if one in own and (label >= len(own) or own[label] != one):
            warnings.warn(
                f"data {name} gives {one} the label {label}, and the model names its class {own.index(one)} so: labels must "
                "be the model's for accuracies to mean anything; rename the classes, or give the labels in an .npz file",
                UserWarning,
                stacklevel=2,
            )
            return


def load_named_model(args: argparse.Namespace, device: torch.device) -> tuple[LoadedModel, Preprocessing | None]:
    """Return the model that the options name, and its own preprocessing, changed as they say."""
    from ..loading.models import load_model
    from ..loading.preprocessing import Preprocessing

    given = {name: getattr(args, name) for name in ("weights", "checkpoint", "num_classes")}
    loaded = load_model(args.model, **given, device=device)
    own = loaded.preprocessing
    if args.image_size is not None:
        side = args.image_size
        own = replace(own or Preprocessing(), size=(side, side), resize=side)
        own = replace(own, source=f"{own.source}, --image-size".removeprefix(", "))
    if own is not None and args.mean is not None and args.std is not None:
        source = f"{own.source}, --mean, --std".removeprefix(", ")
        own = replace(own, mean=tuple(args.mean), std=tuple(args.std), source=source)
    return loaded, own


def mean_and_std(args: argparse.Namespace, how: Preprocessing | None) -> dict[str, Any]:
    """Return what noisy images are normalised by: the options, or if neither is given, the preprocessing."""
    given = how if how is not None and args.mean is None and args.std is None else args
    return {"mean": given.mean, "std": given.std}
