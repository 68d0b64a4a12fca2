"""Robbins's mixture bound on a binomial proportion, which may be read after every trial."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ... import _special
from ..._check import as_reals
from ..common import (
    MAX_TRIALS,
    Floats,
    Integers,
    as_counts,
    check_share,
    fine_analysis_ends,
    largest,
    largest_safe,
    mirrored,
)
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
    gammas = _log_mixture(k, n, a, b)
    mixture, size = sum(gammas), sum(map(np.abs, gammas)) + 4 + level

    xlogy, xlog1py = _special.xlogy, _special.xlog1py

    def safe(p: Floats) -> NDArray[np.bool_]:
        likelihood = -xlogy(k, p) - xlog1py(n - k, -p)  # both terms positive
        return np.asarray(mixture + likelihood - _MIXTURE_ERROR * (size + likelihood) >= level)

    with np.errstate(invalid="ignore"):  # inf - inf where p = 0 and k > 0: not safe, which is only not true
        return largest_safe(safe, np.zeros(k.shape), np.asarray(k / n), _bracket(k, n, level - mixture, size))


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


def _log_mixture(k: Floats | Integers, n: Floats | Integers, a: Floats, b: Floats) -> list[Floats]:
    """Return the terms of ``ln B(a + k, b + n - k) - ln B(a, b)``."""
    gammaln = _special.gammaln
    return [gammaln(a + k), gammaln(b + (n - k)), -gammaln(a + b + n), -gammaln(a), -gammaln(b), gammaln(a + b)]


def _bracket(
    k: Floats | Integers, n: Floats | Integers, needed: Floats | float, size: Floats | float
) -> tuple[Floats, Floats]:
    """Return where all p up to the first are safe, and none from the second, whatever rounding does; mostly within 1e-10.

    Safe is where ``-k ln p - (n - k) ln(1 - p)``, which decreases up to k / n, exceeds `needed` by the charge for rounding.
    That is several times the rounding. So below 0 no p is safe, and from twice the charge on all are.
    """
    k, failures = np.asarray(k, dtype=np.float64), np.asarray(n - k, dtype=np.float64)
    mean = np.clip(k / n, 1e-300, 1 - 2.0**-53)
    most = mean * (1 - 2.0**-30)  # the slope at the mean is 0

    def excess(p: Floats) -> Floats:
        return np.asarray(-k * np.log(p) - failures * np.log1p(-p) - needed)

    # In the angle whose squared sine is p the log likelihood is close to a parabola. Newton's method does the rest.
    angle = np.arcsin(np.sqrt(mean)) - np.sqrt(np.maximum(-excess(mean), 0) / (2 * n))
    p = np.clip(np.sin(np.maximum(angle, 0)) ** 2, mean / 1024, most)
    for _ in range(6):
        slope = k / p - failures / (1 - p)
        p = np.clip(p + excess(p) / np.maximum(slope, 1e-300), p / 8, most)
    charge = _MIXTURE_ERROR * (size + needed)
    step = 1e-11 * np.minimum(p, 1 - p) + 2 * charge / np.maximum(slope, 1e-300)
    low, high = np.clip(p - step, p / 2, p), np.minimum(p + step, mean)
    return np.where(excess(low) > 2 * charge, low, 0), np.where(excess(high) < 0, high, mean)


def rough_limit(successes: Integers, trials: Integers, alpha: float, a: Floats, b: Floats) -> Floats:
    """Return a number above `beta_binomial_sequence_lower`, or the mean; mostly by less than 1e-10, and for little time.

    Examples
    --------
    >>> rough = rough_limit(np.array([99]), np.array([100]), 0.001, np.array([0.5]), np.array([0.5]))
    >>> 0 < float(rough[0] / beta_binomial_sequence_lower(99, 100, 0.001)) - 1 < 1e-10
    True
    """
    gammas, level = _log_mixture(successes, trials, a, b), -math.log(alpha)
    return _bracket(successes, trials, level - sum(gammas), sum(map(np.abs, gammas)) + 4 + level)[1]


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

    def rough(self) -> Bound:
        return _ROUGH

    def analysis_ends(self, n: int) -> list[int]:
        return fine_analysis_ends(n)

    @staticmethod
    def limit(successes: Integers, trials: Integers, alpha: float, a: Floats, b: Floats) -> Floats:
        """Return the lower limits."""
        return beta_binomial_sequence_lower(successes, trials, alpha, a=a, b=b)

    @staticmethod
    def known(estimates: Estimates, place: int) -> list[Any]:
        """Return votes for a class, votes in all, and the parameters of the mixture, [inputs, 1] each."""
        ours, before = estimates.at(place), estimates.before(place)
        return [ours.sums, ours.trials, before.sums + 0.5, before.trials - before.sums + 0.5]

    @staticmethod
    def known_of_others(estimates: Estimates, count: int = 1) -> list[Any]:
        """Return the same for the `count` largest of the others, without a prior: their limit increases in the votes."""
        others = estimates.others()
        votes = largest(others.sums, count)
        half = np.full(votes.shape, 0.5)
        return [votes, np.broadcast_to(others.trials, votes.shape), half, half]

    def lower(self, estimates: Estimates, place: int, alpha: float) -> Floats:
        k, n, a, b = self.known(estimates, place)
        return self.limit(k, n, alpha, a, b)

    def upper(self, estimates: Estimates, place: int, alpha: float) -> Floats:
        k, n, a, b = self.known(estimates, place)
        return mirrored(self.limit(n - k, n, alpha, b, a))

    def upper_of_others(self, estimates: Estimates, alpha: float, count: int = 1) -> Floats:
        k, n, a, b = self.known_of_others(estimates, count)
        return mirrored(self.limit(n - k, n, alpha, b, a))

    def both(self, estimates: Estimates, alpha: float) -> tuple[Floats, Floats]:
        others = [self.known(estimates, 1)]  # in one call, which costs little more than one of its limits
        if estimates.scores.sums.shape[1] > 2:
            others.append(self.known_of_others(estimates))
        mirror = [(n - k, n, b, a) for k, n, a, b in others]
        k, n, a, b = (np.hstack(each) for each in zip(self.known(estimates, 0), *mirror, strict=True))
        found = self.limit(k, n, alpha, a, b)
        return found[:, :1], mirrored(found[:, 1:]).max(axis=1, keepdims=True)

    def forecast(self, estimates: Estimates, mean: Floats, variance: Floats, alpha: float) -> Floats:
        most = estimates.max_samples  # the mixture pays for not knowing the proportion
        return forecast_proportion(mean, most, alpha / np.sqrt(1 + most / estimates.selected.trials))


class _Rough(BetaBinomialSequence):
    """The same, in Newton steps, and its forecast in steps of a table."""

    limit = staticmethod(rough_limit)

    def forecast(self, estimates: Estimates, mean: Floats, variance: Floats, alpha: float) -> Floats:
        (before,) = set(estimates.selected.trials.ravel().tolist())
        return np.interp(mean, *_forecasts(estimates.max_samples, before, alpha))


@lru_cache(maxsize=64)
def _forecasts(most: int, before: int, alpha: float) -> tuple[Floats, Floats]:
    """Return means, and `BetaBinomialSequence.forecast` of each."""
    means = _special.expit(np.linspace(-math.log(most) - 5, math.log(most) + 5, 257))
    return means, forecast_proportion(means, most, alpha / np.sqrt(1 + most / before))


_ROUGH = _Rough()
