"""Advisories: which versions gave results that do not hold, and whether a run is affected. The list is advisories.json."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from packaging.specifiers import InvalidSpecifier, Specifier, SpecifierSet
from packaging.version import InvalidVersion, Version

from .._check import check_choice
from .._files import open_file
from ..heads import HEADS, Votes
from ..noise import NOISES
from ..stats import incremental
from ..stats.exact import EXACT
from ..stats.registry import BOUNDS
from ..stats.rules import RULES
from .check_sums import parse_json
from .layout import certified_again, listed, sampled_with

REMEDIES = ("recertify", "sample again", "none")
"""What mends a run: its counts are good, and what was proved from them is not; its samples are wrong; or no command does."""

_AUTO = "auto"  # a rule that stands for others, of which the sidecar does not say which
_OF_CERTIFICATES: dict[str, Collection[Any]] = {
    "bound": (*BOUNDS, EXACT),
    "head": HEADS,
    "lipschitz": (None,),
    "radius": (None,),
    "rtol": (None,),
    "rule": (*RULES, _AUTO, EXACT, incremental.RULE),
    "top_k": (1,),
}
CONDITIONS: dict[str, Collection[Any]] = {
    **_OF_CERTIFICATES,
    "autocast": (None, "bfloat16", "float16"),
    "backend": ("reference", "cpu", "cuda", "triton"),
    "channels_last": (False, True),
    "clamp": (None,),
    "compile": (False, True),
    "cuda_graph": (False, True),
    "device": ("cpu", "cuda"),
    "dtype": ("bfloat16", "float16", "float32", "float64"),
    "noise": NOISES,
    "reduced_precision": (None,),
    "scale": (None,),
    "shift": (None,),
}
"""Fields of a sidecar that `where` and `unless` may name, and the values: of some only whether they were set."""

_LIBRARIES = ("python", "torch", "numpy", "scipy")
_OPERATORS = ("==", "!=", ">=", "<=", "<")
_NEEDED = {"id", "date", "title", "versions", "stream_versions", "wrong", "remedy", "fixed_in"}
_OPTIONAL = {"where", "unless", "libraries"}
_LEFT_OUT = {"top_k": 1}  # a sidecar without the field means this
_OF_PREDICTIONS = {"head": Votes.__name__, **_LEFT_OUT}
Versions = tuple[SpecifierSet, ...]
LIST = Path(__file__).with_name("advisories.json")
"""The list of this version."""


@dataclass(frozen=True)
class Advisory:
    """One advisory.

    Attributes
    ----------
    id : str
        As "RSFAST-2026-001".
    date : date
        Of its publication.
    title, wrong : str
        One line; and what is wrong, and what else to do.
    versions : tuple of SpecifierSet
        The versions of rsfast that are affected: those of each set.
    stream_versions : tuple of int
        The versions of the noise stream that are affected.
    remedy : str
        One of `REMEDIES`. It says which version counts: for "recertify" that which certified the samples; for the others
        also that which drew them.
    fixed_in : Version, optional
        The first version that is right; None if there is none yet.
    where, unless : dict of str to list
        Only runs are affected whose fields have one of the values in `where`, and none of those in `unless`. Names and
        values are those of `CONDITIONS`.
    libraries : dict of str to tuple of SpecifierSet
        Only runs with these versions of python, torch, numpy and scipy are affected.
    """

    id: str
    date: date
    title: str
    versions: Versions
    stream_versions: tuple[int, ...]
    wrong: str
    remedy: str
    fixed_in: Version | None
    where: Mapping[str, list[Any]] = field(default_factory=dict)
    unless: Mapping[str, list[Any]] = field(default_factory=dict)
    libraries: Mapping[str, Versions] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, data: object) -> Advisory:
        """Return an advisory of a list; raise TypeError or ValueError, naming the field, if it is malformed.

        Examples
        --------
        >>> Advisory.from_dict({"id": "RSFAST-2026-001"})
        Traceback (most recent call last):
        ValueError: it must have date, fixed_in, remedy, stream_versions, title, versions, wrong
        """
        if not isinstance(data, dict):
            raise TypeError(f"it must be an object, got {data!r:.80}")
        if missing := _NEEDED - data.keys():
            raise ValueError(f"it must have {', '.join(sorted(missing))}")
        if unknown := data.keys() - _NEEDED - _OPTIONAL:
            known = ", ".join(sorted(_NEEDED | _OPTIONAL))
            raise ValueError(f"its fields must be among {known}, got {', '.join(sorted(unknown))}")
        for name in ("id", "date", "title", "wrong", "remedy"):
            if not isinstance(data[name], str) or not data[name].strip():
                raise TypeError(f"{name} must be a text, got {data[name]!r:.80}")
        if not re.fullmatch(r"RSFAST-\d{4}-\d{3,}", data["id"]):
            raise ValueError(f"id must be RSFAST-YEAR-NUMBER, such as RSFAST-2026-001, got {data['id']!r:.80}")
        streams = data["stream_versions"]
        if not isinstance(streams, list) or not streams or not all(type(each) is int for each in streams):
            raise TypeError(f"stream_versions must be a list of int that is not empty, got {streams!r:.80}")
        versions = _specifiers("versions", data["versions"])
        fixed_in = data["fixed_in"]
        try:
            fixed = None if fixed_in is None else Version(fixed_in)
        except (InvalidVersion, TypeError):
            raise ValueError(f"fixed_in must be a version, or null, got {fixed_in!r:.80}") from None
        if fixed is not None and _covers(versions, fixed):
            raise ValueError(
                f"fixed_in must be a version that is not affected, got {fixed_in}; versions are {data['versions']}"
            )
        if fixed is not None and not fixed.is_devrelease and not _covers(versions, Version(f"{fixed}.dev0")):
            text = f"versions must reach to fixed_in, as '<{fixed}' does, so that they hold what led to it"
            raise ValueError(f"{text}, got {data['versions']!r:.80}")
        return cls(
            id=data["id"],
            date=_date("date", data["date"]),
            title=data["title"],
            versions=versions,
            stream_versions=tuple(streams),
            wrong=data["wrong"],
            remedy=check_choice("remedy", data["remedy"], REMEDIES),
            fixed_in=fixed,
            where=_conditions("where", data.get("where", {})),
            unless=_conditions("unless", data.get("unless", {})),
            libraries={
                check_choice("libraries", name, _LIBRARIES): _specifiers(f"libraries.{name}", text)
                for name, text in _object("libraries", data.get("libraries", {})).items()
            },
        )

    def affects_version(self, version: str) -> bool:
        """Return whether a version of rsfast is affected; a development version also where its release is."""
        return _covers(self.versions, Version(version))

    def unknown_of(self, sidecar: Mapping[str, Any], *, certificates: bool) -> list[str] | None:
        """Return None if a run is not affected, [] if it is, and otherwise the fields that leave it open whether it is.

        Parameters
        ----------
        sidecar : mapping
            What the run records, {} if nothing.
        certificates : bool
            Whether it is of certificates, and not of predictions.
        """
        unknown = []
        for name, met in self._conditions_of(sidecar, certificates):
            if met is False:
                return None
            if met is None:
                unknown.append(name)
        return unknown

    def _conditions_of(self, sidecar: Mapping[str, Any], certificates: bool) -> Iterator[tuple[str, bool | None]]:
        """Yield each condition's name, and whether it is met: None if unknown. One part of a merged run meets it for all."""
        drew, proved = sampled_with(sidecar), listed(sidecar.get("versions"))
        made = proved if self.remedy == "recertify" else drew + proved
        for name, affected in {"rsfast": self.versions, **self.libraries}.items():
            parts = [part.get(name) if isinstance(part, dict) else None for part in made]
            yield f"the version of {name}", _any(_reaches(affected, each) for each in parts)
        stream = sidecar.get("stream_version")
        yield "stream_version", stream in self.stream_versions if type(stream) is int else None
        for among, conditions in (True, self.where), (False, self.unless):
            for name, values in conditions.items():
                found, complete = self._values(sidecar, name, certificates)
                met: list[bool | None] = [(each in values) == among for each in found if each != _AUTO or _AUTO in values]
                yield name, _any([*met, *([] if complete and len(met) == len(found) else [None])])

    def _values(self, sidecar: Mapping[str, Any], name: str, certificates: bool) -> tuple[list[Any], bool]:
        """Return what a field holds, of each part of a merged run, and whether its rows rest on nothing else.

        A run that was certified again rests on one whose own settings it does not record. For its samples they count; for
        certificates of a changed model all do.
        """
        if name in _OF_CERTIFICATES and not certificates:
            return [_OF_PREDICTIONS.get(name)], True
        changed = incremental.RULE in listed(sidecar.get("rule"))
        other = certified_again(sidecar) and self.remedy != "recertify" and name in _OF_CERTIFICATES
        value = sidecar.get(name, _LEFT_OUT.get(name, []))
        if CONDITIONS[name] == (None,):  # of a list only whether it was set
            return [value] if name in sidecar else [], name in sidecar and not changed and not other
        found = [each.get("name") if isinstance(each, dict) else each for each in listed(value)]
        known = name in _LEFT_OUT or all(each in CONDITIONS[name] for each in found)  # else a damaged name, or a later one
        return found, bool(found) and known and not changed and not other


class AdvisoryList(NamedTuple):
    """Advisories, and the day on which the list was written."""

    updated: date
    advisories: list[Advisory]


def read_advisories(path: str | PathLike[str] = LIST) -> AdvisoryList:
    """Return a list of advisories: that of this version, or of another file.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If anything in it is malformed, naming the file and the advisory.
    """
    with open_file(path) as file:
        text = file.read()
    try:
        data = _object("the list", parse_json(text, _each_name_once))
        if data.keys() != {"format", "updated", "advisories"} or not isinstance(data["advisories"], list):
            raise ValueError("it must be an object with format, updated and advisories, a list")
        if data["format"] != 1 or type(data["format"]) is not int:
            raise ValueError(f"format must be 1, got {data['format']!r:.80}; a newer version of rsfast may read it")
        updated = _date("updated", data["updated"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} must be a list of advisories of rsfast: {error}") from None
    found: list[Advisory] = []
    for number, each in enumerate(data["advisories"], start=1):
        try:
            found.append(Advisory.from_dict(each))
            if found[-1].id in [other.id for other in found[:-1]]:
                raise ValueError(f"id must be of one advisory, got {found[-1].id} again")
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}, advisory {number}, is malformed: {error}") from None
    return AdvisoryList(updated, found)


def _any(each_met: Iterable[bool | None]) -> bool | None:
    """Return True if one is, None if there is none, or none is True and one unknown; else False."""
    found = list(each_met)
    if any(found):
        return True
    return None if None in found or not found else False


def _reaches(affected: Versions, version: object) -> bool | None:
    """Return whether a version is affected; None if it is no version."""
    try:
        return _covers(affected, Version(version))  # type: ignore[arg-type]
    except (InvalidVersion, TypeError):
        return None


def _covers(affected: Versions, version: Version) -> bool:
    """Return whether one of the sets has a version; its clauses may have the release that a pre-release leads to instead.

    PEP 440's < leaves the pre-releases of its version out. These come before the fix, and are affected here.

    Examples
    --------
    >>> affected = (SpecifierSet(">=0.2.0,<0.3.0"),)
    >>> [_covers(affected, Version(each)) for each in ("0.1.9", "0.2.0.dev0", "0.2.1", "0.3.0rc1", "0.3.0")]
    [False, True, True, True, False]
    """
    either = (version, Version(version.base_version))

    def has(clause: Specifier) -> bool:
        if clause.operator == "<":
            return version < Version(clause.version)
        return any(clause.contains(each, prereleases=True) for each in either)

    return any(all(map(has, each)) for each in affected)


def _specifiers(name: str, given: object) -> Versions:
    found = []
    for text in listed(given):
        try:
            found.append(SpecifierSet(text if isinstance(text, str) else ""))
        except InvalidSpecifier:
            found.append(SpecifierSet(""))
    if not all(found) or any(clause.operator not in _OPERATORS for each in found for clause in each) or not found:
        raise ValueError(
            f"{name} must be versions, such as '>=0.1,<0.3', or a list of such, with {' '.join(_OPERATORS)} only, "
            f"got {given!r:.80}"
        )
    return tuple(found)


def _conditions(name: str, given: object) -> dict[str, list[Any]]:
    for each, values in (found := _object(name, given)).items():
        check_choice(name, each, CONDITIONS)
        if not isinstance(values, list) or not values:
            raise TypeError(f"{name}.{each} must be a list of values that is not empty, got {values!r:.80}")
        for value in values:  # one that no run records would affect none
            check_choice(f"{name}.{each}", value, CONDITIONS[each])
    return found


def _each_name_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of these entries; of two with one name JSON would take the last, and say nothing of the first."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"no name may be twice in an object, got {next(each for each in names if names.count(each) > 1)}")
    return found


def _object(name: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"{name} must be an object, got {value!r:.80}")
    return value


def _date(name: str, text: object) -> date:
    try:
        return date.fromisoformat(text)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a date, such as '2026-11-28', got {text!r:.80}") from None
