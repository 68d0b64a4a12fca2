"""A run certified again from the counts that it left behind: another rule, bound or alpha, and no model."""

from __future__ import annotations

import hashlib
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from . import results
from .certificate import Execution, of_inputs, prove
from .heads import from_dict as head_from_dict
from .looks import Goal
from .noise import STREAM_VERSION, check_seed
from .noise import from_dict as noise_from_dict
from .results import Results
from .rules import Method
from .run_folder import COUNTS, SIDECAR, TABLE, RunWriter, read_counts
from .sequences import look_ends
from .tally import Tally


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
        lipschitz is given and the model computed below float32.
    """
    run = Path(run)
    rows = results.read(run)
    sidecar = dict(rows.sidecar or {})
    needed = ("alpha", "bound", "rule", "head", "noise", "seed", "n0", "n", "stream_version")
    if missing := [name for name in needed if name not in sidecar]:
        raise ValueError(f"{run / SIDECAR} lacks {', '.join(missing)}; it must be of a run of rsfast certify")
    try:
        head, noise, seed = head_from_dict(sidecar["head"]), noise_from_dict(sidecar["noise"]), check_seed(sidecar["seed"])
        goal, n = Goal(sidecar.get("radius"), sidecar.get("rtol")), sidecar["n"]
        if isinstance(n, bool) or not isinstance(n, int):
            raise TypeError(f"n is {n!r}; it must be an int")
        execution = Execution.from_dict(
            {each.name: sidecar[each.name] for each in fields(Execution) if each.name in sidecar}
        )
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{run / SIDECAR} is damaged: {error}") from error
    if sidecar["stream_version"] != STREAM_VERSION:
        raise ValueError(
            f"stream_version in {run / SIDECAR} is {sidecar['stream_version']!r}; it must be {STREAM_VERSION}, the "
            "noise stream of this version of rsfast"
        )
    given = {"alpha": alpha, "bound": bound, "rule": rule, "lipschitz": lipschitz}
    chosen: dict[str, Any] = {name: sidecar.get(name) if value is None else value for name, value in given.items()}
    method = Method(noise, head=head, looks=bool(goal), **chosen)
    if method.lipschitz is not None and sidecar.get("std") is not None and execution.scale is None:
        raise ValueError(f"{run / SIDECAR} is of a version that did not record scale; with lipschitz it must be there")
    counts = read_counts(run)
    sidecar |= {"alpha": method.alpha, "bound": method.bound, "rule": method.rule, "lipschitz": method.lipschitz}
    method = of_inputs(method, execution)
    sidecar["recertified_from"] = str(run)
    sidecar["counts_sha256"] = hashlib.sha256((run / COUNTS).read_bytes()).hexdigest()
    outcomes = []
    for idx in rows.idx.tolist():
        began = time.perf_counter()
        if idx not in counts:
            raise ValueError(f"{run / COUNTS} has no line of idx {idx}, which {TABLE} has")
        try:
            selection, estimation = (counts[idx][stream] for stream in ("selection", "estimation"))
            ranges = estimation if isinstance(estimation, list) else [estimation]
            first, *rest = (Tally.from_integers([each], (head,)) for each in (selection, *ranges))
            ends = np.cumsum([int(tally.n) for tally in rest]).tolist()
            if (ends != look_ends(n)[: len(ends)]) if goal else (ends[-1:] != [n]):
                raise ValueError(f"estimation ends at {ends}, which does not go with n = {n} and {goal} in {SIDECAR}")
            drawn = {"n0": int(first.n), "num_classes": first.num_classes}
            for name, value in drawn.items():
                if sidecar.get(name, value) != value:
                    raise ValueError(f"{name} is {value}, and {sidecar[name]!r} in {SIDECAR}; it must be the same")
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{run / COUNTS}, idx {idx}: {type(error).__name__}: {error}") from error
        try:
            (certificate,), *_ = prove(
                method, first, rest, cap=n, seed=seed, input_ids=[idx], backend="", execution=execution
            )
        except ValueError as error:
            raise ValueError(f"{run / COUNTS}, idx {idx}: {error}") from error
        outcomes.append((certificate, time.perf_counter() - began))
    with RunWriter(out, sidecar | (about or {})) as writer:
        for idx, label, (certificate, seconds) in zip(rows.idx.tolist(), rows.label.tolist(), outcomes, strict=True):
            writer.write(idx, None if label < 0 else label, certificate, seconds, counts[idx])
    return results.read(out)
