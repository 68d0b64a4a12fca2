"""The peak of memory that one contender takes."""

from __future__ import annotations

import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch

_PROCESS = Path("/proc/self")


def forget_peak(device: torch.device) -> None:
    """Let the peak begin anew: of what torch allocates on a GPU, or of this process, where Linux lets it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):
            (_PROCESS / "clear_refs").write_text("5")


def peak(device: torch.device) -> int:
    """Return the peak in MiB: of what torch has allocated on a GPU, or of this process.

    Examples
    --------
    >>> peak(torch.device("cpu")) > 1
    True
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) >> 20
    with suppress(OSError):
        for line in (_PROCESS / "status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) >> 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> (20 if sys.platform == "darwin" else 10)
