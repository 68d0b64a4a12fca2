"""Files: those that a user names are read only if that ends; one is written as a whole or not at all; and a lock."""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import IO, BinaryIO

_KINDS = ((stat.S_ISFIFO, "a FIFO"), (stat.S_ISSOCK, "a socket"), (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"))


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


def sha256(*paths: str | PathLike[str]) -> str:
    """Return the SHA-256 of a file, or of several one after the other, in hexadecimal."""
    digest = hashlib.sha256()
    for path in paths:
        with open_file(path) as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def write_whole(path: str | PathLike[str], content: Iterable[bytes], *, scratch: str | None = None, then: str = "") -> None:
    """Write a file, in place of an older one: under another name first, so that no half of it is ever there.

    Parameters
    ----------
    path : path-like
        A symbolic link stays, and what it points to is written.
    content : iterable of bytes
        Parts of the content, in order.
    scratch : str, optional
        The other name, which a killed process leaves; by default one with this process's id. A fixed name is for files
        that one process at a time writes.
    then : str
        What there is to do where there is no space.

    Raises
    ------
    OSError
        If it cannot be written, for want of space mostly. What was there before stays.
    ValueError
        If it is a FIFO, a socket or a device.
    """
    file = Path(path).resolve()
    if file.exists():
        _check_kind(file)
    new = file.with_name(scratch or f".{file.name}.{os.getpid()}")
    with writing(path, then), ExitStack() as undo:
        new.unlink(missing_ok=True)  # a FIFO, say, which would keep this waiting
        undo.callback(new.unlink, missing_ok=True)
        with open(new, "xb") as opened:
            for each in content:
                opened.write(each)
            opened.flush()
            _to_disk(opened)  # else the name may be on disk before the content is, should the power fail
        new.replace(file)
        undo.pop_all()


def _to_disk(file: IO[bytes]) -> None:
    """Wait until a file's content is on the disk. macOS's fsync does not: what it wrote may stay in the disk's cache."""
    if (full := getattr(fcntl, "F_FULLFSYNC", None)) is not None:
        with suppress(OSError):  # some file systems have no such call
            fcntl.fcntl(file, full)
            return
    os.fsync(file.fileno())


@contextmanager
def writing(path: str | PathLike[str], then: str = "") -> Iterator[None]:
    """Add the path to an OSError of the system (mostly a full disk), and what there is to do then."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # raised by rsfast, and says all
            raise
        text = f"{os.strerror(error.errno)} in writing {os.fspath(path)}"
        raise OSError(error.errno, f"{text}; {then}" if then else text) from error


def lock(file: IO[bytes], folder: str | PathLike[str]) -> None:
    """Keep other processes from writing a folder, until this file in it is closed or the process ends, even if killed.

    Raises
    ------
    BlockingIOError
        If another process holds the lock.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        text = f"{os.fspath(folder)} is being written by another process; wait for it, or name another folder"
        raise BlockingIOError(text) from None


def _check_kind(path: str | PathLike[str]) -> None:
    mode = os.stat(path).st_mode
    for is_kind, kind in _KINDS:
        if is_kind(mode):
            raise ValueError(f"{os.fspath(path)} must be a regular file, got {kind}")


def reason(error: Exception) -> str:
    """Return why a file could not be read or written, without the number and the path that the system's errors have.

    Examples
    --------
    >>> reason(FileNotFoundError(2, "No such file or directory", "runs/none"))
    'No such file or directory'
    """
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno is not None else str(error)


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
