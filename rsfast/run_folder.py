"""Run folders: what `certify` and `predict` write row by row, and go on from.

A run folder holds three files. ``results.tsv`` is the table of Cohen et al.'s script, so that every existing analysis
reads it. ``results.json`` holds what the table has no column for. ``counts.jsonl`` holds the integers of each Tally, from
which the run can be certified again without the model.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from decimal import ROUND_FLOOR, Context, Decimal
from io import FileIO
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple, Protocol

import numpy as np

from .looks import Goal

TABLE, SIDECAR, COUNTS = "results.tsv", "results.json", "counts.jsonl"
"""File names in a run folder."""

CERTIFY_COLUMNS = ("idx", "label", "predict", "radius", "correct", "time")
"""Columns of Cohen et al.'s certify.py, in its order."""

PREDICT_COLUMNS = ("idx", "label", "predict", "correct", "time")
"""Columns of Cohen et al.'s predict.py, in its order."""

CIRCUMSTANCES = {
    *("command", "started"),
    *("data", "weights"),  # paths; their hashes tell whether it is the same file
    "first_logits",  # compared by `same_logits`, as the last bits may differ
}
"""Of a sidecar: what may differ where a run is resumed."""

ADDED = {"clamp", "scale", "shift", "reduced_precision", "mode_fixed"}
"""Of a sidecar: what earlier versions did not write. They had no clamp, scale and shift follow from mean and std, and the
last two were not known; but what a Lipschitz constant means depends on these."""

_SAME = 0.01
"""Part of the logits' size that two machines' logits of the same model may differ by."""

_COUNTS_LINE = re.compile(rb'\{"idx": (\d+)(, .*)?\}\n')

_RESUME = "the rows before are kept, and --resume goes on once there is space"
ABSTAIN = -1
_NO_LABEL = -1


class Certified(Protocol):
    """What a row needs from a certificate."""

    @property
    def prediction(self) -> int: ...

    @property
    def radius(self) -> float: ...


def format_radius(radius: float, asked: float | None = None) -> str:
    """Return the radius with 7 significant digits, rounded down: never above the float, and less than 1e-6 of it below.

    Parameters
    ----------
    radius : float
        A certified radius, 0 for an abstention.
    asked : float, optional
        The radius that was to be proved. Where `radius` reaches it and its 7 digits do not, `asked` is returned with all its
        digits. A reader of the table then finds every radius that was proved to be as large.

    Raises
    ------
    ValueError
        If radius is negative, infinite or NaN.

    Examples
    --------
    >>> format_radius(4.7999999999), format_radius(0.1 + 0.2), format_radius(0.0)
    ('4.799999', '0.3000000', '0.0')
    >>> float(format_radius(0.1 + 0.2, asked=0.1 + 0.2)) == 0.1 + 0.2
    True
    """
    if not 0 <= radius < math.inf:
        raise ValueError(f"radius is {radius!r}; it must be finite and at least 0")
    if radius == 0:
        return "0.0"
    exact = Decimal(float(radius))
    last_digit = Decimal((0, (1,), exact.adjusted() - 6))
    text = str(exact.quantize(last_digit, context=Context(prec=7, rounding=ROUND_FLOOR)))
    return str(Decimal(float(asked))) if asked is not None and float(text) < asked <= radius else text


def _append(file: Path) -> FileIO:
    # Unbuffered: what a full disk refused is not written later, when the file is closed.
    return open(file, "ab", buffering=0)


def _write(file: FileIO, data: bytes) -> None:
    while data:  # a disk with little space takes a part, and fails at the next
        data = data[file.write(data) :]


def _lock(file: FileIO, folder: Path) -> None:
    """Keep other processes from writing this run, until the file is closed or this process ends."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BlockingIOError(f"{folder} is being written by another process; wait for it, or name another folder") from None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from writing a run folder; raise BlockingIOError if one does already."""
    with _append(folder / TABLE) as table:
        _lock(table, folder)
        yield


@contextmanager
def writing(folder: Path, then: str) -> Iterator[None]:
    """Add the folder to an OSError (mostly a full disk, which names no file), and what there is to do then."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror} in writing {folder}; {then}") from error


def refuse_a_run(folder: Path) -> None:
    for name in (TABLE, SIDECAR, COUNTS):
        file = folder / name
        # An empty table is what is left where not even the sidecar could be written.
        if file.exists() and not (name == TABLE and file.stat().st_size == 0):
            raise FileExistsError(f"{file} exists; name another folder, or move that run away first")


def sidecar_bytes(sidecar: Mapping[str, Any]) -> bytes:
    return (json.dumps(dict(sidecar), indent=2, allow_nan=False) + "\n").encode()


def header(columns: tuple[str, ...]) -> bytes:
    return ("\t".join(columns) + "\n").encode()


class Row(NamedTuple):
    """One row of a run folder: its line of the table, and where its line of counts begins and ends."""

    idx: int
    folder: Path
    line: bytes
    start: int
    end: int


def read_rows(folder: Path, columns: tuple[str, ...]) -> list[Row]:
    """Return all rows that were written whole; of counts, which may be large, no more is read than the idx."""
    rows: list[Row] = []
    end = 0
    with open(folder / TABLE, "rb") as table, _open_counts(folder) as counts:
        lines = [line for line in table if line.endswith(b"\n")]
        for number, line in enumerate(lines, start=1):
            if number == 1:
                if line != header(columns):
                    raise ValueError(
                        f"{folder / TABLE}, line 1: the header is {line[:80]!r}; it must be {header(columns)!r}"
                    )
                continue
            try:
                idx = int(parse_row(line.decode(errors="replace").rstrip("\n").split("\t"), columns)[0])
            except ValueError as error:
                raise ValueError(f"{folder / TABLE}, line {number}: {error}") from None
            theirs = counts.readline()
            if number == len(lines) > 2 and not theirs.endswith(b"\n"):
                break  # cut off, as a power failure may leave it: the files need not reach the disk in the order of writing
            found = _COUNTS_LINE.fullmatch(theirs)
            if found is None or int(found[1]) != idx:
                raise ValueError(
                    f"{folder} is damaged: {COUNTS} must have a line for each row of {TABLE}, in its order; "
                    f"line {number - 1} is not of idx {idx}"
                )
            start, end = end, end + len(theirs)
            rows.append(Row(idx, folder, line, start, end))
    return rows


def first_line(file: Path) -> bytes:
    with open(file, "rb") as lines:
        return lines.readline()


def _open_counts(folder: Path) -> BinaryIO:
    return open(folder / COUNTS, "rb") if (folder / COUNTS).exists() else io.BytesIO()


def identity(sidecar: Mapping[str, Any]) -> str:
    """Return what is the same for every resumption of a run, and different for different runs: a SHA-256."""
    same = {name: value for name, value in sidecar.items() if name not in CIRCUMSTANCES | ADDED}
    if sidecar.get("clamp") is not None:
        same["clamp"] = sidecar["clamp"]
    return hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()


def finished(folder: Path, columns: tuple[str, ...]) -> set[int]:
    """Return the inputs that have their rows in a run folder; raise ValueError if it is damaged."""
    return {row.idx for row in read_rows(folder, columns)}


class RunWriter:
    """Write a run folder, one flushed row per input.

    Parameters
    ----------
    path : path-like
        The run folder, made if it does not exist.
    sidecar : mapping
        Everything that the table has no column for (n, alpha, noise, seed, versions, ...), as plain JSON values. Its
        ``radius``, if it has one, is what was to be proved: rows that reach it are written with no smaller radius.
    columns : tuple of str
        `CERTIFY_COLUMNS` or `PREDICT_COLUMNS`.
    resume : bool
        Go on with the run that the folder holds, if it holds one. What was cut off at the end of a file is dropped.

    Attributes
    ----------
    done : set of int
        The inputs that have their rows.

    Raises
    ------
    FileExistsError, FileNotFoundError
        If the folder already holds a file of a run, and not to resume; or the run to resume has no table.
    TypeError, ValueError
        If sidecar holds what JSON cannot, NaN and infinity included, or a ``radius`` that is not a positive number; or the
        run to resume is damaged, or has another sidecar (but for its command and its start). Nothing has been written then.
    BlockingIOError
        If another process is writing this run.
    OSError
        If the folder cannot be written, for want of space mostly. What is left is no run, or one that can be resumed.

    Examples
    --------
    >>> import tempfile
    >>> from types import SimpleNamespace
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with RunWriter(folder, {"n": 100}) as run:
    ...         run.write(7, 3, SimpleNamespace(prediction=3, radius=0.25), 1.5, {"estimation": {"n": 100}})
    ...     print(Path(folder, "results.tsv").read_text().expandtabs(11))
    idx        label      predict    radius     correct    time
    7          3          3          0.2500000  1          0:00:01.500000
    <BLANKLINE>
    """

    def __init__(
        self,
        path: str | PathLike[str],
        sidecar: Mapping[str, Any],
        columns: tuple[str, ...] = CERTIFY_COLUMNS,
        *,
        resume: bool = False,
    ) -> None:
        folder = Path(path)
        text = sidecar_bytes(sidecar)
        self._folder, self._columns, self._asked = folder, columns, Goal(sidecar.get("radius")).radius
        if not (resume and (folder / SIDECAR).exists()):
            refuse_a_run(folder)
        elif not (folder / TABLE).exists():  # it is made first, so this was no kill
            raise FileNotFoundError(f"{folder} is damaged: it holds {SIDECAR} and no {TABLE}; move that run away first")
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as files:
            self._table = files.enter_context(_append(folder / TABLE))
            _lock(self._table, folder)
            if resume and (folder / SIDECAR).exists():
                check_same_run(folder / SIDECAR, json.loads(text))
            else:
                refuse_a_run(folder)  # again, as another process may have come first
                self._write_sidecar(text)
            rows = read_rows(folder, columns)
            self._counts = files.enter_context(_append(folder / COUNTS))
            self._counts.truncate(rows[-1].end if rows else 0)
            self._table.truncate(len(header(columns)) + sum(len(row.line) for row in rows) if rows else 0)
            if not rows:
                with writing(folder, _RESUME):
                    _write(self._table, header(columns))
            self.done = {row.idx for row in rows}
            self._files = files.pop_all()

    def _write_sidecar(self, text: bytes) -> None:
        # Under another name first: killed or without space, it leaves no half of a sidecar.
        new = self._folder / f"{SIDECAR}.new"
        with writing(self._folder, _RESUME):
            try:
                new.write_bytes(text)
                new.replace(self._folder / SIDECAR)
            except OSError:
                new.unlink(missing_ok=True)
                raise

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._files.close()
        except OSError:
            if error is None:  # else the first error says more
                raise

    def write(
        self, idx: int, label: int | None, certificate: Certified | int, seconds: float, counts: Mapping[str, Any]
    ) -> None:
        """Append one input and flush it to both files.

        Parameters
        ----------
        idx : int
            The input's number in its data set.
        label : int or None
            True class; None where unknown, written as -1 and never correct.
        certificate : Certified or int
            Anything with a ``prediction`` (-1 to abstain) and a ``radius``, or, with `PREDICT_COLUMNS`, the class alone.
        seconds : float
            Time spent on this input.
        counts : mapping
            The Tally's integers as plain JSON values: ``{"selection": {...}, "estimation": {...}}``.

        Raises
        ------
        TypeError
            If certificate is a class alone and the table has a radius column.
        ValueError
            If the radius is negative, infinite or NaN. Nothing has been written then.
        OSError
            If there is no space, mostly. All rows before are kept, and of this one nothing.
        """
        prediction = certificate if isinstance(certificate, int) else certificate.prediction
        row: dict[str, object] = {
            "idx": int(idx),
            "label": _NO_LABEL if label is None else int(label),
            "predict": int(prediction),
            "correct": int(prediction == label and prediction != ABSTAIN),
            "time": timedelta(seconds=seconds),
        }
        if "radius" in self._columns:
            if isinstance(certificate, int):
                raise TypeError(f"certificate is {certificate!r}; for a table with a radius it must have a radius")
            row["radius"] = format_radius(certificate.radius, self._asked)
        # Counts first: a killed run may leave counts without a row, never a row without its counts.
        lines = (
            (self._counts, json.dumps({"idx": int(idx), **counts}, allow_nan=False)),
            (self._table, "\t".join(str(row[column]) for column in self._columns)),
        )
        ends: list[tuple[FileIO, int]] = []
        with writing(self._folder, _RESUME):
            try:
                for file, line in lines:
                    ends.append((file, file.seek(0, os.SEEK_END)))
                    _write(file, f"{line}\n".encode())
            except OSError:
                for file, end in ends:
                    with suppress(OSError):  # what this leaves, to resume drops
                        file.truncate(end)
                raise
        self.done.add(int(idx))


def check_same_run(file: Path, sidecar: Mapping[str, Any]) -> None:
    """Raise ValueError, naming the first field that differs, unless `file` is the sidecar of the same run."""
    for name, theirs, ours in differences(read_sidecar(file), json.loads(sidecar_bytes(sidecar)), CIRCUMSTANCES):
        raise ValueError(f"{file} is of a run with {name} {theirs}, this one has {ours}; to resume it must be the same run")


def differences(first: Mapping[str, Any], second: Mapping[str, Any], may_differ: set[str]) -> Iterator[tuple[str, str, str]]:
    """Yield the name of each field in which two sidecars differ, and what it is in either."""
    for name in sorted({*first, *second} - may_differ):
        missing = name not in first or name not in second
        if missing and name in ADDED - {"clamp"} and (name == "mode_fixed" or first.get("lipschitz") is None):
            continue
        if first.get(name) != second.get(name):
            yield name, repr(first.get(name)), repr(second.get(name))
        elif missing and name not in ADDED:  # null in one, and no such field in the other
            yield name, "None" if name in first else "missing", "None" if name in second else "missing"


def same_logits(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Tell whether the ``first_logits`` of two sidecars are those of one model, but for rounding.

    They may differ by 1 % of the largest, or of the largest less the smallest where that is less: what all logits share
    decides nothing. Where that is hardly anything, they may differ by 0.1 % of the largest (1 % in bfloat16).

    Examples
    --------
    >>> same_logits({"first_logits": [1.0, 3.0]}, {"first_logits": [1.01, 3.01]})
    True
    >>> same_logits({"first_logits": [101.0, 103.0]}, {"first_logits": [103.0, 101.0]})
    False
    """
    try:
        ours, theirs = (np.array(each["first_logits"], dtype=np.float64) for each in (first, second))  # NaN for None
    except (TypeError, ValueError):
        return False
    if ours.shape != theirs.shape or ours.ndim != 1:
        return False
    finite = theirs[np.isfinite(theirs)]
    largest = np.abs(finite).max(initial=0)
    spread = np.ptp(finite) if finite.size else 0.0
    rounding = _SAME if "bfloat16" in (first.get("dtype"), first.get("autocast")) else _SAME / 10
    most = max(_SAME * min(largest, spread), rounding * largest)
    return bool(np.allclose(ours, theirs, rtol=0, atol=most, equal_nan=True))


def read_counts(path: str | PathLike[str]) -> dict[int, dict[str, Any]]:
    """Return what ``counts.jsonl`` of a run folder holds for each idx: the integers of its Tallies, by stream.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If a line is not what `RunWriter` writes, naming it. A last line that was cut off is left out: it has no row.
    """
    file = Path(path) / COUNTS
    found = {}
    lines = file.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], start=1):  # after the last newline comes nothing, or what was cut off
        try:
            counts = json.loads(line)
            found[int(counts.pop("idx"))] = counts
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{file}, line {number}: {type(error).__name__}: {error}") from None
    return found


def parse_row(fields: list[str], columns: tuple[str, ...]) -> tuple[np.int64, np.int64, np.int64, float, bool]:
    if len(fields) != len(columns):
        raise ValueError(f"the row has {len(fields)} fields; it must have {len(columns)}, separated by tabs")
    row = dict(zip(columns, fields, strict=True))
    idx, label, predict = (_integer(name, row[name]) for name in ("idx", "label", "predict"))
    try:
        radius = float(row.get("radius", 0))
    except ValueError:
        raise ValueError(f"radius is {row['radius']!r}; it must be a number") from None
    if not 0 <= radius < math.inf:
        raise ValueError(f"radius is {row['radius']!r}; it must be finite and at least 0")
    if row["correct"] not in ("0", "1"):
        raise ValueError(f"correct is {row['correct']!r}; it must be 0 or 1")
    correct = row["correct"] == "1"
    if correct and (predict != label or predict == ABSTAIN):
        raise ValueError(f"correct is 1 but label is {label} and predict is {predict}; it must be 0")
    return idx, label, predict, radius, correct


def _integer(name: str, field: str) -> np.int64:
    try:
        return np.int64(int(field))
    except (ValueError, OverflowError):
        raise ValueError(f"{name} is {field!r}; it must be a 64-bit integer") from None


def read_sidecar(file: Path) -> dict[str, Any]:
    """Return what ``results.json`` of a run folder holds; raise ValueError if it is damaged."""
    try:
        sidecar = json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from None
    if isinstance(sidecar, dict):
        return sidecar
    raise ValueError(f"{file} holds a {type(sidecar).__name__}; it must hold an object")
