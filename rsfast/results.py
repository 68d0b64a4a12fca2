"""What certified accuracies and tables are read from: the table of a run folder, or of another script."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from tabulate import LATEX_ESCAPE_RULES, tabulate

from .looks import Goal
from .run_folder import ABSTAIN, CERTIFY_COLUMNS, SIDECAR, TABLE, parse_row, read_sidecar

_TABLE_FORMATS = {"text": "simple", "markdown": "pipe", "latex": "latex_booktabs"}


@dataclass(frozen=True, eq=False)
class Results:
    """The rows of one run, as arrays of one length, and its sidecar (None if it has none)."""

    idx: NDArray[np.int64]
    label: NDArray[np.int64]
    predict: NDArray[np.int64]
    radius: NDArray[np.float64]
    correct: NDArray[np.bool_]
    sidecar: dict[str, Any] | None = None

    @property
    def certified(self) -> NDArray[np.bool_]:
        """Whether the radius of each row counts: the prediction is correct and not an abstention."""
        return np.asarray(self.correct & (self.predict != ABSTAIN))

    @property
    def goal(self) -> Goal:
        """What sampling stopped at before it had drawn all samples; false where it never did.

        Raises
        ------
        TypeError, ValueError
            If the sidecar's ``radius`` or ``rtol`` is out of range.
        """
        sidecar = self.sidecar or {}
        return Goal(sidecar.get("radius"), sidecar.get("rtol"))


def read(path: str | PathLike[str], columns: tuple[str, ...] = CERTIFY_COLUMNS) -> Results:
    """Read a run folder, or any table of the six columns that Cohen et al.'s certify.py writes.

    Parameters
    ----------
    path : path-like
        A run folder or a TSV file. The sidecar is read with a run folder's table, and with no other.
    columns : tuple of str
        `CERTIFY_COLUMNS` or `PREDICT_COLUMNS`; without a radius it is 0.

    Raises
    ------
    FileNotFoundError
        If there is no such table.
    ValueError
        If a file is malformed, naming it and the line: another header, a row with more or fewer fields, a field that is
        not a number, a radius that is negative, infinite or NaN, a row said to be correct whose label was not
        predicted; or if the table has no rows.
    """
    file = Path(path)
    if file.is_dir():
        file = file / TABLE
    rows = []
    # Bytes that are not UTF-8 are replaced, so that a file of another kind is refused by its header.
    with open(file, encoding="utf-8", errors="replace") as lines:
        header = next(lines, "").rstrip("\n")
        if header.split("\t") != list(columns):
            expected = "\t".join(columns)
            raise ValueError(f"{file}, line 1: the header is {header[:80]!r}; it must be {expected!r}")
        for number, line in enumerate(lines, start=2):
            try:
                rows.append(parse_row(line.rstrip("\n").split("\t"), columns))
            except ValueError as error:
                raise ValueError(f"{file}, line {number}: {error}") from None
    if not rows:
        raise ValueError(f"{file} has a header and no rows; it must have at least one")
    idx, label, predict, radius, correct = (np.array(column) for column in zip(*rows, strict=True))
    sidecar = file.with_name(SIDECAR)
    found = file.name == TABLE and sidecar.exists()
    results = Results(idx, label, predict, radius, correct, read_sidecar(sidecar) if found else None)
    try:
        _ = results.goal
    except (TypeError, ValueError) as error:
        raise ValueError(f"{sidecar} is damaged: {error}") from None
    return results


def certified_accuracy(results: Results, radii: ArrayLike) -> NDArray[np.float64]:
    """Return the share of rows that are correct, not abstained, and certified at each radius: ``radius >= r``.

    Parameters
    ----------
    results : Results
    radii : array_like
        Any shape, at least 0, in the units of the input.

    Returns
    -------
    ndarray of float64
        In [0, 1], of the shape of radii.

    Raises
    ------
    ValueError
        If a radius is negative or NaN.

    Examples
    --------
    >>> idx = label = np.arange(4)
    >>> predict, radius = np.array([0, 1, -1, 1]), np.array([0.5, 1.0, 0.0, 2.0])
    >>> run = Results(idx, label, predict, radius, predict == label)
    >>> certified_accuracy(run, [0, 0.5, 0.75, 2])
    array([0.5 , 0.5 , 0.25, 0.  ])
    """
    at = np.asarray(radii, dtype=np.float64)
    if not (at >= 0).all():
        raise ValueError(f"radii is {radii!r}; each must be a number of at least 0")
    certified = np.sort(results.radius[results.certified])
    return np.asarray((certified.size - np.searchsorted(certified, at, side="left")) / results.radius.size)


def average_certified_radius(results: Results) -> float:
    """Return the mean over all rows of the radius, 0 where the row is not certified: the area under the accuracy curve.

    References
    ----------
    Zhai et al., "MACER: Attack-free and Scalable Robust Training via Maximizing Certified Radius", 2020.
    """
    return float(np.where(results.certified, results.radius, 0.0).mean())


def abstention_rate(results: Results) -> float:
    """Return the share of rows that abstained."""
    return float((results.predict == ABSTAIN).mean())


def clean_accuracy(results: Results) -> float:
    """Return the share of rows predicted correctly: the certified accuracy at radius 0."""
    return float(certified_accuracy(results, 0.0))


def share_decided(results: Results, radius: float) -> float:
    """Return the share of rows, right or wrong, whose prediction is certified at this radius."""
    return float((results.radius >= radius).mean())


def notes(results_by_name: Mapping[str, Results]) -> list[str]:
    """Return, for each run that stopped sampling early, what its figures mean.

    Such a run stops an image once it has proved what it was asked, or gives it up. With all samples radii would be larger,
    and images that were given up might be certified. So accuracies and the average radius are lower bounds, and abstentions
    an upper bound.
    """
    found = []
    for name, run in results_by_name.items():
        if run.goal.radius is not None:
            share = share_decided(run, run.goal.radius)
            why = f"sampling stopped once radius {run.goal.radius} was decided: {share:.1%} certified at it"
        elif run.goal.rtol is not None:
            why = f"sampling stopped once a radius was known to {run.goal.rtol} of its size"
        else:
            continue
        found.append(f"{name}: {why}. With all samples ACR and accuracies are at least, abstentions at most, those shown.")
    return found


def table(results_by_name: Mapping[str, Results], radii: Sequence[float], format: str = "text") -> str:
    """Return one row per run: name, average certified radius, share abstained, certified accuracy at each radius.

    Shares are percentages with one decimal, and csv holds the unrounded fractions. They are rounded to nearest, unlike a
    radius: the table estimates accuracy from a test set and certifies nothing. Runs that stopped sampling early are marked
    with an asterisk, and their `notes` follow the table; but csv has neither.

    Parameters
    ----------
    results_by_name : mapping of str to Results
        At least one run.
    radii : sequence of float
        At least 0, in the units of the input.
    format : {"text", "markdown", "latex", "csv"}

    Returns
    -------
    str
        Without a trailing newline. LaTeX needs the booktabs package.

    Raises
    ------
    ValueError
        If format is none of these, there is no run, or a radius is negative or NaN.
    """
    if format not in ("csv", *_TABLE_FORMATS):
        raise ValueError(f"format is {format!r}; it must be one of {', '.join(_TABLE_FORMATS)}, csv")
    if not results_by_name:
        raise ValueError("results_by_name is empty; it must hold at least one run")
    header = ["run", "ACR", "abstained", *(f"r={float(r)}" for r in radii)]
    early = [name for name, run in results_by_name.items() if run.goal]
    rows = [
        (name, average_certified_radius(run), [abstention_rate(run), *certified_accuracy(run, radii).tolist()])
        for name, run in results_by_name.items()
    ]
    if format == "csv":
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([header, *([name, acr, *shares] for name, acr, shares in rows)])
        return text.getvalue().removesuffix("\n")
    cells = [
        [f"{name} *" if name in early else name, f"{acr:.3f}", *(f"{share:.1%}" for share in shares)]
        for name, acr, shares in rows
    ]
    below = [f"* {note}" for note in notes(results_by_name)]
    if format == "markdown":
        cells = [[name.replace("|", r"\|").replace(" *", r" \*"), *rest] for name, *rest in cells]
        below = [f"\\{note}" for note in below]
    if format == "latex":
        below = ["".join(LATEX_ESCAPE_RULES.get(each, each) for each in note) for note in below]
    alignment = ["left", *["right"] * (len(header) - 1)]
    lines = tabulate(cells, header, tablefmt=_TABLE_FORMATS[format], disable_numparse=True, colalign=alignment)
    return "\n\n".join([str(lines), *below])
