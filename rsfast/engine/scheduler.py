"""Choose the samples of the next batch: rows of many inputs, so that batches stay full to the end.

Integers only. The samples of an input are fixed before, by its stages. When they are drawn depends on nothing but the batch
size, the order of the inputs and when each was decided.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple


class Segment(NamedTuple):
    """Consecutive samples of one stage of an input: `start` to `stop` - 1, counted from the stage's first."""

    active: InFlight
    stage: int
    start: int
    stop: int


@dataclass(eq=False)
class InFlight:
    """An input under way.

    Parameters
    ----------
    number : int
        Of the input, in the order of admission.
    slot : int
        Where its pixels and Tallies are kept.
    sampled : int
        Its samples that have been put into batches.
    received : int
        Its stages whose Tallies have arrived.
    evaluated : int
        Its stages that were evaluated: it goes on beyond them.
    """

    number: int
    slot: int
    sampled: int = 0
    received: int = 0
    evaluated: int = 0


class Scheduler:
    """Fill batches with samples of the oldest inputs first.

    Parameters
    ----------
    stages : sequence of int
        Samples in each stage of every input, in order.
    slots : int
        Inputs that can be under way at once.
    early : bool
        An input may be decided after each stage. Samples beyond the stage that is to be evaluated next are then drawn only
        where nothing else would fill the batch.
    waits : bool
        The second stage cannot be drawn before the first was evaluated.

    Attributes
    ----------
    active : list of InFlight
        Inputs under way, oldest first.
    ends : list of int
        Samples of an input up to the end of each stage.
    exhausted : bool
        Whether `load` said that no input is left.

    Examples
    --------
    >>> scheduler = Scheduler([100, 1000], slots=4, early=False, waits=False)
    >>> [(segment.stage, segment.start, segment.stop) for segment in scheduler.fill(256, load=lambda active: True)]
    [(0, 0, 100), (1, 0, 156)]
    """

    def __init__(self, stages: Sequence[int], slots: int, *, early: bool, waits: bool) -> None:
        self.ends = list(accumulate(stages))
        self.active: list[InFlight] = []
        self._early, self._waits = early, waits
        self._free = list(range(slots))[::-1]
        self._admitted = 0
        self.exhausted = False

    def fill(self, size: int, load: Callable[[InFlight], bool]) -> list[Segment]:
        """Return segments whose samples are guaranteed to be used, at most `size` samples.

        Parameters
        ----------
        size : int
            Rows in the batch.
        load : callable
            Puts the next input into the slot of a new InFlight; False if there is none left.
        """
        segments: list[Segment] = []
        room = size
        for active in self.active:
            if not room:
                break
            room -= self._take(active, self._wanted(active), room, segments)
        while room and (new := self._admit(load)):
            room -= self._take(new, self._wanted(new), room, segments)
        return segments

    def speculate(self, size: int) -> list[Segment]:
        """Return segments whose samples may turn out not to be used: beyond an analysis that has not been made."""
        segments: list[Segment] = []
        for active in self.active:
            size -= self._take(active, self._possible(active), size, segments)
        return segments

    def _admit(self, load: Callable[[InFlight], bool]) -> InFlight | None:
        if self.exhausted or not self._free:
            return None
        active = InFlight(self._admitted, self._free[-1])
        if not load(active):
            self.exhausted = True
            return None
        self._free.pop()
        self._admitted += 1
        self.active.append(active)
        return active

    def release(self, active: InFlight) -> None:
        """Take an input that is decided out, and free its slot."""
        self.active.remove(active)
        self._free.append(active.slot)

    def _wanted(self, active: InFlight) -> int:
        """Return how many of its samples are guaranteed to be used."""
        if not self._early:
            return self._possible(active)
        evaluated = active.evaluated if self._waits else max(active.evaluated, 1)  # the first stage decides nothing
        return self.ends[min(evaluated, len(self.ends) - 1)]

    def _possible(self, active: InFlight) -> int:
        """Return how many of its samples can be drawn now."""
        return self.ends[0] if self._waits and not active.evaluated else self.ends[-1]

    def _take(self, active: InFlight, limit: int, room: int, segments: list[Segment]) -> int:
        """Put at most `room` of its samples before `limit` into a batch, and return how many."""
        first, stop = active.sampled, min(limit, active.sampled + room)
        while active.sampled < stop:
            stage = bisect_right(self.ends, active.sampled)
            start = self.ends[stage - 1] if stage else 0
            end = min(stop, self.ends[stage])
            segments.append(Segment(active, stage, active.sampled - start, end - start))
            active.sampled = end
        return active.sampled - first
