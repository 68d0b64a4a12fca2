"""Mean and variance of integer scores, rounded outward."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from .._check import as_integers
from .common import Floats, as_trials


def moments(
    sums: ArrayLike, squares: ArrayLike, trials: ArrayLike, *, bits: int = 30, slack: int = 2
) -> tuple[Floats, Floats, Floats]:
    """Return the sample mean, rounded down and rounded up, and the sample variance, rounded up, of integer scores.

    Parameters
    ----------
    sums : array_like of int
        Sum of the scores q of all draws, each an integer in [0, 2**bits] that stands for ``q * 2**-bits``.
    squares : array_like of int
        Sum of ``ceil(q * q / 2**bits)``. Broadcasts with sums and trials.
    trials : array_like of int
        Number of draws, from 1 to 2**33.
    bits : int
        Size of the unit: 30 in a Tally's sums, 0 for counts of votes.
    slack : int
        By how many units a score may lie below the real-valued score that it stands for: 2 in a Tally's sums, 0 for votes.

    Returns
    -------
    mean_lower, mean_upper, variance : ndarray of float64
        ``sums / trials * 2**-bits`` rounded down; the same plus ``slack * 2**-bits``, rounded up, at most 1; the unbiased
        variance rounded up, inf for a single draw. Each at most one unit in the last place from the exact value.

    Raises
    ------
    TypeError
        If sums, squares or trials hold anything but integers.
    ValueError
        If an argument is out of range, or no draws have these sums and squares.

    Notes
    -----
    ``(trials * squares * 2**bits - sums**2) / (trials * (trials - 1)) * 4**-bits``, in Python's integers: in float64 the
    difference cancels when the scores agree. The integer scores are a variable in [0, 1] of their own, never above the
    score they stand for; a lower bound on their mean is one on the score's, an upper bound needs the slack.

    Examples
    --------
    >>> [float(value) for value in moments(3 << 29, 5 << 28, 2, slack=0)]  # the scores 1 and 1/2
    [0.7499999999999999, 0.7500000000000001, 0.12500000000000003]
    """
    unit = 2**bits

    def exact(total: int, square: int, n: int) -> tuple[float, float, float]:
        spread = n * square * unit - total**2
        if total > n * unit:
            raise ValueError(f"sums must be at most trials * 2**{bits}, with trials {n}, got {total}")
        if spread < 0 or square > total:
            raise ValueError(f"squares must be that of {n} scores in units of 2**-{bits} with sums {total}, got {square}")
        mean_lower = max(math.nextafter(total / (n * unit), -math.inf), 0.0)
        mean_upper = min(math.nextafter((total + slack * n) / (n * unit), math.inf), 1.0)
        return mean_lower, mean_upper, math.nextafter(spread / (n * (n - 1) * unit**2), math.inf) if n > 1 else math.inf

    # frompyfunc hands over Python's integers, which do not overflow and whose quotient is correctly rounded.
    values = np.frompyfunc(exact, 3, 3)(as_integers("sums", sums, 0), as_integers("squares", squares, 0), as_trials(trials))
    mean_lower, mean_upper, variance = (np.asarray(value, dtype=np.float64) for value in values)
    return mean_lower, mean_upper, variance
