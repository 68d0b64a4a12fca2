"""Robbins's mixture bound on a binomial proportion, which may be read after every trial."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln, xlog1py, xlogy

from ..._check import as_reals
from ..common import MAX_TRIALS, Floats, as_counts, check_share, fine_analysis_ends, largest_safe, mirrored
from ..estimates import Estimates
from ..registry import Bound
from .clopper_pearson import forecast_proportion

_MIXTURE_ERROR = 2.0**-48
# Relative to each term of the log capital; gammaln, log and log1p are within 2^-50 of theirs, and few terms are added.


def beta_binomial_sequence_lower(
    successes: ArrayLike, trials: ArrayLike, alpha: float, *, a: ArrayLike = 0.5, b: ArrayLike = 0.5
) -> Floats:
    """Return a lower confidence bound on a binomial proportion that may be read after every trial.

    Parameters
    ----------
    successes, trials : array_like of int
        As in `clopper_pearson_lower`, as are the errors raised.
    alpha : float
        Probability that the bound is ever, at any number of trials, above the proportion; in (0, 1).
    a, b : array_like of float
        Parameters of the mixing distribution Beta(a, b): above 0, at most 2**34, fixed before the trials, of shapes that
        broadcast with the counts. The bound is tightest for counts that this distribution expects.

    Returns
    -------
    ndarray of float64
        Never above the exact bound. Never more than 2e-9 below it (2e-11 up to 2**20 trials) for alpha up to 1/2 and a and b
        up to 1000. Below 1. Of the bounds so far the largest may be used.

    Notes
    -----
    The smallest p with ``B(a + k, b + n - k) / (B(a, b) p**k (1 - p)**(n - k)) < 1 / alpha``. Under the true p that ratio is
    a nonnegative martingale in n that starts at 1, the likelihood ratio of a Beta(a, b) mixture to p: by Ville's inequality
    it ever reaches 1 / alpha with probability at most alpha. It decreases in p up to k / n, where it is at most 1.
    The upper bound at the same alpha comes from the same martingale: both hold together with probability 1 - alpha.

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
    k, n = as_counts(successes, trials)
    level = -math.log(check_share(alpha))
    k, n, a, b = np.broadcast_arrays(k, n, _shape("a", a), _shape("b", b))
    gammas = [gammaln(a + k), gammaln(b + (n - k)), -gammaln(a + b + n), -gammaln(a), -gammaln(b), gammaln(a + b)]
    mixture, size = sum(gammas), sum(map(np.abs, gammas)) + 4 + level

    def safe(p: Floats) -> NDArray[np.bool_]:
        likelihood = -xlogy(k, p) - xlog1py(n - k, -p)  # both terms positive
        return np.asarray(mixture + likelihood - _MIXTURE_ERROR * (size + likelihood) >= level)

    with np.errstate(invalid="ignore"):  # inf - inf where p = 0 and k > 0: not safe, which is only not true
        return largest_safe(safe, np.zeros(k.shape), np.asarray(k / n))


def beta_binomial_sequence_upper(
    successes: ArrayLike, trials: ArrayLike, alpha: float, *, a: ArrayLike = 0.5, b: ArrayLike = 0.5
) -> Floats:
    """Return an upper confidence bound on a binomial proportion that may be read after every trial.

    It takes the arguments of `beta_binomial_sequence_lower` and is its mirror image: 1 minus the lower bound of the
    failures, with a and b exchanged.

    Returns
    -------
    ndarray of float64
        Never below the exact bound, nor further above it than the lower bound is below. Above 0.

    Examples
    --------
    >>> [round(float(p), 6) for p in beta_binomial_sequence_upper([0, 1, 100], 100, 0.001)]
    [0.093206, 0.122886, 1.0]
    """
    k, n = as_counts(successes, trials)
    return mirrored(beta_binomial_sequence_lower(n - k, n, alpha, a=b, b=a))


def _shape(name: str, value: ArrayLike) -> Floats:
    if np.asarray(value).dtype.kind not in "iuf":
        raise TypeError(f"{name} must be a number, or an array of numbers, got {value!r}")
    shape = as_reals(name, value, 2 * MAX_TRIALS, "above 0 and at most 2**34")
    if np.any(shape <= 0):
        raise ValueError(f"{name} must be above 0 and at most 2**34, got {value!r}")
    return shape


class BetaBinomialSequence(Bound):
    """Robbins's bounds, of votes; the mixture is what the selection sample makes of Jeffreys's prior."""

    name = "beta_binomial_sequence"
    sequence = True
    preferred = True

    def analysis_ends(self, n: int) -> list[int]:
        return fine_analysis_ends(n)

    def lower(self, estimates: Estimates, place: int, alpha: float) -> Floats:
        ours, before = estimates.at(place), estimates.before(place)
        a, b = before.sums + 0.5, before.trials - before.sums + 0.5
        return beta_binomial_sequence_lower(ours.sums, ours.trials, alpha, a=a, b=b)

    def upper(self, estimates: Estimates, place: int, alpha: float) -> Floats:
        ours, before = estimates.at(place), estimates.before(place)
        a, b = before.sums + 0.5, before.trials - before.sums + 0.5
        return beta_binomial_sequence_upper(ours.sums, ours.trials, alpha, a=a, b=b)

    def upper_of_others(self, estimates: Estimates, alpha: float) -> Floats:
        others = estimates.others()  # without a prior; the limit increases in the count, so the largest count is enough
        return beta_binomial_sequence_upper(others.sums.max(axis=1, keepdims=True), others.trials, alpha)

    def forecast(self, estimates: Estimates, mean: Floats, variance: Floats, alpha: float) -> Floats:
        most = estimates.max_samples  # the mixture pays for not knowing the proportion
        return forecast_proportion(mean, most, alpha / np.sqrt(1 + most / estimates.selected.trials))
