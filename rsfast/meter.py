"""Where the time of a run goes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Meter:
    """Seconds spent in the model, in our kernels and in bounds, and rows that went through the model.

    Parameters
    ----------
    device : torch.device
        On a GPU the model and the kernels are timed by events on its stream, which are read when they have happened:
        nothing waits for them.

    Examples
    --------
    >>> meter = Meter()
    >>> with meter("model"):
    ...     pass
    >>> list(meter.seconds()), meter.rows
    (['model', 'kernels', 'bounds'], 0)
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.rows = 0
        self._events = torch.device(device).type == "cuda"
        self._pending: deque[tuple[str, torch.cuda.Event, torch.cuda.Event]] = deque()
        self._seconds = {"model": 0.0, "kernels": 0.0, "bounds": 0.0}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Add the time of the block to "model", "kernels" or "bounds"."""
        if self._events and name != "bounds":
            begin, end = _event(), _event()
            begin.record()
            yield
            end.record()
            self._pending.append((name, begin, end))
            self._collect()
            return
        began = time.perf_counter()
        yield
        self._seconds[name] += time.perf_counter() - began

    def _collect(self) -> None:
        while self._pending and self._pending[0][2].query():  # type: ignore[no-untyped-call]
            name, begin, end = self._pending.popleft()
            self._seconds[name] += begin.elapsed_time(end) / 1000

    def seconds(self) -> dict[str, float]:
        """Return the seconds so far by name; of a GPU's work, what has finished."""
        self._collect()
        return dict(self._seconds)


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
