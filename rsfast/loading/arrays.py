"""Arrays of inputs and labels in a file: .npz, .npy, or what torch.save wrote."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from .._files import hint_of_text, open_file, sha256
from .._hints import listed
from .dataset import Data, Items
from .npy import map_array
from .npz import read_arrays

_NAMES = (("images", "x"), ("labels", "y"))  # either will do
_ZIP = b"PK\3\4"
_CHUNK = 64 << 20  # bytes that are checked at a time
_TYPES = (np.dtype("float32"), np.dtype("uint8"))

Named = tuple[str, NDArray[Any]]
"""An array and its name in the file."""


class _Casts(NamedTuple):
    """What messages append to an array's name to convert it."""

    float32: str
    int64: str


_NUMPY, _TORCH = _Casts(".astype('float32')", ".astype('int64')"), _Casts(".float()", ".long()")


class MappedRows:
    """Rows of an array that is mapped from a file; another process maps it again, when it reads the first."""

    def __init__(self, array: NDArray[Any], find: Callable[[], NDArray[Any]]) -> None:
        self._array: NDArray[Any] | None = array
        self._count, self._find = len(array), find

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, place: int) -> torch.Tensor:
        if self._array is None:
            self._array = self._find()
        row = self._array[place]
        return torch.from_numpy(np.array(row, row.dtype.newbyteorder("="), order="C"))  # a copy, which may be written to

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_array": None}


def read_npz(path: str) -> Data:
    """Read images (or x) and labels (or y) from an .npz file, into memory."""
    images, labels = _chosen(path, *read_arrays(path, [name for names in _NAMES for name in names]))
    _check(path, images, labels, _NUMPY)
    return _data(path, images[1], torch.from_numpy(images[1]), labels)


def read_npy(path: str) -> Data:
    """Map the images in an .npy file; it holds no labels."""
    images = map_array(path)
    _check(path, ("images", images), None, _NUMPY)
    return _data(path, images, MappedRows(images, partial(map_array, path)), None)


def read_pt(path: str) -> Data:
    """Map the images, and read the labels, of a tensor or a dict of tensors that torch.save wrote."""
    images, labels = _tensors(path)
    _check(path, images, labels, _TORCH)
    return _data(path, images[1], MappedRows(images[1], partial(_images_of_tensors, path)), labels)


def _data(path: str, images: NDArray[Any], items: Items, labels: Named | None) -> Data:
    stored = "float32" if images.dtype == np.float32 else "uint8, which stand for x / 255,"
    description = f"{len(images):,} inputs {list(images.shape[1:])} of {stored} in {path}"
    return Data(items, labels=labels and labels[1].tolist(), digest=sha256(path), description=description)


def _chosen(path: str, arrays: Mapping[str, NDArray[Any]], found: list[str]) -> tuple[Named, Named | None]:
    """Return the images and the labels of what a file holds, each with its name there."""
    for names in _NAMES:
        if all(name in arrays for name in names):
            raise ValueError(f"{path} must hold {names[0]} or {names[1]}, got both; leave one out")
    x, y = (next((name for name in names if name in arrays), "") for names in _NAMES)
    if not x:
        raise ValueError(f"{path} must hold images (or x), and may hold labels (or y), got {listed(found)}; name them so")
    return (x, arrays[x]), (y, arrays[y]) if y else None


def _check(path: str, images: Named, labels: Named | None, casts: _Casts) -> None:
    """Raise unless images are finite float32 or uint8 [N, ...], and labels integers [N]."""
    x, array = images
    if array.dtype.newbyteorder("=") not in _TYPES:
        hint = f"; save {x}{casts.float32}" if array.dtype.kind in "fb" else ""
        if array.dtype.kind in "iu":
            hint = f"; save pixels from 0 to 255 as uint8, and others as float32: {x}{casts.float32}"
        raise TypeError(f"{path}: {x} must be float32 or uint8, got {array.dtype}{hint}")
    if array.ndim < 2 or array.size == 0:
        raise ValueError(f"{path}: {x} must be [N, ...] and not empty, got {list(array.shape)}")
    if array.dtype.kind == "f" and (wrong := _first_not_finite(array)) is not None:
        raise ValueError(f"{path}: {x} must be finite, got NaN or infinity in {x}[{wrong}]")
    if labels is not None:
        y, numbers = labels
        if numbers.dtype.kind not in "iu" or numbers.shape != array.shape[:1]:
            raise ValueError(
                f"{path}: {y} must be integers [{len(array)}], got {numbers.dtype} {list(numbers.shape)}"
                + _way_to_labels(y, numbers, len(array), casts)
            )


def _first_not_finite(array: NDArray[Any]) -> int | None:
    """Return the place of the first row that holds NaN or infinity; a mapped array is read some rows at a time."""
    step = max(1, _CHUNK * len(array) // array.nbytes)
    for first in range(0, len(array), step):
        finite = np.isfinite(array[first : first + step]).reshape(-1, array[0].size).all(axis=1)
        if not finite.all():
            return first + int(finite.argmin())
    return None


def _way_to_labels(name: str, labels: NDArray[Any], count: int, casts: _Casts) -> str:
    """Return what to save instead of what is no label an image: what its shape and values suggest, if anything."""
    if labels.ndim == 2 and len(labels) == count and labels.shape[1] > 1:
        return f"; of one-hot labels or scores save {name}.argmax(1)"
    whole = labels.dtype.kind in "iub" or (labels.dtype.kind == "f" and np.all(labels == np.trunc(labels)))
    return f"; save {name}.reshape(-1){casts.int64}" if whole and labels.size == count else ""


def _images_of_tensors(path: str) -> NDArray[Any]:
    return _tensors(path)[0][1]


def _tensors(path: str) -> tuple[Named, Named | None]:
    """Map the tensors in a file of torch.save; nothing but tensors and plain containers is unpickled."""
    with open_file(path) as file:
        if file.read(len(_ZIP)) != _ZIP:
            raise ValueError(f"{path} is not a .pt file; it must be one, as torch.save writes it{hint_of_text(file)}")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what may not load: it loads, or raises
                found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # a damaged file can raise anything
            what = "" if isinstance(error, UnpicklingError) else f" ({type(error).__name__}: {str(error)[:200]})"
            raise ValueError(
                f"{path} is damaged or holds more than tensors{what}; it must be a tensor, or a dict of them, that "
                "torch.save wrote"
            ) from error
    if isinstance(found, torch.Tensor):
        found = {"images": found}
    if not isinstance(found, Mapping):
        raise ValueError(f"{path} must hold a tensor, or a dict with images and labels, got a {type(found).__name__}")
    size, arrays = Path(path).stat().st_size, {}
    for name in (name for names in _NAMES for name in names if name in found):
        value = torch.as_tensor(found[name]) if isinstance(found[name], list) else found[name]
        if not isinstance(value, torch.Tensor) or value.layout != torch.strided:
            raise ValueError(f"{path}: {name} must be a dense tensor, got a {type(value).__name__}")
        if value.numel() * value.element_size() > size:  # a view that repeats what there is
            raise ValueError(f"{path}: {name} must be no larger than the file, got {list(value.shape)}; save its clone()")
        if value.dtype == torch.bfloat16:
            raise TypeError(f"{path}: {name} must be float32 or uint8, got bfloat16; save {name}.float()")
        arrays[name] = value.detach().numpy()
    return _chosen(path, arrays, [*map(str, found)])
