"""What the counts of a run folder prove, without the model: rows compared with it, and the run certified again."""

from __future__ import annotations

import hashlib
import json
import math
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from .._versions import __version__, versions
from ..engine.plan import StoppingRule
from ..heads import Votes
from ..heads import from_dict as head_from_dict
from ..noise import STREAM_VERSION, check_seed
from ..noise import from_dict as noise_from_dict
from ..ops.tally import Tally
from ..stats import incremental
from ..stats.certificate import ABSTAIN, Certificate, Execution
from ..stats.estimates import Scores
from ..stats.exact import exact_predictions
from ..stats.prediction import predictions
from ..stats.proof import of_inputs, prove
from ..stats.registry import BOUNDS
from ..stats.rules import CertificationSpec
from . import results
from .layout import (
    CERTIFY_COLUMNS,
    COUNTS,
    MAY_DIFFER_ON_RESUME,
    ORIGIN,
    PREDICT_COLUMNS,
    SAMPLED_WITH,
    SIDECAR,
    TABLE,
    Row,
    columns_of,
    differences,
    listed,
    read_rows,
    read_sidecar,
    read_skipped,
    same_logits,
    sampled_with,
    sidecar_bytes,
)
from .results import Results
from .tables import EmptyTable
from .writer import format_radius, new_run

_NEEDED = {
    CERTIFY_COLUMNS: ("alpha", "bound", "rule", "head", "noise", "seed", "n0", "n", "stream_version"),
    PREDICT_COLUMNS: ("alpha", "n"),
}
"""Of a sidecar, by the columns of the table: what a row follows from, with the counts."""

_BATCH = 256  # rows whose counts are in memory at once

_SAME = 1e-4
"""How far a radius may lie from what the counts give, as a share: versions of rsfast and SciPy differ by less."""


@dataclass(frozen=True)
class Replay:
    """How the certificates of a run folder follow from its counts.

    Attributes
    ----------
    file : Path
        The sidecar, for messages.
    sidecar : mapping
        What it holds, as chosen.
    spec : CertificationSpec
        Of the inputs: its Lipschitz constant is per unit of these.
    stopping : StoppingRule
    seed, n : int
    execution : Execution
    """

    file: Path
    sidecar: Mapping[str, Any]
    spec: CertificationSpec
    stopping: StoppingRule
    seed: int
    n: int
    execution: Execution

    @classmethod
    def of(cls, run: Path, sidecar: Mapping[str, Any], **chosen: Any) -> Replay:
        """Return that of a run folder with such a sidecar, of which `chosen` may replace alpha, bound, rule and the like.

        Raises
        ------
        ValueError
            If the sidecar lacks something, is damaged or is of another version of the noise stream; or what is chosen does
            not fit the rest.
        """
        file = run / SIDECAR
        if missing := [name for name in _NEEDED[CERTIFY_COLUMNS] if name not in sidecar]:
            raise ValueError(f"{file} must be of a run of rsfast certify, got one without {', '.join(missing)}")
        if sidecar["rule"] == incremental.RULE:
            raise ValueError(
                f"{run} must be a run of rsfast certify, got certificates of a changed model, whose counts prove nothing by "
                f"themselves; recertify the run that they rest on, {sidecar.get('recertified_from')}"
            )
        try:
            head, noise = head_from_dict(sidecar["head"]), noise_from_dict(sidecar["noise"])
            seed, n = check_seed(sidecar["seed"]), sidecar["n"]
            stopping = StoppingRule(sidecar.get("radius"), sidecar.get("rtol"))
            if (norm := sidecar.get("norm", noise.norm)) != noise.norm:
                raise ValueError(f"norm must be {noise.norm!r}, that of the noise, got {norm!r}")
            if type(n) is not int:
                raise TypeError(f"n must be an int, got {n!r}")
            execution = Execution.from_dict(
                {each.name: sidecar[each.name] for each in fields(Execution) if each.name in sidecar}
            )
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"{file} is damaged: {error}") from error
        if sidecar["stream_version"] != STREAM_VERSION:
            raise ValueError(
                f"stream_version in {file} must be {STREAM_VERSION}, got {sidecar['stream_version']!r}; read the run with a "
                "version of rsfast that has that noise stream"
            )
        settings: dict[str, Any] = {name: sidecar.get(name) for name in ("alpha", "bound", "rule", "lipschitz")}
        settings |= {"top_k": sidecar.get("top_k", 1)} | chosen
        spec = CertificationSpec(noise, head=head, early=bool(stopping), **settings)
        if type(num_classes := sidecar.get("num_classes")) is int:
            spec.check_classes(num_classes)
        if spec.lipschitz is not None and sidecar.get("std") is not None and execution.scale is None:
            raise ValueError(
                f"{file} must have scale, which lipschitz refers to, got the sidecar of a version that did not record it"
            )
        given = {name: getattr(spec, name) for name in settings} | {"norm": noise.norm}
        proved = {name: value for name, value in {**sidecar, **given}.items() if (name, value) != ("top_k", 1)}
        return cls(file, proved, of_inputs(spec, execution), stopping, seed, n, execution)

    def certificates(self, rows: Sequence[Row]) -> Iterator[tuple[Row, Certificate]]:
        """Yield each row with what its counts prove.

        Raises
        ------
        ValueError
            If the counts of a row are damaged, do not go with the sidecar, or lack what the bound needs.
        """
        for start in range(0, len(rows), _BATCH):
            batch = rows[start : start + _BATCH]
            try:
                found = self._prove(batch)
            except ValueError:
                found = dict[int, Certificate]()
                for row in batch:  # one of these, or all
                    try:
                        found |= self._prove([row])
                    except ValueError as error:
                        raise ValueError(f"{row.folder / COUNTS}, idx {row.idx}: {error}") from error
            for row in batch:
                yield row, found[row.idx]

    def _prove(self, rows: Sequence[Row]) -> dict[int, Certificate]:
        """Return the certificate of each row by its idx: of those of as many ranges together, which is faster."""
        alike: dict[int, list[tuple[Row, Any, list[Any]]]] = {}
        for row in rows:
            counts = row.counts()
            if missing := {"estimation", *(() if self.spec.exact else ("selection",))} - counts.keys():
                raise ValueError(f"it lacks {', '.join(sorted(missing))}")
            ranges = listed(counts["estimation"])
            alike.setdefault(len(ranges), []).append((row, counts.get("selection"), ranges))
        found = dict[int, Certificate]()
        for group in alike.values():
            group_rows, selections, ranges_of_rows = zip(*group, strict=True)
            try:
                head = (self.spec.head,)
                first = None if self.spec.exact else Tally.from_integers(selections, head)
                rest = [Tally.from_integers(each, head) for each in zip(*ranges_of_rows, strict=True)]
                self._check_numbers(first, rest)
                self.spec.check_classes(rest[0].num_classes)
            except (AttributeError, KeyError, TypeError) as error:
                raise ValueError(f"{type(error).__name__}: {error}") from error
            (certificates,), *_ = prove(
                [self.spec],
                first,
                rest,
                max_samples=self.n,
                seed=self.seed,
                input_ids=[row.idx for row in group_rows],
                backend="",
                execution=self.execution,
            )
            found |= {row.idx: certificate for row, certificate in zip(group_rows, certificates, strict=True)}
        return found

    def _check_numbers(self, first: Tally | None, rest: Sequence[Tally]) -> None:
        """Raise ValueError unless there are as many samples and classes as the sidecar says, and as the noise has."""
        if self.n != (n := self.spec.noise.evaluations or self.n):
            raise ValueError(f"n must be {n}, the evaluations of the noise, got {self.n} in {SIDECAR}")
        schedules = [bound.analysis_ends(self.n) for bound in BOUNDS.values() if bound.sequence]  # of any version of rsfast
        for numbers in zip(*(tally.n.tolist() for tally in rest), strict=True):
            ends = np.cumsum(numbers).tolist()
            known = [each[: len(ends)] for each in schedules] if self.stopping else [[*ends[:-1], self.n]]
            if ends not in known:
                stopping = f"radius = {self.stopping.radius} and rtol = {self.stopping.rtol}"
                raise ValueError(f"estimation must go with n = {self.n}, {stopping} in {SIDECAR}, got ends at {ends}")
        drawn = [0] if first is None else first.n.tolist()
        classes = [tally.num_classes for tally in (first, *rest) if tally is not None]
        for name, values in (("n0", drawn), ("num_classes", classes)):
            for value in values:
                if self.sidecar.get(name, value) != value:
                    raise ValueError(f"{name} must be {self.sidecar[name]!r}, as in {SIDECAR}, got {value}")

    def compare(self, row: Row, certificate: Certificate) -> None:
        """Raise ValueError unless a row has the class and the radius of a certificate, but for rounding."""
        _compare(row, certificate.prediction, float(format_radius(certificate.radius, self.stopping.radius)))


def check_rows(run: Path, rows: Sequence[Row], columns: tuple[str, ...]) -> None:
    """Compare the rows of a run folder, as `layout.read_rows` returns them, with what their counts give.

    Where the sidecar lacks what a row follows from, as that of a run that another program wrote, this warns.

    Raises
    ------
    ValueError
        If the folder is damaged, or a row has another class than its counts give, or its radius differs by more than 0.01 %.
    """
    sidecar = read_sidecar(run / SIDECAR)
    if missing := [name for name in _NEEDED[columns] if name not in sidecar]:
        if "stream_version" in sidecar:  # which no other program writes
            command = "certify" if columns == CERTIFY_COLUMNS else "predict"
            raise ValueError(
                f"{run / SIDECAR} must be of a run of rsfast {command}, as {TABLE} is, got one without {', '.join(missing)}"
            )
        text = f"{run / SIDECAR} lacks {', '.join(missing)}; whether rows follow from their counts cannot be checked"
        warnings.warn(text, UserWarning, stacklevel=2)
    elif columns == CERTIFY_COLUMNS and sidecar["rule"] == incremental.RULE:
        for row in rows:
            _check_changed(row, sidecar)
    elif columns == CERTIFY_COLUMNS and rows:
        replay = Replay.of(run, sidecar)
        for row, certificate in replay.certificates(rows):
            replay.compare(row, certificate)
    else:
        for row in rows:
            if (prediction := _prediction(row, sidecar)) != row.predict:
                raise _difference(row, f"predict {row.predict}", f"predict {prediction}")


def _check_changed(row: Row, sidecar: Mapping[str, Any]) -> None:
    """Raise ValueError unless a row of a changed model's certificates has the radius that its counts give."""
    try:
        counts, noise = row.counts(), noise_from_dict(sidecar["noise"])
        prediction = counts["before"].pop("prediction")
        before = incremental.Before(noise=noise, **counts["before"])
        pairs = incremental.Pairs(**{name: np.array([value]) for name, value in counts["pairs"].items()})
        radius = float(incremental.proved([before], pairs, sidecar["alpha"]).radius[0])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{row.folder / COUNTS}, idx {row.idx}: {type(error).__name__}: {error}") from error
    radius = 0.0 if prediction == ABSTAIN else max(radius, 0.0)
    _compare(row, prediction if radius > 0 else ABSTAIN, radius)


def _prediction(row: Row, sidecar: Mapping[str, Any]) -> int:
    try:
        estimation = row.counts()["estimation"]
        if not isinstance(estimation, dict):
            raise TypeError("estimation must be an object, as in a run of rsfast predict, got an array")
        tally = Tally.from_integers([estimation], (Votes(),))
        if int(tally.n) != sidecar["n"]:
            raise ValueError(f"estimation holds {int(tally.n)} samples, and n is {sidecar['n']!r} in {SIDECAR}")
        if sidecar["alpha"] == 0 and noise_from_dict(sidecar["noise"]).evaluations == sidecar["n"]:
            (prediction,) = exact_predictions(Scores.of(tally, Votes()).sums)
        else:
            (prediction,) = predictions(tally, sidecar["alpha"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{row.folder / COUNTS}, idx {row.idx}: {type(error).__name__}: {error}") from error
    return prediction


def _compare(row: Row, prediction: int, radius: float) -> None:
    """Raise ValueError unless a row has this class and this radius, but for rounding."""
    same = row.predict == prediction and (row.radius > 0) == (radius > 0)
    if not (same and math.isclose(row.radius, radius, rel_tol=_SAME, abs_tol=_SAME * _SAME)):
        found = f"predict {prediction} and radius {radius}"
        raise _difference(row, f"predict {row.predict} and radius {row.radius}", found)


def _difference(row: Row, written: str, found: str) -> ValueError:
    return ValueError(
        f"{row.folder} is damaged, or a version of rsfast with other bounds wrote it: idx {row.idx} has {written}, and its "
        f"counts give {found}"
    )


def _made_here(sidecar: Mapping[str, Any]) -> bool:
    """Return whether this version of rsfast may have certified a run, or a part of it."""
    made = listed(sidecar.get("versions"))
    return any(not isinstance(each, dict) or each.get("rsfast", __version__) == __version__ for each in made)


def origin_of(run: Path, *also_with: dict[str, str]) -> dict[str, Any]:
    """Return what the sidecar of a run holds that rests on the counts of another, and on samples of further versions."""
    drew = sampled_with(read_sidecar(run / SIDECAR))
    drew = drew + [each for each in also_with if each not in drew]
    origin = {"recertified_from": str(run), "counts_sha256": hashlib.sha256((run / COUNTS).read_bytes()).hexdigest()}
    return origin | {SAMPLED_WITH: drew[0] if len(drew) == 1 else drew}


_OF_ANOTHER_MODEL = {
    *MAY_DIFFER_ON_RESUME,
    *ORIGIN,
    SAMPLED_WITH,
    *("model", "state_dict_sha256", "weights_sha256", "checkpoint", "reduced_precision", "mode_fixed"),
    *("n0", "n", "alpha", "head", "bound", "rule", "lipschitz", "radius", "rtol", "schedule_of_analyses"),
    *("batch_size", "device", "backend", "versions", "class_names"),
}
"""Of a sidecar: in what a run of a changed model may differ from the run that it rests on."""


def certificates_of(run: Path, sidecar: Mapping[str, Any]) -> dict[int, Certificate]:
    """Return the certificates of a run, by idx; raise ValueError if it differs from `sidecar` in more than its model."""
    theirs = read_sidecar(run / SIDECAR)
    if columns_of([run]) != CERTIFY_COLUMNS:
        raise ValueError(f"{run} must be a run of rsfast certify, got one of rsfast predict")
    ours = json.loads(sidecar_bytes(sidecar))
    for name, before, now in differences(theirs, ours, _OF_ANOTHER_MODEL):
        raise ValueError(f"{name} must be {before}, as in {run / SIDECAR}, got {now}; only the model may change")
    replay, rows = Replay.of(run, theirs), read_rows(run, CERTIFY_COLUMNS)
    found = {}
    for row, certificate in replay.certificates(rows):
        replay.compare(row, certificate)
        found[row.idx] = certificate
    return found


def check_first(run: Path, sidecar: Mapping[str, Any], state_dict_sha256: str | None) -> None:
    """Raise ValueError unless a model can be that of a run, by its state_dict and the ``first_logits`` in `sidecar`."""
    theirs = read_sidecar(run / SIDECAR)
    before = theirs.get("state_dict_sha256")
    if None not in (before, state_dict_sha256) and before != state_dict_sha256:
        raise ValueError(f"first must be the model of {run}, got one with another state_dict than there")
    if theirs.get("first_logits") is not None and not same_logits(sidecar, theirs):
        ours, recorded = (f"{each['first_logits']!s:.70}" for each in (sidecar, theirs))
        raise ValueError(f"first must be the model of {run}, whose logits of the first image are {recorded}, got {ours}")


def recertify(
    run: str | Path,
    out: str | Path,
    *,
    alpha: float | None = None,
    bound: str | None = None,
    rule: str | None = None,
    lipschitz: float | None = None,
    top_k: int | None = None,
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
        The folder to write. It gets the sidecar of `run`, but for what changes: ``versions`` are those that certify, and
        ``sampled_with`` has those that drew the samples.
    alpha, bound, rule, lipschitz, top_k : optional
        As in `certificate.certificates`, lipschitz with the run's execution; those of `run` by default.
    about : dict, optional
        More to put into the sidecar.

    Raises
    ------
    FileNotFoundError, FileExistsError
        If `run` lacks a file, or `out` holds a run.
    ValueError
        If `run` holds predictions, is damaged, or is of another version of the noise stream. If it lacks what the bound
        needs, bound and rule do not fit its head, or samples were analysed more than once and the bound is no sequence. If
        lipschitz is given and the model computed below float32. If a row differs from what its counts give under the run's
        own settings: this is compared where nothing changes or there are no check sums.

    Warns
    -----
    UserWarning
        If rows differ so, but have check sums, and another version of rsfast wrote them: their bounds were others.
    """
    run, out = Path(run), Path(out)
    sidecar = read_sidecar(run / SIDECAR)
    if columns_of([run]) != CERTIFY_COLUMNS:
        raise ValueError(f"{run} must be a run of rsfast certify, got one of rsfast predict, whose counts prove no radius")
    results.check_settings(run / SIDECAR, sidecar)
    rows = read_rows(run, CERTIFY_COLUMNS)
    if not rows:
        raise EmptyTable(f"{run / TABLE} must have a header and at least one row, got none")
    given = {"alpha": alpha, "bound": bound, "rule": rule, "lipschitz": lipschitz, "top_k": top_k}
    replay = Replay.of(run, sidecar, **{name: value for name, value in given.items() if value is not None})
    unchanged = all(replay.sidecar.get(name) == sidecar.get(name) for name in given)
    if not unchanged and not rows[0].sealed:
        check_rows(run, rows, CERTIFY_COLUMNS)  # else nothing would tell that a count or a setting was changed
    outcomes, began = [], time.perf_counter()
    moved: list[int] = []
    for row, certificate in replay.certificates(rows):
        try:
            if unchanged:
                replay.compare(row, certificate)
        except ValueError:
            if not row.sealed or _made_here(sidecar):
                raise
            moved.append(row.idx)  # no damage, as its check sum shows: the other version had another bound
        outcomes.append((row, certificate))
    if moved:
        text = (
            f"{run}: {len(moved)} of {len(rows)} rows, first idx {moved[0]}, have another class or radius than the version"
        )
        warnings.warn(f"{text} before wrote; {out} has what the counts prove in this version", UserWarning, stacklevel=2)
    seconds = (time.perf_counter() - began) / len(rows)
    origin = origin_of(run)
    advice = "no run was left there; recertify again once there is space"
    skipped = read_skipped(run, {row.idx for row in rows})
    with new_run(
        out, {**replay.sidecar, "versions": versions(), **origin, **(about or {})}, CERTIFY_COLUMNS, advice
    ) as writer:
        for row, certificate in outcomes:
            writer.write(row.idx, None if row.label < 0 else row.label, certificate, seconds, row.counts(), row.name)
        for each in skipped:
            writer.skip(each)
    return results.read(out)
