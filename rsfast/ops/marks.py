"""Bits of a Tally's n that mark it as void: a kernel on a GPU found a wrong argument.

A kernel cannot raise an error, and an assertion in it would end the process's use of the GPU. So it sets a bit of n, which
is at most 2^33 - 1 otherwise. Later additions leave the bit, and reading the Tally on the host raises the error. Up to 2^20
Tallies add up without a wrap. Their sum is void where one of them is, but its bits may name another reason.
"""

from __future__ import annotations

import torch

ROWS = 1 << 40
"""A row was out of range. This bit is set in every n of the Tally."""
FULL = 1 << 41
"""An input got more samples than a Tally holds. This bit is set in its n."""
TRACKED = 1 << 42
"""A tracked class of an input was out of range. This bit is set in its n."""


def check_marks(n: torch.Tensor, num_inputs: int, num_classes: int) -> None:
    """Raise what `accumulate` raises on a CPU, if a kernel marked one of these n of a Tally; wait for the device.

    Examples
    --------
    >>> check_marks(torch.tensor([2**33 - 1, 0]), 2, 10)
    >>> check_marks(torch.tensor([5, 5 + ROWS]), 2, 10)
    Traceback (most recent call last):
    ...
    ValueError: rows must lie in [0, 2), got another, as a kernel on a GPU found; the Tally is void, fill a new one
    """
    if int(n.max()) < ROWS:
        return
    found = "as a kernel on a GPU found; the Tally is void, fill a new one"
    if bool((n & ROWS).any()):
        raise ValueError(f"rows must lie in [0, {num_inputs}), got another, {found}")
    if bool((n & TRACKED).any()):
        raise ValueError(f"tracked_classes must lie in [0, {num_classes}), got another, {found}")
    raise OverflowError(f"a Tally must hold at most 2^33 - 1 samples of an input, got more, {found}")
