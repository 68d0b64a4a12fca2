"""CIFAR-10 and CIFAR-100 as they are published: pickles, of which nothing but numbers and text is read, or binary files."""

from __future__ import annotations

import io
import math
import pickle
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from .._files import open_file, sha256
from .._hints import listed
from .dataset import Data
from .pictures import StoredPictures

if TYPE_CHECKING:
    from .preprocessing import Preprocessing

_PIXELS = 3 * 32 * 32
_MOST_BYTES = 1 << 30  # of a file; those published have at most 155 MB


class Layout(NamedTuple):
    """How one of the two data sets is published."""

    classes: int
    splits: dict[str, Sequence[str]]  # the files of each, which end in .bin in the binary layout
    python: str  # the folder of the pickles
    label_key: str
    meta: str  # the pickle with the class names
    meta_key: str
    binary: str  # the folder of the binary files
    label_bytes: int  # in front of the pixels there; the last of them is the label
    class_names: str  # the text with the class names there


CIFAR10 = Layout(
    classes=10,
    splits={"test": ["test_batch"], "train": [f"data_batch_{number}" for number in range(1, 6)]},
    python="cifar-10-batches-py",
    label_key="labels",
    meta="batches.meta",
    meta_key="label_names",
    binary="cifar-10-batches-bin",
    label_bytes=1,
    class_names="batches.meta.txt",
)
CIFAR100 = Layout(
    classes=100,
    splits={"test": ["test"], "train": ["train"]},
    python="cifar-100-python",
    label_key="fine_labels",
    meta="meta",
    meta_key="fine_label_names",
    binary="cifar-100-binary",
    label_bytes=2,
    class_names="fine_label_names.txt",
)


class _Batch(NamedTuple):
    """Of one file, or of several."""

    pixels: NDArray[np.uint8]  # [N, 3072]
    labels: list[int]
    names: list[str]  # empty where the layout has none


def read_cifar(layout: Layout, folder: str, split: str, preprocessing: Preprocessing | None) -> Data:
    """Read a split of CIFAR-10 or CIFAR-100, in the Python or the binary layout, from its folder or the one above.

    Raises
    ------
    ValueError
        Naming the folder or the file, if a file is missing, damaged, or holds more than numbers and text.
    """
    for inside, suffix, read, read_names in (
        (layout.python, "", _read_pickle, _names_of_pickle),
        (layout.binary, ".bin", _read_binary, _names_of_text),
    ):
        for root in (Path(folder), Path(folder, inside)):
            files = [root / f"{name}{suffix}" for name in layout.splits[split]]
            if all(file.is_file() for file in files):
                names = read_names(layout, root)
                return _data(layout, files, read, preprocessing, names, f"the {split} split in {folder}")
    raise ValueError(
        f"{folder} must hold {layout.python} or {layout.binary}, with {listed(layout.splits[split])} in it, got neither; "
        "name the folder that the published archive is unpacked in"
    )


def _data(
    layout: Layout,
    files: Sequence[Path],
    read: Callable[[Layout, Path], _Batch],
    preprocessing: Preprocessing | None,
    class_names: list[str] | None,
    where: str,
) -> Data:
    batches = [_checked(layout, file, read(layout, file)) for file in files]
    pixels = torch.from_numpy(np.concatenate([batch.pixels for batch in batches])).reshape(-1, 3, 32, 32)
    names = [name for batch in batches for name in batch.names]
    return Data(
        pixels if preprocessing is None else StoredPictures(pixels, preprocessing),
        labels=[label for batch in batches for label in batch.labels],
        names=names if len(names) == len(pixels) else None,
        class_names=class_names,
        digest=sha256(*files),
        description=f"{len(pixels):,} pictures of {layout.classes} classes: {where}",
    )


def _checked(layout: Layout, file: Path, batch: _Batch) -> _Batch:
    if not batch.labels or min(batch.labels) < 0 or max(batch.labels) >= layout.classes:
        got = f"{min(batch.labels)} to {max(batch.labels)}" if batch.labels else "none"
        raise ValueError(f"{file} must hold labels from 0 to {layout.classes - 1}, got {got}")
    return batch


def _read_binary(layout: Layout, file: Path) -> _Batch:
    data, row = _bytes(file), layout.label_bytes + _PIXELS
    if len(data) % row:
        raise ValueError(f"{file} must hold rows of {row} bytes, got {len(data)} bytes; download it again")
    rows = np.frombuffer(data, np.uint8).reshape(-1, row)
    return _Batch(rows[:, layout.label_bytes :], rows[:, layout.label_bytes - 1].tolist(), [])


def _names_of_text(layout: Layout, root: Path) -> list[str] | None:
    file = root / layout.class_names
    return _class_names(layout, file, _bytes(file).decode(errors="replace").split()) if file.is_file() else None


def _read_pickle(layout: Layout, file: Path) -> _Batch:
    held = _unpickled(file)
    pixels, labels, names = held.get("data"), held.get(layout.label_key), held.get("filenames", [])
    array = pixels.array if isinstance(pixels, _Array) else None
    if array is None or array.dtype != np.uint8 or array.ndim != 2 or array.shape[1] != _PIXELS:
        raise ValueError(f"{file} must hold data, a uint8 array [N, {_PIXELS}]; download it again")
    if not isinstance(labels, list) or len(labels) != len(array) or not all(type(label) is int for label in labels):
        raise ValueError(f"{file} must hold {layout.label_key}, a list of {len(array)} integers; download it again")
    return _Batch(array, labels, _texts(names))


def _names_of_pickle(layout: Layout, root: Path) -> list[str] | None:
    file = root / layout.meta
    return _class_names(layout, file, _texts(_unpickled(file).get(layout.meta_key))) if file.is_file() else None


def _class_names(layout: Layout, file: Path, names: list[str]) -> list[str]:
    if len(names) != layout.classes:
        raise ValueError(f"{file} must hold {layout.classes} names of classes, got {len(names)}; download it again")
    return names


def _texts(held: object) -> list[str]:
    return [_text(each) for each in held] if isinstance(held, list) else []


def _text(held: object) -> str:
    return held.decode(errors="replace") if isinstance(held, bytes) else str(held)


def _bytes(file: Path) -> bytes:
    with open_file(file) as opened:
        data = opened.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise ValueError(f"{file} must hold at most {_MOST_BYTES} bytes")
    return data


def _unpickled(file: Path) -> dict[str, Any]:
    try:
        held = _Reader(io.BytesIO(_bytes(file)), encoding="bytes").load()
    except OSError:
        raise
    except Exception as error:  # a damaged file can raise anything
        raise ValueError(f"{file}: {type(error).__name__}: {error}; download it again") from error
    if not isinstance(held, dict):
        raise ValueError(f"{file} must hold a dict, got a {type(held).__name__}; download it again")
    return {_text(key): value for key, value in held.items()}


class _Reader(pickle.Unpickler):
    """Read numbers, text, lists, dicts and arrays of integers; nothing that a file names is imported or called.

    What stands for NumPy's functions are methods of this object, as a pickle may change attributes of a function or class.
    """

    def find_class(self, module: str, name: str) -> Any:
        own = {
            "numpy.core.multiarray._reconstruct": self._array,
            "numpy.ndarray": "ndarray",
            "numpy.dtype": self._type,
            "_codecs.encode": self._encode,
        }
        full = f"{module.replace('numpy._core', 'numpy.core')}.{name}"
        if full not in own:
            raise pickle.UnpicklingError(f"it must hold numbers and text only, got {module}.{name}")
        return own[full]

    def _array(self, *_: object) -> _Array:
        return _Array()

    def _type(self, code: object, *_: object) -> _Type:
        return _Type(code)

    def _encode(self, text: str, *_: object) -> bytes:  # Python 3 writes bytes so for Python 2
        return text.encode("latin1")


class _Type:
    """A pickled dtype, of integers only; its state has the byte order."""

    def __init__(self, code: object) -> None:
        text = _text(code)
        if not re.fullmatch("[iu][1248]", text):
            raise pickle.UnpicklingError(f"it must hold arrays of integers only, got {text[:20]!r}")
        self.dtype = np.dtype(text)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in (">", b">"):
            self.dtype = self.dtype.newbyteorder(">")


class _Array:
    """A pickled array: as large as its bytes are, whatever it declares."""

    array: NDArray[Any] | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, by_columns, data = state
        dtype = kind.dtype
        data = data.encode("latin1") if isinstance(data, str) else data
        if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(data):
            raise pickle.UnpicklingError(f"it declares an array {dtype} {list(shape)}, but holds {len(data)} bytes")
        self.array = np.frombuffer(data, dtype).reshape(shape, order="F" if by_columns else "C")
