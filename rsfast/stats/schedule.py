"""At which numbers of samples the ranges of a sample end, and where it is analysed."""

from __future__ import annotations

from .._check import as_int
from .common import MAX_TRIALS


def range_ends(n: int) -> list[int]:
    """Return where the ranges of a sample of n scores end that a betting bound for this n takes.

    Each range is about as long as all before it, so its bets rest on half of the scores so far. The first range has at
    most 32 scores, or a 64th of all.

    Examples
    --------
    >>> range_ends(1000)
    [32, 63, 125, 250, 500, 1000]
    """
    ends = [_check_size(n)]
    while ends[-1] > max(32, n >> 6):
        ends.append((ends[-1] + 1) // 2)
    return ends[::-1]


def analysis_ends(n: int) -> list[int]:
    """Return the numbers of samples at which a bound that holds at any time is analysed, the last of them n.

    Below n they are always 16, 24, 32, 48, 64, 96 ..., so no decision depends on a batch size or on the number of
    processes. Each is a third or half larger than the one before, so few samples are drawn in vain.

    Examples
    --------
    >>> analysis_ends(100)
    [16, 24, 32, 48, 64, 96, 100]
    """
    ends = sorted(factor << power for factor in (16, 24) for power in range(MAX_TRIALS.bit_length()))
    n = _check_size(n)
    return [end for end in ends if end < n] + [n]


def _check_size(n: int) -> int:
    n = as_int("n", n)
    if not 1 <= n < MAX_TRIALS:
        raise ValueError(f"n must be from 1 to 2**33 - 1, got {n}")
    return n
