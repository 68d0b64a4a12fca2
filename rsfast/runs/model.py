"""By what a run knows its model again: the bytes of its state_dict, and its logits of the first image."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import torch

from .. import _hints as hints
from ..api import sample
from ..engine.forward import Model, check_logits
from ..noise import Noise

_LOGITS = 16  # of the first image, recorded to know the model by


def name_of(model: object) -> str:
    """Return MODULE:NAME of a function, or of the class of another object."""
    named = model if hasattr(model, "__qualname__") else type(model)
    return f"{named.__module__}:{named.__qualname__}"


def state_dict_sha256(model: object) -> str | None:
    """Return a digest of the names, types, shapes and bytes of a module's tensors; None for anything else."""
    if not isinstance(model, torch.nn.Module):
        return None
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if isinstance(tensor, torch.Tensor):  # a module may keep other state there too
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
            digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def tensor_bytes(tensor: torch.Tensor) -> bytes:
    """Return the bytes of a tensor's elements in logical order."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def try_model(
    model: Model, name: str, images: torch.Tensor, device: torch.device, noise: Noise, options: Mapping[str, Any]
) -> list[float | None]:
    """Run a model on one noisy sample of the first image and return its first logits, so that one that fails does now.

    Returns
    -------
    list of float or None
        At most 16, as JSON can hold them: None for NaN and infinity.

    Raises
    ------
    ValueError
        Naming the model, the batch, and the line of the user's code, if the model raises.
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
        hint = hints.axes(images.shape, "images") if images.ndim > 2 else ""
        raise ValueError(f"{what}: {place}{kind}{error}{hint and f'; {hint}'}") from error
    return first
