"""The Tallies of inputs in flight: where batches are made, and what of them the host has received."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray

from ..ops.tally import Tally, row_bytes
from .batches import recorded_event, to_device, to_host
from .plan import SamplingPlan
from .ranks import Ranks
from .scheduler import InFlight, Segment

_NOTHING = torch.empty(0, dtype=torch.int64)


def slot_bytes(plan: SamplingPlan, num_classes: int) -> int:
    """Return how many bytes the Tallies of a slot take on the device."""
    return row_bytes(num_classes, plan.heads) + _analyses(plan) * row_bytes(num_classes, plan.heads, 2 * plan.tracks)


def _analyses(plan: SamplingPlan) -> int:
    return len(plan.stages) - 1


class _Transfer(NamedTuple):
    """Tallies of these segments' stages on their way to the host, their integers in one row; none if they are there.

    After the event, on a GPU, they have arrived, and the batch that completed them is done.
    """

    segments: list[Segment]
    integers: torch.Tensor
    event: torch.cuda.Event | None


class SlotTallies:
    """A row for each slot in the Tally of the selections, and one for each of its sample ranges in that of the estimations.

    Parameters
    ----------
    plan : SamplingPlan
    slots, num_classes : int
    device : torch.device
        Where batches are made.
    ranks : Ranks
        If they divide samples, what the host receives are the sums.

    Attributes
    ----------
    drawn : (Tally, Tally)
        Of selections [slots] and of estimations [analyses * slots], to which batches are added.
    received : (Tally, Tally)
        The same of stages that are complete, on the host.
    analyses : int
        How many sample ranges there are.
    """

    def __init__(self, plan: SamplingPlan, slots: int, num_classes: int, device: torch.device, ranks: Ranks) -> None:
        self.slots, self.analyses, self._tracks, self._ranks = slots, _analyses(plan), plan.tracks, ranks
        self._device = device
        self.drawn = self._make(plan, num_classes, device)
        # On a CPU the host has what a Tally's row holds: rows of a stage that is complete change no more.
        self._on_host = device.type == "cpu" and not ranks.by_samples
        self.received = self.drawn if self._on_host else self._make(plan, num_classes, "cpu")
        self._pending: deque[_Transfer] = deque()

    def _make(self, plan: SamplingPlan, num_classes: int, device: torch.device | str) -> tuple[Tally, Tally]:
        heads, rows, tracked = plan.heads, self.analyses * self.slots, None
        if plan.tracks:
            tracked = torch.zeros(rows, sum(head.soft for head in heads), 2, dtype=torch.int64)
        return (
            Tally(self.slots, num_classes, heads, device=device),
            Tally(rows, num_classes, heads, tracked_classes=tracked, device=device),
        )

    def row(self, active: InFlight, stage: int) -> int:
        """Return the row of its Tally that a stage of an input adds to."""
        return active.slot + max(stage - 1, 0) * self.slots

    def rows(self, slots: NDArray[np.int64], analyses: int) -> NDArray[np.int64]:
        """Return the rows of these slots' first sample ranges in the Tally of the estimations, range after range."""
        return (np.arange(analyses)[:, None] * self.slots + slots).ravel()

    def _tensors(
        self, tallies: tuple[Tally, Tally], segments: Sequence[Segment]
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield each tensor of both Tallies with the rows that these segments have in it."""
        ordered = by_tally(segments)
        rows = to_device(np.array([self.row(each.active, each.stage) for each in ordered]), tallies[0].n.device)
        selections = sum(not each.stage for each in ordered)
        for tally, of_tally in zip(tallies, (rows[:selections], rows[selections:]), strict=True):
            if len(of_tally):
                for tensor in tally.tensors().values():
                    yield tensor, of_tally

    @property
    def under_way(self) -> int:
        """How many times `send` was called whose Tallies the host has not received."""
        return len(self._pending)

    def send(self, segments: list[Segment]) -> None:
        """Start to copy the Tallies of these segments' stages, which the batch before has completed, to the host."""
        if self._on_host:
            self._pending.append(_Transfer(segments, _NOTHING, None))
            return
        if not segments:
            self._pending.append(_Transfer(segments, _NOTHING, recorded_event(self._device)))
            return
        integers = torch.cat([tensor[rows].flatten() for tensor, rows in self._tensors(self.drawn, segments)])
        if self._ranks.by_samples:
            integers = torch.cat([integers, to_device(np.array([_mark(segments)]), integers.device)])
            self._ranks.all_reduce_sum(integers)
        self._pending.append(_Transfer(segments, *to_host(integers)))

    def receive(self, most: int) -> None:
        """Store on the host what has arrived, and wait for more until no more than `most` are under way.

        Where ranks divide the samples, what has arrived plays no part, as all must do the same.
        """
        while self._pending:
            event = self._pending[0].event
            arrived = event is not None and not self._ranks.by_samples and event.query()  # type: ignore[no-untyped-call]
            if not arrived and len(self._pending) <= most:
                break
            self._store(self._pending.popleft())

    def _store(self, transfer: _Transfer) -> None:
        segments, integers, event = transfer
        if event is not None:
            event.synchronize()
        if self._ranks.by_samples and segments and integers[-1] != self._ranks.world * _mark(segments):
            raise RuntimeError("shard is 'samples', but processes were at different samples; all must do the same")
        start = 0
        for tensor, rows in () if self._on_host or not segments else self._tensors(self.received, segments):
            stop = start + len(rows) * tensor[0].numel()
            tensor[rows] = integers[start:stop].view(len(rows), *tensor.shape[1:])
            start = stop
        for segment in segments:
            segment.active.received = segment.stage + 1

    def track(self, slots: NDArray[np.int64], classes: torch.Tensor) -> None:
        """Let the estimations keep histograms of these classes, int64 [slots given, M, 2]."""
        rows, of_rows = self.rows(slots, self.analyses), classes.repeat(self.analyses, 1, 1)
        for _, tally in (self.received,) if self._on_host else (self.drawn, self.received):
            tally.tracked_classes[to_device(rows, tally.n.device)] = to_device(of_rows, tally.n.device)

    def clear(self, segments: Sequence[Segment]) -> None:
        """Set the rows of these segments' stages to 0, for the next input in their slots."""
        for tensor, rows in self._tensors(self.drawn, segments):
            tensor.index_fill_(0, rows, 0)

    def restore(self, active: InFlight, saved: Sequence[Tally]) -> None:
        """Put an input's selection and, if it has begun that, its estimation into its rows."""
        stages = [Segment(active, stage, 0, 0) for stage in range(sum(tally.num_inputs for tally in saved))]
        if self._ranks.rank == 0 or not self._ranks.by_samples:  # else it is a part of the sum that rank 0 has all of
            tensors = (tensor for tally in saved for tensor in tally.tensors().values())
            for (tensor, rows), values in zip(self._tensors(self.drawn, stages), tensors, strict=True):
                tensor[rows] = to_device(values, tensor.device)
        if self._tracks and len(saved) > 1:
            _, tally = self.drawn
            rows = to_device(self.rows(np.array([active.slot]), saved[1].num_inputs), tally.n.device)
            tally.tracked_classes[rows] = to_device(saved[1].tracked_classes, tally.n.device)

    def on_host(self) -> tuple[Tally, Tally]:
        """Return copies of all that is drawn; where ranks divide the samples, sums, for which all call this."""
        tallies = self.drawn
        if self._ranks.by_samples:
            tallies = tallies[0].to(self._device), tallies[1].to(self._device)  # copies, to add up
            for tensor in (tensor for tally in tallies for tensor in tally.tensors().values()):
                self._ranks.all_reduce_sum(tensor)
        return tallies[0].to("cpu"), tallies[1].to("cpu")


def _mark(segments: Iterable[Segment]) -> int:
    """Return a number that identifies the Tallies: those that ranks add up must be of the same samples."""
    return crc32(repr([(segment.active.number, segment.stage) for segment in segments]).encode())


def by_tally(segments: Sequence[Segment]) -> list[Segment]:
    """Return the segments in the order of their Tallies: those of selections first."""
    return sorted(segments, key=lambda segment: segment.stage > 0)
