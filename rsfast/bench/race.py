"""Contenders that take turns, so that a machine that drifts in speed does so for all of them."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import perf_counter

Run = Callable[[int], object]
"""Puts this many rows through the model, and returns when that is done."""


_SLOW = 5.0  # turns


class _Contender:
    def __init__(self, run: Run, rows: int) -> None:
        self.run, self.rows = run, rows
        self.seconds: dict[int, float] = {}  # a row, by the number of the round


class Race:
    """Time contenders in turn, round by round.

    Parameters
    ----------
    turn : float
        Seconds that a turn takes, about: one batch, or as many as that time has room for.
    clock : callable
        Returns the seconds.

    Examples
    --------
    >>> now = [0.0]
    >>> def slowly(rows, seconds):
    ...     now[0] += rows * seconds
    >>> race = Race(turn=1.0, clock=lambda: now[0])
    >>> race.add("first", lambda rows: slowly(rows, 0.25), batch=2)
    >>> race.add("second", lambda rows: slowly(rows, 0.125), batch=4)
    >>> race.go_on(until=10.0)
    >>> race.rate("first"), race.ratio("second", "first")
    (4.0, 2.0)
    """

    def __init__(self, turn: float, clock: Callable[[], float] = perf_counter) -> None:
        self._turn, self._clock = turn, clock
        self._contenders: dict[str, _Contender] = {}
        self._round = 0

    def add(self, name: str, run: Run, batch: int) -> None:
        """Let a contender run a batch of this many rows, to warm up, and another, which is its first turn.

        One that takes many times a turn is not run again: warm caches would not show. What it raises is raised here, and it
        takes no part then.
        """
        seconds = self._seconds(run, batch)
        if seconds < _SLOW * self._turn:
            seconds = self._seconds(run, batch)
        batches = max(1, int(self._turn / seconds)) if seconds else 1
        self._contenders[name] = _Contender(run, batch * batches)
        self._contenders[name].seconds[self._round] = seconds / batch

    def _seconds(self, run: Run, rows: int) -> float:
        began = self._clock()
        run(rows)
        return self._clock() - began

    def drop(self, name: str) -> None:
        """Let a contender take no part from now on."""
        del self._contenders[name]

    def forget(self) -> None:
        """Forget all turns so far: those of a stage in which other contenders ran."""
        for each in self._contenders.values():
            each.seconds.clear()

    def go_on(self, until: float) -> None:
        """Run whole rounds until the clock says so; one at least if somebody has had no turn."""
        while self._clock() < until or not all(each.seconds for each in self._contenders.values()):
            self._round += 1
            for each in self._contenders.values():
                each.seconds[self._round] = self._seconds(each.run, each.rows) / each.rows

    def __contains__(self, name: str) -> bool:
        return name in self._contenders

    def rate(self, name: str) -> float:
        """Return the rows a second of a contender: the median of its turns."""
        return 1 / max(median(self._contenders[name].seconds.values()), 1e-12)

    def ratio(self, name: str, against: str) -> float:
        """Return how many times as fast a contender is as another: the median over the rounds that both ran."""
        first, second = self._contenders[name].seconds, self._contenders[against].seconds
        return median(second[number] / max(first[number], 1e-12) for number in first.keys() & second.keys())

    def turns(self, name: str) -> int:
        """Return how many turns a contender had."""
        return len(self._contenders[name].seconds)
