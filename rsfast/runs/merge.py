"""The folders of one run: of parts of its inputs, or of processes that share them; and how they are merged."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Any

from ..engine.options import CertifyOptions, options_of
from ..engine.ranks import Ranks
from . import checkpoint, layout
from .layout import CHECKPOINT, PARTS, SIDECAR, SKIPPED, TABLE, Row, Skipped, read_sidecar, same_logits
from .recertify import check_rows
from .tables import EmptyTable
from .writer import locked, new_run, refuse_a_run, remove_run, tidy

MAY_DIFFER_IN_A_SHARD = {
    *layout.MAY_DIFFER_ON_RESUME,
    *("device", "versions"),  # where the part was made
    *(name for name, option in options_of(CertifyOptions).items() if option.may_differ_in_a_shard),
    *layout.ORIGIN,
    layout.SAMPLED_WITH,
}
"""Of a sidecar: what may differ between parts that are merged, beside start and end."""


def merge(
    parts: Sequence[str | PathLike[str]], out: str | PathLike[str], *, check_counts: bool = True
) -> tuple[list[int], list[range]]:
    """Write one run folder with the rows of several, as one run over all their inputs writes it, but for the times.

    Parts are run folders of ``rsfast certify``, ``predict`` or ``recertify`` whose sidecars agree in all but which inputs
    they are (``start``, ``end``) and where and how they were made: ``command``, ``started``, ``batch_size``, ``device``,
    ``backend``, ``versions``, the paths ``data`` and ``weights``, ``recertified_from``, ``counts_sha256`` and
    ``sampled_with``. Where one of those differs, the merged sidecar holds the list of what it was, in order of the parts'
    inputs, and null for a part that does not state its ``versions``, ``device`` or ``backend``. ``first_logits`` may differ
    by rounding (`same_logits`); the merged sidecar holds those of the first part. A part that was stopped gives the rows
    that it has. Inputs that could not be read are noted in `out`, too, and are not missing.

    Parameters
    ----------
    parts : sequence of path-like
        At least one, in any order.
    out : path-like
        The folder to write, made if it does not exist.
    check_counts : bool
        Also compare each row with what its counts give, about a millisecond a row (`recertify.check_rows`).

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
    columns = layout.columns_of(folders)
    inputs = range(sidecar["start"], sidecar["end"], sidecar["skip"])
    rows_of = [layout.read_rows(folder, columns) for folder in folders]
    skipped_of = [
        layout.read_skipped(folder, {row.idx for row in rows}) for folder, rows in zip(folders, rows_of, strict=True)
    ]
    found: dict[int, Path] = {}
    for folder, file, each in _each_input(folders, rows_of, skipped_of):
        if each.idx in found:
            raise ValueError(f"idx {each.idx} must be in one part, once, got it in {found[each.idx]} and in {folder}")
        if each.idx not in inputs:
            raise ValueError(f"idx in {folder / file} must be in {inputs}, as the sidecars say, got {each.idx}")
        found[each.idx] = folder
    rows = {row.idx: row for row in chain.from_iterable(rows_of)}
    if not rows:
        raise EmptyTable(f"parts must have at least one row, got none in {', '.join(map(str, folders))}")
    if check_counts:
        for folder, theirs in zip(folders, rows_of, strict=True):
            check_rows(folder, theirs, columns)
    with new_run(out, sidecar, columns, "no run was left there; merge again once there is space") as writer:
        for idx in sorted(rows):
            writer.copy(rows[idx])
        for each in sorted(chain.from_iterable(skipped_of)):
            writer.skip(each)
    return sorted(rows), _gaps(inputs, sorted(found))


def _each_input(
    folders: Sequence[Path], rows_of: Sequence[Sequence[Row]], skipped_of: Sequence[Sequence[Skipped]]
) -> Iterator[tuple[Path, str, Row | Skipped]]:
    """Yield every input that a part has a row of, or could not read: its folder, the file that names it, and that."""
    for folder, rows, skipped in zip(folders, rows_of, skipped_of, strict=True):
        yield from ((folder, TABLE, row) for row in rows)
        yield from ((folder, SKIPPED, each) for each in skipped)


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
            inputs = layout.inputs_of(sidecar)
        except ValueError as error:
            raise ValueError(f"{file} is damaged: {error}") from None
        if inputs is None:
            raise ValueError(f"{file} must be of a run of rsfast certify or predict, got one without start, end and skip")
        parts.append((inputs.start, inputs.stop, file, sidecar))
    parts.sort(key=lambda part: part[:2])
    _, _, first, merged = parts[0]
    for _, _, file, sidecar in parts[1:]:
        for name, before, here in layout.differences(merged, sidecar, MAY_DIFFER_IN_A_SHARD | {"start", "end"}):
            raise ValueError(f"{name} must be the same in all parts, got {before} in {first} and {here} in {file}")
        if "first_logits" in merged and "first_logits" in sidecar and not same_logits(merged, sidecar):
            raise ValueError(
                f"first_logits must be those of one model, got {merged['first_logits']!r} in {first} and "
                f"{sidecar['first_logits']!r} in {file}"
            )
    values: dict[str, list[Any]] = {name: [] for name in sorted(MAY_DIFFER_IN_A_SHARD - {"first_logits"})}
    for *_, sidecar in parts:
        sidecar = _made_with([each for *_, each in parts], sidecar)
        for name in values.keys() & sidecar.keys():
            values[name] += [value for value in layout.listed(sidecar[name]) if value not in values[name]]
    several = {name: each if len(each) > 1 else each[0] for name, each in values.items() if each}
    # What earlier versions did not write comes from the first part that has it; but what they did not know stays unknown.
    added = {
        name: sidecar[name] for *_, sidecar in reversed(parts) for name in (layout.ADDED | {"first_logits"}) & sidecar.keys()
    }
    found = {**merged, **added, **several, "start": parts[0][0], "end": max(end for _, end, *_ in parts)}
    unknown = {name for name in layout.NOT_KNOWN for *_, sidecar in parts if name not in sidecar}
    return {name: value for name, value in found.items() if name not in unknown}


def _made_with(parts: Sequence[Mapping[str, Any]], sidecar: Mapping[str, Any]) -> dict[str, Any]:
    """Return a sidecar that states what made it, null if it does not know, wherever one of the parts does."""
    found = dict(sidecar)
    for name in ("backend", "device", "versions"):
        if any(name in each for each in parts):
            found.setdefault(name, None)
    if any(map(layout.certified_again, parts)):
        found[layout.SAMPLED_WITH] = layout.sampled_with(sidecar)
    return found


def refuse_runs(out: Path, more: Sequence[Path] = ()) -> None:
    """Raise FileExistsError if a folder holds a file of a run, of one process or of several, or if one of `more` exists."""
    refuse_a_run(out)
    for other in (*_parts_of(out), *more):
        if other.exists():
            raise FileExistsError(
                f"{out} must be a folder without a run, got one with {other}; name another folder, or move it away first"
            )


def _parts_of(out: Path) -> list[Path]:
    return [file.parent for file in sorted(out.glob(f"{PARTS}/[0-9]*-of-[0-9]*/{SIDECAR}"))]


class RunFolders:
    """The folders of one run, as this process sees them.

    Parameters
    ----------
    out : Path
        The run folder.
    ranks : Ranks
        Which process this is. Where processes share the images, each writes a run folder of its own within `out`.
    resume : bool
        Whether to go on with the run in `out`, if there is one.
    say : callable
        Takes lines for the user.
    """

    def __init__(self, out: Path, ranks: Ranks, resume: bool, say: Callable[[str], object]) -> None:
        self.out, self.resume, self._ranks, self._say = out, resume, ranks, say

    @property
    def own(self) -> Path:
        """The run folder that this process writes, if it does."""
        return self.out / PARTS / f"{self._ranks.rank}-of-{self._ranks.world}" if self._ranks.by_inputs else self.out

    @property
    def sidecar(self) -> Path:
        """The sidecar of the run, which need not exist."""
        files = [folder / SIDECAR for folder in (self.out, *self._parts())]
        return next((file for file in files if file.exists()), files[0])

    def recorded(self) -> dict[str, Any]:
        """Return the sidecar of the run to resume; empty if there is none."""
        return read_sidecar(self.sidecar) if self.resume and self.sidecar.exists() else {}

    def check(self, sidecar: Mapping[str, Any], columns: tuple[str, ...], indices: range, more: Sequence[Path] = ()) -> bool:
        """Refuse folders that this run cannot go on in, and return whether this process writes a run folder.

        Files in `more` must not exist where the run is new.
        """
        if self.resume and self.sidecar.exists():
            self._check_same_run(self.sidecar, sidecar)
        parts = self._parts()
        if not self.resume:
            refuse_runs(self.out, more)
        elif self._ranks.by_inputs and self._merged():
            if not _known(self.out, columns).issuperset(indices):
                raise ValueError(
                    f"out must hold a run of several processes that share images, got {self.out} with a run of one process, "
                    "or of shard = 'samples'; go on so, or name another folder"
                )
            return False
        elif self._ranks.by_inputs:
            for part in parts:
                self._check_same_run(part / SIDECAR, sidecar)
        elif parts and not self._merged():
            raise ValueError(
                f"out must hold a run of one process, got {self.out} with a run of several; go on with two or more and "
                f"shard = 'inputs', or merge the folders in {self.out / PARTS} with rsfast merge"
            )
        return self._ranks.rank == 0 or not self._ranks.by_samples

    def _check_same_run(self, file: Path, sidecar: Mapping[str, Any]) -> None:
        """Refuse another run; and another model where its state_dict does not show it: changed code, or a function."""
        layout.check_same_run(file, sidecar)
        recorded = read_sidecar(file)
        if "first_logits" not in recorded:
            self._say(f"warning: {file} has no first_logits, so nothing shows whether the model still computes the same")
        elif not same_logits(sidecar, recorded):
            raise ValueError(
                f"model must be that of the run in {self.out}, got {sidecar['model']}, whose logits of the first image "
                f"are {str(sidecar['first_logits'])[:70]}, and first_logits in {file} is "
                f"{str(recorded['first_logits'])[:70]}; "
                "resume with the same model, or name another folder"
            )

    def lock_others(self, stack: ExitStack) -> None:
        """Lock the folders of other numbers of processes, which another job may be writing."""
        if self._ranks.by_inputs and self._ranks.rank == 0:
            for part in self._parts():
                if not part.name.endswith(f"-of-{self._ranks.world}"):
                    stack.enter_context(locked(part))

    def on_disk(
        self, columns: tuple[str, ...], indices: range, label_of: Callable[[int], int | None]
    ) -> tuple[set[int], set[int], dict[int, dict[str, Any]]]:
        """Return the images that have rows, those that were skipped, and what checkpoints hold of others.

        Raise ValueError for rows of other data: with another label than `label_of` gives, if it knows one.
        """
        done: set[int] = set()
        skipped: set[int] = set()
        saved: dict[int, dict[str, Any]] = {}
        folders = self._parts() if self._ranks.by_inputs and not self._merged() else [self.out]
        for number, folder in enumerate(folders):
            rows = layout.read_rows(folder, columns)
            unread = layout.read_skipped(folder, {row.idx for row in rows})
            for _, file, each in _each_input([folder], [rows], [unread]):
                if each.idx not in indices:
                    raise ValueError(f"idx in {folder / file} must be in {indices}, got {each.idx}; resume the same run")
            skipped |= {each.idx for each in unread}
            for row in rows:
                if (label := label_of(row.idx)) not in (None, row.label):
                    raise ValueError(
                        f"labels[{row.idx}] must be {row.label}, as in {folder / TABLE}, got {label}; resume with "
                        "the same data"
                    )
                done.add(row.idx)
            if number % self._ranks.world == self._ranks.rank:
                check_rows(folder, rows, columns)
            for index, state in checkpoint.load(folder, layout.identity(read_sidecar(folder / SIDECAR))).items():
                if index not in saved or _drawn(state) > _drawn(saved[index]):  # of several, some may be older
                    saved[index] = state
        return done, skipped, saved

    def has_checkpoint(self) -> bool:
        """Return whether a folder of this run holds a checkpoint."""
        return any((folder / CHECKPOINT).exists() for folder in (self.out, *self._parts()))

    def merge(self, sidecar: Mapping[str, Any], columns: tuple[str, ...], indices: Iterable[int]) -> None:
        """Make one run folder of those of all processes, once all are done; killed anywhere, this can be done again."""
        if not (parts := self._parts()):
            return
        tidy(self.out)
        if not self._merged():
            if missing := set(indices).difference(*(_known(part, columns) for part in parts)):
                raise ValueError(
                    f"out must be a folder that all processes share, got {self.out}, where {len(missing)} images have no "
                    f"row though all processes are done, idx {min(missing)} the first; run them again in a shared folder"
                )
            merge(parts, self.out, check_counts=False)
        for part in parts:
            with suppress(ValueError):  # another run's folder stays
                layout.check_same_run(part / SIDECAR, sidecar)
                remove_run(part)
        # Of a process that was killed before it wrote anything, and of all; where there are other files, they stay.
        for folder in (*self.out.glob(f"{PARTS}/[0-9]*-of-[0-9]*"), self.out / PARTS):
            with suppress(OSError):
                folder.rmdir()

    def _parts(self) -> list[Path]:
        """Return the folders of several processes; not of one that was killed before there was anything in its own."""
        return _parts_of(self.out)

    def _merged(self) -> bool:
        """Return whether the run folder itself holds a run, and not only some of the files that a merge moves there."""
        table, sidecar = self.out / TABLE, self.out / SIDECAR
        return sidecar.exists() and (table.exists() or not self._parts())


def _known(folder: Path, columns: tuple[str, ...]) -> set[int]:
    """Return the images of which a run folder has a row, or the note that they could not be read."""
    done = {row.idx for row in layout.read_rows(folder, columns)}
    return done | {each.idx for each in layout.read_skipped(folder, done)}


def _drawn(saved: Mapping[str, Any]) -> float:
    """Return how many samples were saved of an image; of one that is decided, all."""
    return math.inf if "outcome" in saved else saved["asked"]
