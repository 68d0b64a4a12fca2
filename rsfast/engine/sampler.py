"""The only loops over batches: one sample of all inputs, and the plan of many inputs, packed."""

from __future__ import annotations

import time
import warnings
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from ..heads import Votes
from ..ops.tally import Tally
from ..stats.estimates import leading_classes
from .batches import Batches, RowGroup, cut, to_device
from .plan import SamplingPlan
from .ranks import Ranks
from .scheduler import InFlight, Scheduler, Segment

_ALONE = Ranks()
_UNSEEN = 1 << 15  # rows after which Tallies that have arrived are looked at
_PROMPT = 1.0  # or so many seconds
_MEMORY = 1 << 28  # bytes of Tallies and inputs under way, on the device and once more on the host


def draw(
    batches: Batches,
    inputs: torch.Tensor,
    input_ids: torch.Tensor,
    tally: Tally,
    samples: range,
    stream: str,
    bar: tqdm[Any],
) -> None:
    """Add these samples of every input to `tally`: rows input by input, sample by sample, cut into batches."""
    total = len(inputs) * len(samples)
    with batches.forward.running():
        for begin in range(0, total, batches.size):
            places = np.arange(begin, min(begin + batches.size, total))
            rows = places // len(samples)
            batches.run(inputs, input_ids, [RowGroup(stream, tally, rows, rows, samples.start + places % len(samples))])
            bar.update(len(places))


class Outcome(NamedTuple):
    """What was found for an input: its number in the order of the inputs, its id, and what the plan made of it."""

    number: int
    input_id: int
    found: Any


class _Read(NamedTuple):
    """Tallies on their way to the host: of which pieces, and their integers in one row."""

    segments: list[Segment]
    integers: torch.Tensor
    event: torch.cuda.Event | None


class Sampler:
    """Take many inputs through a plan, in full batches, and yield what is found in the order of the inputs.

    Each input under way has a place: its pixels, a row in the Tally of the selections and one in the Tally of each range.
    When the last sample of a piece is in a batch, its row is copied to the host, which takes it a batch later (at once on a
    CPU, which gains nothing by waiting), so the device never waits for a decision.

    Parameters
    ----------
    plan : SamplingPlan
    inputs : iterable of (input id, float32 tensor [*shape])
        Taken one by one, as there is room. What it raises is raised when the inputs before it are done.
    shape : torch.Size
        Of an input.
    count : int or None
        Of the inputs, where it is known.
    num_classes : int
    batches : Batches
    device : torch.device
    lag : int, optional
        Batches that are launched before the Tallies of one are looked at; 0 on a CPU, otherwise 1.
    saved : mapping of int to dict, optional
        By input id, what `unfinished` told of inputs in a run that was stopped: they go on from there.
    bar : tqdm, optional
        Counts samples.
    ranks : Ranks
        If they divide samples, each batch is one of all ranks, of which this one runs its part, and the Tallies that are
        looked at are the sums; all ranks find the same.

    Attributes
    ----------
    after_batch : callable
        Called after each batch. What it raises ends the sampling.
    """

    def __init__(
        self,
        plan: SamplingPlan,
        inputs: Iterable[tuple[int, torch.Tensor]],
        shape: torch.Size,
        count: int | None,
        num_classes: int,
        batches: Batches,
        device: torch.device,
        *,
        lag: int | None = None,
        saved: Mapping[int, Mapping[str, Any]] | None = None,
        bar: tqdm[Any] | None = None,
        ranks: Ranks = _ALONE,
    ) -> None:
        self.plan, self.batches, self.bar, self.ranks = plan, batches, bar, ranks
        self.after_batch: Callable[[], object] = lambda: None
        self._size = batches.size * (ranks.world if ranks.by_samples else 1)
        self.lag = (0 if device.type == "cpu" else 1) if lag is None else lag
        self._looks = len(plan.pieces) - 1
        places = self._places(shape, count, num_classes)
        self._tallies = self._of_places(places, num_classes, device)
        self._arrived = self._of_places(places, num_classes, "cpu")
        self._x = torch.zeros(places, *shape, device=device)
        self._ids = torch.zeros(places, dtype=torch.int64, device=device)
        self._input_ids = np.zeros(places, dtype=np.int64)
        lengths = [len(samples) for _, samples in plan.pieces]
        self.schedule = Scheduler(lengths, places, early=plan.early, waits=plan.tracks)
        self._inputs, self._saved = iter(inputs), dict(saved or {})
        self._failure: BaseException | None = None
        self._pending: deque[_Read] = deque()
        self._found: dict[int, Outcome] = {}
        self._due = self._unseen = 0
        self._warned = False
        self._looked = time.monotonic()

    def _of_places(self, places: int, num_classes: int, device: torch.device | str) -> tuple[Tally, Tally]:
        """Return Tallies of the selections [places] and of the estimations [looks * places]."""
        heads, slots = self.plan.heads, self._looks * places
        tracked = None
        if self.plan.tracks:
            tracked = torch.zeros(slots, sum(head != Votes() for head in heads), 2, dtype=torch.int64)
        return (
            Tally(places, num_classes, heads, device=device),
            Tally(slots, num_classes, heads, tracked_classes=tracked, device=device),
        )

    def _places(self, shape: torch.Size, count: int | None, num_classes: int) -> int:
        """Return how many inputs may be under way: as many as fill a batch where each offers but a short range."""
        tallies = self._of_places(1, num_classes, "cpu")
        nbytes = 4 * shape.numel() + sum(tensor.nbytes for tally in tallies for tensor in tally.tensors().values())
        most = min(self._size // 8 + 2, _MEMORY // nbytes)
        return max(2, most if count is None else min(most, count))

    def __iter__(self) -> Iterator[Outcome]:
        going = True
        while going:
            with self.batches.forward.running():  # and not while somebody else runs, between two outcomes
                try:
                    while going and self._due not in self._found:
                        going = self._step()
                except Exception as error:  # for later: inputs that have all their samples are finished first
                    self._failure, going = error, False
                    while self._pending:
                        self._arrive(self._pending.popleft())
                    self._look()
            while self._due in self._found:
                yield self._found.pop(self._due)
                self._due += 1
        failure, self._failure = self._failure, None
        if failure is not None:
            try:
                raise failure
            finally:
                del failure  # else it would keep itself, and all that the model had allocated, until garbage is collected

    def _step(self) -> bool:
        """Launch a batch and take what has arrived; tell whether there was anything to do."""
        segments = self._fill()
        if not segments and not self._pending:
            return False
        if segments:
            self._launch(segments)
            self._pending.append(self._read([s for s in segments if s.stop == len(self.plan.pieces[s.piece][1])]))
        while len(self._pending) > (self.lag if segments else 0):
            self._arrive(self._pending.popleft())
        self.after_batch()
        return True

    def _fill(self) -> list[Segment]:
        """Return the segments of the next batch.

        Bounds cost less the more inputs they are taken of at once. So what has arrived is looked at when that is needed to
        fill the batch, or so many rows have passed, or a second; but where ranks divide the samples not by the clock, as
        all must find the same.
        """
        room, segments = self._size, list[Segment]()
        self._unseen += room
        if self._unseen >= _UNSEEN or (not self.ranks.by_samples and time.monotonic() - self._looked > _PROMPT):
            self._look()
        while room:
            new = self.schedule.fill(room, self._load)
            room -= sum(segment.stop - segment.start for segment in new)
            segments += new
            if not new and not self._look():
                break
        return segments + self.schedule.speculate(room)

    def _load(self, active: InFlight) -> bool:
        """Put the next input into its place; tell whether there was one."""
        try:
            item = next(self._inputs, None)
        except Exception as error:  # for later: what came before it is finished first
            self._failure, item = error, None
        if item is None:
            return False
        self._input_ids[active.place], pixels = item
        self._x[active.place] = to_device(pixels, self._x.device)
        self._ids[active.place].fill_(self._input_ids[active.place].item())  # where to assign would be to wait for a GPU
        if (saved := self._saved.pop(self._input_ids[active.place].item(), None)) is not None:
            self._restore(active, saved)
        return True

    def held(self) -> list[Outcome]:
        """Return what was found and is not due yet."""
        return list(self._found.values())

    def unfinished(self) -> Iterator[Mapping[str, Any]]:
        """Return, for each input under way, its id (``idx``), how many samples were drawn (``asked``) and their Tallies.

        To be read before the next batch. Where ranks divide the samples, all must call this after the same batch.
        """
        tallies = self._tallies
        if self.ranks.by_samples:
            tallies = tallies[0].to(self._x.device), tallies[1].to(self._x.device)  # copies, to add up
            for tensor in (tensor for tally in tallies for tensor in tally.tensors().values()):
                self.ranks.add(tensor)
        selection, estimation = (tally.to("cpu") for tally in tallies)
        under_way = (
            {
                "idx": int(self._input_ids[active.place]),
                "asked": active.asked,
                "selection": selection.integers(active.place),
                "estimation": [
                    estimation.integers(active.place + number * len(self._x)) for number in range(self._begun(active.asked))
                ],
            }
            for active in self.schedule.active
        )
        return chain(under_way, self._saved.values())

    def _begun(self, asked: int) -> int:
        """Return of how many ranges an input has samples."""
        return bisect_left(self.schedule.ends, asked)

    def _restore(self, active: InFlight, saved: Mapping[str, Any]) -> None:
        """Put the samples of a run that was stopped into the place of an input."""
        active.asked, heads = saved["asked"], self.plan.heads
        begun = self._begun(active.asked)
        selection = Tally.from_integers([saved["selection"]], heads)
        drawn = [selection]
        if begun:
            drawn.append(estimation := Tally.from_integers(saved["estimation"], heads))
        if [n for tally in drawn for n in tally.n.tolist()] != self._drawn(active.asked):
            raise ValueError(f"the checkpoint has other samples of idx {saved['idx']} than the {active.asked} that it tells")
        pieces = [Segment(active, piece, 0, 0) for piece in range(begun + 1)]
        if self.ranks.rank == 0 or not self.ranks.by_samples:  # else it is a part of the sum that rank 0 has all of
            restored = (tensor for tally in drawn for tensor in tally.tensors().values())
            for (tensor, slots), values in zip(self._rows(self._tallies, pieces), restored, strict=True):
                tensor[slots] = to_device(values, tensor.device)
        if self.plan.tracks and begun:
            _, tally = self._tallies
            tally.tracked_classes[to_device(self._slots(pieces[1:]), tally.n.device)] = to_device(
                estimation.tracked_classes, tally.n.device
            )
        self._pending.append(self._read([piece for piece in pieces if self.schedule.ends[piece.piece] <= active.asked]))

    def _drawn(self, asked: int) -> list[int]:
        """Return how many samples each piece has that an input has begun, when so many have been drawn."""
        starts = [0, *self.schedule.ends][: self._begun(asked) + 1]
        return [min(asked, end) - start for start, end in zip(starts, self.schedule.ends, strict=False)]

    def _launch(self, segments: Sequence[Segment]) -> None:
        parts = []
        for tally, of_tally in zip(self._tallies, _by_tally(segments), strict=True):
            if of_tally:
                stream = self.plan.pieces[of_tally[0].piece][0]
                places = np.array([segment.active.place for segment in of_tally])
                firsts = np.array([self.plan.pieces[s.piece][1].start + s.start for s in of_tally])
                lengths = np.array([segment.stop - segment.start for segment in of_tally])
                offsets = firsts - lengths.cumsum() + lengths
                places, slots, offsets = (np.repeat(each, lengths) for each in (places, self._slots(of_tally), offsets))
                parts.append(RowGroup(stream, tally, places, slots, offsets + np.arange(len(offsets))))
        rows = sum(len(part.samples) for part in parts)
        if self.ranks.by_samples:
            share = -(-rows // self.ranks.world)
            parts = cut(parts, self.ranks.rank * share, (self.ranks.rank + 1) * share)
        if parts:
            self.batches.run(self._x, self._ids, parts)
        if self.bar is not None:
            self.bar.update(rows)

    def _slots(self, segments: Iterable[Segment]) -> NDArray[np.int64]:
        """Return the rows of their Tally."""
        places = len(self._x)
        return np.array([segment.active.place + max(segment.piece - 1, 0) * places for segment in segments])

    def _rows(
        self, tallies: tuple[Tally, Tally], segments: Sequence[Segment]
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield each tensor of both Tallies with the rows that these pieces have in it."""
        for tally, of_tally in zip(tallies, _by_tally(segments), strict=True):
            if of_tally:
                slots = to_device(self._slots(of_tally), tally.n.device)
                for tensor in tally.tensors().values():
                    yield tensor, slots

    def _read(self, segments: list[Segment]) -> _Read:
        """Start to copy the Tallies of these pieces to the host."""
        if not segments:
            return _Read(segments, torch.empty(0, dtype=torch.int64), None)
        integers = torch.cat([tensor[slots].flatten() for tensor, slots in self._rows(self._tallies, segments)])
        if self.ranks.by_samples:
            integers = torch.cat([integers, to_device(np.array([_mark(segments)]), integers.device)])
            self.ranks.add(integers)
        if not integers.is_cuda:
            return _Read(segments, integers, None)
        pinned = torch.empty(integers.shape, dtype=torch.int64, pin_memory=True).copy_(integers, non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._x.device))  # of the device, which need not be the current one
        return _Read(segments, pinned, event)

    def _arrive(self, read: _Read) -> None:
        """Take what was read, if the input was not decided meanwhile."""
        if read.event is not None:
            read.event.synchronize()
        if self.ranks.by_samples and read.segments and read.integers[-1] != self.ranks.world * _mark(read.segments):
            raise RuntimeError("shard is 'samples', but processes were at different samples; all must do the same")
        start = 0
        for tensor, slots in self._rows(self._arrived, read.segments):
            stop = start + len(slots) * tensor[0].numel()
            tensor[slots] = read.integers[start:stop].view(len(slots), *tensor.shape[1:])
            start = stop
        for segment in read.segments:
            segment.active.read = segment.piece + 1

    def _look(self) -> bool:
        """Judge what can be judged, look by look; tell whether there was any."""
        self._unseen, self._looked, looked = 0, time.monotonic(), False
        with self.batches.timer("bounds"):
            if self.plan.tracks and (fresh := [a for a in self.schedule.active if a.read and not a.judged]):
                self._track(fresh)
                looked = True
            while ready := self._ready():
                for look, actives in sorted(ready.items()):
                    self._evaluate(look, actives)
                looked = True
        return looked

    def _ready(self) -> dict[int, list[InFlight]]:
        """Return the inputs whose next look is at samples that have arrived, by the number of ranges that it takes."""
        ready: dict[int, list[InFlight]] = {}
        for active in self.schedule.active:
            look = max(active.judged, 1) if self.plan.early else self._looks
            if active.read > look:
                ready.setdefault(look, []).append(active)
        return ready

    def _track(self, actives: Sequence[InFlight]) -> None:
        """Let the estimation's Tallies keep the histograms of the classes that the selection puts first."""
        places = np.array([active.place for active in actives])
        classes = torch.from_numpy(leading_classes(self._arrived[0].select(places)))
        slots = (np.arange(self._looks)[:, None] * len(self._x) + places).ravel()
        for _, tally in (self._tallies, self._arrived):
            device = tally.n.device
            tally.tracked_classes[to_device(slots, device)] = to_device(classes.repeat(self._looks, 1, 1), device)
        for active in actives:
            active.judged = 1

    def _evaluate(self, look: int, actives: Sequence[InFlight]) -> None:
        places = np.array([active.place for active in actives])
        selection, estimation = self._arrived
        ranges = [estimation.select(places + number * len(self._x)) for number in range(look)]
        input_ids = self._input_ids[places].tolist()
        found = self.plan.evaluate(selection.select(places), ranges, input_ids)
        decided = []
        voteless = torch.stack([tally.counts[:, -1] for tally in ranges]).sum(dim=0).tolist()
        for active, input_id, what, count in zip(actives, input_ids, found, voteless, strict=True):
            active.judged = look + 1
            if what is not None:
                self._warn(input_id, count)
                self._found[active.number] = Outcome(active.number, input_id, what)
                self.schedule.release(active)
                decided += [Segment(active, piece, 0, 0) for piece in range(self._looks + 1)]
                if self.bar is not None and self.bar.total is not None:
                    self.bar.total -= self.schedule.ends[-1] - active.asked
        if decided:
            for tensor, slots in self._rows(self._tallies, decided):
                tensor.index_fill_(0, slots, 0)

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


def _mark(segments: Iterable[Segment]) -> int:
    """Return a number that tells whose Tallies these are: what ranks add up must be of the same samples."""
    return crc32(repr([(segment.active.number, segment.piece) for segment in segments]).encode())


def _by_tally(segments: Sequence[Segment]) -> tuple[list[Segment], list[Segment]]:
    """Return the segments of selections, and those of estimations."""
    return [s for s in segments if s.piece == 0], [s for s in segments if s.piece > 0]
