"""Run folders: what `certify` and `predict` write row by row, and what certified accuracies and tables are read from.

A run folder holds three files. ``results.tsv`` is the table of Cohen et al.'s script, so that every existing analysis
reads it. ``results.json`` holds what the table has no column for. ``counts.jsonl`` holds the integers of each Tally, from
which the run can be certified again without the model. Runs over parts of the inputs merge into the run over all.
"""

from __future__ import annotations

import csv
import fcntl
import hashlib
import io
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from decimal import ROUND_FLOOR, Context, Decimal
from io import FileIO
from itertools import groupby
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from tabulate import LATEX_ESCAPE_RULES, tabulate

from .looks import Goal

TABLE, SIDECAR, COUNTS = "results.tsv", "results.json", "counts.jsonl"
"""File names in a run folder."""

CERTIFY_COLUMNS = ("idx", "label", "predict", "radius", "correct", "time")
"""Columns of Cohen et al.'s certify.py, in its order."""

PREDICT_COLUMNS = ("idx", "label", "predict", "correct", "time")
"""Columns of Cohen et al.'s predict.py, in its order."""

_CIRCUMSTANCES = {
    *("command", "started"),
    *("data", "weights"),  # paths; their hashes tell whether it is the same file
    "first_logits",  # compared by `same_logits`, as the last bits may differ
}
"""Of a sidecar: what may differ where a run is resumed."""

_OF_A_PART = {
    *_CIRCUMSTANCES,
    *("batch_size", "device", "backend", "versions"),  # where the part was made
    *("recertified_from", "counts_sha256"),
}
"""Of a sidecar: what may differ between parts that are merged, beside start and end."""

_ADDED = {"clamp", "scale", "shift", "reduced_precision", "mode_fixed"}
"""Of a sidecar: what earlier versions did not write. They had no clamp, scale and shift follow from mean and std, and the
last two were not known; but what a Lipschitz constant means depends on these."""

_SAME = 0.01
"""Part of the logits' size that two machines' logits of the same model may differ by."""

_COUNTS_LINE = re.compile(rb'\{"idx": (\d+)(, .*)?\}\n')

_RESUME = "the rows before are kept, and --resume goes on once there is space"
_ABSTAIN = -1
_NO_LABEL = -1
_TABLE_FORMATS = {"text": "simple", "markdown": "pipe", "latex": "latex_booktabs"}


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
def _writing(folder: Path, then: str) -> Iterator[None]:
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


def _sidecar_bytes(sidecar: Mapping[str, Any]) -> bytes:
    return (json.dumps(dict(sidecar), indent=2, allow_nan=False) + "\n").encode()


def _header(columns: tuple[str, ...]) -> bytes:
    return ("\t".join(columns) + "\n").encode()


class _Row(NamedTuple):
    """One row of a run folder: its line of the table, and where its line of counts begins and ends."""

    idx: int
    folder: Path
    line: bytes
    start: int
    end: int


def _rows(folder: Path, columns: tuple[str, ...]) -> list[_Row]:
    """Return all rows that were written whole; of counts, which may be large, no more is read than the idx."""
    rows: list[_Row] = []
    end = 0
    with open(folder / TABLE, "rb") as table, _open_counts(folder) as counts:
        lines = [line for line in table if line.endswith(b"\n")]
        for number, line in enumerate(lines, start=1):
            if number == 1:
                if line != _header(columns):
                    raise ValueError(
                        f"{folder / TABLE}, line 1: the header is {line[:80]!r}; it must be {_header(columns)!r}"
                    )
                continue
            try:
                idx = int(_parse(line.decode(errors="replace").rstrip("\n").split("\t"), columns)[0])
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
            rows.append(_Row(idx, folder, line, start, end))
    return rows


def _first_line(file: Path) -> bytes:
    with open(file, "rb") as lines:
        return lines.readline()


def _open_counts(folder: Path) -> BinaryIO:
    return open(folder / COUNTS, "rb") if (folder / COUNTS).exists() else io.BytesIO()


def identity(sidecar: Mapping[str, Any]) -> str:
    """Return what is the same for every resumption of a run, and different for different runs: a SHA-256."""
    same = {name: value for name, value in sidecar.items() if name not in _CIRCUMSTANCES | _ADDED}
    if sidecar.get("clamp") is not None:
        same["clamp"] = sidecar["clamp"]
    return hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()


def finished(folder: Path, columns: tuple[str, ...]) -> set[int]:
    """Return the inputs that have their rows in a run folder; raise ValueError if it is damaged."""
    return {row.idx for row in _rows(folder, columns)}


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
        text = _sidecar_bytes(sidecar)
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
            rows = _rows(folder, columns)
            self._counts = files.enter_context(_append(folder / COUNTS))
            self._counts.truncate(rows[-1].end if rows else 0)
            self._table.truncate(len(_header(columns)) + sum(len(row.line) for row in rows) if rows else 0)
            if not rows:
                with _writing(folder, _RESUME):
                    _write(self._table, _header(columns))
            self.done = {row.idx for row in rows}
            self._files = files.pop_all()

    def _write_sidecar(self, text: bytes) -> None:
        # Under another name first: killed or without space, it leaves no half of a sidecar.
        new = self._folder / f"{SIDECAR}.new"
        with _writing(self._folder, _RESUME):
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
            "correct": int(prediction == label and prediction != _ABSTAIN),
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
        with _writing(self._folder, _RESUME):
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
    for name, theirs, ours in _differences(read_sidecar(file), json.loads(_sidecar_bytes(sidecar)), _CIRCUMSTANCES):
        raise ValueError(f"{file} is of a run with {name} {theirs}, this one has {ours}; to resume it must be the same run")


def _differences(
    first: Mapping[str, Any], second: Mapping[str, Any], may_differ: set[str]
) -> Iterator[tuple[str, str, str]]:
    """Yield the name of each field in which two sidecars differ, and what it is in either."""
    for name in sorted({*first, *second} - may_differ):
        missing = name not in first or name not in second
        if missing and name in _ADDED - {"clamp"} and (name == "mode_fixed" or first.get("lipschitz") is None):
            continue
        if first.get(name) != second.get(name):
            yield name, repr(first.get(name)), repr(second.get(name))
        elif missing and name not in _ADDED:  # null in one, and no such field in the other
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


def merge(parts: Sequence[str | PathLike[str]], out: str | PathLike[str]) -> tuple[list[int], list[int]]:
    """Write one run folder with the rows of several, as one run over all their inputs writes it, but for the times.

    Parts are run folders of ``rsfast certify``, ``predict`` or ``recertify`` whose sidecars agree in all but which inputs
    they are (``start``, ``end``) and where and how they were made: ``command``, ``started``, ``batch_size``, ``device``,
    ``backend``, ``versions``, the paths ``data`` and ``weights``, ``recertified_from`` and ``counts_sha256``. Where one of
    those differs, the merged sidecar holds the list of what it was, in order of the parts' inputs. ``first_logits`` may
    differ by rounding (`same_logits`); the merged sidecar holds those of the first part. A part that was stopped gives the
    rows that it has.

    Parameters
    ----------
    parts : sequence of path-like
        At least one, in any order.
    out : path-like
        The folder to write, made if it does not exist.

    Returns
    -------
    merged, missing : list of int
        The inputs that have their rows in `out`, and those between its ``start`` and ``end`` that no part has; in order.

    Raises
    ------
    FileExistsError, FileNotFoundError
        If `out` holds a file of a run, or a part lacks one.
    TypeError, ValueError
        If parts is one path or empty; a part is damaged, or of another run; two have the same input, or none has any.
        Nothing has been written then.
    OSError
        If `out` cannot be written, for want of space mostly. No file of a run is left there.

    Examples
    --------
    >>> import tempfile
    >>> from types import SimpleNamespace
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     parts = [Path(folder, name) for name in ("a", "b")]
    ...     for part, start in zip(parts, (0, 2)):
    ...         with RunWriter(part, {"n": 100, "start": start, "end": start + 2, "skip": 1}) as run:
    ...             run.write(start, 3, SimpleNamespace(prediction=3, radius=0.25), 1.5, {"estimation": {"n": 100}})
    ...     print(merge(parts, Path(folder, "all")), read(Path(folder, "all")).sidecar)
    ([0, 2], [1, 3]) {'n': 100, 'start': 0, 'end': 4, 'skip': 1}
    """
    if isinstance(parts, (str, PathLike)):
        raise TypeError(f"parts is {parts!r}; it must be a sequence of run folders")
    if not parts:
        raise ValueError(f"parts is {parts!r}; it must hold at least one run folder")
    out, folders = Path(out), [Path(part) for part in parts]
    refuse_a_run(out)
    sidecar = _merged_sidecar([folder / SIDECAR for folder in folders])
    # Not of the first alone: a part that was killed at its birth has no header yet.
    predicted = any(_first_line(folder / TABLE) == _header(PREDICT_COLUMNS) for folder in folders)
    columns = PREDICT_COLUMNS if predicted else CERTIFY_COLUMNS
    rows: dict[int, _Row] = {}
    inputs = range(sidecar["start"], sidecar["end"], sidecar["skip"])
    for row in (row for folder in folders for row in _rows(folder, columns)):
        if row.idx in rows:
            raise ValueError(f"idx {row.idx} is in {rows[row.idx].folder} and in {row.folder}; it must be in one part, once")
        if row.idx not in inputs:
            raise ValueError(f"{row.folder / TABLE} has idx {row.idx}; it must be in {inputs}, which the sidecars tell")
        rows[row.idx] = row
    if not rows:
        raise ValueError(f"{', '.join(map(str, folders))} have no rows; there must be at least one")
    out.mkdir(parents=True, exist_ok=True)
    # In a folder of its own first: a merge that is killed leaves nothing that looks like a run.
    advice = "no run was left there; merge again once there is space"
    with _writing(out, advice), TemporaryDirectory(dir=out, prefix="merge-") as scratch:
        new = Path(scratch)
        (new / SIDECAR).write_bytes(_sidecar_bytes(sidecar))
        with open(new / TABLE, "wb") as table, open(new / COUNTS, "wb") as counts:
            table.write(_header(columns))
            for folder, group in groupby((rows[idx] for idx in sorted(rows)), key=lambda row: row.folder):
                with open(folder / COUNTS, "rb") as source:
                    for row in group:
                        table.write(row.line)
                        source.seek(row.start)
                        counts.write(source.read(row.end - row.start))
        for name in (COUNTS, SIDECAR, TABLE):  # the table last: without it there is no run to read
            (new / name).rename(out / name)
    return sorted(rows), [idx for idx in inputs if idx not in rows]


def _merged_sidecar(files: list[Path]) -> dict[str, Any]:
    parts = []
    for file in files:
        sidecar = read_sidecar(file)
        try:
            inputs = range(sidecar["start"], sidecar["end"], sidecar["skip"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{file} must hold the integers start, end and skip: {type(error).__name__}: {error}") from None
        parts.append((inputs.start, inputs.stop, file, sidecar))
    parts.sort(key=lambda part: part[:2])
    _, _, first, merged = parts[0]
    for _, _, file, sidecar in parts[1:]:
        for name, before, here in _differences(merged, sidecar, _OF_A_PART | {"start", "end"}):
            raise ValueError(f"{name} is {before} in {first} and {here} in {file}; in parts of one run it must be the same")
        if "first_logits" in merged and "first_logits" in sidecar and not same_logits(merged, sidecar):
            raise ValueError(
                f"first_logits is {merged['first_logits']!r} in {first} and {sidecar['first_logits']!r} in {file}; "
                "parts of one run must have the same model"
            )
    values: dict[str, list[Any]] = {name: [] for name in sorted(_OF_A_PART - {"first_logits"})}
    for *_, sidecar in parts:
        for name in values.keys() & sidecar.keys():
            theirs = sidecar[name] if isinstance(sidecar[name], list) else [sidecar[name]]  # a list if it was merged
            values[name] += [value for value in theirs if value not in values[name]]
    several = {name: each if len(each) > 1 else each[0] for name, each in values.items() if each}
    # What earlier versions did not write comes from the first part that has it.
    added = {name: sidecar[name] for *_, sidecar in reversed(parts) for name in (_ADDED | {"first_logits"}) & sidecar.keys()}
    return {**merged, **added, **several, "start": parts[0][0], "end": max(end for _, end, *_ in parts)}


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
        return np.asarray(self.correct & (self.predict != _ABSTAIN))

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
                rows.append(_parse(line.rstrip("\n").split("\t"), columns))
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


def _parse(fields: list[str], columns: tuple[str, ...]) -> tuple[np.int64, np.int64, np.int64, float, bool]:
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
    if correct and (predict != label or predict == _ABSTAIN):
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
    return float((results.predict == _ABSTAIN).mean())


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
