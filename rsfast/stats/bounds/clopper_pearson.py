"""Clopper and Pearson's exact bounds on a binomial proportion, and Stevens's, which err exactly as often as alpha says."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ... import _special
from ..._check import as_reals
from ..common import WIDTH_ERROR, Floats, Integers, as_counts, check_share, largest, largest_safe, mirrored
from ..estimates import Estimates, leader_and_rival
from ..registry import Bound

_TAIL_ERROR = 1e-11
# betainc is off by at most 1.1e-14 sqrt(trials), relatively, in SciPy 1.17 (2e-15 for tails down to 1e-12), and by
# 6e-12 sqrt(trials) in 1.12: against 40-digit arithmetic, trials up to 2^33, tails down to 1e-200. Charging the tail this
# much moves the limit by no more than 1e-11 sqrt(trials) * tail / density, and tail / density is at most 1.26 standard
# deviations below the mean: 7e-12. SciPy 1.11 has another betainc, which is wrong in every digit for some large counts.

_FAINT = 1e-200  # SciPy 1.17 gives 0 for some tails of 1e-244, where n - k is about 40


def _level(alpha: float, n: Floats) -> Floats:
    """Return how large SciPy's tail may be where the exact tail is alpha."""
    return np.asarray(check_share(alpha) * (1 - _TAIL_ERROR * np.sqrt(n)))


class _Tail:
    """P(Bin(n, p) >= k) as a function of p, for k from 0 to n + 1, but for SciPy's error.

    Where SciPy's may be 0, and level is as small, it is an upper bound. That is Chernoff's bound, ``exp(-n KL(k / n, p))``,
    its exponent raised by more than its terms are rounded.
    """

    def __init__(self, k: Floats, n: Floats, level: Floats) -> None:
        self._k = np.minimum(np.maximum(k, 1), n)
        self._n, self._failures = n, n - self._k + 1
        self._edge = None if (self._k == k).all() else (self._k != k, k > 0)
        # A faint tail is below any other level, be it SciPy's or the bound.
        self._deep = bool((level < _FAINT * 1e50).any())

    def __call__(self, p: Floats) -> Floats:
        found: Floats = _special.betainc(self._k, self._failures, p)
        if self._deep and (faint := found < _FAINT).any():
            k, n = self._k, self._n
            with np.errstate(divide="ignore", invalid="ignore"):  # where p is 0 or 1, and where the tail is not faint
                exponent = _special.xlogy(k, n * p / k) + _special.xlogy(n - k, n * (1 - p) / (n - k))
            found = np.where(faint, np.exp(exponent + (n + 1000.0) * WIDTH_ERROR), found)
        return found if self._edge is None else np.where(self._edge[0], ~self._edge[1], found)

    def near_quantile(self, level: Floats) -> Floats:
        """Return about the p at which this is level."""
        level = np.maximum(level, 1e-80)  # below, some of SciPy's quantiles are wrong
        found = _special.betaincinv(self._k, self._failures, level)
        return np.asarray(found) if self._edge is None else np.where(self._edge[0], self._edge[1], found)


def _lower(k: Integers, n: Integers, alpha: float) -> Floats:
    """Return `clopper_pearson_lower` of counts that were checked; it is found once for all that are equal."""
    if one := k.size == 1:
        successes, trials = k.astype(np.float64), n.astype(np.float64)
    else:
        pairs, places = np.unique(k + 1j * n, return_inverse=True)
        successes, trials = pairs.real.copy(), pairs.imag.copy()
    level = _level(alpha, trials)
    tail = _Tail(successes, trials, level)
    guess = tail.near_quantile(level)
    found = largest_safe(lambda p: tail(p) <= level, guess * (1 - 1e-11), guess * (1 + 1e-11))
    return found if one else found[places].reshape(k.shape)


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
    it, and far off for some arguments (999 failures in 1e9). So that quantile is only where the search starts: the tail
    itself is bisected over the float64 numbers, down to two neighbours, and charged with more than its own measured error.

    References
    ----------
    Clopper and Pearson, "The use of confidence or fiducial limits illustrated in the case of the binomial", 1934.

    Examples
    --------
    >>> [round(float(p), 6) for p in clopper_pearson_lower([0, 99, 100], 100, 0.001)]
    [0.0, 0.911373, 0.933254]
    """
    return _lower(*as_counts(successes, trials), alpha)


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
    return mirrored(_lower(n - k, n, alpha))


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
    k, n, u = np.broadcast_arrays(*as_counts(successes, trials), as_reals("uniform", uniform, 1, "in [0, 1]"))
    k, n = k.astype(np.float64), n.astype(np.float64)
    level = _level(alpha, n)
    from_k, beyond_k = _Tail(k, n, level), _Tail(k + 1, n, level)

    def safe(p: Floats) -> NDArray[np.bool_]:
        return np.asarray(u * from_k(p) + (1 - u) * beyond_k(p) <= level)

    return largest_safe(safe, from_k.near_quantile(level) * (1 - 1e-11), beyond_k.near_quantile(level) * (1 + 1e-11))


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


def majority_p_value(first: Integers, second: Integers) -> Floats:
    """Return the p-value of the two-sided exact test that two counts, the first at least the second, are equally likely.

    That is ``min(1, 2 P(Bin(first + second, 1/2) >= first))``, never below the exact value; 1 without a count.

    Examples
    --------
    >>> float(majority_p_value(np.array(11), np.array(0))), round(float(majority_p_value(np.array(18), np.array(2))), 6)
    (0.0009765625, 0.000402)
    """
    n = np.maximum(first + second, 1)
    tail = _Tail(first.astype(np.float64), n.astype(np.float64), np.zeros(()))(np.array(0.5))
    charged = tail * (1 + _TAIL_ERROR * np.sqrt(n))
    unanimous = np.ldexp(1.0, -n)  # exact: at alpha = 2^-10 eleven votes are enough, as `smallest_predictable_n` says
    return np.asarray(np.minimum(2 * np.where(n == first, unanimous, charged), 1.0))


def forecast_proportion(mean: Floats, trials: Integers | int, alpha: Floats | float) -> Floats:
    """Return about `clopper_pearson_lower` of counts that need not be integers; it is not rounded outward.

    Examples
    --------
    >>> round(float(forecast_proportion(np.array(0.99), 100, 0.001)), 6)
    0.911373
    """
    successes = np.maximum(mean * trials, 1e-9)
    return np.asarray(_special.betaincinv(successes, trials - successes + 1, alpha))


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

    def upper_of_others(self, estimates: Estimates, alpha: float, count: int = 1) -> Floats:
        others = estimates.others()  # the limit increases in the votes, so those of the most votes are the largest
        return clopper_pearson_upper(largest(others.sums, count), others.trials, alpha)

    def both(self, estimates: Estimates, alpha: float) -> tuple[Floats, Floats]:
        # In one call, which costs little more than one limit; the upper limit increases in the count.
        scores = estimates.scores
        ours, rival = leader_and_rival(scores.sums, estimates.classes[:, :1])
        found = clopper_pearson_lower(np.hstack([ours, scores.trials - rival]), scores.trials, alpha)
        return found[:, :1], mirrored(found[:, 1:])

    def forecast(self, estimates: Estimates, mean: Floats, variance: Floats, alpha: float) -> Floats:
        return forecast_proportion(mean, estimates.max_samples, alpha)


class RandomizedClopperPearson(ClopperPearson):
    """The randomized limits, of votes; uniforms come from the noise stream. Other classes have none."""

    name = "randomized_clopper_pearson"
    preferred = False
    pools = False
    randomized = True
    both = Bound.both

    def lower(self, estimates: Estimates, place: int, alpha: float) -> Floats:
        ours = estimates.at(place)
        return randomized_clopper_pearson_lower(ours.sums, ours.trials, alpha, estimates.uniforms_at(place))

    def upper(self, estimates: Estimates, place: int, alpha: float) -> Floats:
        ours = estimates.at(place)
        return randomized_clopper_pearson_upper(ours.sums, ours.trials, alpha, estimates.uniforms_at(place))
