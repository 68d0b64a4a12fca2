"""SIGINT and SIGTERM in a run: each takes effect after the current batch, a second one at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOPS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


class Stopped(KeyboardInterrupt):
    """A signal ended a run. `number` is the signal's; the text says which rows are kept."""

    def __init__(self, number: int, kept: str) -> None:
        super().__init__(STOPS[signal.Signals(number)] + kept)
        self.number = number


class StopSignals:
    """The signal that arrived, in `number`; 0 before.

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
