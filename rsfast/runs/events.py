"""Events of a run as JSON lines, and the same figures in short beside the progress bar."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from ..engine.ranks import Ranks
from ..engine.timing import StageTimer
from ..stats.certificate import ABSTAIN
from .environment import STOPS, Stopped

if TYPE_CHECKING:
    from ..engine.batches import Batches

_MIB = 1 << 20
_STATM = Path("/proc/self/statm")


class Log:
    """Events of this process's part of a run, each with the figures since "start"; see `figures`.

    These are "start", "progress" (after the first batch and then every ten seconds), "checkpoint", "memory" (it ran out, and
    batches are smaller from now on), "skip" (an image that cannot be read: its idx, and why) and "end". A signal or an error
    makes it "stop" instead.

    Parameters
    ----------
    file : str, optional
        What to append to, made with its folder if it does not exist; of several processes each writes its own, its rank
        before the suffix. "-" is stderr. Without, figures go to the bar only.
    ranks : Ranks
        Which process this is.
    every : float
        Seconds between events "progress".
    clock : callable
        Returns seconds.

    Attributes
    ----------
    to_stderr : bool

    Raises
    ------
    ValueError
        If the file cannot be written. If that fails later, for want of space mostly, a warning says so, and the run goes on.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     log = Log(f"{folder}/log.jsonl", Ranks())
    ...     with log.running(images=2):
    ...         log.image(3)
    ...         log.image(ABSTAIN)
    ...     events = [json.loads(line) for line in open(f"{folder}/log.jsonl")]
    >>> [(event["event"], event["images_done"], event["abstained"]) for event in events]
    [('start', 0, None), ('end', 2, 0.5)]
    """

    def __init__(
        self, file: str | None, ranks: Ranks, *, every: float = 10.0, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._on, self._ranks, self._every, self._clock = file is not None, ranks, every, clock
        self.to_stderr = file == "-"
        self._file = None if file is None or self.to_stderr else Path(file).absolute()
        self._bar: tqdm[Any] | None = None
        self._batches: Batches | None = None
        self._images = self._abstained = self._skipped = self._limit = 0
        self._total: int | None = None  # of images, and
        self._before = self._samples = 0  # samples that were drawn before, and those that may be drawn now
        self._began = self._due = self._shown = 0.0
        if self._file is None:
            return
        if ranks.world > 1:
            self._file = self._file.with_stem(f"{self._file.stem}.{ranks.rank}")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._write("")
        except OSError as error:
            text = f"log_json must be a file that can be written, or - for stderr, got {file} ({error.strerror})"
            raise ValueError(text) from error

    @contextmanager
    def running(self, images: int | None = None, **settings: object) -> Iterator[None]:
        """Log "start", with the settings and the number of images to do, and in the end "end", or "stop" and why."""
        self._began, self._total = self._clock(), images
        self.event("start", images=images, **settings)
        try:
            yield
        except BaseException as error:
            known = {KeyboardInterrupt: "interrupted", SystemExit: "terminated"}
            why = STOPS[signal.Signals(error.number)] if isinstance(error, Stopped) else known.get(type(error))
            self.event("stop", why=why or f"{type(error).__name__}: {error}")
            raise
        self.event("end")

    @contextmanager
    def watching(self, bar: tqdm[Any], batches: Batches) -> Iterator[None]:
        """Take the figures from what runs the batches, and show them on the bar."""
        self._bar, self._batches, self._limit = bar, batches, batches.limit
        self._before, self._samples = int(bar.n), int(bar.total - bar.n)
        yield
        bar.set_postfix_str(self._short(), refresh=False)

    def batch(self) -> None:
        """Log what is due after a batch; mostly nothing is, and this costs two comparisons and a look at the clock."""
        assert self._batches is not None
        assert self._bar is not None
        if self._batches.limit != self._limit:
            self._limit = self._batches.limit
            self.event("memory")
        if self._on and self._clock() >= self._due:
            self._due = self._clock() + self._every
            self.event("progress")
        if not self._bar.disable and self._bar.last_print_t != self._shown:  # shown next time, so no oftener than the bar
            self._shown = self._bar.last_print_t
            self._bar.set_postfix_str(self._short(), refresh=False)

    def image(self, prediction: int) -> None:
        """Count an image that has its row."""
        self._images += 1
        self._abstained += prediction == ABSTAIN

    def skip(self, index: int, reason: str) -> None:
        """Count and log an image that cannot be read."""
        self._skipped += 1
        self.event("skip", idx=index, reason=reason)

    def event(self, name: str, **more: object) -> None:
        """Append an event, if there is a file to append to."""
        if not self._on:
            return
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        try:
            self._write(json.dumps({"event": name, "time": now, "rank": self._ranks.rank, **self.figures(), **more}) + "\n")
        except OSError as error:
            self._on = False
            warnings.warn(
                f"log_json: {error.strerror} in writing {self._file or 'stderr'}; the run goes on without it",
                UserWarning,
                stacklevel=2,
            )

    def figures(self) -> dict[str, Any]:
        """Return the figures since "start" by name: of images and samples, the shares of time, and memory in MiB.

        Images are those that have their rows, but `images_skipped` those that cannot be read. Samples are the rows of
        batches, without padding. Shares are of the time that passed, and "rest" what the others leave; on a GPU those of
        model and kernels are what its stream took for batches that it has finished. `batch_limit` is the most rows of a
        batch now. `images_total` are the images that had no row at "start". `seconds_left` supposes that the other samples
        of these are drawn, or spared by early decisions, as fast as those before; None before the first batch.
        """
        timer, limit = (StageTimer(), None) if self._batches is None else (self._batches.timer, self._batches.limit)
        seconds = max(self._clock() - self._began, 1e-9)
        shares = {name: spent / seconds for name, spent in timer.seconds().items()}
        shares["rest"] = max(0.0, 1 - sum(shares.values()))
        memory = {"host_mib": _resident()}
        if self._batches is not None and (device := self._batches.forward.device).type == "cuda":
            memory["gpu_peak_mib"] = torch.cuda.max_memory_allocated(device) // _MIB
        return {
            "seconds": round(seconds, 3),
            "images_done": self._images,
            "images_total": self._total,
            "images_skipped": self._skipped,
            "images_per_second": float(f"{self._images / seconds:.4g}"),
            "samples": timer.rows,
            "samples_per_second": float(f"{timer.rows / seconds:.4g}"),
            "seconds_left": self._seconds_left(seconds, timer.rows),
            **{f"share_{name}": round(share, 4) for name, share in shares.items()},
            "abstained": round(self._abstained / self._images, 4) if self._images else None,
            **memory,
            "batch_limit": limit,
        }

    def _seconds_left(self, seconds: float, rows: int) -> float | None:
        """Return how long the rest takes if it takes no longer than what was drawn, or was spared by early decisions."""
        if self._images + self._skipped == self._total:
            return 0.0
        if self._bar is None or not rows:
            return None
        drawn = rows * (self._ranks.world if self._ranks.by_samples else 1)
        left = max(0.0, (self._bar.total - self._before - drawn) / self._samples)
        return float(f"{seconds * left / (1 - left):.4g}")

    def _short(self) -> str:
        figures = self.figures()
        shown = [f"{figures['images_per_second']:.3g} images/s", f"model {figures['share_model']:.0%}"]
        if figures["abstained"] is not None:
            shown.append(f"abstained {figures['abstained']:.0%}")
        if figures["host_mib"] is not None:
            shown.append(f"{figures['host_mib']} MiB")
        return ", ".join(shown)

    def _write(self, text: str) -> None:
        if self._file is None:
            print(text, end="", file=sys.stderr, flush=True)
            return
        with open(self._file, "a", encoding="utf-8") as file:  # each time, so that it may be moved away meanwhile
            file.write(text)


def _resident() -> int | None:
    """Return the resident memory of this process in MiB; None where /proc does not show it."""
    if not _STATM.exists():
        return None
    return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // _MIB
