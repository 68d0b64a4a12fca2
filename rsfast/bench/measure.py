"""The measurement: what runs, in which order, and for how long."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from torch.utils.data import Dataset

from ..engine.batch_size import automatic, sizes
from ..engine.sampling import Sampling
from ..loop2019 import BATCH
from . import changes
from .limit import at_most
from .memory import forget_peak, peak
from .race import Race
from .subject import Certifying, Change, Subject, bare, loop

FORWARD, LOOP, DEFAULT = "bare forward", "2019 loop", "rsfast as it comes"
_FIRST, _SINGLE, _TOGETHER = 0.2, 0.6, 0.8  # shares of the time after which each stage ends
_COMPILE = 0.4  # share of the time that a compiler may take
_COMPARE = 0.07  # share of the time in which votes are compared
_TURN, _MOST_A_BATCH = 1 / 200, 1 / 60  # shares of the time that a turn takes, and that a batch may take
_QUICK = 0.1  # seconds that a call must take to tell the time of a row
_FEW = 8  # rows, of which a call must have as many: one row may take most of its time waiting for threads
_SLOW = 1.0  # seconds of a row, from which on no row is run for nothing
_LOOP_BYTES = 64 << 20  # of noise in a batch of the 2019 loop, so that layers of large images have room
_COMPARED = 1 << 14  # rows, at most, whose votes are compared
_LONG = 1_000_000  # images of a run for which it pays to search for a batch size


@dataclass
class Line:
    """What was measured of one contender.

    Attributes
    ----------
    name : str
    change : Change or None
        None of what is not rsfast.
    batch : int
        Rows of a batch.
    rate : float
        Samples a second, the median of its turns; 0 before the first.
    ratio : float
        How many times as fast it is as rsfast is by default, the median over rounds in which both ran.
    turns : int
    agreement : float or None
        Share of `compared` noisy rows that vote as by default; None where it was not measured.
    memory : int or None
        Peak in MiB: of the process, or on a GPU of what torch has allocated there.
    start : float
        Seconds until its first batch was done, those of a compiler among them.
    final : bool
        Whether it ran in the last stage: between those that did, `ratio` decides.
    """

    name: str
    change: Change | None
    batch: int
    rate: float = 0.0
    ratio: float = 1.0
    turns: int = 0
    start: float = 0.0
    agreement: float | None = None
    compared: int = 0
    memory: int | None = None
    final: bool = True


@dataclass
class Measured:
    """All that was measured.

    Attributes
    ----------
    lines : dict of str to Line
        By name, in the order of the table.
    skipped : dict of str to str
        What was not measured, and why.
    shares : dict of str to float
        Of the time that rsfast takes by default: "model", "kernels", "bounds" and "rest".
    before : dict of str to float
        Samples a second of the bare forward and the 2019 loop before rsfast set how the process allocates memory.
    """

    lines: dict[str, Line] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)
    before: dict[str, float] = field(default_factory=dict)

    def best(self, *, exact: bool) -> Line:
        """Return the fastest line of rsfast; with `exact`, of those that compute in the precision of the weights.

        It is of the last stage, and the default unless another is clearly faster.
        """
        lines = [line for line in self.lines.values() if line.final and line.change and (line.change.exact or not exact)]
        fastest = max(lines, key=lambda line: line.ratio)
        return fastest if fastest.ratio > changes.FASTER else self.lines[DEFAULT]


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Measurement:
    """Measure a model as the bare forward, the 2019 loop and rsfast run it, then changes one at a time and together.

    Parameters
    ----------
    subject : Subject
    seconds : float
        About how long to measure, forecasts included: stages end after shares of it.
    clock : callable
        Returns the seconds.
    say : callable
        Takes lines about the progress.
    single : callable
        Returns the changes to try one at a time: `changes.single`.

    Attributes
    ----------
    measured : Measured
        What was measured so far.

    Examples
    --------
    >>> from rsfast import Gaussian
    >>> from rsfast.bench.subject import random_inputs
    >>> subject = Subject(torch.nn.Flatten(), random_inputs(1, [3], torch.device("cpu")), Gaussian(0.5), 3)
    >>> list(Measurement(subject, seconds=0.2, say=str, single=lambda *_: []).measure().lines)
    ['bare forward', '2019 loop', 'rsfast as it comes']
    """

    def __init__(
        self,
        subject: Subject,
        *,
        seconds: float = 60.0,
        clock: Callable[[], float] = perf_counter,
        say: Callable[[str], object] = _to_stderr,
        single: Callable[[Subject, int, int], Iterable[Change]] = changes.single,
    ) -> None:
        self.subject, self.seconds, self.say, self._clock, self._single = subject, seconds, say, clock, single
        self.measured = Measured()
        self._running: dict[str, Certifying] = {}
        self._began = clock()
        self._race = Race(seconds * _TURN, clock)

    def measure(self) -> Measured:
        """Measure everything, and return it; a first answer is among the lines of progress."""
        per_row = self._seconds_a_row()
        most = max(1, int(self.seconds * _MOST_A_BATCH / per_row))
        self._add_others(most)
        batch = self._default_batch(per_row, most)
        self._add(Change(DEFAULT, {"batch_size": batch}))
        if batch != self.measured.lines[FORWARD].batch:
            self._enter(FORWARD, None, bare(self.subject, batch), batch)  # in the batches of rsfast from now on
        self._race_until(_FIRST)
        self._first_answer()
        for change in self._single(self.subject, batch, most):
            self._try(change)
        self._race_until(_SINGLE)
        self._put_together()
        self._take_shares()
        self._compare_votes()
        return self.measured

    def _seconds_a_row(self) -> float:
        """Return about how long the model takes a row: in batches that double until one takes long enough to tell."""
        size, most = 1, sizes(self.subject.shape, self.subject.device).most
        seconds = self._time(size)
        if seconds < _SLOW:
            seconds = self._time(size)  # without what is done only once
        least = seconds
        while (seconds < _QUICK or size < _FEW) and seconds < _SLOW and size < most:
            size *= 2
            seconds = self._time(size)
            least = min(least, seconds / size)
        return max(least, 1e-9)

    def _time(self, batch: int) -> float:
        run = bare(self.subject, batch)
        began = self._clock()
        run(batch)
        return self._clock() - began

    def _add_others(self, most: int) -> None:
        """Let the bare forward and the 2019 loop run before anything of rsfast does."""
        room = _LOOP_BYTES // (4 * self.subject.shape.numel())
        batch = max(1, min(BATCH, most, room))
        self._enter(FORWARD, None, bare(self.subject, batch), batch)
        self._enter(LOOP, None, loop(self.subject, batch), batch)
        self.measured.before = {name: self._race.rate(name) for name in (FORWARD, LOOP)}

    def _default_batch(self, per_row: float, most: int) -> int:
        """Return the batch size that rsfast finds by itself in a long run, by as much of its search as there is time for."""
        subject, affordable = self.subject, int(self.seconds * _FIRST / 4 / per_row)
        sampling = Sampling(subject.model, _Long(subject.images[0]), subject.noise, subject.num_classes, **subject.options)

        def search(
            model: Any, shape: Any, device: Any, execution: Any, samples: int, run: Callable[[int], None], most: int
        ) -> int:
            budget = min(samples, 100 * affordable)  # of which the search runs 1 %
            return automatic(model, shape, device, execution, budget, run, self._clock, most)

        sampling.find_batch_size = search  # type: ignore[assignment]
        sampling.probe = lambda *_: None  # which certify does
        with sampling.inputs:
            size = sampling.size(subject.proof["n0"] + subject.proof["n"], pad=True)
        return min(size, most)

    def _add(self, change: Change) -> None:
        forget_peak(self.subject.device)
        began = self._clock()
        certifying = Certifying(self.subject, change)
        self._enter(change.name, change, certifying, max(2, certifying.batch))  # the least that it can certify with
        self._running[change.name] = certifying
        self.measured.lines[change.name].start = self._clock() - began
        self.measured.lines[change.name].memory = peak(self.subject.device)

    def _enter(self, name: str, change: Change | None, run: Callable[[int], object], batch: int) -> None:
        self._race.add(name, run, batch)
        self.measured.lines[name] = Line(name, change, batch if change is None else change.options["batch_size"])

    def _try(self, change: Change) -> None:
        """Enter rsfast with a change to the default, or note why it cannot run."""
        base = self.measured.lines[DEFAULT].change
        assert base is not None
        self.say(f"trying {change.name}")
        compiles = change.options.get("compile")
        if compiles:
            from torch._inductor import compile_fx  # noqa: F401 - before the limit: half imported, torch stays broken
        limit = self._began + self.seconds - self._clock()
        if compiles:
            limit = min(self.seconds * _COMPILE, limit)
        if limit <= 0:
            self.measured.skipped[change.name] = "no time was left; give more by --seconds"
            return
        try:
            with at_most(limit), _compiling_here() if compiles else nullcontext():
                self._add(Change(change.name, {**base.options, **change.options}, change.threads))
        except Exception as error:
            self.measured.skipped[change.name] = _reason(error)
            if compiles:
                torch.compiler.reset()

    def _first_answer(self) -> None:
        lines, before = self.measured.lines, self.measured.before
        self.say(
            f"first answer, after {self._clock() - self._began:.0f} s: bare forward {lines[FORWARD].rate:,.4g} samples/s, "
            f"2019 loop {lines[LOOP].rate:,.4g} ({before[LOOP]:,.4g} before rsfast set how memory is allocated), "
            f"rsfast as it comes {lines[DEFAULT].rate:,.4g}"
        )

    def _race_until(self, share: float) -> None:
        """Let all take turns until this share of the time is over, and write down how fast they were."""
        self._race.go_on(self._began + self.seconds * share)
        for name, line in self.measured.lines.items():
            if name in self._race:
                line.rate, line.turns = self._race.rate(name), self._race.turns(name)
                line.ratio = self._race.ratio(name, DEFAULT)

    def _put_together(self) -> None:
        """Put the changes that were faster together, and let these run against the default and the fastest of the others."""
        lines = self.measured.lines
        default = lines[DEFAULT].change
        ratios = [(line.change.without(default), line.ratio) for line in lines.values() if line.change and default]
        kept = {DEFAULT, *(self.measured.best(exact=exact).name for exact in (True, False))}
        for name in lines.keys() - kept:
            self._race.drop(name)
            lines[name].final = False
        self._race.forget()
        for change in changes.together(ratios):
            self._try(change)
        self._race_until(_TOGETHER)

    def _take_shares(self) -> None:
        seconds = self._running[DEFAULT].seconds
        total = sum(seconds.values())
        self.measured.shares = {name: spent / total for name, spent in seconds.items()}

    def _compare_votes(self) -> None:
        """Compare votes of the last stage, and of other precisions, with those by default: as many as there is time for."""
        lines = self.measured.lines
        of = {name: each for name, each in self._running.items() if lines[name].final or not each.change.exact}
        a_row = sum(1 / lines[name].rate for name in of)
        rows = max(1, min(_COMPARED, int(self.seconds * _COMPARE / a_row)))
        votes = {name: each.votes(rows) for name, each in of.items()}
        for name, line in self.measured.lines.items():
            if name in votes and name != DEFAULT:
                line.agreement, line.compared = float((votes[name] == votes[DEFAULT]).double().mean()), rows


class _Long(Dataset[torch.Tensor]):
    """One input, as often as the images of a long run."""

    def __init__(self, image: torch.Tensor) -> None:
        self._image = image

    def __len__(self) -> int:
        return _LONG

    def __getitem__(self, _: int) -> torch.Tensor:
        return self._image


@contextmanager
def _compiling_here() -> Iterator[None]:
    """Compile in this process only: workers of the compiler would go on after a limit, and take the cores of all others."""
    from torch._inductor import config

    with config.patch(compile_threads=1):
        yield


def _reason(error: Exception) -> str:
    """Return the first line of an error; of the end of a limit, what to do."""
    if isinstance(error, TimeoutError):
        return f"{error}; give more by --seconds"
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return first if len(first) <= 200 else f"{first[:197]}..."
