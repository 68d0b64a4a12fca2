"""Tables of results, of rsfast or of another script: columns are found by their names, each row is checked."""

from __future__ import annotations

import csv
import math
import re
import warnings
from collections.abc import Iterator
from contextlib import suppress
from io import TextIOWrapper
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._files import open_file
from .layout import CERTIFY_COLUMNS, PREDICT_COLUMNS, parse_row

_NEEDED = ("label", "predict", "correct")
_LONGEST = 1 << 20  # characters in a line: a file without line ends is not read whole
_BOOLEANS = {"true": "1", "false": "0"}
_Row = tuple[np.int64, np.int64, np.int64, float, bool, float]  # of a run folder, its time in seconds
_TIME = re.compile(r"(?:([0-9]+) days?, )?([0-9]+):([0-9]+):([0-9]+(?:\.[0-9]*)?)")


class EmptyTable(ValueError):
    """A table that has no rows yet."""


class Columns(NamedTuple):
    """The columns of a table, each of one element a row, and the seconds that all rows took."""

    idx: NDArray[np.int64]
    label: NDArray[np.int64]
    predict: NDArray[np.int64]
    radius: NDArray[np.float64]
    correct: NDArray[np.bool_]
    has_radius: bool
    seconds: float | None


def read_table(file: Path, *, ours: bool = False) -> Columns:
    """Read a table whose columns are separated by tabs: label, predict, correct and, unless it is of predictions, radius.

    The columns idx and time may be missing, others are passed over, and they may stand in any order. What pandas reads as
    the same number or truth is read: 3.0, +3, True, quotes, a byte order mark, any line ends, blank lines below the header.

    Parameters
    ----------
    file : Path
        A regular file, UTF-8.
    ours : bool
        rsfast wrote it: a last line without a newline was cut off. Elsewhere it counts if it is a row.

    Returns
    -------
    Columns
        Without a column idx, idx is -1; without a radius, that is 0. Seconds are None where a row has no time.

    Raises
    ------
    OSError
        If the file cannot be read.
    EmptyTable
        If it has no rows.
    ValueError
        If it is no regular file, or malformed, naming the line: a column that is missing or there twice, a row with more or
        fewer fields, a field that is not a number, a radius that is negative, infinite or NaN, a row marked correct
        whose label was not predicted.

    Warns
    -----
    UserWarning
        If the last row was cut off: it is left out.
    """
    rows: list[_Row] = []
    with TextIOWrapper(open_file(file), encoding="utf-8-sig", errors="replace") as text:
        lines = _lines(file, text)
        _, line = next(lines, (1, ""))
        if not line or (ours and not line.endswith("\n")):
            raise EmptyTable(f"{file} must have a header and rows, got neither")
        try:
            header = _header(line)
        except ValueError as error:
            raise ValueError(f"{file}, line 1: {error}") from None
        for number, line in lines:
            whole = line.endswith("\n")
            try:
                row = _row(header, line) if whole or not ours else None
            except ValueError as error:
                if whole:
                    raise ValueError(f"{file}, line {number}: {error}") from None
                row = None
            if row is None:
                warnings.warn(f"{file}: the last row was cut off; it is left out", stacklevel=3)
            else:
                rows.append(row)
    if not rows:
        raise EmptyTable(f"{file} must have at least one row, got a header only")
    *columns, times = zip(*rows, strict=True)
    idx, label, predict, radius, correct = map(np.array, columns)
    seconds = math.fsum(times) if all(map(math.isfinite, times)) else None
    return Columns(idx, label, predict, radius + 0.0, correct, "radius" in header, seconds)  # + 0.0: no -0.0


def _lines(file: Path, text: TextIOWrapper) -> Iterator[tuple[int, str]]:
    """Yield the first line, and all others that are not blank, with their numbers."""
    for number in count(1):
        line = text.readline(_LONGEST + 1)
        if len(line) > _LONGEST:
            raise ValueError(f"{file}, line {number}: the line must have at most {_LONGEST} characters, got more")
        if not line:
            return
        if number == 1 or line.strip(" \n"):
            yield number, line


def _header(line: str) -> list[str]:
    """Return the names of the columns; raise ValueError unless they are those of a table of results."""
    if "\0" in line:
        raise ValueError("the line holds NUL characters; the table must be text in UTF-8")
    names = _fields(line) or [""]
    missing = [name for name in _NEEDED if name not in names]
    # Without a radius it is a table of predictions, unless its radius goes by another name.
    if "radius" not in names and (missing or any("radius" in name.lower() for name in names)):
        missing.append("radius")
    if missing:
        there = ", ".join(map(repr, names))
        raise ValueError(
            f"the header is {there:.200}; it lacks {', '.join(missing)}. A table must have the columns "
            f"{', '.join(_NEEDED)} and, unless it is of predictions, radius, separated by tabs"
        )
    for name in names:
        if name and names.count(name) > 1:
            raise ValueError(f"the header has the column {name!r} {names.count(name)} times; each must be there once")
    return names


def _fields(line: str) -> list[str]:
    try:
        return next(csv.reader([line.rstrip("\n")], delimiter="\t", strict=True))
    except csv.Error as error:
        raise ValueError(f"the line must be fields separated by tabs, got {line[:80]!r}: {error}") from None


def _row(header: list[str], line: str) -> _Row:
    fields = _fields(line)
    if len(fields) != len(header):
        raise ValueError(f"the row must have {len(header)} fields, separated by tabs, got {len(fields)}")
    row = {"idx": "-1", "time": "", **dict(zip(header, fields, strict=True))}
    columns = CERTIFY_COLUMNS if "radius" in row else PREDICT_COLUMNS
    plain = [row[name] if name == "time" else _plain(name, row[name]) for name in columns]
    return *parse_row(plain, columns), _seconds(row["time"])


def _plain(name: str, field: str) -> str:
    """Return a field as rsfast writes it: 3 for 3.0, 1 for True. What is no number stays as it is, to be refused."""
    if "_" in field or not field.isascii():  # 1_000 is a number to Python
        raise ValueError(f"{name} must be a number, got {field[:80]!r}")
    text = field.strip()
    if name == "radius":
        return text
    if name == "correct":
        text = _BOOLEANS.get(text.lower(), text)
    with suppress(ValueError):
        if (value := float(text)).is_integer() and abs(value) < 1 << 53:
            return str(int(value))
    return text


def _seconds(time: str) -> float:
    """Return the seconds of 15.4, 0:02:32.717239 or 1 day, 0:00:01.5; NaN if it is none of these."""
    if found := _TIME.fullmatch(time.strip()):
        days, hours, minutes, seconds = (float(part or 0) for part in found.groups())
        return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    try:
        return float(time)
    except ValueError:
        return math.nan
