"""The OpenMP runtime that torch computes with on the CPU.

threadpoolctl would not replace the search: it lists every runtime that is loaded, also scikit-learn's own, and not which
of them is torch's.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path

import torch

_NAMES = ("libgomp*", "libiomp*", "libomp*")  # GCC's, Intel's and LLVM's


@cache
def runtime() -> tuple[str, ctypes.CDLL] | None:
    """Return its file's name and the library, or None where torch has loaded none. Nothing is linked, nothing loaded."""
    root = Path(torch.__file__).parent
    folders = (root / "lib", root.parent / "torch.libs")
    for path in sorted(path for folder in folders for name in _NAMES for path in folder.glob(name)):
        try:
            library = ctypes.CDLL(str(path), mode=os.RTLD_NOLOAD)
            _ = library.GOMP_parallel, library.omp_set_num_threads
        except (OSError, AttributeError):  # not loaded, or no OpenMP runtime
            continue
        return path.name, library
    return None


def limit_to_one_thread() -> None:
    """Keep what torch computes in the calling thread to that thread, for as long as it lives.

    By default each thread that uses torch gets a team of its own. As soon as all teams together have more threads than there
    are cores, OpenMP's threads sleep between two parallel loops rather than spin, and small models take a fifth longer.
    """
    if (found := runtime()) is not None:
        torch.get_num_threads()  # makes torch set the number for this thread, as it would later, over ours
        found[1].omp_set_num_threads(1)
