"""The folders of one run: that of the run, and, until they are merged, one for each process that shares its images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from ..engine.ranks import Ranks
from . import checkpoint
from .folder import (
    CHECKPOINT,
    PARTS,
    SIDECAR,
    TABLE,
    check_same_run,
    finished,
    identity,
    read_rows,
    read_sidecar,
    same_logits,
)
from .merge import merge
from .replay import check_rows
from .writer import NO_LABEL, locked, refuse_a_run, remove_run, tidy


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
            refuse_a_run(self.out)
            for other in (*parts, *more):
                if other.exists():
                    raise FileExistsError(
                        f"{self.out} must be a folder without a run, got one with {other}; "
                        "name another folder, or move it away first"
                    )
        elif self._ranks.by_inputs and self._merged():
            if not finished(self.out, columns).issuperset(indices):
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
        check_same_run(file, sidecar)
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
        self, columns: tuple[str, ...], indices: range, labels: Sequence[int] | None
    ) -> tuple[set[int], dict[int, dict[str, Any]]]:
        """Return the images that have rows, and what checkpoints hold of others; raise ValueError for rows of other data."""
        done: set[int] = set()
        saved: dict[int, dict[str, Any]] = {}
        folders = self._parts() if self._ranks.by_inputs and not self._merged() else [self.out]
        for number, folder in enumerate(folders):
            rows = read_rows(folder, columns)
            for row in rows:
                if row.idx not in indices:
                    raise ValueError(f"idx in {folder / TABLE} must be in {indices}, got {row.idx}; resume the same run")
                if row.label != (label := NO_LABEL if labels is None else labels[row.idx]):
                    raise ValueError(
                        f"labels[{row.idx}] must be {row.label}, as in {folder / TABLE}, got {label}; resume with "
                        "the same data"
                    )
                done.add(row.idx)
            if number % self._ranks.world == self._ranks.rank:
                check_rows(folder, rows, columns)
            for index, each in checkpoint.load(folder, identity(read_sidecar(folder / SIDECAR))).items():
                if index not in saved or _drawn(each) > _drawn(saved[index]):  # of several, some may be older
                    saved[index] = each
        return done, saved

    def has_checkpoint(self) -> bool:
        """Return whether a folder of this run holds a checkpoint."""
        return any((folder / CHECKPOINT).exists() for folder in (self.out, *self._parts()))

    def merge(self, sidecar: Mapping[str, Any], columns: tuple[str, ...], indices: Iterable[int]) -> None:
        """Make one run folder of those of all processes, once all are done; killed anywhere, this can be done again."""
        if not (parts := self._parts()):
            return
        tidy(self.out)
        if not self._merged():
            done = set[int]().union(*(finished(part, columns) for part in parts))
            if missing := set(indices) - done:
                raise ValueError(
                    f"out must be a folder that all processes share, got {self.out}, where {len(missing)} images have no "
                    f"row though all processes are done, idx {min(missing)} the first; run them again in a shared folder"
                )
            merge(parts, self.out, check_counts=False)
        for part in parts:
            with suppress(ValueError):  # another run's folder stays
                check_same_run(part / SIDECAR, sidecar)
                remove_run(part)
        # Of a process that was killed before it wrote anything, and of all; where there are other files, they stay.
        for folder in (*self.out.glob(f"{PARTS}/[0-9]*-of-[0-9]*"), self.out / PARTS):
            with suppress(OSError):
                folder.rmdir()

    def _parts(self) -> list[Path]:
        """Return the folders of several processes; not of one that was killed before there was anything in its own."""
        return [file.parent for file in sorted(self.out.glob(f"{PARTS}/[0-9]*-of-[0-9]*/{SIDECAR}"))]

    def _merged(self) -> bool:
        """Return whether the run folder itself holds a run, and not only some of the files that a merge moves there."""
        table, sidecar = self.out / TABLE, self.out / SIDECAR
        return sidecar.exists() and (table.exists() or not self._parts())


def _drawn(saved: Mapping[str, Any]) -> float:
    """Return how many samples were saved of an image; of one that is decided, all."""
    return math.inf if "outcome" in saved else saved["asked"]
