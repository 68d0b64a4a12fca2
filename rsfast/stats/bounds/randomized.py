"""Stevens's randomized bound on a binomial proportion, which errs exactly as often as alpha says."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..._check import as_reals
from ..common import Floats, as_counts, largest_safe, mirrored
from ..estimates import Estimates
from ..registry import Bound
from .clopper_pearson import (
    counts_and_level,
    forecast_proportion,
    near_quantile,
    tail_probability,
    upper_of_largest_count,
)


def randomized_clopper_pearson_lower(successes: ArrayLike, trials: ArrayLike, alpha: float, uniform: ArrayLike) -> Floats:
    """Return the randomized one-sided lower confidence limit of a binomial proportion: it errs as often as alpha says.

    Parameters
    ----------
    successes, trials : array_like of int
        Counts, of shapes that broadcast; ``0 <= successes <= trials``, ``1 <= trials <= 2**33``.
    alpha : float
        Probability, over the trials and uniform, that the limit is above the proportion; in (0, 1).
    uniform : array_like of float
        One number for each limit, uniform on [0, 1], independent of the trials and never drawn again for another analysis of
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
    k, n, level = counts_and_level(successes, trials, alpha)
    u = as_reals("uniform", uniform, 1, "in [0, 1]")
    k, n, level, u = np.broadcast_arrays(k, n, level, u)

    def safe(p: Floats) -> NDArray[np.bool_]:
        return np.asarray(u * tail_probability(k, n, p) + (1 - u) * tail_probability(k + 1, n, p) <= level)

    return largest_safe(safe, near_quantile(k, n, level) * (1 - 1e-11), near_quantile(k + 1, n, level) * (1 + 1e-11))


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


class RandomizedClopperPearson(Bound):
    """The randomized limits, of votes; uniforms come from the noise stream."""

    name = "randomized_clopper_pearson"
    randomized = True

    def lower(self, estimates: Estimates, place: int, alpha: float) -> Floats:
        ours = estimates.at(place)
        return randomized_clopper_pearson_lower(ours.sums, ours.trials, alpha, estimates.uniforms_at(place))

    def upper(self, estimates: Estimates, place: int, alpha: float) -> Floats:
        ours = estimates.at(place)
        return randomized_clopper_pearson_upper(ours.sums, ours.trials, alpha, estimates.uniforms_at(place))

    def upper_of_others(self, estimates: Estimates, alpha: float) -> Floats:
        return upper_of_largest_count(estimates, alpha)  # they have no uniform of their own

    def forecast(self, estimates: Estimates, mean: Floats, variance: Floats, alpha: float) -> Floats:
        return forecast_proportion(mean, estimates.max_samples, alpha)
