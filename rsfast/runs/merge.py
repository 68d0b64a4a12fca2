"""Runs over parts of the inputs, merged into the run over all of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Any

from ..engine.options import CertifyOptions, options_of
from .folder import (
    ADDED,
    MAY_DIFFER_ON_RESUME,
    ORIGIN,
    SIDECAR,
    TABLE,
    Row,
    columns_of,
    differences,
    inputs_of,
    read_rows,
    read_sidecar,
    same_logits,
)
from .replay import check_rows
from .writer import new_run, refuse_a_run, tidy

MAY_DIFFER_IN_A_SHARD = {
    *MAY_DIFFER_ON_RESUME,
    *("device", "versions"),  # where the part was made
    *(name for name, option in options_of(CertifyOptions).items() if option.may_differ_in_a_shard),
    *ORIGIN,
}
"""Of a sidecar: what may differ between parts that are merged, beside start and end."""


def merge(
    parts: Sequence[str | PathLike[str]], out: str | PathLike[str], *, check_counts: bool = True
) -> tuple[list[int], list[range]]:
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
    check_counts : bool
        Also compare each row with what its counts give, about a millisecond a row (`replay.check_rows`).

    Returns
    -------
    merged : list of int
        The inputs that have their rows in `out`, in order.
    missing : list of range
        The gaps: those between its ``start`` and ``end`` that no part has.

    Raises
    ------
    FileExistsError, FileNotFoundError
        If `out` holds a file of a run, or a part lacks one.
    TypeError, ValueError
        If parts is one path or empty; a part is damaged, or of another run; two have the same input, or none has any; or
        the counts of a row give another radius or class. Nothing has been written then.
    OSError
        If `out` cannot be written, for want of space mostly. No file of a run is left there.

    Examples
    --------
    >>> import tempfile
    >>> from types import SimpleNamespace
    >>> from rsfast.runs.results import read
    >>> from rsfast.runs.writer import RunWriter
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     parts = [Path(folder, name) for name in ("a", "b")]
    ...     for part, start in zip(parts, (0, 2)):
    ...         with RunWriter(part, {"n": 100, "start": start, "end": start + 2, "skip": 1}) as run:
    ...             run.write(start, 3, SimpleNamespace(prediction=3, radius=0.25), 1.5, {"estimation": {"n": 100}})
    ...     print(merge(parts, Path(folder, "all")), read(Path(folder, "all")).sidecar)
    ([0, 2], [range(1, 2), range(3, 4)]) {'n': 100, 'start': 0, 'end': 4, 'skip': 1}
    """
    if isinstance(parts, (str, PathLike)):
        raise TypeError(f"parts must be a sequence of run folders, got {parts!r}")
    if not parts:
        raise ValueError(f"parts must hold at least one run folder, got {parts!r}")
    out, folders = Path(out), [Path(part) for part in parts]
    tidy(out)
    refuse_a_run(out)
    sidecar = _merged_sidecar([folder / SIDECAR for folder in folders])
    columns = columns_of(folders)
    rows: dict[int, Row] = {}
    inputs = range(sidecar["start"], sidecar["end"], sidecar["skip"])
    rows_of = [read_rows(folder, columns) for folder in folders]
    for row in chain.from_iterable(rows_of):
        if row.idx in rows:
            raise ValueError(
                f"idx {row.idx} must be in one part, once, got it in {rows[row.idx].folder} and in {row.folder}"
            )
        if row.idx not in inputs:
            raise ValueError(f"idx in {row.folder / TABLE} must be in {inputs}, as the sidecars say, got {row.idx}")
        rows[row.idx] = row
    if not rows:
        raise ValueError(f"parts must have at least one row, got none in {', '.join(map(str, folders))}")
    if check_counts:
        for folder, theirs in zip(folders, rows_of, strict=True):
            check_rows(folder, theirs, columns)
    with new_run(out, sidecar, columns, "no run was left there; merge again once there is space") as writer:
        for idx in sorted(rows):
            writer.copy(rows[idx])
    return sorted(rows), _gaps(inputs, sorted(rows))


def _gaps(inputs: range, rows: Sequence[int]) -> list[range]:
    found, after = [], inputs.start
    for idx in (*rows, inputs.stop):
        if gap := range(after, idx, inputs.step):
            found.append(gap)
        after = idx + inputs.step
    return found


def _merged_sidecar(files: list[Path]) -> dict[str, Any]:
    parts = []
    for file in files:
        sidecar = read_sidecar(file)
        try:
            inputs = inputs_of(sidecar)
        except ValueError as error:
            raise ValueError(f"{file} is damaged: {error}") from None
        if inputs is None:
            raise ValueError(f"{file} must be of a run of rsfast certify or predict, got one without start, end and skip")
        parts.append((inputs.start, inputs.stop, file, sidecar))
    parts.sort(key=lambda part: part[:2])
    _, _, first, merged = parts[0]
    for _, _, file, sidecar in parts[1:]:
        for name, before, here in differences(merged, sidecar, MAY_DIFFER_IN_A_SHARD | {"start", "end"}):
            raise ValueError(f"{name} must be the same in all parts, got {before} in {first} and {here} in {file}")
        if "first_logits" in merged and "first_logits" in sidecar and not same_logits(merged, sidecar):
            raise ValueError(
                f"first_logits must be those of one model, got {merged['first_logits']!r} in {first} and "
                f"{sidecar['first_logits']!r} in {file}"
            )
    values: dict[str, list[Any]] = {name: [] for name in sorted(MAY_DIFFER_IN_A_SHARD - {"first_logits"})}
    for *_, sidecar in parts:
        for name in values.keys() & sidecar.keys():
            theirs = sidecar[name] if isinstance(sidecar[name], list) else [sidecar[name]]  # a list if it was merged
            values[name] += [value for value in theirs if value not in values[name]]
    several = {name: each if len(each) > 1 else each[0] for name, each in values.items() if each}
    # What earlier versions did not write comes from the first part that has it.
    added = {name: sidecar[name] for *_, sidecar in reversed(parts) for name in (ADDED | {"first_logits"}) & sidecar.keys()}
    return {**merged, **added, **several, "start": parts[0][0], "end": max(end for _, end, *_ in parts)}
