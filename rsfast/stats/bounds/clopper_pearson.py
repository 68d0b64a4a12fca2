"""Clopper and Pearson's exact bounds on a binomial proportion, and Stevens's, which err exactly as often as alpha says."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaincinv, xlogy
from scipy.stats import beta, binom

from ..._check import as_reals
from ..common import WIDTH_ERROR, Floats, Integers, as_counts, check_share, largest_safe, mirrored
from ..estimates import Estimates
from ..registry import Bound

_TAIL_ERROR = 1e-11
# binom.sf is off by at most 2e-15 sqrt(trials), relatively, in SciPy 1.17 and 4e-12 sqrt(trials) in 1.11 and 1.12 (against
# 60-digit arithmetic, trials up to 2^33, tails down to 1e-12). Charging the tail this much moves the limit by no more than
# 1e-11 sqrt(trials) * tail / density, and tail / density is at most 1.26 standard deviations below the mean: 7e-12.

_FAINT = 1e-200  # SciPy 1.17 gives 0 for some tails of 1e-244, where n - k is about 40


def _counts_and_level(successes: ArrayLike, trials: ArrayLike, alpha: float) -> tuple[Integers, Integers, Floats]:
    """Return both counts, and how large SciPy's tail may be where the exact tail is alpha."""
    k, n = as_counts(successes, trials)
    return k, n, np.asarray(check_share(alpha) * (1 - _TAIL_ERROR * np.sqrt(n)))


def _tail_probability(k: Integers, n: Integers, p: Floats) -> Floats:
    """Return P(Bin(n, p) >= k), but for SciPy's error; where SciPy's may be 0, an upper bound on it.

    That is Chernoff's bound, ``exp(-n KL(k / n, p))``, its exponent raised by more than its terms are rounded.
    """
    tail = np.asarray(binom.sf(k - 1, n, p))
    faint = (tail < _FAINT) & (k <= n)
    if not faint.any():
        return tail
    with np.errstate(divide="ignore", invalid="ignore"):  # where p is 0 or 1, and where the tail is not faint
        exponent = xlogy(k, n * p / k) + xlogy(n - k, n * (1 - p) / (n - k))
    return np.where(faint, np.exp(exponent + (n + 1000.0) * WIDTH_ERROR), tail)


def _near_quantile(k: Integers, n: Integers, level: Floats) -> Floats:
    """Return about the p at which P(Bin(n, p) >= k) = level, for k from 0 to n + 1."""
    inside = np.clip(k, 1, n)
    level = np.maximum(level, 1e-80)  # below, SciPy warns; the limit is then found from further off
    return np.where(k == inside, beta.ppf(level, inside, n - inside + 1), np.where(k > 0, 1.0, 0.0))


def clopper_pearson_lower(successes: ArrayLike, trials: ArrayLike, alpha: float) -> Floats:
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
    k, n, level = _counts_and_level(successes, trials, alpha)
    guess = _near_quantile(k, n, level)
    return largest_safe(lambda p: _tail_probability(k, n, p) <= level, guess * (1 - 1e-11), guess * (1 + 1e-11))


def clopper_pearson_upper(successes: ArrayLike, trials: ArrayLike, alpha: float) -> Floats:
    """Return the exact one-sided upper confidence limit of a binomial proportion.

    It takes the arguments of `clopper_pearson_lower` and is its mirror image: 1 minus the lower limit of the failures.

    Returns
    -------
    ndarray of float64
        Never below the exact limit; for alpha from 1e-190 to 1/2 never more than 1e-11 above it. Always above 0.

    Examples
    --------
    >>> [round(float(p), 6) for p in clopper_pearson_upper([0, 1, 100], 100, 0.001)]
    [0.066746, 0.088627, 1.0]
    """
    k, n = as_counts(successes, trials)
    return mirrored(clopper_pearson_lower(n - k, n, alpha))


def randomized_clopper_pearson_lower(successes: ArrayLike, trials: ArrayLike, alpha: float, uniform: ArrayLike) -> Floats:
    """Return the randomized one-sided lower confidence limit of a binomial proportion: it errs as often as alpha says.

    Parameters
    ----------
    successes, trials, alpha
        As in `clopper_pearson_lower`, as are the errors raised; the probability is over the trials and uniform, and exact.
    uniform : array_like of float
        One number for each limit, uniform on [0, 1], independent of the trials and never drawn again for another analysis of
        the same ones. Round it up if it is discrete (``(word + 1) / 2**32``): rounding down makes the limit too large. At 1
        the limit is Clopper and Pearson's.

    Returns
    -------
    ndarray of float64
        Never above the exact limit; for alpha from 1e-190 to 1/2 never more than 2e-11 below it. Below 1: where
        the exact limit is 1 (no failure and uniform at most alpha) the largest float64 below it.

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
    k, n, level = _counts_and_level(successes, trials, alpha)
    u = as_reals("uniform", uniform, 1, "in [0, 1]")
    k, n, level, u = np.broadcast_arrays(k, n, level, u)

    def safe(p: Floats) -> NDArray[np.bool_]:
        return np.asarray(u * _tail_probability(k, n, p) + (1 - u) * _tail_probability(k + 1, n, p) <= level)

    return largest_safe(safe, _near_quantile(k, n, level) * (1 - 1e-11), _near_quantile(k + 1, n, level) * (1 + 1e-11))


def randomized_clopper_pearson_upper(successes: ArrayLike, trials: ArrayLike, alpha: float, uniform: ArrayLike) -> Floats:
    """Return the randomized one-sided upper confidence limit of a binomial proportion: it errs as often as alpha says.

    It takes the arguments of `randomized_clopper_pearson_lower` and is its mirror image: 1 minus the lower limit of the
    failures. One uniform may serve both limits.

    Returns
    -------
    ndarray of float64
        Never below the exact limit; for alpha from 1e-190 to 1/2 never more than 2e-11 above it. Always above 0.

    Examples
    --------
    >>> [round(float(p), 6) for p in randomized_clopper_pearson_upper([0, 1, 100], 100, 0.001, 0.5)]
    [0.060254, 0.082515, 1.0]
    """
    k, n = as_counts(successes, trials)
    return mirrored(randomized_clopper_pearson_lower(n - k, n, alpha, uniform))


def forecast_proportion(mean: Floats, trials: Integers | int, alpha: Floats | float) -> Floats:
    """Return about `clopper_pearson_lower` of counts that need not be integers; it is not rounded outward.

    Examples
    --------
    >>> round(float(forecast_proportion(np.array(0.99), 100, 0.001)), 6)
    0.911373
    """
    successes = np.maximum(mean * trials, 1e-9)
    return np.asarray(betaincinv(successes, trials - successes + 1, alpha))


class ClopperPearson(Bound):
    """Clopper and Pearson's limits, of votes."""

    name = "clopper_pearson"
    preferred = True
    pools = True

    def lower(self, estimates: Estimates, place: int, alpha: float) -> Floats:
        ours = estimates.at(place)
        return clopper_pearson_lower(ours.sums, ours.trials, alpha)

    def upper(self, estimates: Estimates, place: int, alpha: float) -> Floats:
        ours = estimates.at(place)
        return clopper_pearson_upper(ours.sums, ours.trials, alpha)

    def upper_of_others(self, estimates: Estimates, alpha: float) -> Floats:
        others = estimates.others()  # the limit increases in the count, so the largest count is enough
        return clopper_pearson_upper(others.sums.max(axis=1, keepdims=True), others.trials, alpha)

    def forecast(self, estimates: Estimates, mean: Floats, variance: Floats, alpha: float) -> Floats:
        return forecast_proportion(mean, estimates.max_samples, alpha)


class RandomizedClopperPearson(ClopperPearson):
    """The randomized limits, of votes; uniforms come from the noise stream. Other classes have none."""

    name = "randomized_clopper_pearson"
    preferred = False
    pools = False
    randomized = True

    def lower(self, estimates: Estimates, place: int, alpha: float) -> Floats:
        ours = estimates.at(place)
        return randomized_clopper_pearson_lower(ours.sums, ours.trials, alpha, estimates.uniforms_at(place))

    def upper(self, estimates: Estimates, place: int, alpha: float) -> Floats:
        ours = estimates.at(place)
        return randomized_clopper_pearson_upper(ours.sums, ours.trials, alpha, estimates.uniforms_at(place))
