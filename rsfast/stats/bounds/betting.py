"""Bounds on a mean in [0, 1] by betting: for a sample of fixed size, and for every sample size at once."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ...heads.bins import BINS as BINS
from ...heads.bins import bin_of as bin_of
from ..capital import (
    RATES,
    Prior,
    betting_limits,
    check_histogram,
    check_horizons,
    mean_growth,
    mirrored_with_slack,
    reflected,
)
from ..common import Floats, Integers, check_share
from ..estimates import Estimates
from ..registry import Bound
from ..schedule import analysis_ends, range_ends
from . import beta_binomial, clopper_pearson
from .empirical_bernstein import upper_of_all_others


def typical_betting_lower(mean: ArrayLike, variance: ArrayLike, trials: ArrayLike, alpha: float) -> Floats:
    """Forecast about what `betting_lower` gives for a sample with this mean and variance; this is no bound.

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
    growth = mean_growth(mean, variance) + math.log(check_share(alpha)) / np.asarray(trials, dtype=np.float64)[..., None]
    return np.asarray(np.max(np.expm1(growth) / RATES, axis=-1).clip(0))


def betting_lower(counts: ArrayLike, alpha: float, *, sums: ArrayLike | None = None, prior: Prior | None = None) -> Floats:
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
    c, s = check_histogram(counts, sums)
    return np.asarray(betting_limits(c, s, alpha, c.sum(axis=(-2, -1))[..., None], prior, [c.shape[-2] - 1])[..., 0])


def betting_upper(
    counts: ArrayLike, alpha: float, *, sums: ArrayLike | None = None, prior: Prior | None = None, slack: int = 2
) -> Floats:
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
    c, s, prior = reflected(*check_histogram(counts, sums), prior)
    lower = betting_limits(c, s, alpha, c.sum(axis=(-2, -1))[..., None], prior, [c.shape[-2] - 1])[..., 0]
    return mirrored_with_slack(lower, slack)


def betting_sequence_lower(
    counts: ArrayLike,
    alpha: float,
    max_samples: int,
    *,
    sums: ArrayLike | None = None,
    prior: Prior | None = None,
    every: bool = True,
) -> Floats:
    """Return the betting lower confidence bound on the mean of a score in [0, 1] that may be read after every range.

    Parameters, errors, source: as `betting_lower`.

    Parameters
    ----------
    counts : array_like of int [..., R, BINS]
        The ranges so far; more may follow.
    max_samples : int
        Most scores that there may ever be, fixed before the sample; at most 2**33 - 1.
    every : bool
        False: return, in a fraction of the time, only the bound at the end of the last range, which mostly is the largest.

    Returns
    -------
    ndarray of float64 [..., R], or [...] unless every
        At the end of each range, the largest bound so far; with probability at least 1 - alpha none is above the mean. It
        does not depend on the ranges that follow. Below 1.

    Notes
    -----
    Bettors bet as in `betting_lower`, but for samples of max_samples, max_samples / 2, max_samples / 4 ... scores (down to
    16). The capital is the average of theirs: it decreases in m and is a nonnegative supermartingale from 1, as each of
    theirs is. By Ville's inequality it ever reaches 1 / alpha at the true mean with probability at most alpha. If each range
    has about twice as many scores as the one before, the bound is about as tight as that of `betting_lower`.

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
    c, s = check_histogram(counts, sums)
    return _running(c, s, alpha, max_samples, prior, every)


def _running(
    counts: Integers, sums: Integers | None, alpha: float, max_samples: int, prior: Prior | None, every: bool
) -> Floats:
    ranges = counts.shape[-2]
    limits = betting_limits(
        counts, sums, alpha, check_horizons(max_samples, counts), prior, range(0 if every else ranges - 1, ranges)
    )
    return np.asarray(np.maximum.accumulate(limits, axis=-1) if every else limits[..., 0])


def betting_sequence_upper(
    counts: ArrayLike,
    alpha: float,
    max_samples: int,
    *,
    sums: ArrayLike | None = None,
    prior: Prior | None = None,
    slack: int = 2,
    every: bool = True,
) -> Floats:
    """Return the betting upper confidence bound on the mean of a score in [0, 1] that may be read after every range.

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
    c, s, prior = reflected(*check_histogram(counts, sums), prior)
    return mirrored_with_slack(_running(c, s, alpha, max_samples, prior, every), slack)


def _known(estimates: Estimates, place: int) -> tuple[Integers, dict[str, Any]]:
    """Return the counts of a class's histogram, and its sums and what the selection sample showed as options."""
    counts, sums = estimates.histograms_at(place)
    before = estimates.before(place)
    mean, variance = before.mean_and_variance()
    return counts, {"sums": sums, "prior": (mean[:, 0], variance[:, 0], before.trials[:, 0])}


class Betting(Bound):
    """Betting bounds for one analysis, of votes or scores; bets start from the selection sample."""

    name = "betting"
    scores = True
    preferred = True
    histograms = True

    def sample_ranges(self, n: int) -> list[int]:
        return range_ends(n)

    def lower(self, estimates: Estimates, place: int, alpha: float) -> Floats:
        counts, options = _known(estimates, place)
        return betting_lower(counts, alpha, **options)[:, None]

    def upper(self, estimates: Estimates, place: int, alpha: float) -> Floats:
        counts, options = _known(estimates, place)
        return betting_upper(counts, alpha, slack=estimates.scores.slack, **options)[:, None]

    def upper_of_others(self, estimates: Estimates, alpha: float) -> Floats:
        """Return that of a bound that needs no histograms, which other classes lack."""
        if estimates.scores.bits:
            return upper_of_all_others(estimates, alpha)
        return clopper_pearson.upper_of_largest_count(estimates, alpha)

    def forecast(self, estimates: Estimates, mean: Floats, variance: Floats, alpha: float) -> Floats:
        return typical_betting_lower(mean, variance, estimates.max_samples, alpha)


class BettingSequence(Bound):
    """Betting bounds for any number of analyses, of votes or scores; bets start from the selection sample."""

    name = "betting_sequence"
    scores = True
    sequence = True
    preferred = True
    histograms = True

    def sample_ranges(self, n: int) -> list[int]:
        return analysis_ends(n)

    def lower(self, estimates: Estimates, place: int, alpha: float) -> Floats:
        counts, options = _known(estimates, place)
        return betting_sequence_lower(counts, alpha, estimates.max_samples, every=False, **options)[:, None]

    def upper(self, estimates: Estimates, place: int, alpha: float) -> Floats:
        counts, options = _known(estimates, place)
        options["slack"] = estimates.scores.slack
        return betting_sequence_upper(counts, alpha, estimates.max_samples, every=False, **options)[:, None]

    def upper_of_others(self, estimates: Estimates, alpha: float) -> Floats:
        """Return that of a bound that needs no histograms; of scores it is for one analysis, and gets a part of alpha."""
        if estimates.scores.bits:
            return upper_of_all_others(estimates, self.alpha_of_analysis(alpha, estimates.analyses))
        return beta_binomial.upper_of_largest_count(estimates, alpha)

    def forecast(self, estimates: Estimates, mean: Floats, variance: Floats, alpha: float) -> Floats:
        bettors = max(1, estimates.max_samples.bit_length() - 4)
        return typical_betting_lower(mean, variance, estimates.max_samples, alpha / bettors)
