"""MODULE:FACTORY: functions of the user, imported by name and called; whatever goes wrong in them is one line."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import Any

from .._hints import place_of, places

_SPEC = re.compile(r"([\w-]+(?:\.[\w-]+)*)(?<!\.py):(\w+(?:\.\w+)*)")
_PACKAGE = Path(__file__).parent.parent

FACTORY = "MODULE:FACTORY, such as nets:resnet110, names as Python's import takes them, without a path, .py or brackets"
"""What a user's function is named by."""


def is_factory(spec: str) -> bool:
    """Return whether a text is MODULE:FACTORY.

    Examples
    --------
    >>> is_factory("nets:resnet110"), is_factory("nets.py:resnet110")
    (True, False)
    """
    return _SPEC.fullmatch(spec) is not None


def call_factory(option: str, spec: str) -> Any:
    """Return what a function MODULE:FACTORY, which takes no arguments, returns.

    Modules are found where Python finds them, and last in the working directory.

    Parameters
    ----------
    option : str
        What is made, with which errors begin: "model" or "data".
    spec : str
        MODULE:FACTORY.

    Raises
    ------
    ValueError
        If `spec` is not of that form, or the module or the function raises: with the line of the user's code, if any.

    Examples
    --------
    >>> call_factory("data", "collections:Counter")
    Counter()
    """
    if (names := _SPEC.fullmatch(spec)) is None:
        raise ValueError(f"{option} must be {FACTORY}, got {spec!r}")
    module_name, name = names.groups()
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last, so that nothing in it stands in for an installed package
    with naming_mistakes(option, spec, f"; {module_name} must be installed, or a module in the working directory"):
        module = import_module(module_name)
    with naming_mistakes(option, spec, f"; it came from {getattr(module, '__file__', None) or 'Python itself'}"):
        factory = attrgetter(name)(module)
    with naming_mistakes(option, spec, f"; it must be a function without arguments that returns the {option}"):
        return factory()


@contextmanager
def naming_mistakes(option: str, spec: str, hint: str = "") -> Iterator[None]:
    """Turn whatever the user's code raises into a ValueError that names the option, and the line or else what to do."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) or (isinstance(error, SystemExit) and _is_our_own(error)):
            raise
        place = place_of(error)
        raise ValueError(f"{option} {spec}: {place}{type(error).__name__}: {error}{'' if place else hint}") from error


def _is_our_own(stop: SystemExit) -> bool:
    """Return whether it was rsfast that stopped within the user's code, as it does when it is terminated."""
    return any(file.is_relative_to(_PACKAGE) and file != Path(__file__) for file, _ in places(stop))
