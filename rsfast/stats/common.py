"""What confidence bounds share: checks of arguments, rounding outward, a search for the last safe number, sample ranges."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._check import as_int, as_integers, as_real

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
N = TypeVar("N", np.float64, np.int64)

MAX_TRIALS = 2**33
"""Most trials a bound takes: what a Tally holds, and as far as the rounding of the bounds has been measured."""

SMALLEST_ALPHA = 1e-300
"""Least alpha of a certificate. Heads, rules and analyses divide it, and each share must still be a normal float."""

WIDTH_ERROR = 2.0**-48
"""Sixteen units in the last place, for the few operations (libm's log among them) behind the width of a bound."""

_ONE = int(np.float64(1).view(np.int64))


def check_alpha(alpha: float, least: float = SMALLEST_ALPHA) -> float:
    """Return alpha, the probability that a bound or a certificate is wrong, as a float.

    TypeError if it is not a number, ValueError if it is not below 1, or below `least`.

    Examples
    --------
    >>> check_alpha(0.001)
    0.001
    """
    number = as_real("alpha", alpha, above=0, below=1)
    if number < least:
        raise ValueError(f"alpha must be at least {least}, got {alpha!r}; below that floating point cannot divide it")
    return number


def check_share(alpha: float) -> float:
    """Return as a float the part of an alpha that one bound gets; raise as `check_alpha` does."""
    return check_alpha(alpha, least=sys.float_info.min)


def as_trials(trials: ArrayLike) -> Integers:
    """Return sample sizes from 1 to `MAX_TRIALS`; TypeError if one is no integer, ValueError if it is out of range."""
    array = as_integers("trials", trials, 1)
    if (array > MAX_TRIALS).any():
        raise ValueError(f"trials must be at most 2**33, got {trials!r}")
    return array


def as_counts(successes: ArrayLike, trials: ArrayLike) -> tuple[Integers, Integers]:
    """Return counts and sample sizes of one shape, each count at most its sample size; raise as `as_trials` does.

    Examples
    --------
    >>> [counts.tolist() for counts in as_counts([3, 4], 5)]
    [[3, 4], [5, 5]]
    """
    k, n = as_integers("successes", successes, 0), as_trials(trials)
    if k.shape != n.shape:  # which costs as much as all else here
        k, n = np.broadcast_arrays(k, n)
    if (k > n).any():
        raise ValueError(f"successes must be at most trials, {trials!r}, got {successes!r}")
    return k, n


def minus_width(mean: Floats, width: Floats) -> Floats:
    """Return ``mean - width`` rounded down, at least 0; the width may be off by `WIDTH_ERROR`, relatively.

    Examples
    --------
    >>> 0.2 < float(minus_width(np.array(0.5), np.array(0.25))) < 0.25
    True
    """
    return np.asarray(np.maximum(np.nextafter(mean - width * (1 + WIDTH_ERROR), -np.inf), 0.0))


def plus_width(mean: Floats, width: Floats) -> Floats:
    """Return ``mean + width`` rounded up, at most 1; the width may be off by `WIDTH_ERROR`, relatively.

    Examples
    --------
    >>> 0.75 < float(plus_width(np.array(0.5), np.array(0.25))) < 0.8
    True
    """
    return np.asarray(np.minimum(np.nextafter(mean + width * (1 + WIDTH_ERROR), np.inf), 1.0))


def largest_safe(
    safe: Callable[[Floats], NDArray[np.bool_]], below: Floats, above: Floats, known: tuple[Floats, Floats] | None = None
) -> Floats:
    """Return, for each element, a float64 that is safe, or 0, and whose successor is not; by bisection.

    Parameters
    ----------
    safe : callable
        Tells which elements of an array of float64 in [0, 1] are safe. It should hold up to some point and not beyond.
        Where rounding breaks that, the result is less tight, but no element is returned that was not found safe. The array
        may be written to after the call.
    below, above : ndarray of float64
        Where to search first, of the result's shape; they need not enclose it.
    known : pair of ndarray of float64, optional
        Up to the first all are safe, from the second none is: there `safe` is not called. The result is the same.

    Returns
    -------
    ndarray of float64
        At least 0, below 1.

    Examples
    --------
    >>> float(largest_safe(lambda p: p * p <= 0.25, np.array(0.0), np.array(1.0)))
    0.5
    """
    # The bit patterns of the floats from 0 to 1 are ordered as the floats are: halving them keeps tiny limits precise.
    below, above = (np.minimum(np.maximum(p, 0), 1) for p in (below, above))
    low, high = np.where(safe(below), below.view(np.int64), 0), np.where(safe(above), _ONE, above.view(np.int64))
    if known is not None:
        inside, beyond = (np.asarray(each).view(np.int64) for each in known)
        while True:
            middle = (low + high) >> 1
            fits, fails = middle <= inside, middle >= beyond
            if not ((fits | fails) & (high - low > 1)).any():
                break
            low, high = np.where(fits, middle, low), np.where(fails, middle, high)
    if low.size == 1:  # Python's own integers: four times as fast
        return _largest_safe_one(safe, low, int(high.item()))
    for _ in range((int((high - low).max(initial=1)) - 1).bit_length()):
        middle = np.asarray((low + high) >> 1)
        fits = safe(middle.view(np.float64))
        low, high = np.where(fits, middle, low), np.where(fits, high, middle)
    return low.view(np.float64)


def _largest_safe_one(safe: Callable[[Floats], NDArray[np.bool_]], below: Integers, high: int) -> Floats:
    """Take the steps of `largest_safe` for arrays of one element."""
    low, middle = int(below.item()), np.empty_like(below)
    p = middle.view(np.float64)
    while high - low > 1:
        half = (low + high) >> 1
        middle.fill(half)
        if safe(p):
            low = half
        else:
            high = half
    middle.fill(low)
    return p


def bisection_bracket(below: Floats, above: Floats) -> tuple[Floats, Floats]:
    """Return the narrowest bracket around below and above, from 0 to 1, that bisection from 0 and 1 goes through.

    `largest_safe` gives the same result from there: rounding may leave it a choice, and makes the same one.

    Examples
    --------
    >>> [float(end) for end in bisection_bracket(np.array(0.3), np.array(0.3001))]
    [0.2997565269470215, 0.3002443313598633]
    """
    scale = _ONE >> 52  # 1023: the brackets of 2^k steps of bisection end at multiples of 2^(52-k) times that
    low, high = ((np.clip(end, 0, 1) + 0.0).view(np.int64) // scale for end in (below, above))  # + 0.0: no -0.0
    shift = np.frexp((low ^ high).astype(np.float64))[1].astype(np.int64)
    low = low >> shift << shift
    return (low * scale).view(np.float64), ((low + (1 << shift)) * scale).view(np.float64)


def largest(values: NDArray[N], count: int) -> NDArray[N]:
    """Return the largest `count` of values [inputs, classes] of each input, largest first.

    Examples
    --------
    >>> largest(np.array([[3, 9, 4]]), 2).tolist()
    [[9, 4]]
    """
    if count == 1:
        return np.asarray(values.max(axis=1, keepdims=True))
    return np.sort(values, axis=1)[:, : -count - 1 : -1]


def mirrored(lower: Floats) -> Floats:
    """Return 1 minus a lower bound, rounded up: an upper bound on the complement, in (0, 1].

    Examples
    --------
    >>> mirrored(np.array([0.0, 0.25])).tolist()
    [1.0, 0.7500000000000001]
    """
    return np.asarray(np.minimum(np.nextafter(1 - lower, np.inf), 1.0))


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
    """Return at how many samples a bound that bets is analysed where sampling may stop early, the last of them n.

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


def fine_analysis_ends(n: int) -> list[int]:
    """Return the numbers of samples at which a bound that may be read after every sample is analysed, the last of them n.

    Below n they are always 16, 24, 32 ... 80, 88, 96, 105 ...: each is a tenth larger than the one before, rounded down, or
    8 samples where that is more. As more looks cost such a bound nothing, they are finer than `analysis_ends`: 84 below
    100,000 samples. Shorter ranges would not fill a batch.

    Examples
    --------
    >>> fine_analysis_ends(120)
    [16, 24, 32, 40, 48, 56, 64, 72, 80, 88, 96, 105, 115, 120]
    """
    n, ends = _check_size(n), [16]
    while ends[-1] < n:
        ends.append(ends[-1] + max(8, ends[-1] // 10))
    return [end for end in ends if end < n] + [n]


def _check_size(n: int) -> int:
    n = as_int("n", n)
    if not 1 <= n < MAX_TRIALS:
        raise ValueError(f"n must be from 1 to 2**33 - 1, got {n}")
    return n
