"""What a run is doing, while it does it: figures beside its progress bar, JSON lines in a file, and a profiler's trace."""

from __future__ import annotations

import json
import resource
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from tqdm import tqdm

from .batches import Batches

_EVERY = 10.0  # seconds between events of progress,
_BAR = 1.0  # and between figures beside the bar
_PROFILED = 20  # batches


class Log:
    """Figures of a run, of one process, from now on.

    Parameters
    ----------
    path : str, optional
        A file that JSON lines are appended to, one an event, each written at once.
    bar : tqdm
        Gets the figures as its postfix.
    batches : Batches
        What the run's batches go through.
    about : dict
        What the event "start" tells beside the figures; `rank` is in all events.

    Raises
    ------
    OSError
        If the file cannot be written.
    """

    def __init__(self, path: str | None, bar: tqdm[Any], batches: Batches, rank: int, **about: Any) -> None:
        self._file = None if path is None else open(path, "ab", buffering=0)  # noqa: SIM115
        self._bar, self._batches, self._rank = bar, batches, rank
        self._images = self._abstained = 0
        self._began = time.monotonic()
        self._next_event, self._next_bar = self._began, self._began
        self.write("start", **about)

    def __enter__(self) -> Log:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self.write("end")
        else:
            self.write("stop", error=f"{type(error).__name__}: {error}")
        if self._file is not None:
            self._file.close()

    def row(self, abstained: bool) -> None:
        """Count an image that is finished."""
        self._images += 1
        self._abstained += abstained

    def after_batch(self) -> None:
        """Tell how it goes, if it is time to."""
        now = time.monotonic()
        if now >= self._next_bar:
            self._next_bar = now + _BAR
            if not self._bar.disable:
                figures = self.figures()
                self._bar.set_postfix_str(
                    f"{figures['images_per_second']:.3g} images/s, model {figures['model']:.0%}, "
                    f"abstained {figures['abstained']:.0%}, {figures['peak_memory_mib']:.0f} MiB",
                    refresh=False,
                )
        if now >= self._next_event:
            self._next_event = now + _EVERY
            self.write("progress")

    def figures(self) -> dict[str, Any]:
        """Return images and samples so far and a second, which share of the time went where, abstentions and memory."""
        seconds = time.monotonic() - self._began
        samples = self._batches.meter.rows
        spent = self._batches.meter.seconds()
        figures = {
            "seconds": round(seconds, 3),
            "images": self._images,
            "images_per_second": self._images / seconds,
            "samples": samples,
            "samples_per_second": samples / seconds,
            **{name: min(1.0, value / seconds) for name, value in spent.items()},
            "abstained": self._abstained / self._images if self._images else 0.0,
            "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "batch_size": self._batches.limit,
        }
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            figures["peak_gpu_memory_mib"] = torch.cuda.max_memory_allocated() / 2**20
        return figures

    def write(self, event: str, **more: Any) -> None:
        """Append an event to the file, if there is one."""
        if self._file is not None:
            now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
            line = {"time": now, "event": event, "rank": self._rank, **self.figures(), **more}
            self._file.write(json.dumps(line).encode() + b"\n")


class Profile:
    """A trace of the first batches by torch.profiler, for chrome://tracing or Perfetto.

    Parameters
    ----------
    path : Path, optional
        The file to write; None does nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._path, self._left = path, _PROFILED
        self._profiler = None if path is None else torch.profiler.profile()

    def __enter__(self) -> Profile:
        if self._profiler is not None:
            self._profiler.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._finish()

    def after_batch(self) -> None:
        """Count a batch; after the last that is traced, write the file."""
        self._left -= 1
        if self._left == 0:
            self._finish()

    def _finish(self) -> None:
        if self._profiler is not None:
            profiler, self._profiler = self._profiler, None
            profiler.stop()
            profiler.export_chrome_trace(str(self._path))
            print(f"{self._path}: the first {_PROFILED - max(self._left, 0)} batches", file=sys.stderr)
