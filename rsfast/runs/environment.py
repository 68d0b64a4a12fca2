"""What a run takes from its surroundings: clock, bar, writer and signals."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any

from .._progress import progress_bar
from .writer import RunWriter

if TYPE_CHECKING:
    from tqdm.auto import tqdm

STOPS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


class Stopped(KeyboardInterrupt):
    """A signal ended a run. `number` is the signal's; the text says which rows are kept."""

    def __init__(self, number: int, kept: str) -> None:
        super().__init__(STOPS[signal.Signals(number)] + kept)
        self.number = number


class StopSignals:
    """SIGINT and SIGTERM, which take effect after the current batch. `number` is that of the one that arrived; 0 before.

    Parameters
    ----------
    stop : callable
        Called with the number of a second signal. It must raise.
    ignore_second : bool
        Take no notice of a second one: torchrun passes on what a terminal has sent already.
    """

    def __init__(self, stop: Callable[[int], object], *, ignore_second: bool) -> None:
        self.number = 0
        self._stop, self._ignore_second = stop, ignore_second

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note signals within the block; outside the main thread, where Python takes none, do nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._note) for number in STOPS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.number and self._ignore_second:
            return
        if self.number:
            self._stop(number)
        self.number = number


def _print(text: str) -> None:
    print(f"rsfast: {text}", file=sys.stderr)


@dataclass(frozen=True)
class Environment:
    """What a `Run` takes from its surroundings; tests and the command line replace some of it.

    Attributes
    ----------
    say : callable
        Takes lines for the user.
    clock : callable
        Returns seconds.
    bar : callable
        Makes the progress bar, as tqdm does.
    writer : callable
        Makes the `RunWriter`.
    checkpoint_every, checkpoint_share : float
        A checkpoint is due after so many seconds, or after so many times the seconds that the last one took.
    event_every : float
        Seconds between events "progress" of the log.
    """

    say: Callable[[str], object] = _print
    clock: Callable[[], float] = time.perf_counter
    bar: Callable[..., tqdm[Any]] = progress_bar
    writer: Callable[..., RunWriter] = RunWriter
    checkpoint_every: float = 30.0
    checkpoint_share: float = 20.0
    event_every: float = 10.0
