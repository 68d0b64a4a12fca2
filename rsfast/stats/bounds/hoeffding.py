"""Hoeffding's bound on a mean in [0, 1]."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from ..._check import as_reals
from ..common import Floats, as_trials, check_share, largest, minus_width, plus_width
from ..estimates import Estimates, Scores
from ..registry import Bound


def _width(trials: ArrayLike, alpha: float) -> Floats:
    return np.asarray(np.sqrt(-math.log(check_share(alpha)) / (2 * as_trials(trials))))


def hoeffding_lower(mean: ArrayLike, trials: ArrayLike, alpha: float) -> Floats:
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
    return minus_width(as_reals("mean", mean, 1, "in [0, 1]"), _width(trials, alpha))


def hoeffding_upper(mean: ArrayLike, trials: ArrayLike, alpha: float) -> Floats:
    """Return Hoeffding's upper confidence bound on the mean of a variable in [0, 1].

    It takes the arguments of `hoeffding_lower`; an inexact mean has to be rounded up.

    Returns
    -------
    ndarray of float64
        ``mean + sqrt(ln(1 / alpha) / (2 trials))``, rounded up, at most 1.

    Examples
    --------
    >>> round(float(hoeffding_upper(0.1, 1000, 0.001)), 6)
    0.15877
    """
    return plus_width(as_reals("mean", mean, 1, "in [0, 1]"), _width(trials, alpha))


def _upper(scores: Scores, alpha: float) -> Floats:
    return hoeffding_upper(scores.moments()[1], scores.trials, alpha)


class Hoeffding(Bound):
    """Hoeffding's bounds, of votes or scores."""

    name = "hoeffding"
    scores = True

    def lower(self, estimates: Estimates, place: int, alpha: float) -> Floats:
        ours = estimates.at(place)
        return hoeffding_lower(ours.moments()[0], ours.trials, alpha)

    def upper(self, estimates: Estimates, place: int, alpha: float) -> Floats:
        return _upper(estimates.at(place), alpha)

    def upper_of_others(self, estimates: Estimates, alpha: float, count: int = 1) -> Floats:
        return largest(_upper(estimates.others(), alpha), count)

    def forecast(self, estimates: Estimates, mean: Floats, variance: Floats, alpha: float) -> Floats:
        return hoeffding_lower(mean, estimates.max_samples, alpha)
