"""The noise stream: counters to random words, and what names a place in it."""

from __future__ import annotations

from typing import Any

from .._check import as_int

STREAM_VERSION = 1
"""Version of the map from (seed, stream, input id, sample index) to noise. It changes when any bit of any noise changes."""

STREAMS = {"selection": 0, "estimation": 1, "training": 2, "user": 3}
"""Stream names and their numbers in the Philox counter; samples of different streams are independent."""

_UNIFORMS = 4
"""The stream, in the Philox counter, of the uniforms of randomized bounds; no noise is ever drawn from it."""


FIXED_STREAM = 6
"""The stream of words that are the same for all samples and inputs: of (block, 0, 0, 6 << 24). Workers' keys have 5."""


def philox(counter: tuple[Any, Any, Any, Any], seed: int) -> tuple[Any, Any, Any, Any]:
    """Return the four words of Philox4x32-10 for counters that hold 32 bits each: ints, or int64 tensors.

    References
    ----------
    Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011.

    Examples
    --------
    >>> [hex(word) for word in philox((0, 0, 0, 0), 0)]
    ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    mask = 0xFFFFFFFF
    c0, c1, c2, c3 = counter
    k0, k1 = seed & mask, seed >> 32
    for _ in range(10):  # a product that wraps keeps its low 64 bits
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = ((p1 >> 32) & mask) ^ c1 ^ k0, p1 & mask, ((p0 >> 32) & mask) ^ c3 ^ k1, p0 & mask
        k0, k1 = (k0 + 0x9E3779B9) & mask, (k1 + 0xBB67AE85) & mask
    return c0, c1, c2, c3


def uniforms(seed: int, input_id: int) -> tuple[float, float]:
    """Return the two uniforms of an input in the noise stream that randomized bounds take, each in (0, 1].

    Parameters
    ----------
    seed, input_id : int
        In [0, 2^64) and [0, 2^32).

    Returns
    -------
    tuple of float
        ``(word + 1) / 2**32``, which is a uniform on [0, 1] rounded up.

    Examples
    --------
    >>> [round(u, 6) for u in uniforms(seed=1, input_id=0)]
    [0.09165, 0.979983]
    """
    first, second, *_ = philox((0, 0, input_id, _UNIFORMS << 24), seed)
    return (first + 1) / 2**32, (second + 1) / 2**32


def check_seed(seed: object) -> int:
    """Return `seed` if it is an int in [0, 2^64); raise TypeError or ValueError if not.

    Examples
    --------
    >>> check_seed(7)
    7
    """
    value = as_int("seed", seed)
    if not 0 <= value < 1 << 64:
        raise ValueError(f"seed must be in [0, 2^64), got {value}")
    return value
