"""Top-k certificates: how far a class surely stays among the k classes with the largest smoothed scores."""

from __future__ import annotations

import sys

import numpy as np

from .. import _special
from ..noise import Noise
from .common import Floats, Integers

_STEPS = 60  # of the search, which mostly takes ten
_CLOSE = 2.0**-42  # relative difference of two radii at which it ends


def top_k_radius(
    noise: Noise, p_lower: Floats, p_upper: Floats, lipschitz: float | None = None, *, sums_to_one: bool = True
) -> Floats:
    """Return the radius within which fewer than k other classes reach the score of class A, given bounds at the input.

    Parameters
    ----------
    noise : Noise
        The smoothing noise.
    p_lower : ndarray of float64 [inputs, 1]
        Lower bounds on the score of A, in [0, 1).
    p_upper : ndarray of float64 [inputs, k]
        Upper bounds on the largest of the others' scores, on the next, and so on, in (0, 1], largest first.
    lipschitz : float, optional
        An l2 Lipschitz constant of every class's base score.
    sums_to_one : bool
        Whether the base scores of all classes sum to at most 1.

    Returns
    -------
    ndarray of float64 [inputs, 1]
        Rounded down, in the units of the input. Not positive where nothing is proved.

    Notes
    -----
    Let a(r) be the least that the score of A can be after a shift of size r, and b_S(r) the most that the scores of a set S
    of other classes can sum to. With the noise's potential Q they are ``Q^-1(Q(lo) - r)`` and ``Q^-1(Q(p_S) + r)``, with p_S
    the sum at the input: like a class's score, that of a set is the mean of a function with values in [0, 1]. If A is not
    among the k first, there is a set T of k others of which none has less than A. Three things rule that out.

    1. Any S in T has ``b_S(r) >= |S| a(r)``. The t of T that are smallest at the input sum to no more than the t smallest of
       the k largest others, S_t, as the sorted scores of T are at most those of the k largest. So r is certified while
       ``a(r) > b_{S_t}(r) / t`` for some t from 1 to k.
    2. With t = 1 this is ``(Q(lo) - Q(up_k)) / 2``: what keeps A ahead of the k-th of the others. It needs no sums, so it
       alone is left where scores do not sum to 1.
    3. All of T and A sum to at most 1 at the shifted input, too. So r is certified while ``a(r) > 1 / (k + 1)``: the radius
       is ``Q(lo) - Q(1 / (k + 1))``, which needs no bound on other classes, nor lo of 1/2.

    For every level v, ``a(r) > v`` and ``b_S(r) < t v`` together prove r. So the radius returned for t > 1 is the smaller of
    two values of `Noise.reach`, ``Q(lo) - Q(v)`` and ``Q(t v) - Q(p_S)``, of the best v that a search finds: where it ends
    decides how tight the radius is, never whether it holds. The sum of t Lipschitz scores has t times their constant.

    References
    ----------
    Jia, Cao, Wang and Gong, "Certified Robustness for Top-k Predictions against Adversarial Perturbations via Randomized
    Smoothing", 2020, Theorem 1, for Gaussian noise; the proof above takes any noise with a potential, or with a `reach`.

    Examples
    --------
    >>> from rsfast.noise import Gaussian
    >>> upper = np.array([[0.35, 0.2, 0.1]])
    >>> [round(float(top_k_radius(Gaussian(0.5), np.array([[0.4]]), upper[:, :k])[0, 0]), 4) for k in (1, 2, 3)]
    [0.033, 0.1471, 0.2571]
    """
    k = p_upper.shape[1]
    found = noise.radius(p_lower, p_upper[:, -1:], lipschitz)
    if k == 1 or not sums_to_one:
        return found
    equal = np.nextafter(1 / (k + 1), 1)
    found = np.maximum(found, noise.reach(p_lower, np.full(p_lower.shape, equal), lipschitz))
    sums = _sums_of_smallest(p_upper)
    rows = (np.arange(2, k + 1) * p_lower > sums).any(axis=1)  # at the others no sum of t is below t times p_lower
    if rows.any():
        found[rows] = np.maximum(found[rows], _ahead_of_sums(noise, p_lower[rows], sums[rows], lipschitz))
    return found


def _sums_of_smallest(p_upper: Floats) -> Floats:
    """Return the sums [inputs, k - 1] of the 2 smallest, the 3 smallest ... of k bounds, largest first, rounded up."""
    sums = [p_upper[:, -1]]
    for each in p_upper.T[-2::-1]:
        sums.append(np.minimum(np.nextafter(sums[-1] + each, np.inf), 1.0))
    return np.stack(sums[1:], axis=1)


def _ahead_of_sums(noise: Noise, p_lower: Floats, sums: Floats, lipschitz: float | None) -> Floats:
    """Return the radius [inputs, 1] within which A is ahead of 2, 3 ... others that have these sums [inputs, k - 1]."""

    def falls(level: Floats) -> Floats:
        return noise.reach(p_lower, level, lipschitz)

    def rises(level: Floats) -> Floats:
        found = np.full(level.shape, -np.inf)
        for t, p_sum in enumerate(sums.T[:, :, None], 2):
            most = np.minimum(np.nextafter(t * level, 0), 1 - 2.0**-53)
            constant = None if lipschitz is None else min(np.nextafter(t * lipschitz, np.inf), sys.float_info.max)
            found = np.maximum(found, noise.reach(most, p_sum, constant))
        return found

    # Regula falsi (Illinois) for the level where both are equal, in normal quantiles, where they are close to lines.
    least = (sums / np.arange(2, sums.shape[1] + 2)).min(axis=1, keepdims=True)
    low, high = (_special.ndtri(np.maximum(each, sys.float_info.min)) for each in (least, p_lower))
    best = np.full(p_lower.shape, -np.inf)
    below, above, kept = np.full(best.shape, -1.0), np.full(best.shape, 1.0), np.zeros(best.shape)
    for _ in range(_STEPS):
        middle = high - above * (high - low) / (above - below)
        level = np.maximum(_special.ndtr(middle), sys.float_info.min)
        fall, rise = falls(level), rises(level)
        best = np.maximum(best, np.minimum(fall, rise))
        ahead = np.nan_to_num(rise - fall, posinf=1e300, neginf=-1e300)
        if (np.abs(ahead) <= _CLOSE * np.abs(fall)).all():
            break
        left = ahead < 0
        # An end that stays for the second time counts half, or it would stay for ever.
        above = np.where(left, np.where(kept > 0, above / 2, above), ahead)
        below = np.where(left, ahead, np.where(kept < 0, below / 2, below))
        low, high, kept = np.where(left, middle, low), np.where(left, high, middle), np.where(left, 1.0, -1.0)
    return best


def shares_of_rest(p_lower: Floats, k: int) -> Floats:
    """Return upper bounds [inputs, k] on the largest scores of the other classes, if all scores sum to at most 1.

    The i-th largest is at most a share ``1 / i`` of what the class's score, at least p_lower [inputs, 1], leaves. It is
    rounded up; with k = 1 it is ``1 - p_lower``, which is exact where it is of use.

    Examples
    --------
    >>> shares_of_rest(np.array([[0.25]]), 3).round(6).tolist()
    [[0.75, 0.375, 0.25]]
    """
    rest = 1 - p_lower
    if k == 1:  # exact where p_lower is at least 1/2; below, no radius comes of it
        return rest
    return np.minimum(np.nextafter(np.nextafter(rest, np.inf) / np.arange(1, k + 1), np.inf), 1.0)


def exact_lead(first: Integers, others: Integers) -> Integers:
    """Return what `Noise.exact_radius` takes as the lead, [inputs, 1]: more than twice as many changes keep A among the k.

    Parameters
    ----------
    first : ndarray of int64 [inputs, 1]
        Votes for A, of all evaluations of deterministic noise.
    others : ndarray of int64 [inputs, k]
        The most votes of other classes.

    Returns
    -------
    ndarray of int64 [inputs, 1]
        The largest of ``ceil(2 (t first - N_t) / (t + 1))`` for t from 1 to k, with N_t the votes of the t smallest of these
        others. With k = 1 it is ``first - others``. Not positive where A is not among the k first.

    Notes
    -----
    m changed evaluations take at most m votes from A, and give at most m to all other classes together. If then no class of
    a set of k has less than A, its t smallest have together at least ``t (first - m)`` votes, and at most ``N_t + m``. So A
    is among the k first while ``m < (t first - N_t) / (t + 1)`` for one t. No more is true: votes can change so.

    Examples
    --------
    >>> exact_lead(np.array([[10]]), np.array([[8, 1]])).tolist()
    [[9]]
    """
    t = np.arange(1, others.shape[1] + 1)
    total = np.sort(others, axis=1).cumsum(axis=1)
    return np.asarray((-(-2 * (t * first - total) // (t + 1))).max(axis=1, keepdims=True))
