"""Bettors on the mean of scores in [0, 1]: what they stake on a sample range, and up to which mean they win."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..._check import as_reals
from ...heads.bins import BINS, UNIT, bin_edges
from ..common import MAX_TRIALS, Floats, Integers, analysis_ends, bisection_bracket, largest_safe

Prior = tuple[ArrayLike, ArrayLike, ArrayLike]
"""Mean, variance and number of scores known before a sample."""

MAX_RANGES = 512
"""Most ranges a betting bound takes; its rounding allowance counts on it."""

_CAPITAL_ERROR = 2.0**-42
# Relative to what the log capital adds up, all of it positive: BINS + MAX_RANGES + 8 roundings of 2^-53, and twice that.

RATES: Floats = 2.0 ** (np.arange(-64, 49) / 4)
"""Bets to choose from: half a step off costs 0.4 % of the width."""

LOWER, _UPPER = bin_edges()
WIDTHS = _UPPER - LOWER
_PER_WIDTH = 1 / WIDTHS  # exact: they are powers of two
_NODES = np.append(LOWER, UNIT) / UNIT
_GROWTH = np.log1p(RATES[:, None] * _NODES)  # [rates, BINS + 1]
BLOCK = 1 << 9  # of bettors' ranges looked at at once, each with all rates: they fit the cache
_TOGETHER = 16  # ranges in a product of matrices: so small that BLAS leaves the other threads to the model
_TIE = 2.0**-36
# Rates whose forecasts differ by less may be equal. A growth and the log of it are off by less than 2^-43, relatively, and a
# forecast by 10 times that: it is at most 1, and at most log(1 + t) (1 + 1 / t) < 9 times as steep in them.

_NEWTON_STEPS, _NEAR = 12, 2.0**-30  # each step squares the distance
_ROUGH, _MOST = 2.0**-20, 1 - 2.0**-53
LOG_ERROR = 2.0**-32  # more than rounding moves the log of a sum of capitals
_MARGIN = 2.0**-44  # more than rounding moves a limit, relatively: the capital's log is at most 33 times less steep in log m


def known_growth(prior: Prior | None) -> tuple[Floats, Floats]:
    """Return what the prior's scores add to the log growth of each rate [..., 1, rates], and how many they are [..., 1]."""
    # One score, half of it at 0 and half at 1, is always there: no bet stakes everything.
    grown, draws = np.asarray(np.log1p(RATES)[None] / 2), np.ones(1)
    if prior is None:
        return grown, draws
    mean, variance, weight = prior
    weight = as_reals("prior's draws", weight, MAX_TRIALS, "from 0 to 2**33")[..., None]
    return np.asarray(grown + weight[..., None] * mean_growth(mean, variance)[..., None, :]), draws + weight


def _ratio(above: Floats, below: Floats) -> Floats:
    """Return ``above / below`` of arrays of one shape, 0 where both are 0."""
    return np.divide(above, below, out=np.zeros_like(below), where=below > 0)


def mean_growth(mean: ArrayLike, variance: ArrayLike) -> Floats:
    """Return the mean [..., rates] of ``log(1 + t y)`` over scores of this mean and variance, for every rate t.

    The scores are taken to have two values: a step above the mean and a drop below it, each of a standard deviation where
    both fit into [0, 1].
    """
    mean = as_reals("prior's mean", mean, 1, "in [0, 1]")[..., None]
    spread = np.minimum(as_reals("prior's variance", variance, np.inf, "at least 0")[..., None], mean * (1 - mean))
    step = np.clip(np.sqrt(spread), _ratio(spread, mean), 1 - mean)
    drop, share = _ratio(spread, step), _ratio(spread, spread + step**2)
    low, high = (np.log1p(RATES * np.clip(score, 0, 1)) for score in (mean - drop, mean + step))
    return np.asarray(share * high + (1 - share) * low)


def weights_of(counts: Integers, excess: Integers | None) -> Floats:
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


def bets(weights: Floats, known: Floats, drawn: Floats, horizons: Floats, level: float) -> tuple[Floats, Floats]:
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
    kept, paid = np.exp(-level / horizons)[:, None, :, None], (np.expm1(-level / horizons)[..., None] / RATES)[:, None]

    def forecasts(growth: Floats, rows: slice) -> Floats:
        """Return the bound that each rate would give if the scores went on as before, [inputs, R, H, rates]."""
        # No sum here may touch a later range, not even to cancel it again.
        before = np.concatenate([known[rows], growth[:, :-1]], axis=1)
        for place in range(1, before.shape[1]):  # several times faster than cumsum
            before[:, place] += before[:, place - 1]
        before /= drawn[rows, :, None]
        found = kept[rows] * (np.expm1(before, out=before) / RATES)[:, :, None]
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
    return RATES[best], _ordered_sums(table[best] * weights[:, :, None])


def limit(gain: Floats, trials: Integers, rates: Floats, level: float, *, rough: bool = False) -> Floats:
    """Return the largest m [inputs] at which the capital of bettors with gains [inputs, H] is still of this level.

    Newton's steps lead near it. They are taken in ``log(1 + t m)`` of the last rates t, in which the log of the capital is
    almost a straight line; where a step leads too far, the bracket is halved. A rough limit is that number made larger: it
    is never below the limit, and mostly above by 2^-20 of it.
    """
    trials, returns = trials[..., None], 1 / rates

    def log_capitals(m: Floats, error: float = -_CAPITAL_ERROR) -> Floats:
        paid = (trials * np.log1p(rates * m[:, None, None])).sum(axis=-2)
        return np.asarray(gain - paid + error * (gain + paid))

    def safe(m: Floats) -> NDArray[np.bool_]:
        return np.asarray(np.logaddexp.reduce(log_capitals(m), axis=-1) >= level)

    m, low, high = np.zeros(len(gain)), np.zeros(len(gain)), np.ones(len(gain))
    for _ in range(_NEWTON_STEPS):
        logs = log_capitals(m)
        total = np.logaddexp.reduce(logs, axis=-1)
        parts = np.exp(logs - total[:, None])
        slope = (parts * (trials / (returns + m[:, None, None])).sum(axis=-2)).sum(axis=-1)
        reach = (parts * returns[:, -1]).sum(axis=-1) + m
        with np.errstate(over="ignore", divide="ignore"):
            step = m + reach * np.expm1((total - level) / (slope * reach))
        low, high = np.where(total >= level, m, low), np.where(total < level, m, high)
        last, m = m, np.where((low <= step) & (step <= high), step, (low + high) / 2)
        if np.all(np.abs(m - last) <= (_ROUGH if rough else _NEAR) * m):
            break
    if rough:
        m = np.minimum(m * (1 + _ROUGH), _MOST)
        spent = np.logaddexp.reduce(log_capitals(m, _CAPITAL_ERROR), axis=-1) < level - LOG_ERROR
        return np.asarray(np.where(spent, m, _MOST))
    return largest_safe(safe, *bisection_bracket(m * (1 - _MARGIN), m * (1 + _MARGIN)))


def horizons_of(max_samples: int) -> Floats:
    """Return the sample sizes [H] that bettors of a sequence bet for: the most samples, and each half the last."""
    return np.asarray(float(max_samples) * 0.5 ** np.arange(max(1, max_samples.bit_length() - 4)))


class Bettors:
    """Bettors of a sequence who go on from one sample range to the next, as do those who see all ranges at once.

    Parameters
    ----------
    max_samples : int
        Most samples of an input.
    """

    def __init__(self, max_samples: int) -> None:
        self._horizons = horizons_of(max_samples)
        ranges, bettors = len(analysis_ends(max_samples)), self._horizons.size
        self._growth, self._drawn = np.zeros((0, 1, RATES.size)), np.zeros((0, 1))
        self._rates, self._trials = np.zeros((0, ranges, bettors)), np.zeros((0, ranges), dtype=np.int64)
        self._gains, self._ranges = np.zeros((0, bettors)), np.zeros(0, dtype=np.int64)

    def begin(self, rows: Integers, known: Floats, drawn: Floats) -> None:
        """Begin with inputs, at these rows, of whom `known_growth` says this [inputs, 1, rates] and [inputs, 1]."""
        if (more := int(rows.max(initial=-1)) + 1 - len(self._ranges)) > 0:
            for name, state in vars(self).items():
                if name != "_horizons":
                    setattr(self, name, np.concatenate([state, np.zeros((more, *state.shape[1:]), state.dtype)]))
        self._growth[rows], self._drawn[rows] = known, drawn
        self._gains[rows] = self._trials[rows] = self._ranges[rows] = 0

    def rough_limits(self, rows: Integers, weights: Floats, trials: Integers, level: float) -> Floats:
        """Return rough limits [inputs] after one more range, of `weights_of` [inputs, 1, BINS + 1]."""
        growth, drawn, place = self._growth[rows], self._drawn[rows], self._ranges[rows]
        rates, gains = bets(weights, growth, drawn, np.broadcast_to(self._horizons, (len(rows), self._horizons.size)), level)
        used = np.flatnonzero(weights.any(axis=(0, 1)))
        # This sums in the order of `_ordered_sums`, many rates at once.
        self._growth[rows] = growth + np.add.reduce(weights[..., used, None] * _GROWTH.T[used], axis=-2)
        self._drawn[rows] = drawn + trials[:, None]
        self._gains[rows] += gains[:, 0]
        self._trials[rows, place] = trials
        later = np.arange(self._rates.shape[1]) >= place[:, None]  # where no trials are; the last rates lead Newton's steps
        self._rates[rows] = np.where(later[..., None], rates, self._rates[rows])
        self._ranges[rows] = place + 1
        most = int(place.max()) + 1
        level += math.log(self._horizons.size) + LOG_ERROR
        return limit(self._gains[rows], self._trials[rows, :most], self._rates[rows, :most], level, rough=True)
