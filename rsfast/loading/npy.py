"""Headers of .npy arrays, which may be damaged or hostile, and arrays that are mapped from their files."""

from __future__ import annotations

import io
import math
import os
import warnings
from typing import Any, NamedTuple

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from .._files import hint_of_text, open_file

MOST_HEADER = 1 << 16  # bytes; NumPy itself refuses a header of more than 10,000
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


class Header(NamedTuple):
    """What a header declares, and how many bytes of data that is."""

    shape: tuple[int, ...]
    order: str  # "F" if by columns, "C" if by rows
    dtype: np.dtype[Any]
    size: int


def read_header(head: io.BytesIO, size: int) -> Header:
    """Read the header at the start of a .npy file.

    Parameters
    ----------
    head : BytesIO
        The first bytes, up to `MOST_HEADER`; left at the end of the header.
    size : int
        Bytes of the whole.

    Raises
    ------
    ValueError
        If it is damaged, declares Python objects, or declares another size than there is.
    """
    version = npy.read_magic(head)
    if version not in _HEADERS:
        raise ValueError(f"its .npy version must be 1.0 or 2.0, got {version[0]}.{version[1]}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the parser, about what is refused below
            shape, by_columns, dtype = _HEADERS[version](head)
    except Exception as error:  # its further lines advise to unpickle
        raise ValueError(f"its header is damaged ({str(error).partition(chr(10))[0]})") from error
    if dtype.hasobject:
        raise ValueError("it must hold numbers, got Python objects, which would have to be unpickled")
    declared, held = math.prod(shape) * dtype.itemsize, size - head.tell()
    if min(shape, default=0) < 0 or declared != held:
        raise ValueError(f"its header declares {dtype} {list(shape)}, {declared} bytes, but it holds {held}")
    return Header(shape, "F" if by_columns else "C", dtype, declared)


def map_array(path: str) -> NDArray[Any]:
    """Map the array in a .npy file, so that only what is used of it is read.

    Raises
    ------
    OSError
        If the file cannot be opened.
    ValueError
        Naming the file, if it is not a .npy file of numbers that is as large as its header declares.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/images.npy", np.ones((2, 3)))
    ...     print(map_array(f"{folder}/images.npy")[1])
    [1. 1. 1.]
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        head = io.BytesIO(file.read(MOST_HEADER))
        if not head.getvalue().startswith(npy.MAGIC_PREFIX):
            raise ValueError(f"{path} is not an .npy file; it must be one, as numpy.save writes it{hint_of_text(file)}")
        try:
            header = read_header(head, size)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    if not header.size:  # which cannot be mapped
        return np.zeros(header.shape, header.dtype)
    mapped: NDArray[Any] = np.memmap(path, header.dtype, "r", head.tell(), header.shape, header.order)  # type: ignore[call-overload]
    return mapped
