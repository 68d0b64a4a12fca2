"""MNIST, and what is published in its form (Fashion-MNIST, KMNIST): idx files, also compressed with gzip."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

import numpy as np
import torch
from numpy.typing import NDArray

from .._files import hint_of_text, open_file, sha256
from .dataset import Data
from .pictures import StoredPictures

if TYPE_CHECKING:
    from .preprocessing import Preprocessing

SPLITS = {"test": "t10k", "train": "train"}
_BELOW = ("", "raw", "MNIST/raw", "FashionMNIST/raw", "KMNIST/raw")  # where torchvision puts the files
_MOST = 1 << 20  # pictures: so many bytes are read at most, whatever a file declares


def read_mnist(folder: str, split: str, preprocessing: Preprocessing | None) -> Data:
    """Read a split in the form of MNIST, from the folder of its files or torchvision's above it.

    Raises
    ------
    ValueError
        Naming the folder or the file, if a file is missing, is damaged, or is not as large as it declares.
    """
    files = _files(folder, SPLITS[split])
    pixels, labels = _read(files[0], (28, 28)), _read(files[1], ())
    images = torch.from_numpy(pixels)[:, None]
    return Data(
        images if preprocessing is None else StoredPictures(images, preprocessing),
        labels=labels.tolist(),
        digest=sha256(*files),
        description=f"{len(images):,} pictures: the {split} split in {folder}",
    )


def _files(folder: str, prefix: str) -> tuple[Path, Path]:
    """Return the files of the pictures and the labels."""
    names = [(f"{prefix}-images{dot}idx3-ubyte", f"{prefix}-labels{dot}idx1-ubyte") for dot in "-."]
    places = [Path(folder, below) for below in _BELOW]
    found = [
        (place / f"{images}{a}", place / f"{labels}{b}")
        for place in places
        for images, labels in names
        for a in ("", ".gz")
        for b in ("", ".gz")
        if (place / f"{images}{a}").is_file() and (place / f"{labels}{b}").is_file()
    ]
    if not found:
        raise ValueError(
            f"{folder} must hold {names[0][0]} and {names[0][1]}, also with .gz, in it or in MNIST/raw, got neither; "
            "name the folder that the published files are in"
        )
    roots = {images.parent for images, _ in found}
    if len(roots) > 1:
        raise ValueError(f"{folder} must hold one data set, got {' and '.join(sorted(map(str, roots)))}; name one of these")
    return found[0]


def _read(file: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return the bytes ``[N, *shape]`` of an idx file."""
    with open_file(file) as opened:
        zipped = file.suffix == ".gz"
        stream = cast(BinaryIO, gzip.GzipFile(fileobj=opened)) if zipped else opened
        try:
            head = stream.read(4 * (2 + len(shape)))
            wanted = bytes([0, 0, 8, 1 + len(shape)])  # of unsigned bytes, and how many axes
            if head[:4] != wanted or len(head) < 4 * (2 + len(shape)):
                hint = hint_of_text(opened)
                raise ValueError(f"{file} must be an idx file of bytes with {1 + len(shape)} axes, got {head[:4]!r}{hint}")
            count, *sides = struct.unpack(f">{1 + len(shape)}I", head[4:])
            if tuple(sides) != shape or count > _MOST:
                what = " x ".join(map(str, ["N", *shape]))
                raise ValueError(f"{file} must declare {what} with N at most {_MOST}, got {[count, *sides]}")
            declared = count * math.prod(shape)
            data = stream.read(declared + 1)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{file} is damaged ({error}); download it again") from error
    if len(data) != declared:
        raise ValueError(f"{file} declares {declared} bytes, but holds {'more' if len(data) > declared else len(data)}")
    return np.frombuffer(bytearray(data), np.uint8).reshape(count, *shape)
