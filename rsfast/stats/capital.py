"""The capital of bettors against every candidate mean: what the betting bounds are made of."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._check import as_int, as_integers, as_reals
from ..heads.bins import BINS, UNIT, bin_edges
from .common import MAX_TRIALS, Floats, Integers, check_share, largest_safe, mirrored

Prior = tuple[ArrayLike, ArrayLike, ArrayLike]
"""Mean, variance and number of scores known before a sample."""

MAX_RANGES = 512
"""Most ranges a betting bound takes; its rounding allowance counts on it."""

_CAPITAL_ERROR = 2.0**-42
# Relative to what the log capital adds up, all of it positive: BINS + MAX_RANGES + 8 roundings of 2^-53, and twice that.

RATES: Floats = 2.0 ** (np.arange(-64, 49) / 4)
"""Bets to choose from: half a step off costs 0.4 % of the width."""

_LOWER, _UPPER = bin_edges()
_NODES = np.append(_LOWER, UNIT) / UNIT
_GROWTH = np.log1p(_NODES[:, None] * RATES)  # [BINS + 1, rates]
_ROWS = 256  # of log growths added up at once: they fit the cache


def check_histogram(counts: ArrayLike, sums: ArrayLike | None) -> tuple[Integers, Integers | None]:
    """Return counts and sums [..., R, BINS] of scores as int64; raise TypeError or ValueError if no scores have them."""
    c = as_integers("counts", counts, 0)
    if c.ndim < 2 or c.shape[-1] != BINS or not 1 <= c.shape[-2] <= MAX_RANGES:
        raise ValueError(f"counts must be [..., ranges, {BINS}] with 1 to {MAX_RANGES} ranges, got shape {c.shape}")
    if np.any(c >= MAX_TRIALS) or not np.all((c.sum((-2, -1)) > 0) & (c.sum((-2, -1)) < MAX_TRIALS)):
        raise ValueError("counts must hold at least one score for each input, and at most 2**33 - 1")
    if sums is None:
        return c, None
    s = as_integers("sums", sums, 0)
    if s.shape != c.shape or np.any(s < c * _LOWER) or np.any(s > c * _UPPER):
        raise ValueError("sums must have the shape of counts, and each be a possible sum of the scores of its bin")
    return c, s


def _prior(prior: Prior | None) -> tuple[Floats, Floats]:
    """Return what the prior's scores add to the log growth of each rate [..., 1, rates], and how many they are [..., 1]."""
    # One score, half of it at 0 and half at 1, is always there: no bet stakes everything.
    grown, draws = np.asarray(np.log1p(RATES)[None] / 2), np.ones(1)
    if prior is None:
        return grown, draws
    mean, variance, weight = prior
    weight = as_reals("prior's draws", weight, MAX_TRIALS, "from 0 to 2**33")[..., None]
    return np.asarray(grown + weight[..., None] * mean_growth(mean, variance)[..., None, :]), draws + weight


def mean_growth(mean: ArrayLike, variance: ArrayLike) -> Floats:
    """Return the mean [..., rates] of ``log(1 + t y)`` over scores of this mean and variance, for every rate t.

    The scores are taken to have two values: a step above the mean and a drop below it, each of a standard deviation where
    both fit into [0, 1].
    """
    mean = as_reals("prior's mean", mean, 1, "in [0, 1]")[..., None]
    spread = np.minimum(as_reals("prior's variance", variance, np.inf, "at least 0")[..., None], mean * (1 - mean))
    with np.errstate(divide="ignore", invalid="ignore"):
        step = np.clip(np.sqrt(spread), np.nan_to_num(spread / mean), 1 - mean)
        drop, share = np.nan_to_num(spread / step), np.nan_to_num(spread / (spread + step**2))
    low, high = (np.log1p(RATES * np.clip(score, 0, 1)) for score in (mean - drop, mean + step))
    return np.asarray(share * high + (1 - share) * low)


def _growth(weights: Floats) -> Floats:
    """Return the log growth [..., rates] of weights [..., BINS + 1] at the edges, added up from the lowest edge.

    The order of additions in a product of matrices would depend on its blocking. Rows come in blocks that fit the cache,
    and edges that no row of a block has are left out.
    """
    flat = weights.reshape(-1, BINS + 1)
    growth = np.zeros((len(flat), RATES.size))
    for start in range(0, len(flat), _ROWS):
        part, total = flat[start : start + _ROWS], growth[start : start + _ROWS]
        term = np.empty_like(total)
        for edge in np.flatnonzero(part.any(axis=0)):
            total += np.multiply(part[:, edge, None], _GROWTH[edge], out=term)
    return growth.reshape(*weights.shape[:-1], RATES.size)


def betting_limits(
    counts: Integers,
    sums: Integers | None,
    alpha: float,
    horizons: Floats,
    prior: Prior | None,
    analyses: Sequence[int],
) -> Floats:
    """Return the lower bound [..., analyses] at the end of each of these ranges, for bets with horizons [..., H]."""
    level = -math.log(check_share(alpha))
    # The logarithm is concave: at scores between two edges it is at least what it is at these edges, in the proportion that
    # keeps the sum. Without sums every score counts as its lower edge.
    above = np.zeros(counts.shape) if sums is None else (sums - counts * _LOWER) / (_UPPER - _LOWER)
    weights = np.zeros((*counts.shape[:-1], BINS + 1))
    weights[..., :-1] = counts - above
    weights[..., 1:] += above
    trials = counts.sum(axis=-1)  # [..., R]
    growth = _growth(weights)

    # What is known before each range: no sum here may touch a later range, not even to cancel it again.
    grown, draws = _prior(prior)
    shape = growth.shape[:-2]
    grown = np.concatenate([np.broadcast_to(grown, (*shape, 1, RATES.size)), growth[..., :-1, :]], axis=-2).cumsum(axis=-2)
    draws = np.concatenate([np.broadcast_to(draws, (*shape, 1)), trials[..., :-1]], axis=-1).cumsum(axis=-1)
    average = (grown / draws[..., None])[..., None, :]
    best = np.argmax(np.expm1(average - level / horizons[..., None, :, None]) / RATES, axis=-1)  # [..., R, H]
    rates = RATES[best]
    gains = np.take_along_axis(growth, best, axis=-1).cumsum(axis=-2)

    level += math.log(horizons.shape[-1]) + 2.0**-32  # an equal share of the capital each; and for rounding the logs

    def limit(analysis: int) -> Floats:
        gain = gains[..., analysis, :]

        def safe(m: Floats) -> NDArray[np.bool_]:
            cost = trials[..., : analysis + 1, None] * np.log1p(rates[..., : analysis + 1, :] * m[..., None, None])
            paid = cost.sum(axis=-2)
            return np.asarray(np.logaddexp.reduce(gain - paid - _CAPITAL_ERROR * (gain + paid), axis=-1) >= level)

        return largest_safe(safe, np.zeros(shape), np.ones(shape))

    return np.stack([limit(analysis) for analysis in analyses], axis=-1)


def check_horizons(max_samples: int, counts: Integers) -> Floats:
    """Return the sample sizes [H] for which the bettors of a sequence bet, the largest max_samples, each half the last.

    Raises
    ------
    TypeError, ValueError
        If max_samples is not an int, or not from the scores counted so far to 2**33 - 1.
    """
    max_samples = as_int("max_samples", max_samples)
    most = int(counts.sum(axis=(-2, -1)).max(initial=1))
    if not most <= max_samples < MAX_TRIALS:
        raise ValueError(
            f"max_samples must be at least the scores counted so far, {most}, and at most 2**33 - 1, got {max_samples}"
        )
    return np.asarray(float(max_samples) * 0.5 ** np.arange(max(1, max_samples.bit_length() - 4)))


def reflected(
    counts: Integers, sums: Integers | None, prior: Prior | None
) -> tuple[Integers, Integers | None, Prior | None]:
    """Return the histogram and the prior of 1 minus each score."""
    reflected = None if sums is None else (counts * UNIT - sums)[..., ::-1]
    return counts[..., ::-1], reflected, None if prior is None else (1 - np.asarray(prior[0]), prior[1], prior[2])


def mirrored_with_slack(lower: Floats, slack: int) -> Floats:
    """Return 1 minus a lower bound plus the slack of scores, in units of 2**-30, rounded up, at most 1."""
    return np.asarray(np.minimum(np.nextafter(mirrored(lower) + slack / UNIT, np.inf), 1.0))
