"""Measure where the time of a run goes: its sums, and a trace of a few batches."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import torch


class StageTimer:
    """Seconds spent in the model, in our kernels and in bounds, and rows that went through the model.

    Parameters
    ----------
    device : torch.device
        On a GPU the model and the kernels are timed by events on its stream, which are read when they have happened:
        nothing waits for them. Bounds are taken on the host meanwhile, so that all together may exceed the time that passed.
    clock : callable
        Returns the seconds on the host.

    Examples
    --------
    >>> timer = StageTimer()
    >>> with timer("model"):
    ...     pass
    >>> list(timer.seconds()), timer.rows
    (['model', 'kernels', 'bounds'], 0)
    """

    def __init__(self, device: torch.device | str = "cpu", clock: Callable[[], float] = time.perf_counter) -> None:
        self.rows, self._clock = 0, clock
        self._device = torch.device(device)
        self._pending: deque[tuple[str, torch.cuda.Event, torch.cuda.Event]] = deque()
        self._seconds = {"model": 0.0, "kernels": 0.0, "bounds": 0.0}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Add the time of the block, if it ends well, to "model", "kernels" or "bounds"."""
        if self._device.type == "cuda" and name != "bounds":
            begin = self._event()
            yield
            self._pending.append((name, begin, self._event()))
            self._collect()
            return
        began = self._clock()
        yield
        self._seconds[name] += self._clock() - began

    def _event(self) -> torch.cuda.Event:
        """Record an event on the device's stream, which is not the current device's if that is another."""
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event

    def _collect(self) -> None:
        while self._pending and self._pending[0][2].query():  # type: ignore[no-untyped-call]
            name, begin, end = self._pending.popleft()
            self._seconds[name] += begin.elapsed_time(end) / 1000

    def seconds(self) -> dict[str, float]:
        """Return the seconds so far by name; of a GPU's work, what has finished."""
        self._collect()
        return dict(self._seconds)


class Profile:
    """A torch.profiler trace of a few batches after a warm-up, or of the warm-up where nothing follows it.

    To be called after each batch, within a with block.

    Parameters
    ----------
    file : Path
        What to write, in the format of Chrome's traces.
    say : callable
        Called once, at the end of the block, with a line that names the batches in the trace, or why there is none.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with Profile(Path(folder, "trace.json"), lambda text: print(text[:23])) as profile:
    ...         for _ in range(3):
    ...             profile()
    trace of batches 1 to 3
    """

    WARMUP, BATCHES = 5, 20

    def __init__(self, file: Path, say: Callable[[str], object]) -> None:
        self._file, self._say = file, say
        self._text = "no trace: no batch was left to run"
        self._batches = self._saved = 0
        self._profiler: torch.profiler.profile | None = None

    def __enter__(self) -> Profile:
        self._start()
        return self

    def __call__(self) -> None:
        if self._profiler is None:
            return
        self._batches += 1
        if self._batches == self.WARMUP:
            self._stop(self._profiler)
            self._start()
        elif self._batches == self.WARMUP + self.BATCHES:
            self._stop(self._profiler)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._profiler is not None:
            self._stop(self._profiler)
        self._say(self._text)

    def _start(self) -> None:
        self._profiler = torch.profiler.profile()
        self._profiler.start()

    def _stop(self, profiler: torch.profiler.profile) -> None:
        """Write what was recorded since the last time, if there was a batch."""
        profiler.stop()
        self._profiler = None
        if self._batches == self._saved:
            return
        self._file.unlink(missing_ok=True)
        profiler.export_chrome_trace(str(self._file))
        if not (self._file.exists() and self._file.read_bytes().rstrip().endswith(b"}")):  # torch raises nothing then
            self._file.unlink(missing_ok=True)
            self._text = f"no trace: {self._file} could not be written"
            return
        self._text = f"trace of batches {self._saved + 1} to {self._batches} in {self._file}"
        if not self._saved:
            self._text += ": the warm-up, after which no batch was left to run"
        self._saved = self._batches
