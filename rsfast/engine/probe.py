"""A few rows before all others: whether a row's logits depend on that row only."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from weakref import WeakKeyDictionary

import torch

from .forward import Forward, Model, is_out_of_memory

ROWS = 3  # of a batch, of which there are two: 6 rows, of the 10,000 and more of an input

_RANDOM = (
    "model is random in eval mode, or keeps state: it returned other logits for the same batch than before; a certificate "
    "is about a function of the input"
)
_MIXES = (
    "model depends on the rest of the batch: it returned other logits for a row that stood elsewhere, among other rows; a "
    "certificate is about a function of the input, so batch norm, say, must be in eval mode"
)
_done: WeakKeyDictionary[Model, set[object]] = WeakKeyDictionary()


def probe(forward: Forward, noisy: Callable[[torch.Tensor], torch.Tensor], sizes: Sequence[int], about: object) -> None:
    """Warn if a model's logits of a row depend on anything but that row.

    The model runs as it is, neither compiled nor captured, on two batches of a few rows. One more batch shows the cause of a
    difference that is larger than rounding. Nothing is counted. This is done once for each model and `about`, as long as
    the model lives; a model that takes no weak reference is probed each time.

    Parameters
    ----------
    forward : Forward
        The base classifier.
    noisy : callable
        From sample indices, an int64 tensor [B], to a batch of these samples of one input.
    sizes : sequence of int
        Sizes of batches to try. The next is taken where the model raises an exception, as an
        exported program does that takes batches of one size only.
    about : hashable
        How the model runs, and on what.

    Raises
    ------
    Exception
        What the model raises on a batch of the last size. Where memory runs out nothing is raised.

    Warns
    -----
    UserWarning
        That the model is random in eval mode, or that it depends on the rest of the batch.
    """
    try:
        done = _done.setdefault(forward.model, set())
    except TypeError:
        done = set()
    if about in done:
        return
    # Compiled parts would be compiled for these sizes. Without this module nothing was compiled.
    compiled = "torch._dynamo" in sys.modules
    for size in sizes:
        try:
            with torch.compiler.set_stance("force_eager") if compiled else nullcontext(), forward.running():
                cause = _cause(forward, noisy, size)
            break
        except Exception as error:
            if is_out_of_memory(error):
                return
            if size == sizes[-1]:
                raise
    done.add(about)
    if cause is not None and cause not in done:
        done.add(cause)
        warnings.warn(cause, UserWarning, stacklevel=2)


def _cause(forward: Forward, noisy: Callable[[torch.Tensor], torch.Tensor], size: int) -> str | None:
    samples = torch.arange(size + 1)
    # The row with the largest value is in the second batch only, so a scale that is taken from a batch changes.
    order = noisy(samples).flatten(1).abs().amax(1).argsort().cpu()
    first = samples[:size]
    second = first.roll(-1)
    if size > 1:
        second[-2] = size
    both = second < size

    def logits(rows: torch.Tensor) -> torch.Tensor:
        found = forward.eagerly(batch := noisy(order[rows]))
        dtypes.update((found.dtype, batch.dtype))
        return found.to("cpu", torch.float64, copy=True)  # the model may write the next into the same memory

    dtypes = {torch.float32, forward.autocast or torch.float32}
    one, two = logits(first), logits(second)
    if torch.equal(one[second[both]], two[both]):
        return None
    dtypes.update(each.dtype for module in forward.modules for each in module.parameters(recurse=False))
    coarsest = max(torch.finfo(dtype).eps for dtype in dtypes if dtype.is_floating_point)
    if _close(one[second[both]], two[both], coarsest):
        return None
    return _MIXES if _close(two, logits(second), coarsest) else _RANDOM


def _close(one: torch.Tensor, two: torch.Tensor, eps: float) -> bool:
    """Tell whether logits differ by no more than rounding may: in bfloat16 by 4 %, in float32 by 0.02 % of their spread."""
    finite = torch.cat([one, two])
    finite = finite[finite.isfinite()]
    if not len(finite):
        return torch.equal(one.nan_to_num(), two.nan_to_num())
    most = eps**0.5 / 2 * (finite.max() - finite.min()) + 2 * eps * finite.abs().max()
    return torch.allclose(one, two, rtol=0, atol=float(most), equal_nan=True)
