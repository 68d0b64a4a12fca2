"""Bounds on a mean in [0, 1] by betting: for a sample of fixed size, and for every sample size at once."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..._check import as_int, as_integers, as_reals
from ...heads.bins import BINS, UNIT, bin_edges
from ...heads.bins import bin_of as bin_of
from ..common import (
    MAX_TRIALS,
    Floats,
    Integers,
    analysis_ends,
    bisection_bracket,
    check_share,
    largest_safe,
    mirrored,
    range_ends,
)
from ..estimates import Estimates
from ..registry import Bound

Prior = tuple[ArrayLike, ArrayLike, ArrayLike]
"""Mean, variance and number of scores known before a sample."""

_Sample = tuple[Integers, Integers | None, Prior | None]
# Counts [..., R, BINS], by how much their sums exceed those of lower edges [..., R, BINS], and what is known before.

MAX_RANGES = 512
"""Most ranges a betting bound takes; its rounding allowance counts on it."""

_CAPITAL_ERROR = 2.0**-42
# Relative to what the log capital adds up, all of it positive: BINS + MAX_RANGES + 8 roundings of 2^-53, and twice that.

_RATES: Floats = 2.0 ** (np.arange(-64, 49) / 4)
"""Bets to choose from: half a step off costs 0.4 % of the width."""

_LOWER, _UPPER = bin_edges()
_WIDTHS = _UPPER - _LOWER
_PER_WIDTH = 1 / _WIDTHS  # exact: they are powers of two
_NODES = np.append(_LOWER, UNIT) / UNIT
_GROWTH = np.log1p(_RATES[:, None] * _NODES)  # [rates, BINS + 1]
_BLOCK = 1 << 9  # of bettors' ranges looked at at once, each with all rates: they fit the cache
_TOGETHER = 16  # ranges in a product of matrices: so small that BLAS leaves the other threads to the model
_TIE = 2.0**-36
# Rates whose forecasts differ by less may be equal. A growth and the log of it are off by less than 2^-43, relatively, and a
# forecast by 10 times that: it is at most 1, and at most log(1 + t) (1 + 1 / t) < 9 times as steep in them.

_NEWTON_STEPS, _NEAR = 12, 2.0**-30  # each step squares the distance
_MARGIN = 2.0**-44  # more than rounding moves a limit, relatively: the capital's log is at most 33 times less steep in log m


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
        s -= c * _LOWER
    if s.shape != c.shape or s.min(initial=0) < 0 or np.any(s > c * _WIDTHS):
        raise ValueError("sums must have the shape of counts, and each be a possible sum of the scores of its bin")
    return c, s, prior


def _prior(prior: Prior | None) -> tuple[Floats, Floats]:
    """Return what the prior's scores add to the log growth of each rate [..., 1, rates], and how many they are [..., 1]."""
    # One score, half of it at 0 and half at 1, is always there: no bet stakes everything.
    grown, draws = np.asarray(np.log1p(_RATES)[None] / 2), np.ones(1)
    if prior is None:
        return grown, draws
    mean, variance, weight = prior
    weight = as_reals("prior's draws", weight, MAX_TRIALS, "from 0 to 2**33")[..., None]
    return np.asarray(grown + weight[..., None] * _mean_growth(mean, variance)[..., None, :]), draws + weight


def _ratio(above: Floats, below: Floats) -> Floats:
    """Return ``above / below`` of arrays of one shape, 0 where both are 0."""
    return np.divide(above, below, out=np.zeros_like(below), where=below > 0)


def _mean_growth(mean: ArrayLike, variance: ArrayLike) -> Floats:
    """Return the mean [..., rates] of ``log(1 + t y)`` over scores of this mean and variance, for every rate t.

    The scores are taken to have two values: a step above the mean and a drop below it, each of a standard deviation where
    both fit into [0, 1].
    """
    mean = as_reals("prior's mean", mean, 1, "in [0, 1]")[..., None]
    spread = np.minimum(as_reals("prior's variance", variance, np.inf, "at least 0")[..., None], mean * (1 - mean))
    step = np.clip(np.sqrt(spread), _ratio(spread, mean), 1 - mean)
    drop, share = _ratio(spread, step), _ratio(spread, spread + step**2)
    low, high = (np.log1p(_RATES * np.clip(score, 0, 1)) for score in (mean - drop, mean + step))
    return np.asarray(share * high + (1 - share) * low)


def _weights(counts: Integers, excess: Integers | None) -> Floats:
    """Return the scores [..., BINS + 1] that stand at each edge in place of those of the bins [..., BINS].

    The logarithm is concave: at scores between two edges it is at least what it is at these edges, in the proportion that
    keeps the sum. Without sums every score counts as its lower edge.
    """
    weights = np.zeros((*counts.shape[:-1], BINS + 1))
    weights[..., :-1] = counts
    if excess is not None:
        above = excess * _PER_WIDTH
        weights[..., :-1] -= above
        weights[..., 1:] += above
    return weights


def _ordered_sums(terms: Floats) -> Floats:
    """Return the sums over the last axis, added up from its start: in any other order they could depend on the shape."""
    return terms.cumsum(axis=-1)[..., -1]


def _bets(weights: Floats, known: Floats, drawn: Floats, horizons: Floats, level: float) -> tuple[Floats, Floats]:
    """Return the rate of each bettor in each range, and the log growth that it gives there, [inputs, R, H] both.

    Which rate is best is found from growths that a product of matrices adds up in an order of its own. Where another rate is
    as good but for rounding, growths added up in order decide. So nothing depends on which inputs are in one call.

    Parameters
    ----------
    weights : ndarray [inputs, R, BINS + 1]
    known : ndarray [inputs, 1, rates]
        The log growth of all that is known before the sample.
    drawn : ndarray [inputs, R]
        How many scores there are before each range.
    horizons : ndarray [inputs, H]
    level : float
    """
    used = np.flatnonzero(weights.any(axis=(0, 1)))  # the others add 0
    weights, table = weights[..., used], np.ascontiguousarray(_GROWTH[:, used])
    kept, paid = np.exp(-level / horizons)[:, None, :, None], (np.expm1(-level / horizons)[..., None] / _RATES)[:, None]

    def forecasts(growth: Floats, rows: slice) -> Floats:
        """Return the bound that each rate would give if the scores went on as before, [inputs, R, H, rates]."""
        # No sum here may touch a later range, not even to cancel it again.
        before = np.concatenate([known[rows], growth[:, :-1]], axis=1)
        for place in range(1, before.shape[1]):  # several times faster than cumsum
            before[:, place] += before[:, place - 1]
        before /= drawn[rows, :, None]
        found = kept[rows] * (np.expm1(before, out=before) / _RATES)[:, :, None]
        found += paid[rows]
        return np.asarray(found)

    parts = [weights[:, start : start + _TOGETHER] @ table.T for start in range(0, weights.shape[1], _TOGETHER)]
    forecast = forecasts(np.concatenate(parts, axis=1), slice(None))
    best = forecast.argmax(axis=-1)
    near = np.take_along_axis(forecast, best[..., None], axis=-1) - _TIE
    tied = np.count_nonzero(forecast >= near, axis=(1, 2, 3)) > best[0].size
    for row in np.flatnonzero(tied):
        rows = slice(row, row + 1)
        best[rows] = forecasts(_ordered_sums(weights[rows, :, None] * table), rows).argmax(axis=-1)
    return _RATES[best], _ordered_sums(table[best] * weights[:, :, None])


def _limits(sample: _Sample, alpha: float, max_samples: int | None = None, every: bool = False) -> Floats:
    """Return the lower bound [...] at the end of the last range, or if `every` the largest [..., R] up to each range's end.

    Bets are for all scores of the sample, or for samples of up to max_samples scores.
    """
    shape, ranges = sample[0].shape[:-2], sample[0].shape[-2]
    level = -math.log(check_share(alpha))
    counts, excess = sample[0].reshape(-1, ranges, BINS), None if sample[1] is None else sample[1].reshape(-1, ranges, BINS)
    trials = counts.sum(axis=-1)
    horizons = _horizons(trials, max_samples)
    grown, draws = _prior(sample[2])
    known = np.broadcast_to(grown, (*shape, 1, _RATES.size)).reshape(-1, 1, _RATES.size)
    drawn = np.concatenate([np.broadcast_to(draws, (*shape, 1)).reshape(-1, 1), trials[:, :-1]], axis=1).cumsum(axis=1)
    rates, gains = np.empty((2, *trials.shape, horizons.shape[1]))
    step = max(1, _BLOCK // (ranges * (1 + horizons.shape[1])))
    for block in (slice(start, start + step) for start in range(0, len(trials), step)):
        weights = _weights(counts[block], None if excess is None else excess[block])
        rates[block], gains[block] = _bets(weights, known[block], drawn[block], horizons[block], level)
    gains = gains.cumsum(axis=1)
    level += math.log(horizons.shape[1]) + 2.0**-32  # an equal share of the capital each; and for rounding the logs
    if not every:
        return _limit(gains[:, -1], trials, rates, level).reshape(shape)
    found = [_limit(gains[:, end - 1], trials[:, :end], rates[:, :end], level) for end in range(1, ranges + 1)]
    return np.asarray(np.maximum.accumulate(np.stack(found, axis=-1), axis=-1)).reshape(*shape, ranges)


def _limit(gain: Floats, trials: Integers, rates: Floats, level: float) -> Floats:
    """Return the largest m [inputs] at which the capital of bettors with gains [inputs, H] is still of this level.

    Newton's steps lead near it. They are taken in ``log(1 + t m)`` of the last rates t, in which the log of the capital is
    almost a straight line.
    """
    trials, returns = trials[..., None], 1 / rates

    def log_capitals(m: Floats) -> Floats:
        paid = (trials * np.log1p(rates * m[:, None, None])).sum(axis=-2)
        return np.asarray(gain - paid - _CAPITAL_ERROR * (gain + paid))

    def safe(m: Floats) -> NDArray[np.bool_]:
        return np.asarray(np.logaddexp.reduce(log_capitals(m), axis=-1) >= level)

    m = np.zeros(len(gain))
    for _ in range(_NEWTON_STEPS):
        logs = log_capitals(m)
        total = np.logaddexp.reduce(logs, axis=-1)
        parts = np.exp(logs - total[:, None])
        slope = (parts * (trials / (returns + m[:, None, None])).sum(axis=-2)).sum(axis=-1)
        reach = (parts * returns[:, -1]).sum(axis=-1) + m
        with np.errstate(over="ignore", divide="ignore"):
            last, m = m, np.clip(m + reach * np.expm1((total - level) / (slope * reach)), 0, 1)
        if np.all(np.abs(m - last) <= _NEAR * m):
            break
    return largest_safe(safe, *bisection_bracket(m * (1 - _MARGIN), m * (1 + _MARGIN)))


def _horizons(trials: Integers, max_samples: int | None) -> Floats:
    """Return the sample sizes [inputs, H] bettors bet for: that of the sample, or max_samples and each half the last."""
    drawn = trials.sum(axis=1)
    if max_samples is None:
        return np.asarray(drawn[:, None], dtype=np.float64)
    max_samples = as_int("max_samples", max_samples)
    most = int(drawn.max(initial=1))
    if not most <= max_samples < MAX_TRIALS:
        raise ValueError(
            f"max_samples must be at least the scores counted so far, {most}, and at most 2**33 - 1, got {max_samples}"
        )
    sizes = float(max_samples) * 0.5 ** np.arange(max(1, max_samples.bit_length() - 4))
    return np.broadcast_to(sizes, (len(trials), sizes.size))


def _reflected(sample: _Sample) -> _Sample:
    """Return the sample of 1 minus each score."""
    counts, excess, prior = sample
    mirror = None if excess is None else (counts * _WIDTHS - excess)[..., ::-1]
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
    growth = _mean_growth(mean, variance) + math.log(check_share(alpha)) / np.asarray(trials, dtype=np.float64)[..., None]
    return np.asarray(np.max(np.expm1(growth) / _RATES, axis=-1).clip(0))


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
