"""Run folders as they are written: row by row, locked, and resumed; or as a whole, put in place at the end."""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from decimal import ROUND_FLOOR, Context, Decimal
from io import FileIO
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any

from .._files import lock, write_whole, writing
from ..engine.plan import StoppingRule
from ..stats.certificate import ABSTAIN, Certificate
from . import layout
from .check_sums import parse_json, seal
from .layout import CERTIFY_COLUMNS, CHECKPOINT, COUNTS, SIDECAR, SKIPPED, TABLE, Row, Skipped, read_sidecar

_SCRATCH, _DIGITS = ".rsfast-", 16  # of a scratch folder's name: then so many of its run's identity
_NEW_SIDECAR = f"{SIDECAR}.new"
_RESUME = "the rows before are kept, and --resume goes on once there is space"
NO_LABEL = -1
"""In a table: the true class is unknown."""


def format_radius(radius: float, asked: float | Sequence[float] | None = None) -> str:
    """Return the radius with 7 significant digits, rounded down: never above the float, and less than 1e-6 of it below.

    Parameters
    ----------
    radius : float
        A certified radius, 0 for an abstention.
    asked : float or sequence of float, optional
        The radius that was to be proved, or several. Where `radius` reaches one and its 7 digits do not, that one is
        returned with all its digits. A reader of the table then finds every radius that was proved to be as large.

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
        raise ValueError(f"radius must be finite and at least 0, got {radius!r}")
    if radius == 0:
        return "0.0"
    exact = Decimal(float(radius))
    last_digit = Decimal((0, (1,), exact.adjusted() - 6))
    text = str(exact.quantize(last_digit, context=Context(prec=7, rounding=ROUND_FLOOR)))
    proved = max((float(each) for each in StoppingRule(asked).radii if each <= radius), default=0.0)
    return str(Decimal(proved)) if float(text) < proved else text


def _open(file: Path) -> FileIO:
    if file.exists() and not stat.S_ISREG(file.stat().st_mode):
        raise ValueError(f"{file} must be a regular file, got something else; move it away, or name another folder")
    # Unbuffered: what a full disk refused is not written later, when the file is closed.
    return open(file, "ab", buffering=0)


def _write(file: FileIO, data: bytes) -> None:
    while data:  # a disk with little space takes a part, and fails at the next
        data = data[file.write(data) :]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from writing a run folder; raise BlockingIOError if one does already."""
    with _open(folder / TABLE) as table:
        lock(table, folder)
        yield


def refuse_a_run(folder: Path) -> None:
    """Raise FileExistsError if a folder holds a file of a run, or is none."""
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} must be a folder without a run, got a file; name another folder")
    for name in (TABLE, SIDECAR, COUNTS, SKIPPED, CHECKPOINT):
        file = folder / name
        # An empty table is what is left where not even the sidecar could be written.
        if file.exists() and not (name == TABLE and file.stat().st_size == 0):
            raise FileExistsError(
                f"{folder} must be a folder without a run, got one with {name}; name another folder, or move that "
                "run away first"
            )


class RunWriter:
    """Write a run folder, one flushed row per input.

    Parameters
    ----------
    path : path-like
        The run folder, made if it does not exist.
    sidecar : mapping
        Everything that the table has no column for (n, alpha, noise, seed, versions, ...), as plain JSON values. Its
        ``radius``, a number or a list, if it has one, is what was to be proved: rows that reach it are written with no
        smaller radius.
    columns : tuple of str
        `CERTIFY_COLUMNS` or `PREDICT_COLUMNS`.
    resume : bool
        Go on with the run that the folder holds, if it holds one. What was cut off at the end of a file is dropped.

    Attributes
    ----------
    done : set of int
        The inputs that have their rows.
    skipped : dict of int to Skipped
        Those that could not be read.
    identity : str
        What tells this run from others: `layout.identity` of its sidecar.

    Raises
    ------
    FileExistsError, FileNotFoundError
        If the folder already holds a file of a run, and not to resume; or the run to resume has no table.
    TypeError, ValueError
        If sidecar holds what JSON cannot, NaN and infinity included, or a ``radius`` that is no positive number or list of
        them; or the run to resume is damaged, or has another sidecar (but for its command and its start). Nothing has been
        written then.
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
        text = layout.sidecar_bytes(sidecar)  # before anything is written, as it may raise
        self._folder, self._columns, self._asked = folder, columns, StoppingRule(sidecar.get("radius")).radius
        if not (resume and (folder / SIDECAR).exists()):
            refuse_a_run(folder)
        elif not (folder / TABLE).exists():  # it is made first, so this was no kill
            raise FileNotFoundError(
                f"{folder} is damaged: it must hold {TABLE}, got {SIDECAR} only; move that run away first"
            )
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as files:
            self._table = files.enter_context(_open(folder / TABLE))
            lock(self._table, folder)
            if resume and (folder / SIDECAR).exists():
                layout.check_same_run(folder / SIDECAR, sidecar)
            else:
                refuse_a_run(folder)  # again, as another process may have come first
                with writing(folder, _RESUME):
                    write_whole(folder / SIDECAR, [text], scratch=_NEW_SIDECAR)
            self.identity = layout.identity(read_sidecar(folder / SIDECAR))
            rows = layout.read_rows(folder, columns)
            self._sealed = not rows or rows[0].sealed
            self._counts = files.enter_context(_open(folder / COUNTS))
            self._counts.truncate(rows[-1].end if rows else 0)
            self._table.truncate(len(layout.header(columns)) + sum(len(row.line) for row in rows) if rows else 0)
            if not rows:
                with writing(folder, _RESUME):
                    _write(self._table, layout.header(columns))
            self.done = {row.idx for row in rows}
            self.skipped = {each.idx: each for each in layout.read_skipped(folder, self.done)}
            if (folder / SKIPPED).exists():
                os.truncate(folder / SKIPPED, (folder / SKIPPED).read_bytes().rfind(b"\n") + 1)
            self._files = files.pop_all()

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._files.close()
        except OSError:
            if error is None:  # else the first error says more
                raise

    def write(
        self,
        idx: int,
        label: int | None,
        certificate: Certificate | int,
        seconds: float,
        counts: Mapping[str, Any],
        name: str | None = None,
    ) -> None:
        """Append one input and flush it to both files.

        Parameters
        ----------
        idx : int
            The input's number in its data set.
        label : int or None
            True class; None where unknown, written as -1 and never correct.
        certificate : Certificate or int
            Anything with a ``prediction`` (-1 to abstain) and a ``radius``, or, with `PREDICT_COLUMNS`, only the class.
        seconds : float
            Time spent on this input.
        counts : mapping
            The Tally's integers as plain JSON values: ``{"selection": {...}, "estimation": {...}}``.
        name : str, optional
            The input's name, kept with its counts.

        Raises
        ------
        TypeError
            If certificate is only a class and the table has a radius column.
        ValueError
            If the radius is negative, infinite or NaN. Nothing has been written then.
        OSError
            If there is no space, mostly. All rows before are kept, and of this one nothing.
        """
        prediction = certificate if isinstance(certificate, int) else certificate.prediction
        row: dict[str, object] = {
            "idx": int(idx),
            "label": NO_LABEL if label is None else int(label),
            "predict": int(prediction),
            "correct": int(prediction == label and prediction != ABSTAIN),
            "time": timedelta(seconds=seconds),
        }
        if "radius" in self._columns:
            if isinstance(certificate, int):
                raise TypeError(f"certificate must have a radius, for a table with one, got {certificate!r}")
            row["radius"] = format_radius(certificate.radius, self._asked)
        self._append(int(idx), ("\t".join(str(row[column]) for column in self._columns) + "\n").encode(), counts, name)

    def copy(self, row: Row) -> None:
        """Append a row of another run folder; as `write`."""
        self._append(row.idx, row.line, row.counts(), row.name)

    def skip(self, each: Skipped) -> None:
        """Note that an input could not be read, and so gets no row; as `write`."""
        known = {name: value for name, value in each._asdict().items() if value is not None}
        with _open(self._folder / SKIPPED) as file:
            self._append_lines([(file, seal(known, self.identity.encode()))])
        self.skipped[each.idx] = each

    def _append(self, idx: int, line: bytes, counts: Mapping[str, Any], name: str | None) -> None:
        integers = {"idx": idx, **({} if name is None else {"name": name}), **counts}
        if self._sealed:
            sealed = seal(integers, self.identity.encode(), layout.covered(line))
        else:  # a run that was begun by a version without check sums goes on so
            sealed = f"{json.dumps(integers, allow_nan=False)}\n".encode()
        # Counts first: a killed run may leave counts without a row, never a row without its counts.
        self._append_lines([(self._counts, sealed), (self._table, line)])
        self.done.add(idx)

    def _append_lines(self, lines: Sequence[tuple[FileIO, bytes]]) -> None:
        """Append a line to each file, or to none."""
        ends: list[tuple[FileIO, int]] = []
        with writing(self._folder, _RESUME):
            try:
                for file, data in lines:
                    ends.append((file, file.seek(0, os.SEEK_END)))
                    _write(file, data)
            except OSError:
                for file, end in ends:
                    with suppress(OSError):  # what this leaves, to resume drops
                        file.truncate(end)
                raise


@contextmanager
def new_run(out: Path, sidecar: Mapping[str, Any], columns: tuple[str, ...], then: str) -> Iterator[RunWriter]:
    """Write a run folder as a whole: in a scratch folder within `out`, from which the files move when the block ends.

    The table moves last, as without it there is no run to read. If the block raises, nothing is left. If the process is
    killed, the next call for the same folder removes what it left.

    Parameters
    ----------
    out : Path
        The folder, made if it does not exist.
    sidecar, columns
        As of `RunWriter`.
    then : str
        What there is to do after an OSError, mostly of a full disk.

    Raises
    ------
    FileExistsError
        If `out` holds a file of a run.
    BlockingIOError
        If another process is writing the same run there.
    OSError
        If there is no space, mostly.
    """
    tidy(out)
    refuse_a_run(out)
    scratch = out / _scratch_name(parse_json(layout.sidecar_bytes(sidecar)))
    with writing(out, then):
        scratch.mkdir(parents=True)
        try:
            with RunWriter(scratch, sidecar, columns) as writer:
                yield writer
                for name in (SIDECAR, COUNTS, *([SKIPPED] if writer.skipped else []), TABLE):
                    (scratch / name).rename(out / name)
        finally:
            _remove_scratch(scratch, out)


def tidy(out: Path) -> None:
    """Remove what a `new_run` that was killed left in `out`: scratch folders, and files that had moved before the table."""
    for scratch in out.glob(f"{_SCRATCH}{'[0-9a-f]' * _DIGITS}"):
        if _is_scratch(scratch, out):
            with locked(scratch):
                _remove_scratch(scratch, out)


def _is_scratch(folder: Path, out: Path) -> bool:
    """Return whether a `new_run` made a folder in `out`: it, or `out` after the first move, has the sidecar of its name."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    for file in (folder / SIDECAR, out / SIDECAR):
        with suppress(OSError, ValueError):
            if _scratch_name(read_sidecar(file)) == folder.name:
                return True
    # Killed before the sidecar was there, or after all was removed or moved.
    files = {file.name for file in folder.iterdir()}
    return files <= {TABLE, _NEW_SIDECAR} and not (TABLE in files and (folder / TABLE).stat().st_size)


def _remove_scratch(scratch: Path, out: Path) -> None:
    """Remove a scratch folder, with the files that had moved from it to `out` if the table, the last, had not."""
    if (
        (out / SIDECAR).exists()
        and not (out / TABLE).exists()
        and _scratch_name(read_sidecar(out / SIDECAR)) == scratch.name
    ):
        for name in (SKIPPED, COUNTS, SIDECAR):  # back first: killed anywhere, one of the two folders has the sidecar
            if (out / name).exists():
                (out / name).replace(scratch / name)
    remove_run(scratch)


def remove_run(folder: Path) -> None:
    """Remove the files of a run, the sidecar last, as it tells whose they are; and the folder if nothing else is in it."""
    for name in (CHECKPOINT, SKIPPED, COUNTS, TABLE, _NEW_SIDECAR, SIDECAR):
        (folder / name).unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


def _scratch_name(sidecar: Mapping[str, Any]) -> str:
    return _SCRATCH + layout.identity(sidecar)[:_DIGITS]
