"""Which changes are tried, and what is made of those that were faster."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import torch

from ..engine.batch_size import sizes
from .subject import Change, Subject

FASTER = 1.03
"""How many times as fast a change must be to be taken up."""

_SIZES = (1 / 4, 1 / 2, 2, 4)  # times the batch size that rsfast takes by itself


def single(subject: Subject, batch: int, most: int) -> Iterator[Change]:
    """Yield the changes to try, one at a time: those that cost least to try come first.

    Parameters
    ----------
    subject : Subject
    batch : int
        Batch size that rsfast takes by itself.
    most : int
        Largest batch size whose batches do not take too long to try.
    """
    device = subject.device
    limit = min(most, sizes(subject.shape, device).most)
    for size in (int(batch * times) for times in _SIZES):
        if 1 <= size <= limit:
            yield Change(f"batch size {size:,}", {"batch_size": size})
    if device.type == "cpu":
        cores, now = os.cpu_count() or 1, torch.get_num_threads()
        counts = {1 << power for power in range(cores.bit_length()) if 1 << power <= cores} | {cores}
        for count in sorted(counts - {now}):
            yield Change(f"{count} thread{'s' * (count > 1)}", threads=count)
    yield Change("channels_last", {"channels_last": True})
    for dtype in ("bfloat16",) if device.type == "cpu" else ("bfloat16", "float16"):
        yield Change(f"autocast {dtype}", {"autocast": dtype})
        yield Change(f"dtype {dtype}", {"dtype": dtype})
    yield Change("CUDA graph", {"cuda_graph": True})
    yield Change("compile", {"compile": True})


def together(changes: Sequence[tuple[Change, float]]) -> list[Change]:
    """Return what the changes that were faster are put together to: the exact ones, and those with the fastest other.

    Parameters
    ----------
    changes : sequence of (Change, float)
        Each with how many times as fast as the default it was.

    Returns
    -------
    list of Change
        At most two. One that would only repeat a change is left out.

    Examples
    --------
    >>> sizes = [(Change(f"batch size {size}", {"batch_size": size}), ratio) for size, ratio in ((64, 1.1), (256, 1.2))]
    >>> layout, autocast = Change("channels_last", {"channels_last": True}), Change("autocast", {"autocast": "bfloat16"})
    >>> [change.name for change in together([*sizes, (layout, 1.3), (autocast, 1.5)])]
    ['channels_last, batch size 256', 'autocast, channels_last, batch size 256']
    """
    faster = sorted(((change, ratio) for change, ratio in changes if ratio > FASTER), key=lambda pair: -pair[1])
    best: dict[tuple[str, ...], Change] = {}  # of each kind of change the fastest
    for change, _ in faster:
        kind = tuple(sorted(change.options)) if change.threads is None else ("threads",)
        best.setdefault(kind if change.exact else ("inexact",), change)
    exact, inexact = [change for change in best.values() if change.exact], best.get(("inexact",))
    found = []
    if len(exact) > 1:
        found.append(_sum(exact))
    if inexact is not None and exact:
        found.append(_sum([inexact, *exact]))
    return found


def _sum(changes: Sequence[Change]) -> Change:
    first, *others = changes
    for other in others:
        first = first + other
    return first
