"""Run folders: the files that `certify` and `predict` write, and how they are read and compared.

A run folder holds three files. ``results.tsv`` is the table of Cohen et al.'s script, so that every existing analysis
reads it. ``results.json`` holds what the table has no column for. ``counts.jsonl`` holds the integers of each Tally, from
which the run can be certified again without the model. A line of counts ends in a check sum, which shows whether a file was
damaged or edited. It covers the run's `identity`, the row in the table (but for the time) and the line itself. A fourth
file, ``skipped.jsonl``, names the images that could not be read, if there are any. Its check sums cover the `identity` and
the line.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import warnings
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from .._files import open_file
from ..noise import from_dict
from ..stats.certificate import ABSTAIN
from .check_sums import parse_json, unseal

TABLE, SIDECAR, COUNTS = "results.tsv", "results.json", "counts.jsonl"
"""File names in a run folder."""

SKIPPED = "skipped.jsonl"
"""File name in the folder of a run: the images that could not be read."""

CHECKPOINT = "checkpoint.jsonl"
"""File name in the folder of a run that is not finished."""

PARTS = "parts"
"""Of a run that several processes share: a folder in its folder, with a run folder for each process."""

CERTIFY_COLUMNS = ("idx", "label", "predict", "radius", "correct", "time")
"""Columns of Cohen et al.'s certify.py, in its order."""

PREDICT_COLUMNS = ("idx", "label", "predict", "correct", "time")
"""Columns of Cohen et al.'s predict.py, in its order."""

MAY_DIFFER_ON_RESUME = {
    *("command", "started"),
    *("data", "weights", "checkpoint"),  # paths; hashes show whether it is the same file
    "first_logits",  # compared by `same_logits`, as the last bits may differ
}
"""Of a sidecar: what may differ where a run is resumed."""

ORIGIN = {"recertified_from", "counts_sha256"}
"""Of a sidecar: which run was certified again. It may be edited, as no check sum covers it."""

SAMPLED_WITH = "sampled_with"
"""Of a sidecar: the versions that drew the samples, where they were certified again, so that ``versions`` may be others."""

NOT_KNOWN = {"reduced_precision", "mode_fixed"}
"""Of a sidecar: what earlier versions did not write, and nothing tells."""

ADDED = {"clamp", "scale", "shift", "norm", *NOT_KNOWN}
"""Of a sidecar: what earlier versions did not write. They had no clamp; scale and shift follow from mean and std, the norm
from the noise. What a Lipschitz constant means depends on all but the norm and mode_fixed."""

_SAME = 0.01
"""Part of the logits' size that two machines' logits of the same model may differ by."""

_COUNTS_IDX = re.compile(rb'\{"idx": (\d+)(?:, "name": ("(?:[^"\\]|\\.)*"))?[,}]')
_LONGEST_ROW = 1 << 16  # bytes of a line,
_LONGEST_COUNTS = 1 << 28  # so that no file takes more memory than this without a line's end
_LARGEST_SIDECAR = 1 << 27  # noise with an array holds it all


def sidecar_bytes(sidecar: Mapping[str, Any]) -> bytes:
    text = (json.dumps(dict(sidecar), indent=2, allow_nan=False) + "\n").encode()
    if len(text) > _LARGEST_SIDECAR:
        raise ValueError(
            f"{SIDECAR} must have at most {_LARGEST_SIDECAR >> 20} MiB, got {len(text) >> 20}; take noise with "
            "fewer numbers, or no run folder"
        )
    return text


def header(columns: tuple[str, ...]) -> bytes:
    return ("\t".join(columns) + "\n").encode()


def covered(line: bytes) -> bytes:
    """Return what a check sum covers of a line of the table: all but the time, in which runs of the same samples differ."""
    return line.rpartition(b"\t")[0]


class Row(NamedTuple):
    """One row of a run folder."""

    folder: Path
    idx: int
    label: int
    predict: int
    radius: float
    line: bytes  # of the table
    start: int  # of its line of counts, in bytes
    end: int
    sealed: bool  # whether that line has a check sum
    name: str | None  # of its image, in that line

    def counts(self) -> dict[str, Any]:
        """Return the integers of its Tallies, by stream; raise ValueError if they are not there."""
        with open_file(self.folder / COUNTS) as file:
            file.seek(self.start)
            text = file.read(self.end - self.start)
        try:
            counts = parse_json(text)
        except ValueError as error:
            raise ValueError(f"{self.folder / COUNTS}, idx {self.idx}, is not JSON: {error}") from None
        return {name: value for name, value in counts.items() if name not in ("idx", "name", "crc32")}


class Skipped(NamedTuple):
    """An image that could not be read, and so has no row."""

    idx: int
    name: str | None
    reason: str


def read_rows(folder: Path, columns: tuple[str, ...]) -> list[Row]:
    """Return all rows that were written whole, each held against its check sum, and where their counts are.

    A run whose lines have no check sums, as earlier versions wrote it, is read with a warning.

    Raises
    ------
    OSError
        If the folder lacks its table or its sidecar.
    ValueError
        If the folder is damaged, naming the file and the line.
    """
    run = identity(read_sidecar(folder / SIDECAR)).encode()
    rows: dict[int, Row] = {}
    end = 0
    counts_file = folder / COUNTS
    with open_file(folder / TABLE) as table, open_file(counts_file) if counts_file.exists() else io.BytesIO() as counts:
        lines = list(_whole_lines(table))
        if lines and lines[0] != header(columns):
            raise ValueError(f"{folder / TABLE}, line 1: the header must be {header(columns)!r}, got {lines[0][:80]!r}")
        for number, line in enumerate(lines[1:], start=1):
            try:
                values = parse_row(line.decode().rstrip("\n").split("\t"), columns)
            except ValueError as error:
                raise ValueError(f"{folder / TABLE}, line {number + 1}: {error}") from None
            idx, label, predict = map(int, values[:3])
            theirs = counts.readline(_LONGEST_COUNTS)
            if number == len(lines) - 1 > 1 and not theirs.endswith(b"\n"):
                # As a power failure may leave it: the files need not reach the disk in the order of writing.
                text = f"{folder}: the line of idx {idx} in {COUNTS} was cut off; its row is left out"
                warnings.warn(text, UserWarning, stacklevel=1)
                break
            found = _COUNTS_IDX.match(theirs)
            if found is None or int(found[1]) != idx or not theirs.endswith(b"}\n") or idx in rows:
                raise ValueError(
                    f"{folder} is damaged: {COUNTS} must have a line for each row of {TABLE}, in its order; "
                    f"line {number} is not of idx {idx}"
                )
            try:
                sealed = unseal(theirs, run, covered(line)) is not None
                name = None if found[2] is None else parse_json(found[2])
            except ValueError:
                raise ValueError(
                    f"{folder} is damaged: the check sum of idx {idx}, in line {number} of {COUNTS}, does not fit its "
                    f"counts, its row in {TABLE} and the settings in {SIDECAR}; one of these was changed"
                ) from None
            start, end = end, end + len(theirs)
            rows[idx] = Row(folder, idx, label, predict, values[3], line, start, end, sealed, name)
    sealed_rows = sum(row.sealed for row in rows.values())
    if 0 < sealed_rows < len(rows):
        idx = next(row.idx for row in rows.values() if not row.sealed)
        raise ValueError(f"{folder} is damaged: idx {idx} has no check sum in {COUNTS}, and other lines have one")
    if rows and not sealed_rows:
        warnings.warn(
            f"{folder} has no check sums, which earlier versions did not write; damage may pass unnoticed",
            UserWarning,
            stacklevel=1,  # the same for all callers, so that one command says it once
        )
    return list(rows.values())


def read_skipped(folder: Path, done: Container[int]) -> list[Skipped]:
    """Return the images that could not be read; none where there is no such file. A last line that was cut off is left out.

    Raises
    ------
    ValueError
        If the file is damaged, belongs to another run, or names one of `done`, which have rows; naming the line.
    """
    file = folder / SKIPPED
    if not file.exists():
        return []
    run = identity(read_sidecar(folder / SIDECAR)).encode()
    found: dict[int, Skipped] = {}
    with open_file(file) as lines:
        for number, line in enumerate(_whole_lines(lines), start=1):
            try:
                if (text := unseal(line, run)) is None:
                    raise ValueError("it has no check sum")
                each = parse_json(text)
                skipped = Skipped(each["idx"], each.get("name"), each["reason"])
                if skipped.idx in found or skipped.idx in done:
                    raise ValueError(f"idx {skipped.idx} {'is there twice' if skipped.idx in found else 'has a row'}")
            except (AttributeError, LookupError, TypeError, ValueError) as error:
                why = f"{type(error).__name__}: {error}"
                raise ValueError(
                    f"{file}, line {number}, is damaged; remove it, and --resume tries its images again ({why})"
                ) from None
            found[skipped.idx] = skipped
    return list(found.values())


def _whole_lines(table: BinaryIO) -> Iterator[bytes]:
    """Yield each line that has an end; what comes after the last was cut off."""
    while (line := table.readline(_LONGEST_ROW)).endswith(b"\n"):
        yield line
    if len(line) == _LONGEST_ROW:
        raise ValueError(f"{table.name} must be a table of rsfast, got a line of more than {_LONGEST_ROW} bytes")


def columns_of(folders: Iterable[Path]) -> tuple[str, ...]:
    """Return the columns of the tables of one run: a folder that was killed at its birth has no header yet."""
    for folder in folders:
        with open_file(folder / TABLE) as lines:
            if lines.readline(_LONGEST_ROW) == header(PREDICT_COLUMNS):
                return PREDICT_COLUMNS
    return CERTIFY_COLUMNS


def identity(sidecar: Mapping[str, Any]) -> str:
    """Return a SHA-256 of what is the same for every resumption of a run, and different for different runs.

    Parameters
    ----------
    sidecar : mapping
        As it stands in the run folder: a run that is resumed keeps that of its beginning. The norm follows from the noise,
        so it is left out, and sums of earlier versions hold.
    """
    same = {name: value for name, value in sidecar.items() if name not in MAY_DIFFER_ON_RESUME | ORIGIN | {"norm"}}
    return hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()


def inputs_of(sidecar: Mapping[str, Any]) -> range | None:
    """Return the inputs that a run is to have rows of, None if its sidecar does not say; raise ValueError if damaged."""
    start, end, skip = (sidecar.get(name) for name in ("start", "end", "skip"))
    if start is None and end is None and skip is None:
        return None
    if type(start) is int and type(end) is int and type(skip) is int and 0 <= start <= end and skip >= 1:
        return range(start, end, skip)
    raise ValueError(
        f"start, end and skip must be integers with 0 <= start <= end and skip >= 1, got {start!r:.80}, {end!r:.80} and "
        f"{skip!r:.80}"
    )


def listed(value: Any) -> list[Any]:
    """Return a list as it is, and a list of anything else: of a merged run a field is a list where its parts differ."""
    return value if isinstance(value, list) else [value]


def sampled_with(sidecar: Mapping[str, Any]) -> list[Any]:
    """Return the versions that drew the samples of a run, of each part of a merged one; None where nothing says them.

    Examples
    --------
    >>> sampled_with({"versions": {"rsfast": "0.1.0"}}), sampled_with({"versions": {}, "recertified_from": "run"})
    ([{'rsfast': '0.1.0'}], [None])
    """
    return listed(sidecar.get(SAMPLED_WITH if certified_again(sidecar) else "versions"))


def certified_again(sidecar: Mapping[str, Any]) -> bool:
    """Return whether a run, or a part of a merged one, rests on the counts of another."""
    return bool((ORIGIN | {SAMPLED_WITH}) & sidecar.keys())


def check_same_run(file: Path, sidecar: Mapping[str, Any]) -> None:
    """Raise ValueError, naming the first field that differs, unless `file` is the sidecar of the same run."""
    for name, theirs, ours in differences(read_sidecar(file), json.loads(sidecar_bytes(sidecar)), MAY_DIFFER_ON_RESUME):
        raise ValueError(
            f"{name} must be {theirs}, as in {file}, got {ours}; resume with the same settings, or name another folder"
        )


def _short(value: object) -> str:
    text = repr(value)  # of a noise's array, as many characters as it has numbers, and more
    return text if len(text) <= 200 else f"{text[:197]}..."


def _distinct_texts(name: str, first: object, second: object) -> tuple[str, str]:
    """Return two values of a field as messages show them: a noise with its settings, where both are known."""
    if name == "noise" and isinstance(first, dict) and isinstance(second, dict):
        with suppress(TypeError, ValueError):
            return from_dict(first).distinct_texts(from_dict(second))
    return _short(first), _short(second)


def differences(first: Mapping[str, Any], second: Mapping[str, Any], may_differ: set[str]) -> Iterator[tuple[str, str, str]]:
    """Yield the name of each field in which two sidecars differ, and what it is in either."""
    for name in sorted({*first, *second} - may_differ):
        missing = name not in first or name not in second
        if missing and name in ADDED - {"clamp"} and (name in ("mode_fixed", "norm") or first.get("lipschitz") is None):
            continue
        if first.get(name) != second.get(name):
            yield name, *_distinct_texts(name, first.get(name), second.get(name))
        elif missing and name not in ADDED:  # null in one, and no such field in the other
            yield name, "None" if name in first else "missing", "None" if name in second else "missing"


def same_logits(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Return whether the ``first_logits`` of two sidecars are those of one model, but for rounding.

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


def parse_row(fields: list[str], columns: tuple[str, ...]) -> tuple[np.int64, np.int64, np.int64, float, bool]:
    if len(fields) != len(columns):
        raise ValueError(f"the row must have {len(columns)} fields, separated by tabs, got {len(fields)}")
    row = dict(zip(columns, fields, strict=True))
    idx, label, predict = (_integer(name, row[name]) for name in ("idx", "label", "predict"))
    try:
        radius = float(row.get("radius", 0))
    except ValueError:
        raise ValueError(f"radius must be a number, got {row['radius']!r}") from None
    if not 0 <= radius < math.inf:
        raise ValueError(f"radius must be finite and at least 0, got {row['radius']!r}")
    if row["correct"] not in ("0", "1"):
        raise ValueError(f"correct must be 0 or 1, got {row['correct']!r}")
    correct = row["correct"] == "1"
    if correct and (predict != label or predict == ABSTAIN):
        raise ValueError(f"correct must be 0 where label is {label} and predict is {predict}, got 1")
    return idx, label, predict, radius, correct


def _integer(name: str, field: str) -> np.int64:
    try:
        return np.int64(int(field))
    except (ValueError, OverflowError):
        raise ValueError(f"{name} must be a 64-bit integer, got {field!r}") from None


def read_sidecar(file: Path) -> dict[str, Any]:
    """Return what ``results.json`` of a run folder holds; raise ValueError if it is damaged."""
    with open_file(file) as opened:
        text = opened.read(_LARGEST_SIDECAR + 1)
    if len(text) > _LARGEST_SIDECAR:
        raise ValueError(f"{file} must be a sidecar that rsfast wrote, got more than {_LARGEST_SIDECAR >> 20} MiB")
    try:
        sidecar = parse_json(text)
    except ValueError as error:
        raise ValueError(f"{file} must be JSON, got other text: {error}") from None
    if isinstance(sidecar, dict):
        return sidecar
    raise ValueError(f"{file} must hold an object, got a {type(sidecar).__name__}")
