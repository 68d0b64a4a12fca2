"""What advisories say of a version and of a run: lines for the user, with what to do."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from .._files import open_file
from ..stats import incremental
from . import results
from .advisories import Advisory, listed
from .check_sums import parse_json
from .layout import SIDECAR, TABLE

_OF_RUNS = "ask of your runs: rsfast doctor --advisories RUN ..."


def of_version(advisories: Iterable[Advisory], version: str) -> list[str]:
    """Return lines on the advisories that affect a version of rsfast; none if none does."""
    return [
        line
        for each in advisories
        if each.affects_version(version)
        for line in (*_about(each), f"  to do: {_after_update(each, _OF_RUNS)}")
    ]


def of_run(advisories: Sequence[Advisory], path: str | PathLike[str]) -> list[str]:
    """Return lines on the advisories that affect a run or may affect it, and on what to do; none if none does.

    Parameters
    ----------
    path : path-like
        A run folder, its sidecar or its table, each read with its check sums; or a .json file that holds what
        `Certificate.to_dict` returns, or a list of that.

    Raises
    ------
    OSError, ValueError
        If it is no such thing, or damaged.
    """
    file = Path(path)
    of_a_run = file.name in (SIDECAR, TABLE) and file.is_file()
    if file.suffix == ".json" and not of_a_run and not file.is_dir():
        return _of_certificates(advisories, file)
    run = results.read(file.parent if of_a_run else file)
    lines = []
    for each in advisories:
        if (unknown := each.unknown_of(run.sidecar or {}, certificates=run.has_radius)) is not None:
            lines += _about(each) + _possibly(unknown)
            lines.append(f"  to do: {_for_a_run(each, file.parent if of_a_run else file, run)}")
    return lines


def _of_certificates(advisories: Sequence[Advisory], file: Path) -> list[str]:
    found = _read_certificates(file)
    lines = []
    for each in advisories:
        outcomes = [each.unknown_of(certificate, certificates=True) for certificate in found]
        if affected := [unknown for unknown in outcomes if unknown is not None]:
            lines += _about(each) + _possibly(min(affected, key=len))
            lines.append(f"  certificates: {len(affected)} of {len(found)}")
            tallies = ", or make them of their Tallies with rsfast.certificates" if each.remedy == "recertify" else ""
            lines.append(f"  to do: {_after_update(each, f'certify again{tallies}')}")
    return lines


def _read_certificates(file: Path) -> list[dict[str, Any]]:
    """Return certificates that `Certificate.to_dict` wrote as sidecars: with the fields of their executions."""
    with open_file(file) as opened:
        text = opened.read()
    try:
        found = listed(parse_json(text))
    except ValueError as error:
        raise ValueError(f"{file} must be JSON, got other text: {error}") from None
    if not found or not all(map(_is_certificate, found)):
        raise ValueError(f"{file} must hold what Certificate.to_dict returns, or a list of it; or name a run folder")
    return [
        {name: value for name, value in each.items() if name != "radius"} | each.get("execution", {}) for each in found
    ]  # whose radius is what was proved, and a sidecar's what was asked


def _is_certificate(value: object) -> bool:
    return isinstance(value, dict) and {"prediction", "radius", "bound"} <= value.keys() and _has_execution(value)


def _has_execution(value: Mapping[str, Any]) -> bool:
    return isinstance(value.get("execution", {}), dict)


def _about(each: Advisory) -> list[str]:
    only = [f"{name} is {_either(values)}" for name, values in each.where.items()]
    only += [f"{name} is not {_either(values)}" for name, values in each.unless.items()]
    only += [f"{name} {affected}" for name, affected in each.libraries.items()]
    narrower = f"; only where {' and '.join(only)}" if only else ""
    streams = ", ".join(map(str, each.stream_versions))
    return [
        f"{each.id} ({each.date}): {each.title}",
        f"  affected: rsfast {each.versions}, noise stream {streams}{narrower}",
        f"  wrong: {each.wrong}",
    ]


def _either(values: list[Any]) -> str:
    return " or ".join(json.dumps(value).strip('"') for value in values)


def _possibly(unknown: list[str]) -> list[str]:
    return [f"  possibly affected: nothing records {', '.join(unknown)}"] if unknown else []


def _after_update(each: Advisory, then: str) -> str:
    """Return what to do, with a version that is right."""
    if each.fixed_in is None:
        return f"no version is right yet; once one is, {then}"
    return f"with rsfast {each.fixed_in} or newer (pip install 'rsfast>={each.fixed_in}'), {then}"


def _for_a_run(each: Advisory, folder: Path, run: results.Results) -> str:
    sidecar = run.sidecar or {}
    if each.remedy == "none":
        return "no command mends it; what is wrong, above, says what it means"
    if each.remedy == "sample again" or not run.has_radius:
        verb = "sample" if run.has_radius else "predict"
        return _after_update(each, f"{verb} again: the command in its {SIDECAR}, with another --out")
    if sidecar.get("rule") == incremental.RULE:
        origin = sidecar.get("recertified_from")
        return _after_update(each, f"recertify {origin}, which it rests on, and the changed model from that")
    return _after_update(each, f"certify again from its counts: rsfast recertify {folder} --out NEW")
