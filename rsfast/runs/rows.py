"""The sampling of a run: images through a plan, to rows on disk; meanwhile checkpoints, events and signals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm

from ..engine.incremental import IncrementalCertification
from ..engine.inputs import Unreadable
from ..engine.plan import SamplingPlan
from ..engine.ranks import ControlSignal, Ranks
from ..engine.sampler import Outcome, Sampler
from ..engine.sampling import Sampling
from ..engine.timing import Profile
from ..ops.tally import Tally
from ..stats.certificate import Certificate
from . import checkpoint
from .environment import Environment, Stopped, StopSignals
from .events import Log
from .images import Images
from .layout import Skipped
from .writer import RunWriter

_WORK, _SAVE = 0, 1  # what is to be done after a batch, or the number of a signal; of several ranks' wishes the largest


class _Counted:
    """A plan that also returns what counts.jsonl keeps of each input."""

    def __init__(self, plan: SamplingPlan) -> None:
        self.plan, self.heads, self.stages = plan, plan.heads, plan.stages
        self.early, self.tracks, self.lipschitz, self.undecided = plan.early, plan.tracks, plan.lipschitz, plan.undecided
        self.by_range = True  # as counts.jsonl keeps them

    def evaluate(self, selection: Tally, ranges: Sequence[Tally], input_ids: Sequence[int]) -> list[Any]:
        """Return the certificate or the class of each input and its counts, or None."""
        found: list[Any] = []
        for place, outcome in enumerate(self.plan.evaluate(selection, ranges, input_ids)):
            if outcome is None:
                found.append(None)
                continue
            estimation = [tally.integers(place) for tally in ranges]
            counts: dict[str, Any] = {"selection": selection.integers(place)} if self.stages[0][1] else {}
            counts["estimation"] = estimation[0] if len(estimation) == 1 else estimation
            found.append((outcome[0] if isinstance(outcome, list) else outcome, counts))
        return found


class _CountedPairs(_Counted):
    """A plan of pairs of models, of which counts.jsonl keeps what certificates follow from."""

    def __init__(self, plan: IncrementalCertification) -> None:
        super().__init__(plan)
        self.by_range = False

    def evaluate(self, selection: Tally, ranges: Sequence[Tally], input_ids: Sequence[int]) -> list[Any]:
        return [
            None if each is None else (each.after, each.counts())
            for each in self.plan.evaluate(selection, ranges, input_ids)
        ]


class RowSampler:
    """Take images through a plan, write their rows, and save those that are not finished.

    Parameters
    ----------
    plan : SamplingPlan
    sampling : callable
        Returns the `Sampling` of these images; what it is given, too, takes the idx of one that cannot be read, and why.
    folder : Path
        The run folder that this process writes.
    writer : RunWriter or None
        None where another process writes the rows.
    images : Images
        Their labels and names.
    ranks, log, environment
        As in `Run`.
    trace : Path or None
        Where to write a torch.profiler trace, if at all.
    """

    def __init__(
        self,
        plan: SamplingPlan,
        sampling: Callable[[Sequence[int], Callable[[int, Unreadable], object]], Sampling],
        folder: Path,
        writer: RunWriter | None,
        images: Images,
        ranks: Ranks,
        log: Log,
        environment: Environment,
        trace: Path | None,
    ) -> None:
        self._plan, self._sampling, self._folder, self._writer = self._counted(plan), sampling, folder, writer
        self._images, self._ranks, self._log, self._environment, self._trace = images, ranks, log, environment, trace
        self._signals = StopSignals(lambda number: self._stop(number, ""), ignore_second=ranks.world > 1)
        self._wishes = ControlSignal(ranks)
        self._held: dict[int, dict[str, Any]] = {}
        self._next_save = 0.0
        self._bar: tqdm[Any] | None = None

    @staticmethod
    def _counted(plan: SamplingPlan) -> _Counted:
        return _CountedPairs(plan) if isinstance(plan, IncrementalCertification) else _Counted(plan)

    def rows(self, images: Sequence[int], saved: Mapping[int, dict[str, Any]]) -> Iterator[tuple[int, Any]]:
        """Write the row of each image and yield its idx and its certificate or class; go on from what was saved.

        An image that cannot be read has neither.
        """
        self._held = {index: each for index, each in saved.items() if "outcome" in each}
        begun = {index: each for index, each in saved.items() if "outcome" not in each}
        outcomes = self._outcomes([index for index in images if index not in self._held], begun)
        clock = self._environment.clock
        began, following = clock(), None
        for index in images:
            if held := self._held.get(index):
                outcome, counts, label = held["outcome"], held["counts"], held.get("label", self._images.label(index))
                outcome = outcome if isinstance(outcome, int) else Certificate.from_dict(outcome)
            else:
                following = following or next(outcomes, None)
                if following is None or following.input_id != index:
                    continue  # it could not be read
                (outcome, counts), label, following = following.result, self._images.label(index), None
            ended = clock()
            if self._writer is not None:
                self._writer.write(index, label, outcome, ended - began, counts, self._images.name(index))
            self._log.image(outcome if isinstance(outcome, int) else outcome.prediction)
            self._held.pop(index, None)
            began = ended
            yield index, outcome
        next(outcomes, None)  # there is none, but what it had opened is closed

    def _outcomes(self, fresh: list[int], begun: Mapping[int, Mapping[str, Any]]) -> Iterator[Outcome]:
        """Sample these images; after each batch save, log and obey signals."""
        if not fresh:
            return
        total = len(fresh) * sum(len(stage) for _, stage in self._plan.stages)
        drawn = sum(each["asked"] for each in begun.values())
        # One bar is enough, and none among events. None shows it where stderr is a terminal.
        quiet = True if self._log.to_stderr or self._ranks.rank else None
        with ExitStack() as stack:
            stack.enter_context(self._signals.noted())
            bar = self._bar = stack.enter_context(
                self._environment.bar(total=total, initial=drawn, unit="sample", unit_scale=True, disable=quiet)
            )
            try:
                sampling = self._sampling(fresh, self._skip)
            except Unreadable:  # all of them
                return
            except Exception:
                self._stop_if_told()
                raise
            stack.enter_context(sampling.inputs)
            sampler = sampling.sampler(self._plan, bar, pad=True, saved=begun)
            stack.enter_context(self._log.watching(bar, sampler.batches))
            profile = stack.enter_context(Profile(self._trace, self._environment.say)) if self._trace else None

            def after_batch() -> None:
                self._log.batch()
                if profile is not None:
                    profile()
                self._after(sampler)

            sampler.after_batch = after_batch
            try:
                yield from sampler
            except Exception as error:
                self._stop_if_told()
                if self._writer is not None and not isinstance(error, OSError):  # whose own text says it
                    rows = len(self._writer.done)
                    self._environment.say(f"rows in {self._folder}: {rows}; --resume goes on from the last checkpoint")
                raise

    def _skip(self, index: int, error: Unreadable) -> None:
        """Note an image that cannot be read."""
        if self._writer is not None:
            self._writer.skip(Skipped(index, self._images.name(index), str(error)))
            self._environment.say(f"warning: {self._images.title(index)} cannot be read and is skipped: {error}")
        self._log.skip(index, str(error))
        if self._bar is not None:
            self._bar.total -= sum(len(stage) for _, stage in self._plan.stages)

    def _after(self, sampler: Sampler) -> None:
        """After a batch: save what is not finished if that is due or a signal arrived, which then ends the run."""
        clock = self._environment.clock
        began = clock()
        due = self._writer is not None and began > self._next_save
        wish = self._wishes(self._signals.number or (_SAVE if due else _WORK))
        if wish == _WORK:
            return
        if self._next_save or wish != _SAVE:  # after the first batch there is nothing worth saving yet
            unfinished = sampler.unfinished()
            if self._writer is not None:
                lines = chain(unfinished, self._held.values(), map(self._line, sampler.held()))
                checkpoint.save(self._folder, self._writer.identity, lines)
                self._log.event("checkpoint", unfinished=len(sampler.scheduler.active))
        now = clock()
        every, share = self._environment.checkpoint_every, self._environment.checkpoint_share
        self._next_save = now + max(every, share * (now - began))
        if wish != _SAVE:
            self._stop(wish, "samples of other images are saved; ")

    def _stop_if_told(self) -> None:
        """After an error: stop if a signal arrived before, as whoever sent it may have ended the workers, too."""
        if self._signals.number:
            self._stop(self._signals.number, "")

    def _stop(self, number: int, saved: str) -> NoReturn:
        kept = ""
        if self._writer is not None:
            kept = f"; rows in {self._folder}: {len(self._writer.done)}; {saved}--resume goes on"
        raise Stopped(number, kept)

    def _line(self, each: Outcome) -> dict[str, Any]:
        """Return what is saved of an image that is decided and has no row yet, as those before it have none."""
        outcome, counts = each.result
        value = outcome if isinstance(outcome, int) else outcome.to_dict()
        label = {"label": self._images.label(each.input_id)} if self._images.labels_come else {}
        return {"idx": each.input_id, "outcome": value, "counts": counts, **label}
