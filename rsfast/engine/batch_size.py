"""Find the fastest batch size by a short measured search."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch

from ..stats.certificate import Execution
from .forward import Model, is_out_of_memory

_RUNS = 3  # of each size; the first may compile, or capture, or fill caches
_TOLERANCE = 0.02  # of the time a row takes; smaller differences are noise
MOST = 1 << 16
"""Rows of a batch, at most, where nobody gives a size."""
FULL = 1 << 10
"""Rows, at most, that a batch is filled up to where that may be waste."""

remembered: WeakKeyDictionary[Model, dict[tuple[torch.Size, torch.device, Execution], int]] = WeakKeyDictionary()


class Sizes(NamedTuple):
    """Rows of a batch for inputs of some shape on some device: the least, what is good mostly, and the most."""

    least: int
    usual: int
    most: int


def sizes(shape: torch.Size, device: torch.device) -> Sizes:
    """Return the sizes, powers of two, between which the best for inputs of this shape is searched.

    Examples
    --------
    >>> sizes(torch.Size([3, 32, 32]), torch.device("cpu"))
    Sizes(least=1, usual=128, most=16384)
    """
    rows = (1 << 26) // shape.numel()  # 256 MiB of float32 noise
    if device.type == "cpu":
        least, usual = 1, max(4, min(1 << 15, _power(rows // (64 if len(shape) == 1 else 128))))
    else:
        least, usual = 16, max(16, _power(rows // 16))
    most = _power(min(MOST, max(least, rows)))
    return Sizes(least, min(most, usual), most)


def _power(number: int) -> int:
    """Return the largest power of two that is not above a number, or 0."""
    return 1 << number.bit_length() >> 1


def fixed(shape: torch.Size, device: torch.device) -> int:
    """Return a batch size for inputs of this shape, a power of two that depends on nothing else.

    On a CPU 2 MiB of float32 noise, or 4 MiB where inputs have one axis, from 4 to 32,768 rows: what a model's layers make
    of it, which is mostly more for images, then stays in the caches. Elsewhere 16 MiB, from 16 to 65,536 rows.

    Examples
    --------
    >>> fixed(torch.Size([3, 224, 224]), torch.device("cpu")), fixed(torch.Size([3, 224, 224]), torch.device("cuda"))
    (4, 16)
    """
    return sizes(shape, device).usual


def automatic(
    model: Model,
    shape: torch.Size,
    device: torch.device,
    execution: Execution,
    samples: int | None,
    run: Callable[[int], None],
    clock: Callable[[], float] = perf_counter,
    most: int = MOST,
) -> int:
    """Return a batch size for a model: the fastest that a search finds whose cost is small.

    The answer is remembered as long as the model lives, for each of the other arguments; a model that takes no weak
    reference is measured each time.

    Parameters
    ----------
    model : callable
        The base classifier.
    shape : torch.Size
        Of one input.
    device : torch.device
        Where it runs.
    execution : Execution
        How it runs.
    samples : int, optional
        Rows that the caller will draw of all inputs together: the search runs at most 1 % of that. None if not known; then
        it runs what it needs.
    run : callable
        Samples one batch of this many rows.
    clock : callable
        Returns the seconds.
    most : int
        Rows that the answer may have.

    Examples
    --------
    >>> automatic(torch.nn.Flatten(), torch.Size([3, 32, 32]), torch.device("cpu"), Execution(), 1000, print)
    128
    """
    try:
        found = remembered.setdefault(model, {})
    except TypeError:
        found = {}
    key, largest = (shape, device, execution), _power(most)
    if key not in found:
        wait = partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
        budget = None if samples is None else samples // 100
        least, usual, limit = sizes(shape, device)
        among = Sizes(min(least, largest), min(usual, largest), min(limit, largest))
        size, sure = fastest(run, among, budget, wait, clock)
        if not sure or among.most < limit:  # another call may search on
            return size
        found[key] = size
    return min(found[key], largest)


def fastest(
    run: Callable[[int], None],
    among: Sizes,
    budget: int | None = None,
    synchronize: Callable[[], object] = lambda: None,
    clock: Callable[[], float] = perf_counter,
) -> tuple[int, bool]:
    """Return the size that takes the least time a row, and whether the search came to its end.

    It begins at the usual size, doubles it and then halves it, each until two sizes in a row are not 2 % faster than the
    best before them. Each size is run three times, the best of which counts. Of those within 2 % of the fastest the smallest
    is taken. Where memory runs out, no larger size is tried.

    Parameters
    ----------
    run : callable
        Runs one batch of this many rows.
    among : Sizes
        Where to begin, and how far to go.
    budget : int, optional
        Rows that the search may run: it ends before they are more. If the usual size alone takes more, it is the answer.
    synchronize : callable
        Waits until what was run is done.
    clock : callable
        Returns the seconds.

    Raises
    ------
    Exception
        Whatever `run` raises, but for a lack of memory at any size but the least.

    Examples
    --------
    >>> def run(size):
    ...     if size > 32:
    ...         raise MemoryError
    >>> fastest(run, Sizes(16, 64, 128))
    (32, True)
    """
    times: dict[int, float] = {}  # seconds a row
    spent, sure = 0, True
    if budget is not None and budget < _RUNS * among.usual:
        return among.usual, False
    for larger in (True, False):
        size, failures = among.usual if larger else among.usual // 2, 0
        while among.least <= size <= among.most and failures < 2:
            if budget is not None and spent + _RUNS * size > budget:
                sure = False
                break
            spent += _RUNS * size
            try:
                seconds = min(_seconds(run, size, synchronize, clock) for _ in range(_RUNS))
            except Exception as error:
                if size == among.least or not is_out_of_memory(error):
                    raise
                if larger:
                    break
            else:
                best = min(times.values(), default=float("inf"))
                times[size] = seconds / size
                failures = 0 if times[size] <= (1 - _TOLERANCE) * best else failures + 1
            size = 2 * size if larger else size // 2
    best = min(times.values())
    return min(size for size, time in times.items() if time <= (1 + _TOLERANCE) * best), sure


def _seconds(run: Callable[[int], None], size: int, synchronize: Callable[[], object], clock: Callable[[], float]) -> float:
    synchronize()
    start = clock()
    run(size)
    synchronize()
    return clock() - start
