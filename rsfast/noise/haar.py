"""The radius that follows where each sample sees a Haar-distributed subspace: numerics of `HaarSubspaces`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import _special

Floats = NDArray[np.float64]

CHARGE = 2.0**-38
"""More than `kept_score` is off by, for what its functions, sums and masses round: 1e-13 was the most found."""

_FINE, _COARSE = 512, 64
_REACH = 9.0  # normal quantiles between which bins lie: 1e-19 is outside
_POINTS, _WEIGHTS = np.polynomial.legendre.leggauss(8)
_AT_ONCE = 64  # pairs of bounds, so that arrays stay in a cache


class Law(NamedTuple):
    """The law of the share of a shift's length that a subspace sees, in bins: their mass, mean [bins], edges [bins + 1]."""

    masses: Floats
    means: Floats
    edges: Floats


@lru_cache(maxsize=32)
def seen_share(k: int, d: int, count: int) -> Law:
    """Return the law of ``|W u|`` for a unit vector u of R^d and Haar-distributed W of k rows: the root of a Beta variable.

    With ``|W u| = sin a`` the density of the angle a is that of ``sin(a)^(k-1) cos(a)^(d-k-1)``. That is analytic, so
    Gauss-Legendre sums of eight points in each bin are good to rounding. Bins lie evenly between normal quantiles -9 and 9,
    with one at either end for the rest.

    Examples
    --------
    >>> law = seen_share(10, 100, 512)
    >>> round(float((law.masses * law.means).sum()), 6)
    0.309205
    """
    z = np.linspace(0, _REACH, count // 2 + 1)[1:]
    low = np.arcsin(np.sqrt(_special.betaincinv(k / 2, (d - k) / 2, _special.ndtr(-np.append(z[::-1], 0.0)))))
    high = np.arccos(np.sqrt(_special.betaincinv((d - k) / 2, k / 2, _special.ndtr(-z))))
    angles = np.unique(np.concatenate([[0.0], low, high, [np.pi / 2]]))
    half, middle = np.diff(angles)[:, None] / 2, (angles[1:] + angles[:-1])[:, None] / 2
    points = middle + half * _POINTS
    log_density = (k - 1) * np.log(np.sin(points)) + (d - k - 1) * np.log(np.cos(points))
    density = np.exp(log_density - log_density.max()) * half * _WEIGHTS
    masses, moments, edges = density.sum(axis=1), (density * np.sin(points)).sum(axis=1), np.sin(angles)
    means = np.where(masses > 0, moments / np.where(masses > 0, masses, 1), edges[1:])
    return Law(masses / masses.sum(), np.clip(means, edges[:-1], edges[1:]), edges)


def kept_score(s: Floats, miss: Floats, c: Floats, law: Law) -> Floats:
    """Return a lower bound on the score that a class keeps under a shift of length s sigma, whatever c is.

    Parameters
    ----------
    s : ndarray of float64 [pairs, 1]
        Positive.
    miss : ndarray of float64 [pairs, 1]
        What the class's score lacks to 1 at most, before the shift.
    c : ndarray of float64 [pairs, 1]
        The bound is highest at `best_threshold`.
    law : Law
        Of the share that a subspace sees.

    Returns
    -------
    ndarray of float64 [pairs, 1]
        Off by at most `CHARGE`.

    Notes
    -----
    A subspace that sees the length ``T`` of the shift, in units of sigma, tells x from the shifted x no better than one
    normal variable of mean 0 or T does. By Neyman and Pearson's lemma any test with weights 1 and e^c on its errors has

        k(T) = Phi(c/T - T/2) + e^c Phi(-c/T - T/2)

    or more of them. So the score kept is at least ``E k(T) - e^c miss``, for every c. k falls with the slope
    ``-phi(c/T - T/2)``, which has one minimum, so that in a bin its size is at least that at one of the edges. A line of
    this slope through the bin's right edge is below k, and its mean is its value at the bin's mean.
    """
    seen = s * np.maximum(law.edges, 1e-300)
    with np.errstate(over="ignore", under="ignore"):
        z = c / seen - seen / 2
        errors = _special.ndtr(z) + np.exp(c + _special.log_ndtr(-(c / seen + seen / 2)))
        slopes = np.exp(-z * z / 2) / np.sqrt(2 * np.pi)
        least = errors[:, 1:] + np.minimum(slopes[:, 1:], slopes[:, :-1]) * s * (law.edges[1:] - law.means)
        return np.asarray((law.masses * least).sum(axis=1, keepdims=True) - np.exp(c) * miss)


def best_threshold(s: Floats, miss: Floats, law: Law) -> Floats:
    """Return about the c at which ``E Phi(-c/T - T/2) = miss``: that of the best test. Arguments are those of `kept_score`.

    It lies between the solutions for each T alone, and is found by Newton's method for the logarithm, kept between them.
    """
    seen = s * law.means
    alone = -seen * _special.ndtri(miss) - seen * seen / 2
    low, high = alone.min(axis=1, keepdims=True), alone.max(axis=1, keepdims=True)
    c = (law.masses * alone).sum(axis=1, keepdims=True)
    for _ in range(5):
        with np.errstate(over="ignore", under="ignore", divide="ignore", invalid="ignore"):
            z = -(c / seen + seen / 2)
            found = (law.masses * _special.ndtr(z)).sum(axis=1, keepdims=True)
            slope = (law.masses * np.exp(-z * z / 2) / seen).sum(axis=1, keepdims=True) / np.sqrt(2 * np.pi)
            step = np.log(found / miss) * found / slope
        low, high = np.where(found > miss, c, low), np.where(found > miss, high, c)
        c = np.where((low <= c + step) & (c + step <= high), c + step, (low + high) / 2)
    return np.asarray(c)


def haar_radius(lower: Floats, upper: Floats, k: int, d: int) -> Floats:
    """Return the radius, in units of sigma and rounded down, within which a class stays ahead, given bounds on scores.

    Parameters
    ----------
    lower, upper : ndarray of float64
        Bounds of one shape: in [0, 1) below the class's smoothed score, and in (0, 1] above every other's.
    k, d : int
        Dimensions of the subspaces and of the inputs, ``1 <= k < d``.

    Returns
    -------
    ndarray of float64
        0 where the class is not ahead. Below the radius of the formula by about 1e-5 of it, and by 5e-4 at k = 1.

    Notes
    -----
    The largest s at which the score that the class keeps, plus what the other classes' complement keeps, is more than 1.
    """

    def of_block(low: Floats, high: Floats) -> Floats:
        # No subspace sees more than all of a shift, so the radius of plain Gaussian noise holds: the search begins there.
        miss = 1 - low
        gaussian = (_special.ndtri(1 - miss) - _special.ndtri(high)) / 2
        alike = np.array_equal(miss, high)
        return _largest([miss] if alike else [miss, high], 0.5 if alike else 1.0, gaussian, k, d)

    return _of_pairs(lower, upper, of_block)


def haar_reach(high: Floats, low: Floats, k: int, d: int) -> Floats:
    """Return the radius, in units of sigma and rounded down, within which no score of at least `high` falls to `low`.

    Parameters and errors are those of `haar_radius`. The largest s at which the score that is kept is more than `low`.
    """
    return _of_pairs(
        high, low, lambda high, low: _largest([1 - high], low, _special.ndtri(high) - _special.ndtri(low), k, d)
    )


def _of_pairs(high: Floats, low: Floats, largest: Callable[[Floats, Floats], Floats]) -> Floats:
    """Return what is found for each pair of scores, once for all that are equal; 0 where the first is not the larger."""
    pairs, back = np.unique(np.stack([high.ravel(), low.ravel()], axis=1), axis=0, return_inverse=True)
    found = np.zeros(len(pairs))
    (ahead,) = np.nonzero(pairs[:, 0] > pairs[:, 1])
    for start in range(0, len(ahead), _AT_ONCE):
        places = ahead[start : start + _AT_ONCE]
        found[places] = largest(*pairs[places].T[:, :, None])[:, 0]
    return found[back.ravel()].reshape(high.shape)


def _largest(misses: Sequence[Floats], least: Floats | float, begin: Floats, k: int, d: int) -> Floats:
    """Return the largest s found, [pairs, 1], at which the scores kept of these misses sum to more than `least`."""
    coarse, fine = seen_share(k, d, _COARSE), seen_share(k, d, _FINE)

    def holds(s: Floats, law: Law) -> NDArray[np.bool_]:
        # Any threshold is safe, and that of the coarse law is close to the best one.
        kept = [kept_score(s, miss, best_threshold(s, miss, coarse), law) - CHARGE for miss in misses]
        return np.asarray(sum(kept) > least)

    below = np.maximum(begin, 2.0**-60)
    above = 2 * below
    while np.any(more := holds(above, coarse)):
        below, above = np.where(more, above, below), np.where(more, 2 * above, above)
    below, above = _bisected(lambda s: holds(s, coarse), below, above, 10)
    above = 1.02 * above
    while np.any(more := holds(above, fine)):
        below, above = np.where(more, above, below), np.where(more, 1.02 * above, above)
    below = np.where(holds(below, fine), below, 0.0)
    below, _ = _bisected(lambda s: holds(s, fine), below, above, 24)
    return below


def _bisected(holds: Callable[[Floats], NDArray[np.bool_]], low: Floats, high: Floats, steps: int) -> tuple[Floats, Floats]:
    for _ in range(steps):
        middle = (low + high) / 2
        fits = holds(middle)
        low, high = np.where(fits, middle, low), np.where(fits, high, middle)
    return low, high
