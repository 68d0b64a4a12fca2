"""Arguments of a run, checked before any work is done; and by what it knows its model again: bytes and first logits."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils.data import IterableDataset

from .. import _hints as hints
from .._check import as_int
from ..api import sample
from ..engine.forward import Model, check_logits
from ..engine.options import (
    CertifyOptions,
    ProofOptions,
    SamplingOptions,
    StoppingOptions,
    part,
    prediction_options,
    proof_options,
    refuse_unknown,
)
from ..engine.plan import StoppingRule
from ..heads import Head, check_head
from ..noise import Noise
from ..stats.common import analysis_ends
from ..stats.rules import CertificationSpec

_FIRST = ("n0", "n", "alpha", "head", "bound", "rule")  # the order in a sidecar; further options follow
_MANY = 1 << 20  # samples: schedules of analyses that differ do so before that
_LOGITS = 16  # of the first image, recorded to know the model by


class Settings(NamedTuple):
    """How a run certifies, and what its sidecar says of that."""

    spec: CertificationSpec
    stopping: StoppingRule
    n0: int
    n: int
    recorded: dict[str, Any]


def certification(noise: Noise, head: Head, options: Mapping[str, Any]) -> Settings:
    """Return how to certify, from the options of `certify` that say how to prove and when to stop.

    Raises
    ------
    TypeError, ValueError
        If an option is not valid, or bound, rule and head do not go together.
    """
    if wrong := options.keys() & SamplingOptions.__annotations__.keys():
        raise TypeError(f"keyword arguments must be of the certification, got {', '.join(wrong)}; give those to Run")
    refuse_unknown(CertifyOptions, options)
    values, stopping = (
        proof_options(noise, check_head("head", head), options),
        StoppingRule(**part(StoppingOptions, options)),
    )
    proof = {name: value for name, value in values.items() if name not in ("n0", "n")}
    spec = CertificationSpec(noise, head=head, early=bool(stopping), **proof)  # type: ignore[arg-type]
    radius = list(stopping.radii) if len(stopping.radii) > 1 else stopping.radius
    used = {
        **values,
        "radius": radius,
        "rtol": stopping.rtol,
        "head": head.to_dict(),
        "bound": spec.bound,
        "rule": spec.rule,
    }
    names = [*_FIRST, *ProofOptions.__annotations__, *StoppingOptions.__annotations__]
    recorded = {name: used[name] for name in names if not (name == "top_k" and used[name] == 1)}  # as runs from before
    if stopping and spec.limits_by.analysis_ends(_MANY) != analysis_ends(_MANY):  # runs from before have those of all bounds
        recorded["schedule_of_analyses"] = "a tenth apart"
    return Settings(spec, stopping, values["n0"], values["n"], recorded)


def prediction(noise: Noise, n: int | None, alpha: float | None) -> tuple[int, float]:
    """Return n and alpha of a run that predicts, checked; of random noise 1000 and 0.001 where they are left out."""
    if noise.evaluations is None:
        n, alpha = 1000 if n is None else n, 0.001 if alpha is None else alpha
    return prediction_options(noise, n, alpha)


def check_images(images: object, noise: Noise) -> torch.Tensor:
    """Return images; where the noise takes bytes they may be uint8."""
    if not isinstance(images, torch.Tensor):
        raise TypeError(
            "images must be a tensor, float32 [N, ...], or a Dataset with __len__ and __getitem__, got a "
            f"{type(images).__name__}"
        )
    if images.dtype != torch.float32 and not (noise.takes_bytes and images.dtype == torch.uint8):
        hint = "; pass images.float() / 255" if images.dtype == torch.uint8 else ""
        if hint and noise.for_bytes:
            hint += f", or take {noise.for_bytes}"
        raise TypeError(f"images must be float32, got {images.dtype}{hint}")
    if images.ndim < 2 or not images.numel():
        raise ValueError(f"images must be [N, ...] and not empty, got {list(images.shape)}")
    return images


def is_dataset(images: object) -> bool:
    """Return whether this is a map-style Dataset: it has a length and takes an index, and is no tensor, array or list."""
    if isinstance(images, (torch.Tensor, IterableDataset, Sequence, Mapping)) or hasattr(images, "__array__"):
        return False
    return hasattr(images, "__len__") and hasattr(images, "__getitem__")


def check_workers(workers: object) -> int:
    most = 8 * (os.cpu_count() or 1)  # each takes the memory of a Python with torch
    if not 0 <= (count := as_int("workers", workers)) <= most:
        raise ValueError(
            f"workers must be from 0 to {most}, 8 for each core here, got {count}; 0 reads images in this process"
        )
    return count


def check_labels(
    name: str,
    labels: Sequence[int] | torch.Tensor | None,
    count: int,
    num_classes: int,
    title: Callable[[int], str] = "images[{}]".format,
) -> list[int] | None:
    """Return labels as a list; raise an error that calls them `name`, and the image of one that is wrong by its title."""
    if labels is None:
        return None
    if not isinstance(labels, Iterable):
        raise TypeError(f"{name} must be a sequence of int, got {labels!r:.80}")
    found = [as_int(name, each) for each in (labels.tolist() if isinstance(labels, torch.Tensor) else labels)]
    if len(found) != count:
        raise ValueError(f"{name} must be one an image, {count} in all, got {len(found)}")
    if not 0 <= min(found) <= max(found) < num_classes:
        index = next(place for place, label in enumerate(found) if not 0 <= label < num_classes)
        got = f"{min(found)} to {max(found)}: {found[index]} for {title(index)}"
        raise ValueError(f"{name} must be from 0 to {num_classes - 1}, got {got}")
    return found


def check_texts(name: str, texts: object, count: int | None = None) -> list[str] | None:
    """Return names as a list: of the images, `count` of them, or of the classes."""
    if texts is None:
        return None
    if not isinstance(texts, Iterable) or isinstance(texts, (str, Mapping)):
        raise TypeError(f"{name} must be a sequence of str, got {texts!r:.80}")
    found = list(texts)
    if wrong := [each for each in found if not isinstance(each, str)]:
        raise TypeError(f"{name} must be a sequence of str, got one with {wrong[0]!r:.80}")
    if count is not None and len(found) != count:
        raise ValueError(f"{name} must be one an image, {count} in all, got {len(found)}")
    return found


def indices_of(start: int, end: int | None, skip: int, count: int) -> range:
    """Return the multiples of skip from start to before end, so that shards take what one run takes."""
    stop = count if end is None else end
    if not 0 <= start < stop <= count:
        raise ValueError(f"start and end must be 0 <= start < end <= {count}, the number of images, got {start} and {stop}")
    indices = range(start + -start % skip, stop, skip) if skip > 0 else range(0)
    if not indices:
        raise ValueError(f"skip must be positive and have a multiple from start {start} to before end {stop}, got {skip}")
    return indices


def normalisation(mean: Sequence[float] | None, std: Sequence[float] | None, channels: int) -> dict[str, list[float]]:
    """Return (y - mean) / std as the scale and shift of `ops.perturb`."""
    if mean is None and std is None:
        return {}
    if mean is None or std is None:
        raise ValueError(f"mean and std must be given together, got {mean} and {std}; give 0 for no mean, 1 for no std")
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, channels):
            count = "1 number, as images have 1 channel here" if channels == 1 else f"1 or {channels} numbers, one a channel"
            raise ValueError(f"{name} must have {count}, got {len(values)}")
    if not all(0 < s < math.inf for s in std):
        raise ValueError(f"std must be positive and finite, got {std}")
    means, stds = (list(values) * (channels // len(values)) for values in (mean, std))
    return {"scale": [1 / s for s in stds], "shift": [-m / s for m, s in zip(means, stds, strict=True)]}


def name_of(model: object) -> str:
    """Return MODULE:NAME of a function, or of the class of another object."""
    named = model if hasattr(model, "__qualname__") else type(model)
    return f"{named.__module__}:{named.__qualname__}"


def try_model(
    model: Model,
    name: str,
    images: torch.Tensor,
    device: torch.device,
    noise: Noise,
    options: Mapping[str, Any],
    hint: str = "",
) -> list[float | None]:
    """Run a model on one noisy sample of the first image and return its first logits, so that one that fails does now.

    Returns
    -------
    list of float or None
        At most 16, as JSON can hold them: None for NaN and infinity.

    Raises
    ------
    ValueError
        Naming the model, the batch, the line of the user's code, and `hint`, if the model raises.
    """
    raised: list[Exception] = []
    first: list[float | None] = []

    def recording(batch: torch.Tensor) -> torch.Tensor:
        try:
            output = model(batch)
        except Exception as error:
            raised.append(error)
            raise
        logits = check_logits(output, 1, options["num_classes"])
        first[:] = [each if math.isfinite(each) else None for each in logits[0, :_LOGITS].tolist()]
        return logits

    try:
        sample(recording, images[:1].to(device), noise, n=1, stream="user", batch_size=1, **options)
    except Exception as error:
        if error not in raised and not isinstance(error, RuntimeError):
            raise
        place = hints.place_of(error)
        kind = "" if isinstance(error, RuntimeError) and not place else f"{type(error).__name__}: "
        what = f"model {name} fails on a batch {[1, *images.shape[1:]]} of {options.get('dtype') or 'float32'}"
        text = str(error)
        if text.startswith("The following operation failed in the TorchScript interpreter"):
            text = text.strip().rpartition("\n")[2]  # before it, a traceback, which would hide the hint
        raise ValueError(f"{what}: {place}{kind}{text}{hint and f'; {hint}'}") from error
    return first
