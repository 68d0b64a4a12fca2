"""The empirical Bernstein bound on a mean in [0, 1]."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..._check import as_reals
from ..common import Floats, as_trials, check_share, largest, minus_width, plus_width
from ..estimates import Estimates, Scores
from ..registry import Bound

_VARIANCE_ERROR = 2.0**-48


def _width(variance: ArrayLike, trials: ArrayLike, alpha: float) -> Floats:
    spread, n = as_reals("variance", variance, np.inf, "at least 0"), as_trials(trials)
    log = math.log(2) - math.log(check_share(alpha))
    with np.errstate(divide="ignore"):  # one trial: an infinite width, the trivial bound
        return np.asarray(np.sqrt(2 * log * spread / n) + 7 * log / (3 * (n - 1)))


def empirical_bernstein_lower(mean: ArrayLike, variance: ArrayLike, trials: ArrayLike, alpha: float) -> Floats:
    """Return the empirical Bernstein lower confidence bound on the mean of a variable in [0, 1].

    Parameters
    ----------
    mean, trials, alpha
        As in `hoeffding_lower`, as are the errors raised; with one trial the bound is the trivial one.
    variance : array_like of float
        Unbiased sample variance (divided by ``trials - 1``) of the whole sample, rounded up; at least 0, may be inf.

    Returns
    -------
    ndarray of float64
        ``mean - sqrt(2 variance ln(2 / alpha) / trials) - 7 ln(2 / alpha) / (3 (trials - 1))``, rounded down, at least 0.

    References
    ----------
    Maurer and Pontil, "Empirical Bernstein Bounds and Sample Variance Penalization", 2009, Theorem 4.

    Examples
    --------
    >>> round(float(empirical_bernstein_lower(0.9, 0.01, 1000, 0.001)), 6)
    0.869917
    """
    return minus_width(as_reals("mean", mean, 1, "in [0, 1]"), _width(variance, trials, alpha))


def empirical_bernstein_upper(mean: ArrayLike, variance: ArrayLike, trials: ArrayLike, alpha: float) -> Floats:
    """Return the empirical Bernstein upper confidence bound on the mean of a variable in [0, 1].

    It takes the arguments of `empirical_bernstein_lower`; an inexact mean has to be rounded up.

    Returns
    -------
    ndarray of float64
        ``mean + sqrt(2 variance ln(2 / alpha) / trials) + 7 ln(2 / alpha) / (3 (trials - 1))``, rounded up, at most 1.

    Examples
    --------
    >>> round(float(empirical_bernstein_upper(0.1, 0.01, 1000, 0.001)), 6)
    0.130083
    """
    return plus_width(as_reals("mean", mean, 1, "in [0, 1]"), _width(variance, trials, alpha))


def _upper(scores: Scores, alpha: float) -> Floats:
    _, mean, variance = scores.moments()
    return empirical_bernstein_upper(mean, variance, scores.trials, alpha)


def _contenders(scores: Scores, alpha: float, count: int) -> NDArray[np.bool_]:
    """Return which classes [inputs, classes] may have one of the largest limits of their input, or sums of no draws.

    Moments are exact and slow, and mostly one class of an input is left. Its variance here is off by less than 2^-49.
    """
    unit, n = 2.0**scores.bits, scores.trials.astype(np.float64)
    mean, square = scores.sums / (n * unit), scores.squares / (n * unit)
    sound = (square <= mean) & (mean <= 1) & (square * (1 - _VARIANCE_ERROR) >= mean * mean)
    spread = square - mean * mean
    with np.errstate(divide="ignore", invalid="ignore"):  # one trial: nothing is left out
        factor = -2 * math.log(alpha / 2) / (n - 1)
        least = mean + np.sqrt(factor * np.maximum(spread - _VARIANCE_ERROR, 0))
        most = mean + np.sqrt(factor * np.maximum(spread + _VARIANCE_ERROR, 0)) + _VARIANCE_ERROR
    return np.asarray(~sound | ~(most < largest(least, count)[:, -1:]))


class EmpiricalBernstein(Bound):
    """Empirical Bernstein bounds, of votes or scores."""

    name = "empirical_bernstein"
    scores = True

    def lower(self, estimates: Estimates, place: int, alpha: float) -> Floats:
        ours = estimates.at(place)
        mean, _, variance = ours.moments()
        return empirical_bernstein_lower(mean, variance, ours.trials, alpha)

    def upper(self, estimates: Estimates, place: int, alpha: float) -> Floats:
        return _upper(estimates.at(place), alpha)

    def upper_of_others(self, estimates: Estimates, alpha: float, count: int = 1) -> Floats:
        scores = estimates.others()
        rows, classes = np.nonzero(_contenders(scores, alpha, count))
        limits = np.zeros(scores.sums.shape)
        limits[rows, classes] = _upper(
            scores._replace(
                sums=scores.sums[rows, classes], squares=scores.squares[rows, classes], trials=scores.trials[rows, 0]
            ),
            alpha,
        )
        return largest(limits, count)

    def forecast(self, estimates: Estimates, mean: Floats, variance: Floats, alpha: float) -> Floats:
        return empirical_bernstein_lower(mean, variance, estimates.max_samples, alpha)
