"""The only loop: perturb a batch, run the model, accumulate its logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from tqdm.auto import tqdm

from .noise import Gaussian
from .ops import accumulate, perturb
from .tally import Tally

Model = Callable[[torch.Tensor], torch.Tensor]
"""Anything that maps a batch [B, *shape] to logits [B, K]."""


@contextmanager
def evaluating(model: Model) -> Iterator[None]:
    """Put a module into eval mode without autograd, and every submodule back into the mode it was in."""
    modules = list(model.modules()) if isinstance(model, torch.nn.Module) else []
    training = [module.training for module in modules]
    if isinstance(model, torch.nn.Module):
        model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, mode in zip(modules, training, strict=True):
            module.training = mode


def check_logits(logits: object, batch: int, num_classes: int) -> torch.Tensor:
    """Return what the model returned if it is logits [batch, num_classes]; raise TypeError or ValueError if not."""
    if not isinstance(logits, torch.Tensor):
        raise TypeError(
            f"model returned a {type(logits).__name__}; it must return the logits, a tensor [B, K]: "
            "wrap it in a function that picks them out"
        )
    if logits.ndim != 2 or logits.shape[0] != batch:
        raise ValueError(f"model returned shape {list(logits.shape)} for a batch of {batch}; it must be [{batch}, K]")
    if logits.shape[1] != num_classes:
        raise ValueError(
            f"num_classes is {num_classes}, but the model returned {logits.shape[1]} logits a row; they must agree"
        )
    if not logits.is_floating_point():
        raise TypeError(f"model returned dtype {logits.dtype}; it must return floating-point logits")
    return logits


def draw(
    model: Model,
    inputs: torch.Tensor,
    noise: Gaussian,
    tally: Tally,
    *,
    input_ids: torch.Tensor,
    samples: range,
    seed: int,
    stream: str,
    batch_size: int,
    preparation: Mapping[str, Any],
    bar: tqdm[Any] | None = None,
) -> None:
    """Add the samples `samples` of every input to `tally`.

    `preparation` is what `ops.perturb` takes from scale to backend, without out. Rows are numbered input by input, sample by
    sample, and cut into batches of batch_size; a batch may hold rows of several inputs. The batch is one buffer, written
    anew each time, so memory does not grow with the number of samples.
    """
    device = inputs.device
    total = inputs.shape[0] * len(samples)
    buffer: torch.Tensor | None = None
    with evaluating(model):
        for begin in range(0, total, batch_size):
            places = torch.arange(begin, min(begin + batch_size, total), device=device)
            rows = places // len(samples)
            if buffer is not None and len(buffer) != len(places):
                buffer = buffer[: len(places)]
            buffer = perturb(
                inputs,
                noise,
                seed=seed,
                samples=samples.start + places % len(samples),
                rows=rows,
                input_ids=input_ids,
                stream=stream,
                out=buffer,
                **preparation,
            )
            logits = check_logits(model(buffer), len(places), tally.num_classes)
            accumulate(logits, tally, rows=rows, backend=preparation["backend"])
            if bar is not None:
                bar.update(len(places))


def automatic_batch_size(shape: torch.Size) -> int:
    """Return a batch size for inputs of `shape`: 16 MiB of float32 noise, from 16 to 1024 rows."""
    return max(16, min(1024, (1 << 22) // shape.numel()))
