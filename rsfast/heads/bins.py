"""The bins of a histogram of scores: fine near 0 and near 1. No torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._check import as_integers

BINS = 128
"""Bins of a score histogram, half of them below 1/2."""

BITS = 30
"""Of a score: the integer q stands for q * 2**-30."""

UNIT = 1 << BITS
_FINEST = 12  # log2 of the narrowest bin
_OCTAVES = np.arange(_FINEST + 3, BITS - 1)  # above 8 narrowest bins every power of two gets 4


def bin_of(scores: ArrayLike) -> NDArray[np.int64]:
    """Return the bin of each integer score, by shifts and comparisons alone.

    Parameters
    ----------
    scores : array_like of int
        Each q in [0, 2**30], for the score ``q * 2**-30``.

    Returns
    -------
    ndarray of int64
        From 0 to `BINS` - 1, not decreasing in the score.

    Raises
    ------
    TypeError
        If scores hold anything but integers.
    ValueError
        If a score is out of range.

    Notes
    -----
    With d = min(q, 2**30 - q, 2**29 - 1), the distance from the nearer end, and s = max(bit_length(d) - 3, 12), the bin is
    ``(d >> s) + 4 * (s - 12)``, counted from that end (for q >= 2**29 the upper one): exponent and two bits of mantissa, as
    in a floating-point number with subnormals. So a bin is ``2**s`` wide, from 4e-6 at the ends to 1/16 in the middle.

    Examples
    --------
    >>> bin_of([0, 1 << 20, 1 << 29, (1 << 30) - 1, 1 << 30]).tolist()
    [0, 28, 64, 127, 127]
    """
    q = as_integers("scores", scores, 0)
    if np.any(q > UNIT):
        raise ValueError(f"scores must be at most 2**30, got {scores!r}")
    upper = q >= UNIT // 2
    d = np.minimum(np.where(upper, UNIT - q, q), UNIT // 2 - 1)
    s = np.full(d.shape, _FINEST)
    for octave in _OCTAVES:
        s += d >> octave > 0
    bins = (d >> s) + 4 * (s - _FINEST)
    return np.asarray(np.where(upper, BINS - 1 - bins, bins))


def bin_edges() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the lower and the upper edge of every bin, in units of 2**-30.

    Returns
    -------
    lower, upper : ndarray of int64 [BINS]
        Each score q of a bin has ``lower <= q <= upper``; the upper edge of a bin is the lower edge of the next.

    Examples
    --------
    >>> lower, upper = bin_edges()
    >>> [(int(low), int(high)) for low, high in zip(lower[[0, 63]], upper[[0, 63]])]
    [(0, 4096), (469762048, 536870912)]
    """
    half = np.concatenate(
        [np.arange(4) << _FINEST, *(np.arange(4, 8) << (octave - 3) for octave in _OCTAVES), np.arange(4, 8) << 26]
    )
    edges = np.concatenate([half, [UNIT // 2], UNIT - half[::-1]])
    return edges[:-1], edges[1:]
