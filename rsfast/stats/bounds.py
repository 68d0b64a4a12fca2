"""One-sided confidence bounds on a mean in [0, 1], rounded so that floating point never breaks the guarantee.

A lower bound is never above the exact real-number value of its formula, an upper bound never below. No torch here.
An alpha must be a normal float, at least 2.3e-308; that of a certificate, which is divided, at least 1e-300.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import xlogy
from scipy.stats import beta, binom

from .._check import as_integers, as_reals

MAX_TRIALS = 2**33
"""Most trials a bound takes: what a Tally holds, and as far as the rounding below has been measured."""

_TAIL_ERROR = 1e-11
# binom.sf is off by at most 2e-15 sqrt(trials), relatively, in SciPy 1.17 and 4e-12 sqrt(trials) in 1.11 and 1.12 (against
# 60-digit arithmetic, trials up to 2^33, tails down to 1e-12). Charging the tail this much moves the limit by no more than
# 1e-11 sqrt(trials) * tail / density, and tail / density is at most 1.26 standard deviations below the mean: 7e-12.

_FAINT = 1e-200  # SciPy 1.17 gives 0 for some tails of 1e-244, where n - k is about 40

_WIDTH_ERROR = 2.0**-48  # sixteen units in the last place, for the few operations (libm's log among them) behind a width

_ONE = int(np.float64(1).view(np.int64))


SMALLEST_ALPHA = 1e-300
"""Least alpha of a certificate: heads, rules and looks divide it, and a share of it must still be a normal float."""


def check_alpha(alpha: float, least: float = SMALLEST_ALPHA) -> float:
    """Return alpha, the probability that a bound or a certificate is wrong, as a float.

    Raises
    ------
    TypeError
        If alpha is not a number.
    ValueError
        If alpha is not below 1, or below `least`.

    Examples
    --------
    >>> check_alpha(0.001)
    0.001
    """
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float, np.floating, np.integer)):
        raise TypeError(f"alpha is {alpha!r}; it must be a number")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is {alpha!r}; it must be above 0 and below 1")
    if alpha < least:
        raise ValueError(f"alpha must be at least {least}, got {alpha!r}; below that floating point cannot divide it")
    return float(alpha)


def check_share(alpha: float) -> float:
    """Return as a float what a bound gets of an alpha that others have a share of; errors as `check_alpha`."""
    return check_alpha(alpha, least=sys.float_info.min)


def _trials(trials: ArrayLike) -> NDArray[np.int64]:
    array = as_integers("trials", trials, 1)
    if np.any(array > MAX_TRIALS):
        raise ValueError(f"trials is {trials!r}; it must be at most 2**33")
    return array


def _counts(successes: ArrayLike, trials: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    k, n = np.broadcast_arrays(as_integers("successes", successes, 0), _trials(trials))
    if np.any(k > n):
        raise ValueError(f"successes is {successes!r}; it must be at most trials, {trials!r}")
    return k, n


def _below(mean: NDArray[np.float64], width: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.maximum(np.nextafter(mean - width * (1 + _WIDTH_ERROR), -np.inf), 0.0))


def _above(mean: NDArray[np.float64], width: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.minimum(np.nextafter(mean + width * (1 + _WIDTH_ERROR), np.inf), 1.0))


def largest_safe(
    safe: Callable[[NDArray[np.float64]], NDArray[np.bool_]], below: NDArray[np.float64], above: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return, of each element, a float64 that is safe, or 0, and whose successor is not; by bisection.

    Parameters
    ----------
    safe : callable
        Says of an array of float64 in [0, 1] which elements are safe. Should hold up to some point and not beyond; a lapse
        of that, by rounding, costs tightness, as no element is returned that was not found safe.
    below, above : ndarray of float64
        Where to look first, of the result's shape; they need not enclose it.

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
    below, above = np.clip(below, 0, 1), np.clip(above, 0, 1)
    low, high = np.where(safe(below), below.view(np.int64), 0), np.where(safe(above), _ONE, above.view(np.int64))
    while np.any(high - low > 1):
        middle = np.asarray((low + high) // 2)
        fits = safe(middle.view(np.float64))
        low, high = np.where(fits, middle, low), np.where(fits, high, middle)
    return low.view(np.float64)


def _binomial(
    successes: ArrayLike, trials: ArrayLike, alpha: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return both counts, and what SciPy's tail may come to where the exact one is alpha."""
    k, n = _counts(successes, trials)
    return k, n, np.asarray(check_share(alpha) * (1 - _TAIL_ERROR * np.sqrt(n)))


def _tail(k: NDArray[np.int64], n: NDArray[np.int64], p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return P(Bin(n, p) >= k), but for SciPy's error; at least that where it is so small that SciPy's may be 0.

    Then it is Chernoff's bound, ``exp(-n KL(k / n, p))``, the exponent raised by more than its terms are rounded.
    """
    tail = np.asarray(binom.sf(k - 1, n, p))
    faint = (tail < _FAINT) & (k <= n)
    if not faint.any():
        return tail
    with np.errstate(divide="ignore", invalid="ignore"):  # where p is 0 or 1, and where the tail is not faint
        exponent = xlogy(k, n * p / k) + xlogy(n - k, n * (1 - p) / (n - k))
    return np.where(faint, np.exp(exponent + (n + 1000.0) * _WIDTH_ERROR), tail)


def _quantile(k: NDArray[np.int64], n: NDArray[np.int64], level: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return about the p at which P(Bin(n, p) >= k) = level, for k from 0 to n + 1."""
    inside = np.clip(k, 1, n)
    level = np.maximum(level, 1e-80)  # below, SciPy warns; the limit is then found from further off
    return np.where(k == inside, beta.ppf(level, inside, n - inside + 1), np.where(k > 0, 1.0, 0.0))


def mirrored(lower: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return 1 minus a lower bound, rounded up: an upper bound on the complement, in (0, 1].

    Examples
    --------
    >>> mirrored(np.array([0.0, 0.25])).tolist()
    [1.0, 0.7500000000000001]
    """
    return np.asarray(np.minimum(np.nextafter(1 - lower, np.inf), 1.0))


def clopper_pearson_lower(successes: ArrayLike, trials: ArrayLike, alpha: float) -> NDArray[np.float64]:
    """Return the exact one-sided lower confidence limit of a binomial proportion.

    Parameters
    ----------
    successes, trials : array_like of int
        Counts, of shapes that broadcast; ``0 <= successes <= trials``, ``1 <= trials <= 2**33``.
    alpha : float
        Probability, over the trials, that the limit is above the proportion; in (0, 1).

    Returns
    -------
    ndarray of float64
        Never above the exact limit; for alpha from 1e-190 to 1/2 never more than 1e-11 below it.

    Raises
    ------
    TypeError
        If successes or trials hold anything but integers (a float here is mostly a mean), or alpha is not a number.
    ValueError
        If an argument is out of range.

    Notes
    -----
    The p at which ``P(Bin(trials, p) >= successes) = alpha``: 0 without a success, ``alpha ** (1 / trials)`` without a
    failure, else the alpha-quantile of Beta(successes, trials - successes + 1). SciPy's quantile lands on either side of
    it, and far off for some arguments in SciPy 1.11. So that quantile is only where the search starts: the tail itself
    is bisected over the float64 numbers, down to two neighbours, and charged with more than its own measured error.

    References
    ----------
    Clopper and Pearson, "The use of confidence or fiducial limits illustrated in the case of the binomial", 1934.

    Examples
    --------
    >>> [round(float(p), 6) for p in clopper_pearson_lower([0, 99, 100], 100, 0.001)]
    [0.0, 0.911373, 0.933254]
    """
    k, n, level = _binomial(successes, trials, alpha)
    guess = _quantile(k, n, level)
    return largest_safe(lambda p: _tail(k, n, p) <= level, guess * (1 - 1e-11), guess * (1 + 1e-11))


def clopper_pearson_upper(successes: ArrayLike, trials: ArrayLike, alpha: float) -> NDArray[np.float64]:
    """Return the exact one-sided upper confidence limit of a binomial proportion.

    Parameters, errors, source: as `clopper_pearson_lower`, of which this is the mirror image: 1 minus the lower limit of
    the failures.

    Returns
    -------
    ndarray of float64
        Never below the exact limit; for alpha from 1e-190 to 1/2 never more than 1e-11 above it. Always above 0.

    Examples
    --------
    >>> [round(float(p), 6) for p in clopper_pearson_upper([0, 1, 100], 100, 0.001)]
    [0.066746, 0.088627, 1.0]
    """
    k, n = _counts(successes, trials)
    return mirrored(clopper_pearson_lower(n - k, n, alpha))


def randomized_clopper_pearson_lower(
    successes: ArrayLike, trials: ArrayLike, alpha: float, uniform: ArrayLike
) -> NDArray[np.float64]:
    """Return the randomized one-sided lower confidence limit of a binomial proportion, which errs as often as alpha says.

    Parameters
    ----------
    successes, trials : array_like of int
        Counts, of shapes that broadcast; ``0 <= successes <= trials``, ``1 <= trials <= 2**33``.
    alpha : float
        Probability, over the trials and uniform, that the limit is above the proportion; in (0, 1).
    uniform : array_like of float
        One number for each limit, uniform on [0, 1], independent of the trials and never drawn again for another look at
        the same ones. Round it up if it is discrete (``(word + 1) / 2**32``): rounding down makes the limit too large. At 1
        the limit is Clopper and Pearson's.

    Returns
    -------
    ndarray of float64
        Never above the exact limit; for alpha from 1e-190 to 1/2 never more than 2e-11 below it. Below 1: where
        the exact limit is 1 (no failure and uniform at most alpha) the largest float64 below it.

    Raises
    ------
    TypeError
        If successes or trials hold anything but integers, or alpha is not a number.
    ValueError
        If an argument is out of range or NaN.

    Notes
    -----
    The p at which ``P(X > k) + u P(X = k) = alpha``, X ~ Bin(trials, p), k successes, u uniform; 0 where that is above
    alpha at every p. At the true p the left side is uniform on (0, 1), so it is below alpha, which is when the limit is
    above p, with probability alpha exactly. It increases with u, so no limit is below that of u = 1, Clopper and Pearson's.

    References
    ----------
    Stevens, "Fiducial limits of the parameter of a discontinuous distribution", 1950; Voracek, "Treatment of statistical
    estimation problems in randomized smoothing for adversarial robustness", 2024.

    Examples
    --------
    >>> [round(float(p), 6) for p in randomized_clopper_pearson_lower([0, 99, 100], 100, 0.001, 0.5)]
    [0.0, 0.917485, 0.939746]
    """
    k, n, level = _binomial(successes, trials, alpha)
    u = as_reals("uniform", uniform, 1, "in [0, 1]")
    k, n, level, u = np.broadcast_arrays(k, n, level, u)

    def safe(p: NDArray[np.float64]) -> NDArray[np.bool_]:
        return np.asarray(u * _tail(k, n, p) + (1 - u) * _tail(k + 1, n, p) <= level)

    return largest_safe(safe, _quantile(k, n, level) * (1 - 1e-11), _quantile(k + 1, n, level) * (1 + 1e-11))


def randomized_clopper_pearson_upper(
    successes: ArrayLike, trials: ArrayLike, alpha: float, uniform: ArrayLike
) -> NDArray[np.float64]:
    """Return the randomized one-sided upper confidence limit of a binomial proportion, which errs as often as alpha says.

    Parameters, errors, source: as `randomized_clopper_pearson_lower`, of which this is the mirror image: 1 minus the lower
    limit of the failures. One uniform may serve both limits.

    Returns
    -------
    ndarray of float64
        Never below the exact limit; for alpha from 1e-190 to 1/2 never more than 2e-11 above it. Always above 0.

    Examples
    --------
    >>> [round(float(p), 6) for p in randomized_clopper_pearson_upper([0, 1, 100], 100, 0.001, 0.5)]
    [0.060254, 0.082515, 1.0]
    """
    k, n = _counts(successes, trials)
    return mirrored(randomized_clopper_pearson_lower(n - k, n, alpha, uniform))


def _hoeffding_width(trials: ArrayLike, alpha: float) -> NDArray[np.float64]:
    return np.asarray(np.sqrt(-math.log(check_share(alpha)) / (2 * _trials(trials))))


def hoeffding_lower(mean: ArrayLike, trials: ArrayLike, alpha: float) -> NDArray[np.float64]:
    """Return Hoeffding's lower confidence bound on the mean of a variable in [0, 1].

    Parameters
    ----------
    mean : array_like of float
        Sample mean, in [0, 1], taken as exact: round it down first if it is not (`moments` does).
    trials : array_like of int
        Sample size, from 1 to 2**33; broadcasts with mean.
    alpha : float
        Probability, over the sample, that the bound is above the mean; in (0, 1).

    Returns
    -------
    ndarray of float64
        ``mean - sqrt(ln(1 / alpha) / (2 trials))``, rounded down, at least 0.

    Raises
    ------
    TypeError
        If trials holds anything but integers, or alpha is not a number.
    ValueError
        If an argument is out of range or NaN.

    References
    ----------
    Hoeffding, "Probability inequalities for sums of bounded random variables", 1963, Theorem 1.

    Examples
    --------
    >>> round(float(hoeffding_lower(0.9, 1000, 0.001)), 6)
    0.84123
    """
    return _below(as_reals("mean", mean, 1, "in [0, 1]"), _hoeffding_width(trials, alpha))


def hoeffding_upper(mean: ArrayLike, trials: ArrayLike, alpha: float) -> NDArray[np.float64]:
    """Return Hoeffding's upper confidence bound on the mean of a variable in [0, 1].

    Parameters, errors, source: as `hoeffding_lower`; an inexact mean has to be rounded up.

    Returns
    -------
    ndarray of float64
        ``mean + sqrt(ln(1 / alpha) / (2 trials))``, rounded up, at most 1.

    Examples
    --------
    >>> round(float(hoeffding_upper(0.1, 1000, 0.001)), 6)
    0.15877
    """
    return _above(as_reals("mean", mean, 1, "in [0, 1]"), _hoeffding_width(trials, alpha))


def _empirical_bernstein_width(variance: ArrayLike, trials: ArrayLike, alpha: float) -> NDArray[np.float64]:
    spread, n = as_reals("variance", variance, np.inf, "at least 0"), _trials(trials)
    log = math.log(2) - math.log(check_share(alpha))
    with np.errstate(divide="ignore"):  # one trial: an infinite width, the trivial bound
        return np.asarray(np.sqrt(2 * log * spread / n) + 7 * log / (3 * (n - 1)))


def empirical_bernstein_lower(mean: ArrayLike, variance: ArrayLike, trials: ArrayLike, alpha: float) -> NDArray[np.float64]:
    """Return the empirical Bernstein lower confidence bound on the mean of a variable in [0, 1].

    Parameters
    ----------
    mean : array_like of float
        Sample mean, in [0, 1], taken as exact: round it down first if it is not (`moments` does).
    variance : array_like of float
        Unbiased sample variance (divided by ``trials - 1``) of the whole sample, rounded up; at least 0, may be inf.
    trials : array_like of int
        Sample size, from 1 to 2**33; with 1 the bound is the trivial one. Broadcasts with mean and variance.
    alpha : float
        Probability, over the sample, that the bound is above the mean; in (0, 1).

    Returns
    -------
    ndarray of float64
        ``mean - sqrt(2 variance ln(2 / alpha) / trials) - 7 ln(2 / alpha) / (3 (trials - 1))``, rounded down, at least 0.

    Raises
    ------
    TypeError
        If trials holds anything but integers, or alpha is not a number.
    ValueError
        If an argument is out of range or NaN.

    References
    ----------
    Maurer and Pontil, "Empirical Bernstein Bounds and Sample Variance Penalization", 2009, Theorem 4.

    Examples
    --------
    >>> round(float(empirical_bernstein_lower(0.9, 0.01, 1000, 0.001)), 6)
    0.869917
    """
    return _below(as_reals("mean", mean, 1, "in [0, 1]"), _empirical_bernstein_width(variance, trials, alpha))


def empirical_bernstein_upper(mean: ArrayLike, variance: ArrayLike, trials: ArrayLike, alpha: float) -> NDArray[np.float64]:
    """Return the empirical Bernstein upper confidence bound on the mean of a variable in [0, 1].

    Parameters, errors, source: as `empirical_bernstein_lower`; an inexact mean has to be rounded up.

    Returns
    -------
    ndarray of float64
        ``mean + sqrt(2 variance ln(2 / alpha) / trials) + 7 ln(2 / alpha) / (3 (trials - 1))``, rounded up, at most 1.

    Examples
    --------
    >>> round(float(empirical_bernstein_upper(0.1, 0.01, 1000, 0.001)), 6)
    0.130083
    """
    return _above(as_reals("mean", mean, 1, "in [0, 1]"), _empirical_bernstein_width(variance, trials, alpha))


def moments(
    sums: ArrayLike, squares: ArrayLike, trials: ArrayLike, *, bits: int = 30, slack: int = 2
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
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
            raise ValueError(f"sums is {total}; it must be at most trials * 2**{bits}, with trials {n}")
        if spread < 0 or square > total:
            raise ValueError(f"squares is {square}; no {n} scores in units of 2**-{bits} have it, with sums {total}")
        mean_lower = max(math.nextafter(total / (n * unit), -math.inf), 0.0)
        mean_upper = min(math.nextafter((total + slack * n) / (n * unit), math.inf), 1.0)
        return mean_lower, mean_upper, math.nextafter(spread / (n * (n - 1) * unit**2), math.inf) if n > 1 else math.inf

    # frompyfunc hands over Python's integers, which do not overflow and whose quotient is correctly rounded.
    values = np.frompyfunc(exact, 3, 3)(as_integers("sums", sums, 0), as_integers("squares", squares, 0), _trials(trials))
    mean_lower, mean_upper, variance = (np.asarray(value, dtype=np.float64) for value in values)
    return mean_lower, mean_upper, variance
