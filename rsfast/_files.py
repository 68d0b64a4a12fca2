"""Files that a user names: read only if that ends, written as a whole or not at all."""

from __future__ import annotations

import os
import stat
from contextlib import ExitStack
from os import PathLike
from pathlib import Path
from typing import BinaryIO

_KINDS = (
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def open_file(path: str | PathLike[str]) -> BinaryIO:
    """Open a regular file to read its bytes; anything else could keep the reader waiting, or never end.

    Raises
    ------
    OSError
        If there is no such file, it is a folder, or it may not be read.
    ValueError
        If it is a FIFO, a socket or a device.

    Examples
    --------
    >>> open_file("/dev/null")
    Traceback (most recent call last):
    ValueError: /dev/null must be a regular file, got a device
    """
    _check_kind(path)
    return open(path, "rb")


def write_whole(path: str | PathLike[str], content: bytes | memoryview) -> None:
    """Write a file, in place of an older one: under another name first, so that no half of it is ever there.

    Raises
    ------
    OSError
        If it cannot be written, for want of space mostly. What was there before stays.
    ValueError
        If it is a FIFO, a socket or a device.
    """
    file = Path(path).resolve()  # of a symbolic link, what it points to
    if file.exists():
        _check_kind(file)
    scratch = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with open(scratch, "xb") as opened, ExitStack() as undo:
            undo.callback(scratch.unlink)
            opened.write(content)
            opened.flush()
            scratch.replace(file)
            undo.pop_all()
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror} in writing {os.fspath(path)}") from error


def _check_kind(path: str | PathLike[str]) -> None:
    mode = os.stat(path).st_mode
    for is_kind, kind in _KINDS:
        if is_kind(mode):
            raise ValueError(f"{os.fspath(path)} must be a regular file, got {kind}")


def hint_of_text(file: BinaryIO) -> str:
    """Return what a message says of a file that begins with text where numbers belong, as after a failed download.

    Examples
    --------
    >>> from io import BytesIO
    >>> hint_of_text(BytesIO(b"<html>\\n<body>"))
    "; it begins with '<html> <body>', so it is text, such as a web page or a Git LFS pointer"
    >>> hint_of_text(BytesIO(b"PK\\3\\4"))
    ''
    """
    file.seek(0)
    head = file.read(40)
    if not head or not all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head):
        return ""
    return f"; it begins with {' '.join(head.decode().split())!r}, so it is text, such as a web page or a Git LFS pointer"
