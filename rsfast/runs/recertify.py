"""A run certified again from the counts that it left behind: another rule, bound or alpha, and no model."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

from . import results
from .folder import CERTIFY_COLUMNS, COUNTS, SIDECAR, TABLE, columns_of, read_rows, read_sidecar
from .replay import Replay, check_rows
from .results import Results
from .tables import EmptyTable
from .writer import new_run


def recertify(
    run: str | Path,
    out: str | Path,
    *,
    alpha: float | None = None,
    bound: str | None = None,
    rule: str | None = None,
    lipschitz: float | None = None,
    about: dict[str, Any] | None = None,
) -> Results:
    """Write a run folder with the certificates that the counts of another give, and return its rows.

    Of certificates of one input under several rules or bounds, each is wrong with probability alpha; the best of them is
    wrong with more. Choose before looking.

    Parameters
    ----------
    run : path-like
        A run folder of ``rsfast certify``.
    out : path-like
        The folder to write. It gets the sidecar of `run`, but for what changes.
    alpha, bound, rule, lipschitz : optional
        As in `certificate.certificates`, lipschitz with the run's execution; those of `run` by default.
    about : dict, optional
        More to put into the sidecar.

    Raises
    ------
    FileNotFoundError, FileExistsError
        If `run` lacks a file, or `out` holds a run.
    ValueError
        If `run` holds predictions or is damaged, is of another version of the noise stream, lacks what the bound needs, or
        bound and rule do not fit its head, or the samples were looked at more than once and the bound holds for one look, or
        lipschitz is given and the model computed below float32; or a row differs from what its counts give under the run's
        own settings, which is compared where nothing changes or there are no check sums.
    """
    run, out = Path(run), Path(out)
    sidecar = read_sidecar(run / SIDECAR)
    if columns_of([run]) != CERTIFY_COLUMNS:
        raise ValueError(f"{run} must be a run of rsfast certify, got one of rsfast predict, whose counts prove no radius")
    results.check_settings(run / SIDECAR, sidecar)
    rows = read_rows(run, CERTIFY_COLUMNS)
    if not rows:
        raise EmptyTable(f"{run / TABLE} must have a header and at least one row, got none")
    given = {"alpha": alpha, "bound": bound, "rule": rule, "lipschitz": lipschitz}
    replay = Replay.of(run, sidecar, **{name: value for name, value in given.items() if value is not None})
    unchanged = all(replay.sidecar[name] == sidecar.get(name) for name in given)
    if not unchanged and not rows[0].sealed:
        check_rows(run, rows, CERTIFY_COLUMNS)  # else nothing would tell that a count or a setting was changed
    outcomes, began = [], time.perf_counter()
    for row, certificate in replay.certificates(rows):
        if unchanged:
            replay.compare(row, certificate)
        outcomes.append((row, certificate))
    seconds = (time.perf_counter() - began) / len(rows)
    origin = {
        "recertified_from": str(run),
        "counts_sha256": hashlib.sha256((run / COUNTS).read_bytes()).hexdigest(),
    }
    advice = "no run was left there; recertify again once there is space"
    with new_run(out, {**replay.sidecar, **origin, **(about or {})}, CERTIFY_COLUMNS, advice) as writer:
        for row, certificate in outcomes:
            writer.write(row.idx, None if row.label < 0 else row.label, certificate, seconds, row.counts())
    return results.read(out)
