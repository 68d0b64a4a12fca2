"""Find the fastest batch size by a short measured search."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter
from weakref import WeakKeyDictionary

import torch

from ..stats.certificate import Execution
from .forward import Model, is_out_of_memory

_RUNS = 3  # of each size; the first may compile, or capture, or fill caches
_TOLERANCE = 0.02  # of the time a row takes; smaller differences are noise
remembered: WeakKeyDictionary[Model, dict[tuple[torch.Size, torch.device, Execution], int]] = WeakKeyDictionary()


def automatic(
    model: Model,
    shape: torch.Size,
    device: torch.device,
    execution: Execution,
    samples: int | None,
    run: Callable[[int], None],
    clock: Callable[[], float] = perf_counter,
) -> int:
    """Return a batch size for a model: the fastest, where finding it costs little, else the `fixed` one.

    Sizes are powers of two from 16 to 4096, up to 256 MiB of float32 noise. The answer is remembered as long as the model
    lives, for each of the other arguments; a model that takes no weak reference is measured each time.

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
        Rows that the caller will draw of all inputs together: the search takes at most 1 % of that. None if not known; then
        it takes what it needs.
    run : callable
        Samples one batch of this many rows.
    clock : callable
        Returns the seconds.

    Examples
    --------
    >>> automatic(torch.nn.Flatten(), torch.Size([3, 32, 32]), torch.device("cpu"), Execution(), 1000, print)
    1024
    """
    try:
        found = remembered.setdefault(model, {})
    except TypeError:
        found = {}
    key = (shape, device, execution)
    if key not in found:
        sizes = [1 << k for k in range(4, 13) if k == 4 or shape.numel() << k <= 1 << 26]
        if samples is not None and 100 * _RUNS * sum(sizes) > samples:
            return fixed(shape)
        wait = partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
        found[key] = fastest(run, sizes, wait, clock)
    return found[key]


def fixed(shape: torch.Size) -> int:
    """Return a batch size for inputs of `shape`: 16 MiB of float32 noise, from 16 to 1024 rows.

    Examples
    --------
    >>> fixed(torch.Size([3, 224, 224]))
    27
    """
    return max(16, min(1024, (1 << 22) // shape.numel()))


def fastest(
    run: Callable[[int], None],
    sizes: Sequence[int],
    synchronize: Callable[[], object] = lambda: None,
    clock: Callable[[], float] = perf_counter,
) -> int:
    """Return the size that takes the least time a row: of those within 2 % of it, the smallest.

    Each size is run three times, the best of which counts. The search ends after two sizes in a row that are not 2 % faster
    than the best before them, or where memory runs out.

    Parameters
    ----------
    run : callable
        Runs one batch of this many rows.
    sizes : sequence of int
        In growing order, at least one.
    synchronize : callable
        Waits until what was run is done.
    clock : callable
        Returns the seconds.

    Raises
    ------
    Exception
        Whatever `run` raises, but for a lack of memory at any size but the first.

    Examples
    --------
    >>> def run(size):
    ...     if size > 32:
    ...         raise MemoryError
    >>> fastest(run, [32, 64, 128])
    32
    """
    times: dict[int, float] = {}  # seconds a row
    failures = 0
    for size in sizes:
        try:
            seconds = min(_seconds(run, size, synchronize, clock) for _ in range(_RUNS))
        except Exception as error:
            if not times or not is_out_of_memory(error):
                raise
            break
        best = min(times.values(), default=float("inf"))
        times[size] = seconds / size
        failures = 0 if times[size] <= (1 - _TOLERANCE) * best else failures + 1
        if failures == 2:
            break
    best = min(times.values())
    return next(size for size, time in times.items() if time <= (1 + _TOLERANCE) * best)


def _seconds(run: Callable[[int], None], size: int, synchronize: Callable[[], object], clock: Callable[[], float]) -> float:
    synchronize()
    start = clock()
    run(size)
    synchronize()
    return clock() - start
