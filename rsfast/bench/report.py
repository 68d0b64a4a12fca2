"""What was found, as text and as JSON: the table, the command to use, and how long it will take."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from tabulate import tabulate

from .._versions import versions
from ..engine.options import SamplingOptions, options_of
from .forecast import Forecast
from .measure import DEFAULT, LOOP, Line, Measured
from .subject import Change, Subject

_UNITS = (("days", 86_400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0))
_HOUR = 3600


@dataclass(frozen=True)
class Report:
    """What `rsfast bench` says.

    Attributes
    ----------
    subject : Subject
    name : str
        The model's.
    certify : sequence of str
        Words of the command ``rsfast certify`` that do not depend on how the model runs.
    images : int
        That a run is forecast for.
    measured : Measured
    forecasts : sequence of Forecast
        Of the exact command.
    votes_of : str
        Where the forecasts with early decisions come from; "" if nowhere.
    """

    subject: Subject
    name: str
    certify: Sequence[str]
    images: int
    measured: Measured
    forecasts: Sequence[Forecast]
    votes_of: str

    def command(self, *, exact: bool = True) -> str:
        """Return the fastest command line; with `exact`, of those that compute in the precision of the weights."""
        change = self.measured.best(exact=exact).change
        assert change is not None
        variables = "" if change.threads is None else f"OMP_NUM_THREADS={change.threads} "
        return variables + shlex.join([*self.certify, *_flags(change)])

    def to_dict(self) -> dict[str, Any]:
        """Return everything that was measured, for JSON: seconds, samples a second, shares."""
        lines = {name: asdict(line) for name, line in self.measured.lines.items()}
        for line in lines.values():
            change = line.pop("change")
            line |= {name: change and change[name] for name in ("options", "threads")}
        return {
            "model": self.name,
            "shape": list(self.subject.shape),
            "num_classes": self.subject.num_classes,
            "noise": self.subject.noise.to_dict(),
            **{name: self.subject.proof[name] for name in ("n0", "n", "alpha")},
            "device": _device(self.subject.device),
            "threads": torch.get_num_threads(),
            "versions": versions(),
            "contenders": lines,
            "skipped": self.measured.skipped,
            "shares": self.measured.shares,
            "before_rsfast": self.measured.before,
            "command": self.command(),
            "fastest_command": self.command(exact=False),
            "images": self.images,
            "forecasts": [asdict(each) for each in self.forecasts],
            "forecasts_from": self.votes_of or None,
            "samples_an_hour": self.measured.best(exact=True).rate * _HOUR,
        }

    def text(self) -> str:
        """Return what a person reads."""
        return "\n".join([*self._table(), "", *self._use(), "", *self._takes(), "", *self._hour()])

    def _table(self) -> Iterator[str]:
        shape, noise = list(self.subject.shape), self.subject.noise
        yield f"{self.name} on {shape}, sigma {noise.sigma:g}, {self.subject.num_classes} classes; {_machine(self.subject)}."
        yield ""
        cells = [_cells(line) for line in self.measured.lines.values()]
        headers = ("contender", "samples/s", "times default", "votes as default", "peak MiB", "turns")
        alignment = ("left", *["right"] * 5)
        yield str(tabulate(cells, headers, disable_numparse=True, colalign=alignment))
        yield ""
        yield from (f"Not measured: {name}: {why}" for name, why in self.measured.skipped.items())
        shares = ", ".join(f"{name} {share:.1%}" for name, share in self.measured.shares.items())
        yield f"Time of rsfast as it comes: {shares}."
        if self.subject.device.type == "cpu":
            before = self.measured.before[LOOP]
            times = self.measured.lines[DEFAULT].rate / before
            yield (
                f"Before rsfast set how this process allocates memory, the 2019 loop drew {before:,.4g} samples/s: "
                f"rsfast as it comes is {times:.2f} times as fast."
            )

    def _use(self) -> Iterator[str]:
        exact, fastest = (self.measured.best(exact=each) for each in (True, False))
        yield f"Use ({exact.rate:,.4g} samples/s, {exact.ratio:.2f} times the default):"
        yield f"  {self.command()}"
        if fastest.name != exact.name:
            share = "not compared" if fastest.agreement is None else f"{_share(fastest)} the same votes"
            yield f"Faster, but another classifier ({fastest.ratio:.2f} times the default, {share}):"
            yield f"  {self.command(exact=False)}"

    def _takes(self) -> Iterator[str]:
        which = "that" if self.command() == self.command(exact=False) else "the first"
        yield f"{self.images:,} images will take with {which} command:"
        rows = []
        for each in self.forecasts:
            error = " +- unknown" if each.error is None else f" +- {each.error:,.0f}" if each.error else ""
            what = each.option or f"all n = {self.subject.proof['n']:,}"
            rows.append((f"  {what}", f"{each.samples:,.0f}{error} samples an image", duration(each.seconds)))
        yield str(tabulate(rows, tablefmt="plain", disable_numparse=True))
        if self.votes_of:
            yield f"Samples of early decisions were forecast from {self.votes_of}."
        else:
            yield "How many samples early decisions take depends on the images: give --data or --from-run for a forecast."

    def _hour(self) -> Iterator[str]:
        rate, proof = self.measured.best(exact=True).rate, self.subject.proof
        samples = self.images * (proof["n0"] + proof["n"])
        yield (
            f"An hour of {_device(self.subject.device)} gives {rate * _HOUR:,.4g} samples; {self.images:,} images at n = "
            f"{proof['n']:,} are {samples:,.4g}."
        )
        if self.subject.device.type == "cpu":
            yield (
                "No GPU was measured. One that takes X samples/s, an H100 or another, gives 3,600 X samples an hour: "
                "measure X there by the same command with --device cuda."
            )


def duration(seconds: float) -> str:
    """Return a time with two or three digits and a unit.

    Examples
    --------
    >>> duration(0.25), duration(95), duration(5000), duration(1e6)
    ('0.25 s', '95 s', '83 min', '11.6 days')
    """
    name, unit = next((pair for pair in _UNITS if seconds >= 2 * pair[1]), _UNITS[-1])
    value = seconds / unit
    return f"{value:.0f} {name}" if value >= 20 else f"{value:.3g} {name}"


def _flags(change: Change) -> Iterator[str]:
    """Yield the words of the command line that stand for the options of a change."""
    declared = options_of(SamplingOptions)
    for name, value in change.options.items():
        flags = declared[name].flags or (f"--{name.replace('_', '-')}",)
        yield flags[0]
        if value is not True:
            yield str(value)


def _cells(line: Line) -> tuple[str, ...]:
    of_rsfast = line.change is not None and line.name != DEFAULT
    shown = f"+ {line.name}" if of_rsfast else f"{line.name}, batch {line.batch:,}"
    same = "" if line.agreement is None else _share(line)
    memory = "" if line.memory is None else f"{line.memory:,}"
    return shown, f"{line.rate:,.4g}", f"{line.ratio:.2f}", same, memory, str(line.turns)


def _share(line: Line) -> str:
    """Return the share of votes that are those of the default, rounded down, and of how many."""
    assert line.agreement is not None
    share = int(line.agreement * 10_000) / 100
    return f"{share:g} % of {line.compared:,}"


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"this CPU with {os.cpu_count()} cores"


def _machine(subject: Subject) -> str:
    threads = "" if subject.device.type == "cuda" else f", {torch.get_num_threads()} threads"
    return f"{_device(subject.device)}{threads}, torch {torch.__version__}"
