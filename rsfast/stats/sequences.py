"""Confidence bounds by betting against every candidate mean, most of them valid at every sample size at once. No torch.

A lower bound is never above the exact real-number value of its formula, an upper bound never below.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln, xlog1py, xlogy

from .._check import as_int, as_integers, as_reals
from ..heads.bins import BINS as BINS
from ..heads.bins import UNIT
from ..heads.bins import bin_edges as bin_edges
from ..heads.bins import bin_of as bin_of
from .bounds import MAX_TRIALS, _counts, check_share, largest_safe, mirrored

Prior = tuple[ArrayLike, ArrayLike, ArrayLike]
"""Mean, variance and number of scores known before a sample."""

MAX_RANGES = 512
"""Most ranges a betting bound takes; its rounding allowance counts on it."""

_MIXTURE_ERROR = 2.0**-48
# Relative to each term of the log capital; gammaln, log and log1p are within 2^-50 of theirs, and few terms are added.

_CAPITAL_ERROR = 2.0**-42
# Relative to what the log capital adds up, all of it positive: BINS + MAX_RANGES + 8 roundings of 2^-53, and twice that.

_RATES: NDArray[np.float64] = 2.0 ** (
    np.arange(-64, 49) / 4
)  # bets to choose from; half a step off costs 0.4 % of the width

_LOWER, _UPPER = bin_edges()
_NODES = np.append(_LOWER, UNIT) / UNIT
_GROWTH = np.log1p(_NODES[:, None] * _RATES)  # [BINS + 1, rates]
_ROWS = 256  # of log growths added up at once: they fit the cache


def beta_binomial_sequence_lower(
    successes: ArrayLike, trials: ArrayLike, alpha: float, *, a: ArrayLike = 0.5, b: ArrayLike = 0.5
) -> NDArray[np.float64]:
    """Return a lower confidence bound on a binomial proportion that may be read after every trial.

    Parameters
    ----------
    successes, trials : array_like of int
        Counts, of shapes that broadcast; ``0 <= successes <= trials``, ``1 <= trials <= 2**33``.
    alpha : float
        Probability that the bound is ever, at any number of trials, above the proportion; in (0, 1).
    a, b : array_like of float
        Of the mixing distribution Beta(a, b); above 0, at most 2**34, fixed before the trials; of shapes that broadcast
        with the counts. The bound is tightest for counts that this distribution expects.

    Returns
    -------
    ndarray of float64
        Never above the exact bound, and for alpha up to 1/2, a and b up to 1000 never more than 2e-9 below it (2e-11 up to
        2**20 trials). Below 1. Of the bounds so far the largest may be used.

    Raises
    ------
    TypeError
        If successes or trials hold anything but integers, or alpha, a or b is not a number.
    ValueError
        If an argument is out of range.

    Notes
    -----
    The smallest p with ``B(a + k, b + n - k) / (B(a, b) p**k (1 - p)**(n - k)) < 1 / alpha``. Under the true p that ratio is
    a nonnegative martingale in n that starts at 1, the likelihood ratio of a Beta(a, b) mixture to p: by Ville's inequality
    it ever reaches 1 / alpha with probability at most alpha. It decreases in p up to k / n, where it is at most 1.
    The upper bound at the same alpha is of the same martingale: both hold together with probability 1 - alpha.

    The log of it is a difference of numbers as large as lnΓ(n): in float64 it is off by less than 2^-48 of their sum (2e-3
    for 2^33 trials), which is charged. That moves the bound by less than that many standard deviations of the mean.

    References
    ----------
    Robbins, "Statistical methods related to the law of the iterated logarithm", 1970; Ville, 1939; Voracek, "Treatment of
    statistical estimation problems in randomized smoothing for adversarial robustness", 2024.

    Examples
    --------
    >>> [round(float(p), 6) for p in beta_binomial_sequence_lower([0, 99, 100], 100, 0.001)]
    [0.0, 0.877114, 0.906794]
    """
    k, n = _counts(successes, trials)
    level = -math.log(check_share(alpha))
    k, n, a, b = np.broadcast_arrays(k, n, _shape("a", a), _shape("b", b))
    gammas = [gammaln(a + k), gammaln(b + (n - k)), -gammaln(a + b + n), -gammaln(a), -gammaln(b), gammaln(a + b)]
    mixture, size = sum(gammas), sum(map(np.abs, gammas)) + 4 + level

    def safe(p: NDArray[np.float64]) -> NDArray[np.bool_]:
        likelihood = -xlogy(k, p) - xlog1py(n - k, -p)  # both terms positive
        return np.asarray(mixture + likelihood - _MIXTURE_ERROR * (size + likelihood) >= level)

    with np.errstate(invalid="ignore"):  # inf - inf where p = 0 and k > 0: not safe, which is only not true
        return largest_safe(safe, np.zeros(k.shape), np.asarray(k / n))


def beta_binomial_sequence_upper(
    successes: ArrayLike, trials: ArrayLike, alpha: float, *, a: ArrayLike = 0.5, b: ArrayLike = 0.5
) -> NDArray[np.float64]:
    """Return an upper confidence bound on a binomial proportion that may be read after every trial.

    Parameters, errors, source: as `beta_binomial_sequence_lower`, of which this is the mirror image: 1 minus the lower bound
    of the failures, with a and b exchanged.

    Returns
    -------
    ndarray of float64
        Never below the exact bound, nor further above it than the lower bound is below. Above 0.

    Examples
    --------
    >>> [round(float(p), 6) for p in beta_binomial_sequence_upper([0, 1, 100], 100, 0.001)]
    [0.093206, 0.122886, 1.0]
    """
    k, n = _counts(successes, trials)
    return mirrored(beta_binomial_sequence_lower(n - k, n, alpha, a=b, b=a))


def _shape(name: str, value: ArrayLike) -> NDArray[np.float64]:
    if np.asarray(value).dtype.kind not in "iuf":
        raise TypeError(f"{name} is {value!r}; it must be a number, or an array of numbers")
    shape = as_reals(name, value, 2 * MAX_TRIALS, "above 0 and at most 2**34")
    if np.any(shape <= 0):
        raise ValueError(f"{name} is {value!r}; it must be above 0 and at most 2**34")
    return shape


def range_ends(n: int) -> list[int]:
    """Return where the ranges of a sample of n scores end that a betting bound for that n is to be given.

    Each is about as long as all before it, so that the bets of a range rest on half of the scores so far; the first has at
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
    """Return the numbers of samples at which a bound that may be read at any time is read, the last of them n.

    They are 16, 24, 32, 48, 64, 96 ... below n: always the same, so that neither a batch size nor the number of processes
    shows in what is decided, and a third or half as many again each time, so that few samples are drawn in vain.

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
        raise ValueError(f"n is {n}; it must be from 1 to 2**33 - 1")
    return n


def _histogram(counts: ArrayLike, sums: ArrayLike | None) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
    c = as_integers("counts", counts, 0)
    if c.ndim < 2 or c.shape[-1] != BINS or not 1 <= c.shape[-2] <= MAX_RANGES:
        raise ValueError(f"counts is of shape {c.shape}; it must be [..., ranges, {BINS}], with 1 to {MAX_RANGES} ranges")
    if np.any(c >= MAX_TRIALS) or not np.all((c.sum((-2, -1)) > 0) & (c.sum((-2, -1)) < MAX_TRIALS)):
        raise ValueError("counts must hold at least one score for each input, and at most 2**33 - 1")
    if sums is None:
        return c, None
    s = as_integers("sums", sums, 0)
    if s.shape != c.shape or np.any(s < c * _LOWER) or np.any(s > c * _UPPER):
        raise ValueError("sums must be of counts' shape, and each within what its bin's scores can add up to")
    return c, s


def _prior(prior: Prior | None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return what the prior's scores add to the log growth of each rate [..., 1, rates], and how many they are [..., 1]."""
    # One score, half of it at 0 and half at 1, is always there: no bet stakes everything.
    grown, draws = np.asarray(np.log1p(_RATES)[None] / 2), np.ones(1)
    if prior is None:
        return grown, draws
    mean, variance, weight = prior
    weight = as_reals("prior's draws", weight, MAX_TRIALS, "from 0 to 2**33")[..., None]
    return np.asarray(grown + weight[..., None] * _mean_growth(mean, variance)[..., None, :]), draws + weight


def _mean_growth(mean: ArrayLike, variance: ArrayLike) -> NDArray[np.float64]:
    """Return the mean [..., rates] of ``log(1 + t y)`` over scores of this mean and variance, for every rate t.

    Of the scores that have them, two: one step up, one drop down, of a standard deviation each where both fit.
    """
    mean = as_reals("prior's mean", mean, 1, "in [0, 1]")[..., None]
    spread = np.minimum(as_reals("prior's variance", variance, np.inf, "at least 0")[..., None], mean * (1 - mean))
    with np.errstate(divide="ignore", invalid="ignore"):
        step = np.clip(np.sqrt(spread), np.nan_to_num(spread / mean), 1 - mean)
        drop, share = np.nan_to_num(spread / step), np.nan_to_num(spread / (spread + step**2))
    low, high = (np.log1p(_RATES * np.clip(score, 0, 1)) for score in (mean - drop, mean + step))
    return np.asarray(share * high + (1 - share) * low)


def typical_betting_lower(mean: ArrayLike, variance: ArrayLike, trials: ArrayLike, alpha: float) -> NDArray[np.float64]:
    """Return about what `betting_lower` gives for a sample with this mean and variance: a forecast, no bound.

    Parameters
    ----------
    mean, variance, trials : array_like of float
        Of the scores, in [0, 1], and how many there are; of shapes that broadcast.
    alpha : float
        In (0, 1).

    Returns
    -------
    ndarray of float64
        The bound of the best constant bet on scores of two values.

    Raises
    ------
    TypeError, ValueError
        If alpha is not a number in (0, 1), or mean or variance is out of range.

    Examples
    --------
    >>> round(float(typical_betting_lower(0.75, 0.0, 1000, 0.001)), 3)
    0.745
    """
    growth = _mean_growth(mean, variance) + math.log(check_share(alpha)) / np.asarray(trials, dtype=np.float64)[..., None]
    return np.asarray(np.max(np.expm1(growth) / _RATES, axis=-1).clip(0))


def _growth(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the log growth [..., rates] of weights [..., BINS + 1] at the edges, added up from the lowest edge.

    A product of matrices would add up as its blocking asks. Rows come in blocks that fit the cache, without edges that none
    of them has.
    """
    flat = weights.reshape(-1, BINS + 1)
    growth = np.zeros((len(flat), _RATES.size))
    for start in range(0, len(flat), _ROWS):
        part, total = flat[start : start + _ROWS], growth[start : start + _ROWS]
        term = np.empty_like(total)
        for edge in np.flatnonzero(part.any(axis=0)):
            total += np.multiply(part[:, edge, None], _GROWTH[edge], out=term)
    return growth.reshape(*weights.shape[:-1], _RATES.size)


def _limits(
    counts: NDArray[np.int64],
    sums: NDArray[np.int64] | None,
    alpha: float,
    horizons: NDArray[np.float64],
    prior: Prior | None,
    looks: Sequence[int],
) -> NDArray[np.float64]:
    """Return the lower bound [..., looks] at the end of each of these ranges, for bets with horizons [..., H]."""
    level = -math.log(check_share(alpha))
    # The logarithm is concave: at scores between two edges it is at least what it is at these edges, in the proportion that
    # keeps the sum. Without sums every score counts as its lower edge.
    above = np.zeros(counts.shape) if sums is None else (sums - counts * _LOWER) / (_UPPER - _LOWER)
    weights = np.zeros((*counts.shape[:-1], BINS + 1))
    weights[..., :-1] = counts - above
    weights[..., 1:] += above
    trials = counts.sum(axis=-1)  # [..., R]
    growth = _growth(weights)

    # What is known before each range: no sum here may touch a later range, not even to cancel it again.
    grown, draws = _prior(prior)
    shape = growth.shape[:-2]
    grown = np.concatenate([np.broadcast_to(grown, (*shape, 1, _RATES.size)), growth[..., :-1, :]], axis=-2).cumsum(axis=-2)
    draws = np.concatenate([np.broadcast_to(draws, (*shape, 1)), trials[..., :-1]], axis=-1).cumsum(axis=-1)
    mean_growth = (grown / draws[..., None])[..., None, :]
    best = np.argmax(np.expm1(mean_growth - level / horizons[..., None, :, None]) / _RATES, axis=-1)  # [..., R, H]
    rates = _RATES[best]
    gains = np.take_along_axis(growth, best, axis=-1).cumsum(axis=-2)

    level += math.log(horizons.shape[-1]) + 2.0**-32  # an equal share of the capital each; and for rounding the logs

    def limit(look: int) -> NDArray[np.float64]:
        gain = gains[..., look, :]

        def safe(m: NDArray[np.float64]) -> NDArray[np.bool_]:
            cost = trials[..., : look + 1, None] * np.log1p(rates[..., : look + 1, :] * m[..., None, None])
            paid = cost.sum(axis=-2)
            return np.asarray(np.logaddexp.reduce(gain - paid - _CAPITAL_ERROR * (gain + paid), axis=-1) >= level)

        return largest_safe(safe, np.zeros(shape), np.ones(shape))

    return np.stack([limit(look) for look in looks], axis=-1)


def _horizons(cap: int, counts: NDArray[np.int64]) -> NDArray[np.float64]:
    cap = as_int("cap", cap)
    most = int(counts.sum(axis=(-2, -1)).max(initial=1))
    if not most <= cap < MAX_TRIALS:
        raise ValueError(f"cap is {cap}; it must be at least the scores counted so far, {most}, and at most 2**33 - 1")
    return np.asarray(float(cap) * 0.5 ** np.arange(max(1, cap.bit_length() - 4)))


def betting_lower(
    counts: ArrayLike, alpha: float, *, sums: ArrayLike | None = None, prior: Prior | None = None
) -> NDArray[np.float64]:
    """Return the betting lower confidence bound on the mean of a score in [0, 1], for one sample of a size fixed before.

    Parameters
    ----------
    counts : array_like of int [..., R, BINS]
        For each of R ranges of the sample, in order, how many of its scores fall into each bin (`bin_of`). From 1 to
        2**33 - 1 scores in all, R up to 512. The sizes of the ranges are fixed before any score is known.
    alpha : float
        Probability, over the sample, that the bound is above the mean; in (0, 1).
    sums : array_like of int [..., R, BINS], optional
        Sum of the integer scores of each bin. Without them each score counts as the lower edge of its bin, which costs
        about a tenth of the score's distance from the nearer of 0 and 1; with them the binning costs next to nothing.
    prior : tuple of array_like (mean, variance, draws), optional
        What is known before the sample, mostly from the selection sample; each broadcasts to [...]. It changes the bets,
        and so how tight the bound is, not whether it holds. By default nothing.

    Returns
    -------
    ndarray of float64 [...]
        Never above the exact bound. Below 1.

    Raises
    ------
    TypeError
        If counts or sums hold anything but integers, or alpha is not a number.
    ValueError
        If an argument is out of range or of the wrong shape.

    Notes
    -----
    The smallest m with ``capital(m) < 1 / alpha``, where ::

        capital(m) = prod over ranges r and scores y of r of 1 + lambda_r(m) (y - m),   lambda_r(m) = t_r / (1 + t_r m),

    for rates t_r > 0 that depend on nothing but alpha, the sample's size, prior, and the ranges before r. A factor is
    ``(1 + t y) / (1 + t m)``: positive, decreasing in m, and at most 1 in expectation if the mean of y is at most m. So the
    capital at the true mean is a nonnegative supermartingale from 1, which is 1 / alpha or more at the end with probability
    at most alpha (Markov), and ever so with no more (Ville); and once the capital at one m is 1 / alpha all lower ones
    are rejected with it. ``lambda_r(m) m`` is below 1 without being clipped. For a bin of c scores with sum s,
    ``log(1 + t y)``, concave, is replaced by its chord between the edges: the capital only gets smaller.

    A constant t on n scores whose mean of ``log(1 + t y)`` is g gives the bound ``(exp(g - ln(1 / alpha) / n) - 1) / t``.
    Each range bets the t, on a grid of 113, for which that is largest, with g from what is known before it.

    References
    ----------
    Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting", 2023, the capital process of
    section 4; the bets as portfolios: Orabona and Jun, "Tight concentrations and confidence sequences from the regret of
    universal portfolio", 2023.

    Examples
    --------
    >>> counts = np.zeros((4, BINS), dtype=np.int64)
    >>> counts[:, bin_of(3 << 28)] = [125, 125, 250, 500]  # 1000 scores, in four ranges
    >>> round(float(betting_lower(counts, 0.001, sums=counts * (3 << 28))), 3)
    0.743
    """
    c, s = _histogram(counts, sums)
    return np.asarray(_limits(c, s, alpha, c.sum(axis=(-2, -1))[..., None], prior, [c.shape[-2] - 1])[..., 0])


def betting_upper(
    counts: ArrayLike, alpha: float, *, sums: ArrayLike | None = None, prior: Prior | None = None, slack: int = 2
) -> NDArray[np.float64]:
    """Return the betting upper confidence bound on the mean of a score in [0, 1], for one sample of a size fixed before.

    Parameters, errors, source: as `betting_lower`, of which this is the mirror image: 1 minus the lower bound of 1 - y.

    Parameters
    ----------
    slack : int
        By how many units of 2**-30 a score may lie below the real-valued score that it stands for, as in `moments`.

    Returns
    -------
    ndarray of float64 [...]
        Never below the exact bound. Above 0.

    Examples
    --------
    >>> counts = np.zeros((4, BINS), dtype=np.int64)
    >>> counts[:, bin_of(1 << 28)] = [125, 125, 250, 500]
    >>> round(float(betting_upper(counts, 0.001, sums=counts * (1 << 28))), 3)
    0.257
    """
    c, s, prior = _reflected(*_histogram(counts, sums), prior)
    lower = _limits(c, s, alpha, c.sum(axis=(-2, -1))[..., None], prior, [c.shape[-2] - 1])[..., 0]
    return _raised(lower, slack)


def betting_sequence_lower(
    counts: ArrayLike,
    alpha: float,
    cap: int,
    *,
    sums: ArrayLike | None = None,
    prior: Prior | None = None,
    every: bool = True,
) -> NDArray[np.float64]:
    """Return the betting lower confidence bound on the mean of a score in [0, 1], which may be read after every range.

    Parameters, errors, source: as `betting_lower`.

    Parameters
    ----------
    counts : array_like of int [..., R, BINS]
        The ranges so far; more may follow.
    cap : int
        Most scores that there may ever be, fixed before the sample; at most 2**33 - 1.
    every : bool
        False: return, in a fraction of the time, what the end of the last range alone says, which mostly is the largest.

    Returns
    -------
    ndarray of float64 [..., R], or [...] unless every
        At the end of each range, the largest bound so far; with probability at least 1 - alpha none is above the mean. It
        does not depend on the ranges that follow. Below 1.

    Notes
    -----
    The capital is the average of those of the players who bet as in `betting_lower` but for samples of cap, cap / 2, cap / 4
    ... scores (down to 16): it decreases in m and is a nonnegative supermartingale from 1, as each of theirs. Ville's
    inequality: at the true mean it ever reaches 1 / alpha with probability at most alpha. With about twice as many scores in
    each range as in the one before, the bound is about as tight as that of `betting_lower`.

    References
    ----------
    Waudby-Smith and Ramdas, 2023; Ville, 1939; as `betting_lower`.

    Examples
    --------
    >>> counts = np.zeros((4, BINS), dtype=np.int64)
    >>> counts[:, bin_of(3 << 28)] = [125, 125, 250, 500]
    >>> betting_sequence_lower(counts, 0.001, 10_000, sums=counts * (3 << 28)).round(2).tolist()
    [0.68, 0.72, 0.74, 0.74]
    """
    c, s = _histogram(counts, sums)
    return _running(c, s, alpha, cap, prior, every)


def _running(
    counts: NDArray[np.int64], sums: NDArray[np.int64] | None, alpha: float, cap: int, prior: Prior | None, every: bool
) -> NDArray[np.float64]:
    ranges = counts.shape[-2]
    limits = _limits(counts, sums, alpha, _horizons(cap, counts), prior, range(0 if every else ranges - 1, ranges))
    return np.asarray(np.maximum.accumulate(limits, axis=-1) if every else limits[..., 0])


def betting_sequence_upper(
    counts: ArrayLike,
    alpha: float,
    cap: int,
    *,
    sums: ArrayLike | None = None,
    prior: Prior | None = None,
    slack: int = 2,
    every: bool = True,
) -> NDArray[np.float64]:
    """Return the betting upper confidence bound on the mean of a score in [0, 1], which may be read after every range.

    Parameters, errors, source: as `betting_sequence_lower` and `betting_upper`.

    Returns
    -------
    ndarray of float64 [..., R], or [...] unless every
        At the end of each range, the smallest bound so far. Above 0.

    Examples
    --------
    >>> counts = np.zeros((4, BINS), dtype=np.int64)
    >>> counts[:, bin_of(1 << 28)] = [125, 125, 250, 500]
    >>> betting_sequence_upper(counts, 0.001, 10_000, sums=counts * (1 << 28)).round(2).tolist()
    [0.32, 0.28, 0.26, 0.26]
    """
    c, s, prior = _reflected(*_histogram(counts, sums), prior)
    return _raised(_running(c, s, alpha, cap, prior, every), slack)


def _reflected(
    counts: NDArray[np.int64], sums: NDArray[np.int64] | None, prior: Prior | None
) -> tuple[NDArray[np.int64], NDArray[np.int64] | None, Prior | None]:
    """Return the histogram and the prior of 1 minus each score."""
    reflected = None if sums is None else (counts * UNIT - sums)[..., ::-1]
    return counts[..., ::-1], reflected, None if prior is None else (1 - np.asarray(prior[0]), prior[1], prior[2])


def _raised(lower: NDArray[np.float64], slack: int) -> NDArray[np.float64]:
    return np.asarray(np.minimum(np.nextafter(mirrored(lower) + slack / UNIT, np.inf), 1.0))
