"""What advisories say of a version and of a run: lines for the user, with what to do."""

from __future__ import annotations

import json
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from .._files import open_file, reason
from ..stats import incremental
from . import results
from .advisories import Advisory, Versions
from .check_sums import parse_json
from .layout import SIDECAR, TABLE, listed


class Finding(NamedTuple):
    """An advisory that affects something: whether that is sure, and lines on what is wrong and what to do."""

    sure: bool
    lines: list[str]


def of_version(advisories: Iterable[Advisory], version: str) -> list[Finding]:
    """Return what affects a version of rsfast."""
    ask = "ask of your runs: rsfast doctor --advisories RUN ..."
    affecting = [each for each in advisories if each.affects_version(version)]
    return [Finding(True, [*_about(each), f"  to do: {_after_update(each, ask)}"]) for each in affecting]


def of_run(advisories: Iterable[Advisory], path: str | PathLike[str]) -> list[Finding]:
    """Return what affects a run, or may affect it.

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
    folder = file.parent if of_a_run else file
    run = results.read(folder)
    found = []
    for each in advisories:
        if (unknown := each.unknown_of(run.sidecar or {}, certificates=run.has_radius)) is not None:
            found.append(_finding(each, unknown, _for_a_run(each, folder, run)))
    return found


def _of_certificates(advisories: Iterable[Advisory], file: Path) -> list[Finding]:
    certificates = _read_certificates(file)
    found = []
    for each in advisories:
        outcomes = [each.unknown_of(certificate, certificates=True) for certificate in certificates]
        if affected := [unknown for unknown in outcomes if unknown is not None]:
            tallies = ", or make them of their Tallies with rsfast.certificates" if each.remedy == "recertify" else ""
            share = f"  certificates: {len(affected)} of {len(certificates)}"
            found.append(_finding(each, min(affected, key=len), f"certify again{tallies}", share))
    return found


def _finding(each: Advisory, unknown: list[str], to_do: str, *more: str) -> Finding:
    possibly = [f"  possibly affected, since these are unknown: {', '.join(unknown)}"] if unknown else []
    then = "no command mends it; what is wrong, above, says what it means"
    if each.remedy != "none":
        then = _after_update(each, to_do)
    return Finding(not unknown, [*_about(each), *possibly, *more, f"  to do: {then}"])


def _read_certificates(file: Path) -> list[dict[str, Any]]:
    """Return certificates that `Certificate.to_dict` wrote as sidecars: with the fields of their executions."""
    try:
        with open_file(file) as opened:
            text = opened.read()
    except OSError as error:
        raise ValueError(f"{file} must be a run folder, a table or a file of certificates: {reason(error)}") from None
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
    if not isinstance(value, dict):
        return False
    return {"prediction", "radius", "bound"} <= value.keys() and isinstance(value.get("execution", {}), dict)


def _about(each: Advisory) -> list[str]:
    only = [f"{name} is {_either(values)}" for name, values in each.where.items()]
    only += [f"{name} is not {_either(values)}" for name, values in each.unless.items()]
    only += [f"{name} {_versions(affected)}" for name, affected in each.libraries.items()]
    narrower = f"; only where {' and '.join(only)}" if only else ""
    streams = ", ".join(map(str, each.stream_versions))
    return [
        f"{each.id} ({each.date}): {each.title}",
        f"  affected: rsfast {_versions(each.versions)}, noise stream {streams}{narrower}",
        f"  wrong: {each.wrong}",
    ]


def _versions(affected: Versions) -> str:
    return " or ".join(map(str, affected))


def _either(values: list[Any]) -> str:
    return " or ".join(json.dumps(value).strip('"') for value in values)


def _after_update(each: Advisory, then: str) -> str:
    """Return what to do, with a version that is right."""
    if each.fixed_in is None:
        return f"no version is right yet; once one is, {then}"
    return f"with rsfast {each.fixed_in} or newer, {then}"


def _for_a_run(each: Advisory, folder: Path, run: results.Results) -> str:
    if run.sidecar is None:
        return "make it again: it is a table without the sidecar of a run"
    origin = ", ".join(map(str, listed(run.sidecar.get("recertified_from", []))))
    if each.remedy == "sample again" or not run.has_radius:
        verb = "sample" if run.has_radius else "predict"
        place = f"the {SIDECAR} of {origin}, which it rests on" if origin else f"its {SIDECAR}"
        return f"{verb} again: the command is in {place}; give it another --out"
    if run.sidecar.get("rule") == incremental.RULE:
        return f"recertify {origin}, which it rests on, and the changed model from that"
    return f"certify again from its counts: rsfast recertify {folder} --out NEW"
