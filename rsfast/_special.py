"""SciPy's special functions by name. The first that is used imports them: they take longer than all else without torch."""

from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    function = globals()[name] = getattr(import_module("scipy.special"), name)
    return function
