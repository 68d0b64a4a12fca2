"""The only loops over batches: one sample of all inputs, and the plan of many inputs, packed."""

from __future__ import annotations

import time
import warnings
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm

from ..ops.tally import Tally
from ..stats.estimates import leading_classes
from .batch_size import FULL
from .batches import Batches, RowGroup, expand, slice_groups, staged, to_device
from .plan import SamplingPlan
from .ranks import Ranks
from .scheduler import InFlight, Scheduler, Segment
from .slots import SlotTallies, by_tally, slot_bytes

MOST_AHEAD = 32
"""Batches, at most, that are launched on a GPU before the Tallies of one are received."""


def draw(
    batches: Batches,
    inputs: torch.Tensor,
    input_ids: torch.Tensor,
    tally: Tally,
    samples: range,
    stream: str,
    bar: tqdm[Any],
) -> None:
    """Add these samples of every input to `tally`: rows input by input, sample by sample, sliced into batches."""
    total = len(inputs) * len(samples)
    with batches.forward.running():
        for begin in range(0, total, batches.size):
            places = to_device(expand(_of_all(samples, begin, min(begin + batches.size, total))), inputs.device)
            batches.run(inputs, input_ids, [RowGroup(stream, tally, places)])
            bar.update(places.shape[1])


def _of_all(samples: range, begin: int, end: int) -> list[tuple[int, int, int, int]]:
    """Return the segments, for `expand`, of the rows from `begin` to `end` - 1 of all samples, input after input."""
    found = []
    while begin < end:
        row, number = divmod(begin, len(samples))
        size = min(end - begin, len(samples) - number)
        found.append((row, row, samples.start + number, size))
        begin += size
    return found


class Outcome(NamedTuple):
    """What follows for an input: its id, and what the plan returned for it."""

    input_id: int
    result: Any


@dataclass(frozen=True)
class Pacing:
    """When Tallies are evaluated, and how many inputs are in flight. No result depends on it.

    Parameters
    ----------
    lag : int, optional
        Batches that are launched before the Tallies of one are received; by default 0 on a CPU, otherwise 1, or on a GPU as
        many as keep it busy while Tallies are evaluated.
    rows, seconds : int, float
        Tallies that were received are evaluated at least every so many seconds, or, where ranks divide the samples, rows.
    memory : int
        Bytes that Tallies and inputs in flight may take on the device, and once more on the host.
    clock : callable
        Returns the seconds.
    """

    lag: int | None = None
    rows: int = 1 << 15
    seconds: float = 1.0
    memory: int = 1 << 28
    clock: Callable[[], float] = time.monotonic


class Sampler:
    """Take many inputs through a plan, in full batches, and yield the results in the order of the inputs.

    Each input in flight has a slot: its pixels, a row in the Tally of the selections and one in the Tally of each sample
    range. When the last sample of a stage is in a batch, its row is copied to the host. The host receives it a batch later,
    so the device never waits for a decision. On a GPU the host evaluates while batches wait for the device, and launches
    more ahead if that took longer than they did. On a CPU, which gains nothing by waiting, it receives a row at once.

    Parameters
    ----------
    plan : SamplingPlan
    inputs : iterable of (input id, float32 tensor [*shape])
        Taken one by one, as there is room. What it raises is raised when the inputs before it are done.
    shape : torch.Size
        Of an input.
    count : int or None
        Of the inputs, where it is known.
    batches : Batches
    pacing : Pacing
    ranks : Ranks
        If they divide samples, each batch is one of all ranks, of which this one runs its share. The Tallies that are
        evaluated are the sums, so all ranks get the same results.
    bar : tqdm
        Counts samples.
    saved : mapping of int to dict, optional
        By input id, what `unfinished` returned for inputs of a run that was stopped: they go on from there.

    Attributes
    ----------
    after_batch : callable
        Called after each batch. What it raises ends the sampling.
    batches : Batches
    scheduler : Scheduler
        Its ``active`` are the inputs in flight.
    slots : int
        The most inputs that can be in flight.
    """

    def __init__(
        self,
        plan: SamplingPlan,
        inputs: Iterable[tuple[int, torch.Tensor]],
        shape: torch.Size,
        count: int | None,
        batches: Batches,
        *,
        pacing: Pacing,
        ranks: Ranks,
        bar: tqdm[Any],
        saved: Mapping[int, Mapping[str, Any]] | None = None,
    ) -> None:
        num_classes, device = batches.forward.num_classes, batches.forward.device
        self.plan, self.batches, self.bar, self.ranks, self.pacing = plan, batches, bar, ranks, pacing
        self.after_batch: Callable[[], object] = lambda: None
        self._size = batches.size * (ranks.world if ranks.by_samples else 1)
        # A batch takes about as long a row on a CPU if it is not full, so few rows there are worth a guess.
        self._least = max(1, min(self._size // 4, FULL)) if device.type == "cpu" and not batches.pad else self._size
        self._lag = (0 if device.type == "cpu" else 1) if pacing.lag is None else pacing.lag
        self._ahead = device.type == "cuda" and pacing.lag is None and not ranks.by_samples
        self.slots = self._count_slots(shape, count, num_classes)
        self._tallies = SlotTallies(plan, self.slots, num_classes, device, ranks)
        if plan.early:
            self._totals = Tally(self.slots, num_classes, plan.heads)  # of the ranges up to the last analysis
        self._x = torch.zeros(self.slots, *shape, dtype=torch.float32, device=device)
        self._input_ids = np.zeros(self.slots, dtype=np.int64)
        self._ids = to_device(self._input_ids, device)  # on a CPU the same memory
        lengths = [len(samples) for _, samples in plan.stages]
        self.scheduler = Scheduler(lengths, self.slots, early=plan.early, waits=plan.tracks)
        self._inputs, self._saved = iter(inputs), dict(saved or {})
        self._failure: BaseException | None = None
        self._results: dict[int, Outcome] = {}
        self._due = self._rows_since = 0
        self._warned = self._evaluating = False
        self._last_evaluation = pacing.clock()

    def _count_slots(self, shape: torch.Size, count: int | None, num_classes: int) -> int:
        """Return how many inputs may be in flight.

        As many as fill a batch where each offers but a short range, or where batches are launched ahead, several.
        """
        nbytes = slot_bytes(self.plan, num_classes) + 4 * shape.numel()
        most = min(self._size // (2 if self._ahead else 8) + 2, self.pacing.memory // nbytes)
        return max(2, most if count is None else min(most, count))

    def __iter__(self) -> Iterator[Outcome]:
        going = True
        while going:
            with self.batches.forward.running():  # and not while somebody else runs, between two outcomes
                try:
                    while going and self._due not in self._results:
                        going = self._step()
                except Exception as error:  # for later: inputs that have all their samples are finished first
                    self._failure, going = error, False
                    if not self._evaluating:  # a second evaluation would sum Tallies that the one that failed has summed
                        self._tallies.receive(0)
                        self._evaluate_ready()
            while self._due in self._results:
                yield self._results.pop(self._due)
                self._due += 1
        failure, self._failure = self._failure, None
        if failure is not None:
            try:
                raise failure
            finally:
                del failure  # else it would keep itself, and all that the model had allocated, until garbage is collected

    def _step(self) -> bool:
        """Launch a batch and receive Tallies that are due; return whether there was anything to do."""
        segments = self._fill()
        if not segments and not self._tallies.under_way:
            return False
        if segments:
            self._launch(segments)
            self._tallies.send([s for s in segments if s.stop == len(self.plan.stages[s.stage][1])])
        self._tallies.receive(self._lag if segments else 0)
        if self._ahead and self._tallies.under_way >= self._lag:
            self._evaluate_meanwhile()
        self.after_batch()
        return True

    def _evaluate_meanwhile(self) -> None:
        """Evaluate while the device runs batches; if they end first, launch twice as many ahead from now on.

        A thread of its own would hold Python's lock, and so keep this one from launching, for milliseconds at a time.
        """
        if self._evaluate_ready():
            self._tallies.receive(self._lag)
            if not self._tallies.under_way:
                self._lag = min(2 * self._lag, MOST_AHEAD)

    def _fill(self) -> list[Segment]:
        """Return the segments of the next batch.

        Bounds cost less the more inputs they are taken of at once. So Tallies that were received are evaluated when that is
        needed to fill the batch, or as `Pacing` says; on a GPU also while it has batches to run. Where ranks divide the
        samples, neither clock nor device plays a part, as all must do the same.
        """
        room, segments = self._size, list[Segment]()
        self._rows_since += room
        if self.ranks.by_samples:
            late = self._rows_since >= self.pacing.rows
        else:
            late = self.pacing.clock() - self._last_evaluation > self.pacing.seconds
        if late:
            self._evaluate_ready()
        while room:
            new = self.scheduler.fill(room, self._load)
            room -= sum(segment.stop - segment.start for segment in new)
            segments += new
            if not new and not self._evaluate_ready():
                if not self._ahead or self._tallies.under_way < 2:
                    break
                self._tallies.receive(self._tallies.under_way - 1)  # rather than to guess while the device has work
        return segments + self.scheduler.speculate(max(0, room - self._size + self._least))

    def _load(self, active: InFlight) -> bool:
        """Put the next input into its slot; return whether there was one."""
        try:
            item = next(self._inputs, None)
        except Exception as error:  # for later: what came before it is finished first
            self._failure, item = error, None
        if item is None:
            return False
        input_id, pixels = item
        device = self._x.device
        self._x[active.slot].copy_(staged(pixels, device), non_blocking=device.type != "cpu")
        self._input_ids[active.slot] = input_id
        if device.type != "cpu":
            self._ids[active.slot].fill_(input_id)  # where to assign would be to wait for it
        if self._saved and (saved := self._saved.pop(input_id, None)) is not None:
            self._restore(active, saved)
        return True

    def held(self) -> list[Outcome]:
        """Return the outcomes that are not due yet."""
        return list(self._results.values())

    def unfinished(self) -> Iterator[Mapping[str, Any]]:
        """Return, for each input in flight, its id (``idx``), how many samples were drawn (``asked``) and their Tallies.

        To be read before the next batch. Where ranks divide the samples, all must call this after the same batch.
        """
        selection, estimation = self._tallies.on_host()
        in_flight = (
            {
                "idx": int(self._input_ids[active.slot]),
                "asked": active.sampled,
                "selection": selection.integers(active.slot),
                "estimation": [
                    estimation.integers(active.slot + number * self.slots) for number in range(self._begun(active.sampled))
                ],
            }
            for active in self.scheduler.active
        )
        return chain(in_flight, self._saved.values())

    def _begun(self, sampled: int) -> int:
        """Return of how many sample ranges an input has samples."""
        return bisect_left(self.scheduler.ends, sampled)

    def _restore(self, active: InFlight, saved: Mapping[str, Any]) -> None:
        """Put the samples of a run that was stopped into the slot of an input."""
        active.sampled, heads = saved["asked"], self.plan.heads
        begun = self._begun(active.sampled)
        selection = Tally.from_integers([saved["selection"]], heads)
        drawn = [selection]
        if begun:
            drawn.append(Tally.from_integers(saved["estimation"], heads))
        if (held := [n for tally in drawn for n in tally.n.tolist()]) != (stated := self._drawn(active.sampled)):
            raise ValueError(
                f"the checkpoint's Tallies of idx {saved['idx']} must hold {stated} samples, as its 'asked' says, got {held}"
                "; if a version of rsfast with other interim analyses wrote it, resume with that, or remove the checkpoint"
            )
        self._tallies.restore(active, drawn)
        done = bisect_right(self.scheduler.ends, active.sampled)
        self._tallies.send([Segment(active, stage, 0, 0) for stage in range(done)])

    def _drawn(self, sampled: int) -> list[int]:
        """Return how many samples each stage has that an input has begun, when so many have been drawn."""
        starts = [0, *self.scheduler.ends][: self._begun(sampled) + 1]
        return [min(sampled, end) - start for start, end in zip(starts, self.scheduler.ends, strict=False)]

    def _launch(self, segments: Sequence[Segment]) -> None:
        table = [
            (active.slot, self._tallies.row(active, stage), self.plan.stages[stage][1].start + start, stop - start)
            for active, stage, start, stop in by_tally(segments)
        ]
        selected = sum(each.stop - each.start for each in segments if not each.stage)
        places = to_device(expand(table), self._x.device)
        streams = self.plan.stages[0][0], self.plan.stages[-1][0]
        parts = places[:, :selected], places[:, selected:]
        groups = [RowGroup(*each) for each in zip(streams, self._tallies.drawn, parts, strict=True) if each[2].shape[1]]
        if self.ranks.by_samples:
            share = -(-places.shape[1] // self.ranks.world)
            groups = slice_groups(groups, self.ranks.rank * share, (self.ranks.rank + 1) * share)
        if groups:
            self.batches.run(self._x, self._ids, groups)
        self.bar.update(places.shape[1])

    def _evaluate_ready(self) -> bool:
        """Evaluate each input whose next analysis has its samples; return whether there was any."""
        self._rows_since, self._last_evaluation, any_ready = 0, self.pacing.clock(), False
        self._evaluating = True
        with self.batches.timer("bounds"):
            if self.plan.tracks and (fresh := [a for a in self.scheduler.active if a.received and not a.evaluated]):
                self._track(fresh)
                any_ready = True
            while ready := [a for a in self.scheduler.active if a.received > self._next_analysis(a)]:
                for actives in self._grouped(self._maybe_decided(ready)):
                    self._evaluate(actives)
                any_ready = True
        self._evaluating = False
        return any_ready

    def _next_analysis(self, active: InFlight) -> int:
        """Return how many sample ranges the next analysis of an input takes."""
        return max(active.evaluated, 1) if self.plan.early else self._tallies.analyses

    def _maybe_decided(self, ready: list[InFlight]) -> list[InFlight]:
        """Return the inputs without those that surely need the next sample range, which go on."""
        if not self.plan.early:
            return ready
        slots = np.array([active.slot for active in ready])
        rows = slots + (np.array([self._next_analysis(active) for active in ready]) - 1) * self.slots
        selection, estimation = self._tallies.received
        tensors = estimation.tensors()
        for name, total in self._totals.tensors().items():  # which have no histograms
            total.numpy()[slots] += tensors[name].numpy()[rows]
        undecided = self.plan.undecided(selection, self._totals, estimation.select(rows), slots).tolist()
        for active, goes_on in zip(ready, undecided, strict=True):
            if goes_on:
                active.evaluated = self._next_analysis(active) + 1
        return [active for active, goes_on in zip(ready, undecided, strict=True) if not goes_on]

    def _grouped(self, actives: list[InFlight]) -> list[list[InFlight]]:
        """Return the inputs in groups that are evaluated together."""
        groups: dict[int, list[InFlight]] = {}
        for active in actives:
            groups.setdefault(self._next_analysis(active) if self.plan.by_range else 0, []).append(active)
        return [groups[analysis] for analysis in sorted(groups)]

    def _track(self, actives: Sequence[InFlight]) -> None:
        """Let the estimation's Tallies keep the histograms of the classes that the selection puts first."""
        slots = np.array([active.slot for active in actives])
        self._tallies.track(slots, torch.from_numpy(leading_classes(self._tallies.received[0].select(slots))))
        for active in actives:
            active.evaluated = 1

    def _evaluate(self, actives: Sequence[InFlight]) -> None:
        slots = np.array([active.slot for active in actives])
        selection, estimation = self._tallies.received
        if self.plan.early and not self.plan.by_range:
            ranges = [self._totals.select(slots)]
        else:
            analysis = self._next_analysis(actives[0])
            ranges = estimation.select(self._tallies.rows(slots, analysis)).shares(analysis)
        input_ids = self._input_ids[slots].tolist()
        results = self.plan.evaluate(selection.select(slots), ranges, input_ids)
        decided = []
        voteless = torch.stack([tally.counts[:, -1] for tally in ranges]).sum(dim=0).tolist()
        for active, input_id, result, count in zip(actives, input_ids, results, voteless, strict=True):
            active.evaluated = self._next_analysis(active) + 1
            if result is not None:
                self._warn(input_id, count)
                self._results[active.number] = Outcome(input_id, result)
                self.scheduler.release(active)
                decided += [Segment(active, stage, 0, 0) for stage in range(self._begun(active.sampled) + 1)]
                if self.bar.total is not None:
                    self.bar.total -= self.scheduler.ends[-1] - active.sampled
        if decided and not self.scheduler.exhausted:  # else nobody takes these slots
            if self.plan.early:
                for tensor in self._totals.tensors().values():
                    tensor[[segment.active.slot for segment in decided if not segment.stage]] = 0
            self._tallies.clear(decided)

    def _warn(self, input_id: int, voteless: int) -> None:
        """Warn once of samples that vote for no class: an abstention for that looks like any other."""
        if voteless and not self._warned:
            self._warned = True
            warnings.warn(
                f"model returned NaN, or a largest logit that is not finite, in {voteless} of the samples of input "
                f"{input_id}; such a sample counts, but votes for no class and has no score (only the first such input is "
                "reported)",
                UserWarning,
                stacklevel=2,
            )
