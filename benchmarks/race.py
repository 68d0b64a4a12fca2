"""Timing that a drifting machine and a cache do not spoil: contenders take turns, and sets of inputs take turns.

A contender is a list of calls, one a set. A turn makes all of them, between two readings of the clock.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

LEAST_ROUNDS = 3

Calls = Sequence[Callable[[], Any]]


@dataclass(frozen=True)
class Timing:
    """Seconds a call: the median over the rounds, and the percentiles 20 and 80."""

    seconds: float
    low: float
    high: float
    rounds: int


def timing(seconds: Sequence[float]) -> Timing:
    """Return the percentiles of one contender's rounds."""
    low, median, high = np.percentile(seconds, (20, 50, 80)).tolist()
    return Timing(median, low, high, len(seconds))


def run_all(calls: Calls) -> list[Any]:
    """Make every call; the results live until the last is there, so that each has memory of its own."""
    return [call() for call in calls]


class HostClock:
    """For the CPU, where a call returns when its work is done, and there are no graphs."""

    name = "host clock"
    modes = ("eager",)

    def sets(self, nbytes: int) -> int:
        return 2

    def seconds(self, run: Callable[[], Any]) -> float:
        began = time.perf_counter()
        run()
        return time.perf_counter() - began


class EventClock:
    """For a GPU: the time between two events on the current stream."""

    name = "device events"
    modes = ("eager", "graph")

    def __init__(self, device: torch.device) -> None:
        self._cache = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 64 << 20)
        self._flush = torch.empty(4 * self._cache, dtype=torch.uint8, device=device)

    def sets(self, nbytes: int) -> int:
        """Return how many sets of nbytes the cache surely does not hold; at most 64, which matters to tiny ones only."""
        return min(64, max(8, math.ceil(4 * self._cache / nbytes)))

    def seconds(self, run: Callable[[], Any]) -> float:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        self._flush.zero_()  # empties the cache, and keeps the device busy while the host queues the first launches
        begin.record()
        run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000

    def capture(self, calls: Calls) -> Callable[[], Any]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run_all(calls)
        return graph.replay


Clock = HostClock | EventClock


def take_turns(
    clock: Clock,
    contenders: dict[str, Calls],
    *,
    rounds: int,
    budget: float,
    mode: str = "eager",
    warm_up: dict[str, Calls] | None = None,
) -> dict[str, list[float]]:
    """Time all contenders in turn, round by round, after each has run its `warm_up` (by default all of its calls) once."""
    for calls in (contenders if warm_up is None else warm_up).values():
        run_all(calls)
    runs = {name: clock.capture(calls) if mode == "graph" else partial(run_all, calls) for name, calls in contenders.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    began = time.perf_counter()
    for number in range(rounds):
        if number >= LEAST_ROUNDS and time.perf_counter() - began > budget:
            break
        for name, run in runs.items():
            seconds[name].append(clock.seconds(run) / len(contenders[name]))
    return seconds


def race(clock: Clock, contenders: dict[str, Calls], **options: Any) -> dict[str, Timing]:
    """Return the percentiles of all contenders, which take turns."""
    return {name: timing(column) for name, column in take_turns(clock, contenders, **options).items()}
