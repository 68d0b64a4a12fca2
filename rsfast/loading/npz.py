"""Arrays of an .npz file that may be damaged or hostile: nothing is unpickled, and memory is taken as data comes."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._files import hint_of_text, open_file
from .npy import MOST_HEADER, read_header

_CHUNK = 1 << 20  # bytes


def read_arrays(path: str, wanted: Collection[str]) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """Return the wanted arrays that an .npz file holds, in the byte order of this machine, and the names of all.

    Parameters
    ----------
    path : str
        The file, as `numpy.savez` or `numpy.savez_compressed` writes it.
    wanted : collection of str
        Names of arrays; no others are read.

    Returns
    -------
    arrays : dict of str to ndarray
        Contiguous and writable; those of `wanted` that are there.
    names : list of str
        Of every array in the file.

    Raises
    ------
    OSError
        If the file cannot be opened.
    ValueError
        Naming the file and the member, if the file is not an .npz file, is damaged, or if a wanted array is encrypted,
        is there twice, holds Python objects, or is not as large as its header declares.

    Notes
    -----
    A header's shape must fit the size that the archive states for the member before any data is read. What is read then
    grows a chunk at a time, so a size that both state falsely takes no more memory than there is data.
    """
    with open_file(path) as file:
        arrays: dict[str, NDArray[Any]] = {}
        names: list[str] = []
        place = " "
        try:
            if not zipfile.is_zipfile(file):
                raise ValueError(f"is not an .npz file; it must be one, as numpy.savez writes it{hint_of_text(file)}")
            place = ": "
            with zipfile.ZipFile(file) as archive:
                for member in archive.infolist():
                    name = member.filename.removesuffix(".npy")
                    names.append(name)
                    if name in wanted:
                        place = f": {member.filename}: "
                        if name in arrays:
                            raise ValueError("there must be one of that name, got two")
                        arrays[name] = _read(archive, member)
                        place = ": "
        except ValueError as error:
            raise ValueError(f"{path}{place}{error}") from error
        except Exception as error:  # a damaged file can raise anything
            what = f"{type(error).__name__}: {error}"
            raise ValueError(f"{path}{place}{what}; write the file again, as numpy.savez does") from error
    return arrays, names


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[Any]:
    with archive.open(member) as stream:
        head = io.BytesIO(stream.read(MOST_HEADER))
        header = read_header(head, member.file_size)
        data = bytearray(head.read())
        while chunk := stream.read(_CHUNK):
            data += chunk
    if len(data) != header.size:
        raise ValueError(f"it must hold {header.size} bytes, as the archive states, got {len(data)}")
    array = np.frombuffer(data, header.dtype).reshape(header.shape, order="F" if header.order == "F" else "C")
    return np.ascontiguousarray(array, header.dtype.newbyteorder("=")).reshape(header.shape)
