"""glibc's allocator, kept from returning a model's memory to the system between layers."""

from __future__ import annotations

import ctypes
import os
from functools import cache
from threading import Lock

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # as in malloc.h
_KEPT = 256 << 20
_MOST_BEFORE_2_35 = 32 << 20  # older versions of glibc refuse a larger M_MMAP_THRESHOLD
_SURELY_MAPPED = 64 << 20  # glibc maps blocks above 32 MiB, whatever its threshold has adapted to
_TRIES = 100  # another thread may free such a block at the same moment
# Each of these also stops glibc from adapting its thresholds, so whoever sets one has chosen them all.
_SETTINGS = ("TRIM_THRESHOLD", "MMAP_THRESHOLD", "MMAP_MAX", "TOP_PAD")

_deciding = Lock()


def keep_freed_memory() -> str:
    """Make glibc keep freed memory for reuse in this process; return what was done, or why nothing was.

    By default glibc maps every block of more than 32 MiB anew and unmaps it when it is freed; it also trims the heap early.
    The outputs of a model's layers are such blocks, and the system then zeroes every page of each. From the first call on,
    glibc keeps freed blocks of up to 256 MiB, and returns memory once 256 MiB are free at the end of the heap. The first
    call in a process decides.

    Notes
    -----
    Nothing is changed where ``RSFAST_MALLOC`` is 0, where the environment has thresholds of its own (``MALLOC_*_`` or
    ``GLIBC_TUNABLES``), and where another library provides malloc, as jemalloc and musl do. In a thread other than the main
    one, glibc still maps blocks of more than 64 MiB anew.

    Raises
    ------
    ValueError
        If the environment variable ``RSFAST_MALLOC`` is neither 0 nor 1.

    Examples
    --------
    >>> keep_freed_memory() == keep_freed_memory()
    True
    """
    choice = os.environ.get("RSFAST_MALLOC", "1")
    if choice not in ("0", "1"):
        raise ValueError(f"RSFAST_MALLOC must be 0 or 1, got {choice!r}")
    with _deciding:  # a second thread would find what the first has just changed
        return _decide()


@cache
def _decide() -> str:
    if os.environ.get("RSFAST_MALLOC") == "0":
        return "unchanged, since RSFAST_MALLOC is 0"
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    for setting in _SETTINGS:
        if (name := f"MALLOC_{setting}_") in os.environ:
            return f"unchanged, since {name} is set"
        if (name := f"glibc.malloc.{setting.lower()}") in tunables:
            return f"unchanged, since GLIBC_TUNABLES sets {name}"
    try:
        glibc = ctypes.CDLL("libc.so.6")  # musl and macOS have none
        glibc.gnu_get_libc_version.restype = ctypes.c_char_p
        version = glibc.gnu_get_libc_version().decode()
        in_use = _provides_malloc(glibc)
    except (OSError, AttributeError, TypeError):
        in_use = False
    if not in_use:
        return "unchanged, since malloc is not glibc's"
    largest = next((size for size in (_KEPT, _MOST_BEFORE_2_35) if glibc.mallopt(_M_MMAP_THRESHOLD, size)), 0)
    if not largest or not glibc.mallopt(_M_TRIM_THRESHOLD, _KEPT):
        return f"unchanged, since glibc {version} refused"
    return f"glibc {version} keeps freed blocks of up to {largest >> 20} MiB for reuse"


class _MallInfo(ctypes.Structure):
    _fields_ = (("first", ctypes.c_int * 3), ("mapped_blocks", ctypes.c_int), ("rest", ctypes.c_int * 6))


def _provides_malloc(glibc: ctypes.CDLL) -> bool:
    """Return whether this process's malloc is glibc's: whether glibc counts one more mapped block when malloc returns one.

    Addresses do not show it: where Python is built for a fixed address, as by Debian, that of malloc is a stub's.
    """
    process = ctypes.CDLL(None)
    process.malloc.argtypes, process.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    process.free.argtypes, process.free.restype = [ctypes.c_void_p], None
    glibc.mallinfo.restype = _MallInfo
    for _ in range(_TRIES):
        before = glibc.mallinfo().mapped_blocks
        block = process.malloc(_SURELY_MAPPED)
        after = glibc.mallinfo().mapped_blocks
        process.free(block)
        if after > before:
            return True
    return False
