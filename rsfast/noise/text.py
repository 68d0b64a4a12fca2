"""A noise as a text on the command line: ``NAME:VALUE:...:KEY=VALUE``, by what its class declares."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import MISSING, Field, fields
from typing import Any

from .base import NOISES, Noise
from .constraints import Array


def form(cls: type[Noise]) -> str:
    """Return how a noise of this class is written.

    Examples
    --------
    >>> form(NOISES["Gaussian"])
    'gaussian:SIGMA'
    """
    parts = [cls.__name__.lower()]
    for field in fields(cls):  # type: ignore[arg-type]
        value = cls.constraints[field.name].form(field.name)
        parts.append(f"[:{field.name}={value}]" if _has_default(field) else f":{value}")
    return "".join(parts)


def forms() -> str:
    """Return how each noise is written, as a list in words."""
    return _listed(map(form, NOISES.values()))


def _listed(texts: Iterable[str]) -> str:
    return " or".join(", ".join(texts).rsplit(",", 1))


def from_text(text: str) -> Noise:
    """Return the noise that a text stands for.

    Parameters
    ----------
    text : str
        The class's name in lower case, values of its fields in order, and ``KEY=VALUE`` of others, with colons between. An
        array is a .npy file, whose path has no colon, or numbers with commas between if it has one axis. A value that
        holds an = needs its KEY=.

    Raises
    ------
    ValueError
        If the text is no noise's, or what it says is not allowed.

    Examples
    --------
    >>> from_text("laplace:0.25"), from_text("laplace:b=0.25")
    (Laplace(b=0.25), Laplace(b=0.25))
    """
    name, *parts = text.split(":")
    classes = {each.lower(): cls for each, cls in NOISES.items()}
    if name not in classes:
        raise ValueError(f"noise must begin with the name of a noise: {_listed(classes)}, got {text!r}")
    try:
        return classes[name](**_values(classes[name], parts))
    except (TypeError, ValueError) as error:
        raise ValueError(f"noise must be {form(classes[name])}, got {text!r} ({error})") from error


def _values(cls: type[Noise], parts: Sequence[str]) -> dict[str, Any]:
    """Return the fields that parts of a text set; raise ValueError if one is unknown, set twice, or missing."""
    names = [field.name for field in fields(cls)]  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    if any("=" not in part for part in parts[len(names) :]):
        raise ValueError(f"values must be at most {len(names)}, got {len(parts)}; a colon ends each")
    for place, part in enumerate(parts):
        key, equals, value = part.partition("=")
        if not equals:
            key, value = names[place], part
        if key not in names:
            path = f"; a path with = is {names[0]}=PATH" if isinstance(cls.constraints[names[0]], Array) else ""
            raise ValueError(f"the name before = must be {_listed(names)}, got {key!r}{path}")
        if key in values:
            raise ValueError(f"{key} must be set once")
        values[key] = cls.constraints[key].parse(key, value)
    if missing := [field.name for field in fields(cls) if field.name not in values and not _has_default(field)]:  # type: ignore[arg-type]
        raise ValueError(f"{missing[0]} is missing")
    return values


def _has_default(field: Field[Any]) -> bool:
    return field.default is not MISSING or field.default_factory is not MISSING
