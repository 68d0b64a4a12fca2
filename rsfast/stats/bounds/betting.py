"""Bounds on a mean in [0, 1] by betting: for a sample of fixed size, and for every sample size at once."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..._check import as_int, as_integers
from ...heads.bins import BINS, UNIT
from ...heads.bins import bin_of as bin_of
from ..common import MAX_TRIALS, Floats, Integers, analysis_ends, check_share, mirrored, range_ends
from ..estimates import Estimates
from ..registry import Bound
from .bettors import (
    BLOCK,
    LOG_ERROR,
    LOWER,
    MAX_RANGES,
    RATES,
    WIDTHS,
    Bettors,
    Prior,
    bets,
    horizons_of,
    known_growth,
    limit,
    mean_growth,
    weights_of,
)

_Sample = tuple[Integers, Integers | None, Prior | None]
# Counts [..., R, BINS], by how much their sums exceed those of lower edges [..., R, BINS], and what is known before.


def _sample(counts: ArrayLike, sums: ArrayLike | None, prior: Prior | None) -> _Sample:
    """Return the sample; raise TypeError or ValueError if no scores have these counts and sums."""
    c = as_integers("counts", counts, 0)
    if c.ndim < 2 or c.shape[-1] != BINS or not 1 <= c.shape[-2] <= MAX_RANGES:
        raise ValueError(f"counts must be [..., ranges, {BINS}] with 1 to {MAX_RANGES} ranges, got shape {c.shape}")
    drawn = c.sum((-2, -1))
    if c.max(initial=0) >= MAX_TRIALS or not np.all((drawn > 0) & (drawn < MAX_TRIALS)):
        raise ValueError("counts must hold at least one score for each input, and at most 2**33 - 1")
    if sums is None:
        return c, None, prior
    s = as_integers("sums", sums, 0)
    if s.shape == c.shape:
        s -= c * LOWER
    if s.shape != c.shape or s.min(initial=0) < 0 or np.any(s > c * WIDTHS):
        raise ValueError("sums must have the shape of counts, and each be a possible sum of the scores of its bin")
    return c, s, prior


def _limits(sample: _Sample, alpha: float, max_samples: int | None = None, every: bool = False) -> Floats:
    """Return the lower bound [...] at the end of the last range, or if `every` the largest [..., R] up to each range's end.

    Bets are for all scores of the sample, or for samples of up to max_samples scores.
    """
    shape, ranges = sample[0].shape[:-2], sample[0].shape[-2]
    level = -math.log(check_share(alpha))
    counts, excess = sample[0].reshape(-1, ranges, BINS), None if sample[1] is None else sample[1].reshape(-1, ranges, BINS)
    trials = counts.sum(axis=-1)
    horizons = _horizons(trials, max_samples)
    grown, draws = known_growth(sample[2])
    known = np.broadcast_to(grown, (*shape, 1, RATES.size)).reshape(-1, 1, RATES.size)
    drawn = np.concatenate([np.broadcast_to(draws, (*shape, 1)).reshape(-1, 1), trials[:, :-1]], axis=1).cumsum(axis=1)
    rates, gains = np.empty((2, *trials.shape, horizons.shape[1]))
    step = max(1, BLOCK // (ranges * (1 + horizons.shape[1])))
    for block in (slice(start, start + step) for start in range(0, len(trials), step)):
        weights = weights_of(counts[block], None if excess is None else excess[block])
        rates[block], gains[block] = bets(weights, known[block], drawn[block], horizons[block], level)
    gains = gains.cumsum(axis=1)
    level += math.log(horizons.shape[1]) + LOG_ERROR  # an equal share of the capital each; and for rounding the logs
    if not every:
        return limit(gains[:, -1], trials, rates, level).reshape(shape)
    found = [limit(gains[:, end - 1], trials[:, :end], rates[:, :end], level) for end in range(1, ranges + 1)]
    return np.asarray(np.maximum.accumulate(np.stack(found, axis=-1), axis=-1)).reshape(*shape, ranges)


def _horizons(trials: Integers, max_samples: int | None) -> Floats:
    """Return the sample sizes [inputs, H] bettors bet for: that of the sample, or those of a sequence."""
    drawn = trials.sum(axis=1)
    if max_samples is None:
        return np.asarray(drawn[:, None], dtype=np.float64)
    max_samples = as_int("max_samples", max_samples)
    most = int(drawn.max(initial=1))
    if not most <= max_samples < MAX_TRIALS:
        raise ValueError(
            f"max_samples must be at least the scores counted so far, {most}, and at most 2**33 - 1, got {max_samples}"
        )
    sizes = horizons_of(max_samples)
    return np.broadcast_to(sizes, (len(trials), sizes.size))


def _reflected(sample: _Sample) -> _Sample:
    """Return the sample of 1 minus each score."""
    counts, excess, prior = sample
    mirror = None if excess is None else (counts * WIDTHS - excess)[..., ::-1]
    return counts[..., ::-1], mirror, None if prior is None else (1 - np.asarray(prior[0]), prior[1], prior[2])


def _mirrored_with_slack(lower: Floats, slack: int) -> Floats:
    """Return 1 minus a lower bound plus the slack of scores, in units of 2**-30, rounded up, at most 1."""
    return np.asarray(np.minimum(np.nextafter(mirrored(lower) + slack / UNIT, np.inf), 1.0))


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
    return _limits(_sample(counts, sums, prior), alpha)


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
    return _mirrored_with_slack(_limits(_reflected(_sample(counts, sums, prior)), alpha), slack)


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
    return _limits(_sample(counts, sums, prior), alpha, max_samples, every)


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
    return _mirrored_with_slack(_limits(_reflected(_sample(counts, sums, prior)), alpha, max_samples, every), slack)


class Betting(Bound):
    """Betting bounds for one analysis, of votes or scores; bets start from the selection sample."""

    name = "betting"
    scores = True
    preferred = True
    histograms = True

    def sample_ranges(self, n: int) -> list[int]:
        return range_ends(n)

    @staticmethod
    def known(estimates: Estimates, place: int) -> tuple[Integers, dict[str, Any]]:
        """Return the counts of a class's histogram, and its sums and what the selection sample showed as options."""
        counts, sums = estimates.histograms_at(place)
        before = estimates.before(place)
        mean, variance = before.mean_and_variance()
        return counts, {"sums": sums, "prior": (mean[:, 0], variance[:, 0], before.trials[:, 0])}

    def lower(self, estimates: Estimates, place: int, alpha: float) -> Floats:
        counts, options = self.known(estimates, place)
        return betting_lower(counts, alpha, **options)[:, None]

    def upper(self, estimates: Estimates, place: int, alpha: float) -> Floats:
        counts, options = self.known(estimates, place)
        return betting_upper(counts, alpha, slack=estimates.scores.slack, **options)[:, None]

    def forecast(self, estimates: Estimates, mean: Floats, variance: Floats, alpha: float) -> Floats:
        return typical_betting_lower(mean, variance, estimates.max_samples, alpha)


class BettingSequence(Betting):
    """Betting bounds for any number of analyses."""

    name = "betting_sequence"
    sequence = True

    def rough(self) -> Bound:
        return RoughBettingSequence()

    def sample_ranges(self, n: int) -> list[int]:
        return analysis_ends(n)

    def lower(self, estimates: Estimates, place: int, alpha: float) -> Floats:
        counts, options = self.known(estimates, place)
        return betting_sequence_lower(counts, alpha, estimates.max_samples, every=False, **options)[:, None]

    def upper(self, estimates: Estimates, place: int, alpha: float) -> Floats:
        counts, options = self.known(estimates, place)
        options |= {"slack": estimates.scores.slack, "every": False}
        return betting_sequence_upper(counts, alpha, estimates.max_samples, **options)[:, None]

    def forecast(self, estimates: Estimates, mean: Floats, variance: Floats, alpha: float) -> Floats:
        bettors = max(1, estimates.max_samples.bit_length() - 4)
        return super().forecast(estimates, mean, variance, alpha / bettors)


class RoughBettingSequence(BettingSequence):
    """The same, in Newton steps, from the last sample range alone: what bettors won before it is remembered.

    Estimates hold the histograms of that range, and rows of inputs for input ids. The limits of classes that are neither
    leader nor rival are left out of `both`, and in `uppers` those of the first analysis, which has most of alpha.
    """

    def __init__(self) -> None:
        self._bettors = dict[int, Bettors]()  # by place

    def lower(self, estimates: Estimates, place: int, alpha: float) -> Floats:
        counts, options = self.known(estimates, place)
        return self._limits(_sample(counts, **options), estimates, place, alpha)

    def upper(self, estimates: Estimates, place: int, alpha: float) -> Floats:
        counts, options = self.known(estimates, place)
        lower = self._limits(_reflected(_sample(counts, **options)), estimates, place, alpha)
        return _mirrored_with_slack(lower, estimates.scores.slack)

    def both(self, estimates: Estimates, alpha: float) -> tuple[Floats, Floats]:
        return self.lower(estimates, 0, alpha), self.upper(estimates, 1, alpha)

    def uppers(self, estimates: Estimates, alpha: float, count: int) -> Floats:
        return super().uppers(estimates._replace(analyses=1), alpha, count)

    def _limits(self, sample: _Sample, estimates: Estimates, place: int, alpha: float) -> Floats:
        counts, excess, prior = sample
        rows, trials = estimates.input_ids, counts.sum(axis=(1, 2))
        bettors = self._bettors.setdefault(place, Bettors(estimates.max_samples))
        if (first := estimates.scores.trials[:, 0] == trials).any():
            known, drawn = known_growth(prior)
            bettors.begin(rows[first], known[first], drawn[first])
        return bettors.rough_limits(rows, weights_of(counts, excess), trials, -math.log(alpha))[:, None]
