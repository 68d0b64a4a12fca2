"""What messages suggest: how to make inputs, where their axes belong, which line of the user's code raised; and notes."""

from __future__ import annotations

import site
import sys
import sysconfig
import traceback
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

_CHANNELS = (1, 3, 4)  # of an image: grey, RGB, RGBA
_SHOWN = 8  # names in a message
_INSTALLED = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
_INSTALLED |= {*site.getsitepackages(), site.getusersitepackages()}
_NOT_THE_USERS = {Path(__file__).parent, *map(Path, _INSTALLED)}


def listed(names: Iterable[object]) -> str:
    """Return names for a message, which says how many more there are than it shows.

    Examples
    --------
    >>> listed(range(10))
    '0, 1, 2, 3, 4, 5, 6, 7, and 2 more'
    >>> listed([])
    'nothing'
    """
    shown = [*map(str, names)]
    more = [f"and {len(shown) - _SHOWN} more"] if len(shown) > _SHOWN else []
    return ", ".join(shown[:_SHOWN] + more) or "nothing"


def conversion(expression: str, value: object) -> str | None:
    """Return the expression that makes a float32 tensor of `value`, which `expression` stands for; None if none is known.

    It knows arrays of any library, images of PIL, numbers in lists, and mappings and sequences that hold one of these.

    Examples
    --------
    >>> conversion("item", {"labels": 1, "pixel_values": np.zeros(3)})
    'torch.from_numpy(item["pixel_values"]).float()'
    >>> conversion("x", "images.npz") is None
    True
    """
    try:
        found = _conversion(expression, value)
    except Exception:  # whatever an object of another library raises when it is looked at
        return None
    return None if found is None else found[1]


def _conversion(expression: str, value: Any) -> tuple[int, str] | None:
    """Return how many elements the tensor has, and the expression."""
    if isinstance(value, torch.Tensor):
        dense = expression if value.layout == torch.strided else f"{expression}.to_dense()"
        return _numbers(dense, value.shape, "f" if value.is_floating_point() else "i", value.element_size())
    if isinstance(value, Mapping):
        held = [_conversion(f'{expression}["{key}"]', each) for key, each in value.items() if isinstance(key, str)]
        return max((each for each in held if each is not None), default=None)
    sequence: Any = value if isinstance(value, (list, tuple, Dataset)) and len(value) else None  # type: ignore[arg-type]
    if sequence and not isinstance(sequence[0], (int, float, list)):
        first, item = (sequence[0][0], "item[0]") if isinstance(sequence[0], tuple) else (sequence[0], "item")
        each = _conversion(item, first)
        return each and (each[0], f"torch.stack([{each[1]} for item in {expression}])")
    if hasattr(value, "getbands") and value.mode not in ("L", "RGB"):  # an image of PIL, of a palette, say
        expression, value = f'{expression}.convert("RGB")', value.convert("RGB")
    array = np.asarray(value)
    if isinstance(value, (list, tuple)):
        tensor = f"torch.tensor({expression})"
    else:
        tensor = f"torch.from_numpy({expression if isinstance(value, np.ndarray) else f'numpy.array({expression})'})"
    if array.ndim > 2 and array.shape[-1] in _CHANNELS and array.shape[-3] not in _CHANNELS:
        tensor += ".movedim(-1, -3)"
    elif array.ndim == 2 and hasattr(value, "getbands"):
        tensor += "[None]"
    return _numbers(tensor, array.shape, array.dtype.kind, array.dtype.itemsize)


def _numbers(expression: str, shape: Sequence[int], kind: str, itemsize: int) -> tuple[int, str] | None:
    if not shape or 0 in shape or kind not in "fiub":
        return None
    if expression.startswith("torch.tensor("):  # of Python's numbers, float32 if any is a float
        return int(np.prod(shape)), f"{expression}.float()"
    ending = {"i": ".float() / 255", "u": ".float() / 255", "b": ".float()"}.get(kind, "" if itemsize == 4 else ".float()")
    return int(np.prod(shape)), f"{expression}{ending}"


def axes(shape: Sequence[int], name: str = "inputs") -> str:
    """Return what the axes of a tensor of inputs [I, *shape] may be meant to be, where a model fails on it; or nothing.

    Examples
    --------
    >>> axes([3, 32, 32])
    'one image [C, H, W] needs its batch axis: inputs[None]'
    """
    first, last = shape[0], shape[-1]
    if len(shape) == 2:
        return f"one input needs its batch axis: {name}[None]"
    if len(shape) == 3 and first in _CHANNELS:
        return f"one image [C, H, W] needs its batch axis: {name}[None]"
    if len(shape) == 3 and last in _CHANNELS:
        return f"one image [H, W, C] must be [1, C, H, W]: {name}.movedim(-1, 0)[None]"
    if len(shape) == 3:
        return f"images [N, H, W] need their channel axis: {name}[:, None]"
    if len(shape) == 4 and last in _CHANNELS and shape[1] not in _CHANNELS:
        return f"images [N, H, W, C] must be [N, C, H, W]: {name}.movedim(-1, 1)"
    return ""


def axes_of_one(shape: Sequence[int], name: str = "x") -> str:
    """Return the same of one input that may be a vector, an image [H, W] or an image [C, H, W].

    Examples
    --------
    >>> axes_of_one([1, 12])
    'a vector is x[0]'
    """
    if len(shape) == 2 and shape[0] == 1:
        return f"a vector is {name}[0]"
    if len(shape) == 3 and shape[-1] in _CHANNELS and shape[0] not in _CHANNELS:
        return f"an image [H, W, C] must be [C, H, W]: {name}.movedim(-1, 0)"
    return ""


def axes_of_each(shape: Sequence[int]) -> str:
    """Return the same of inputs that come one by one, each of this shape.

    Examples
    --------
    >>> axes_of_each([1, 3, 32, 32])
    'each must be without batch axis: (item[0] for item in inputs)'
    """
    if len(shape) == 4 and shape[0] == 1:
        return "each must be without batch axis: (item[0] for item in inputs)"
    if len(shape) == 4 and shape[1] in _CHANNELS:
        return "each must be one image, and not a batch: (image for batch in inputs for image in batch)"
    if len(shape) == 3 and shape[-1] in _CHANNELS and shape[0] not in _CHANNELS:
        return "images [H, W, C] must be [C, H, W]: (item.movedim(-1, 0) for item in inputs)"
    if len(shape) == 2:
        return "images [H, W] need their channel axis: (item[None] for item in inputs)"
    return ""


def add_note(error: BaseException, note: str) -> None:
    """Add a line to those that a traceback ends with. Python 3.10 keeps it in ``__notes__``, and does not print it."""
    if sys.version_info >= (3, 11):
        error.add_note(note)
    else:
        error.__notes__ = [*getattr(error, "__notes__", []), note]


def place_of(error: BaseException) -> str:
    """Return "FILE, line N: ", the innermost line of the user's code that an exception came through, or "" if none.

    The user's code is what is neither installed, nor of the standard library, nor of rsfast.
    """
    through = places(error)
    if isinstance(error, SyntaxError) and error.filename is not None:
        through.append((Path(error.filename), error.lineno or 1))
    for file, line in reversed(through):
        if file.is_file() and not any(file.is_relative_to(folder) for folder in _NOT_THE_USERS):
            shown = file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file
            return f"{shown}, line {line}: "
    return ""


def places(error: BaseException) -> list[tuple[Path, int]]:
    """Return the file and the line of every frame that an exception came through, the outermost first."""
    return [(Path(frame.f_code.co_filename), line) for frame, line in traceback.walk_tb(error.__traceback__)]
