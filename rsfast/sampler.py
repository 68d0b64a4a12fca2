"""The only loop: perturb a batch, run the model, accumulate its logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from tqdm.auto import tqdm

from .batch_size import fixed as automatic_batch_size
from .forward import Model, check_logits, evaluating
from .noise import Gaussian
from .ops import accumulate, perturb
from .tally import Tally

__all__ = ["Model", "automatic_batch_size", "draw"]


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
