"""Rules: from the estimates on an input's classes to the two limits that its radius follows from, and to that radius."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..heads import Head, Votes
from ..noise import POTENTIAL_ERROR, Gaussian, check_lipschitz
from . import bounds
from .estimates import BOUNDS, Estimates, Floats

_VOTES = Votes()

RULES = ("one_vs_rest", "top_two", "class_partitioning", "bonferroni")


@dataclass(frozen=True)
class CertificationSpec:
    """How radii are proved: fixed before the estimation sample, but for what ``rule="auto"`` takes from the selection's.

    Parameters
    ----------
    noise : Gaussian
        What is added to the inputs.
    alpha : float
        Probability that a certificate is wrong.
    head : Head
        The score to certify.
    bound : str
        One of `BOUNDS`, or "auto": Clopper-Pearson for votes, betting for scores, or their kin if `looks`.
    rule : str
        One of `RULES`, or "auto": for each input one-vs-rest or top-two.
    lipschitz : float, optional
        An l2 Lipschitz constant of every class's base score; per unit of what the model takes until `certificate.of_inputs`.
    looks : bool
        Whether the samples are looked at more than once, as they are where sampling may stop early.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range, or they do not fit each other.

    Examples
    --------
    >>> CertificationSpec(Gaussian(0.5), 0.001).bound, CertificationSpec(Gaussian(0.5), 0.001, looks=True).bound
    ('clopper_pearson', 'beta_binomial_sequence')
    """

    noise: Gaussian
    alpha: float
    head: Head = _VOTES
    bound: str = "auto"
    rule: str = "auto"
    lipschitz: float | None = None
    looks: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.noise, Gaussian):
            raise TypeError(f"noise is {self.noise!r}; it must be a Gaussian")
        bound, rule = resolve(self.head, self.bound, self.rule, self.lipschitz, looks=self.looks)
        for name, value in (("alpha", bounds.check_alpha(self.alpha)), ("bound", bound), ("rule", rule)):
            object.__setattr__(self, name, value)


def resolve(head: Head, bound: str, rule: str, lipschitz: float | None = None, *, looks: bool = False) -> tuple[str, str]:
    """Return the bound that "auto" stands for, and the rule where "auto" leaves one choice; check that all fit each other.

    Raises
    ------
    TypeError
        If head is not a Head, or lipschitz not a number.
    ValueError
        If bound or rule is unknown, or does not fit: some bounds need counts, one-vs-rest needs scores that sum to at most
        1, class partitioning Clopper-Pearson, a Lipschitz constant scores that are continuous, and several looks a bound
        that may be read at any time.

    Examples
    --------
    >>> resolve(Votes(), "auto", "auto")
    ('clopper_pearson', 'auto')
    """
    if not isinstance(head, Head):
        raise TypeError(f"head is {head!r}; it must be one of Votes, Softmax, Sparsemax, ClippedLogits")
    votes = isinstance(head, Votes)
    if bound == "auto" and looks:
        bound = "beta_binomial_sequence" if votes else "betting_sequence"
    elif bound == "auto":
        bound = "clopper_pearson" if votes else "betting"
    if rule == "auto" and not head.sums_to_one:
        rule = "top_two"
    if not isinstance(bound, str) or bound not in BOUNDS:
        raise ValueError(f"bound is {bound!r}; it must be auto, {', '.join(BOUNDS)}")
    if rule not in ("auto", *RULES):
        raise ValueError(f"rule is {rule!r}; it must be auto, {', '.join(RULES)}")
    if looks and rule == "class_partitioning":
        raise ValueError(f"rule is {rule!r}, which is for one look; to stop early it must be another")
    if not votes and not BOUNDS[bound].scores:
        allowed = ", ".join(name for name, kind in BOUNDS.items() if kind.scores and kind.sequence >= looks)
        raise ValueError(f"bound is {bound!r}; with the head {head} it must be one for means: {allowed}")
    if rule == "one_vs_rest" and not head.sums_to_one:
        raise ValueError(f"rule is {rule!r}; with the head {head}, whose scores do not sum to 1, it must be top_two")
    if rule == "class_partitioning" and bound != "clopper_pearson":
        raise ValueError(
            f"rule is {rule!r}; it adds the votes of classes, so the bound must be clopper_pearson, not {bound!r}"
        )
    if looks and not BOUNDS[bound].sequence:
        allowed = ", ".join(name for name, kind in BOUNDS.items() if kind.sequence and (votes or kind.scores))
        raise ValueError(
            f"bound is {bound!r}, which holds for one look at a number of samples fixed before; "
            f"to stop early it must be one that may be read at any time: {allowed}"
        )
    if lipschitz is not None:
        check_lipschitz(lipschitz)
        if votes:
            raise ValueError(f"lipschitz is {lipschitz!r}; with the head {head}, which jumps from 0 to 1, it must be None")
    return bound, rule


def partition(votes: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Return the buckets of classes that class partitioning bounds, from selection votes [classes].

    Parameters
    ----------
    votes : ndarray of int64
        Votes of the selection sample for each of two or more classes.

    Returns
    -------
    list of ndarray of int64
        The first two classes alone, then one class after the other, most votes first, until those left have together no more
        votes than the second; these are the last bucket. Of equal classes the lowest comes first.

    Raises
    ------
    ValueError
        If votes is not of two or more classes.

    References
    ----------
    Delattre, Caillon, Barthélemy, Fagnou and Allauzen, "Bridging the Theoretical Gap in Randomized Smoothing", 2025,
    class partitioning spec.

    Examples
    --------
    >>> [bucket.tolist() for bucket in partition(np.array([0, 5, 80, 4, 3, 8]))]
    [[2], [5], [1], [0, 3, 4]]
    """
    if votes.ndim != 1 or len(votes) < 2:
        raise ValueError(f"votes has shape {list(votes.shape)}; it must be [classes], two or more")
    order = np.argsort(-votes, kind="stable")
    left = votes.sum() - np.cumsum(votes[order])  # after each class
    alone = 2 + int(np.argmax(left[1:] <= votes[order[1]]))  # none is left after the last, so there is one
    return [order[i : i + 1] for i in range(alone)] + ([np.sort(order[alone:])] if alone < len(order) else [])


def radius(noise: Gaussian, p_lower: ArrayLike, p_upper: ArrayLike, lipschitz: float | None = None) -> NDArray[np.float64]:
    """Return the radius within which a class stays ahead of all others, given bounds on their smoothed scores.

    Parameters
    ----------
    noise : Gaussian
        The smoothing noise.
    p_lower : array_like of float
        Lower bounds on the class's score, in [0, 1).
    p_upper : array_like of float
        Upper bounds on every other class's score, in (0, 1]; broadcasts with p_lower.
    lipschitz : float, optional
        An l2 Lipschitz constant of every class's base score: the potential is then larger.

    Returns
    -------
    ndarray of float64
        ``(Q(p_lower) - Q(p_upper)) / 2`` with Q the noise's potential, rounded down, in the units of the input; finite
        or -inf, and not positive where the class cannot be told to be ahead.

    Raises
    ------
    ValueError
        If a bound claims certainty (p_lower of 1, p_upper of 0: no sample gives it, and the radius would be infinite), lies
        outside [0, 1] or is NaN.

    References
    ----------
    Cohen, Rosenfeld and Kolter, "Certified Adversarial Robustness via Randomized Smoothing", 2019, Theorem 1.

    Examples
    --------
    >>> round(float(radius(Gaussian(0.5), 0.99, 0.01)), 4)
    1.1632
    """
    lower, upper = np.asarray(p_lower, dtype=np.float64), np.asarray(p_upper, dtype=np.float64)
    if not np.all((lower >= 0) & (lower < 1)):
        raise ValueError(f"p_lower is {p_lower!r}; it must be at least 0 and below 1")
    if not np.all((upper > 0) & (upper <= 1)):
        raise ValueError(f"p_upper is {p_upper!r}; it must be above 0 and at most 1")
    low, high = noise.potential(lower, lipschitz), noise.potential(upper, lipschitz)
    return np.asarray((low - high - POTENTIAL_ERROR * (np.abs(low) + np.abs(high))) / 2)


class AlphaSplit(NamedTuple):
    """A rule, and the share of alpha that lo and each up have."""

    rule: str
    share: float


_ALPHA_SPLITS = (AlphaSplit("one_vs_rest", 1.0), AlphaSplit("top_two", 1 / 2))


class Limits(NamedTuple):
    """What a spec makes of the estimates, [inputs, 1] each."""

    lower: Floats
    """Lower limit of the leader's score."""
    upper: Floats
    """Upper limit of every other class's."""
    rules: NDArray[np.object_]
    alpha_upper: Floats
    """The part of alpha that the upper limits have."""
    plans: NDArray[np.int64]
    """Places in `_alpha_splits`."""


def _alpha_splits(spec: CertificationSpec, classes: int) -> tuple[AlphaSplit, ...]:
    if spec.rule == "auto":
        return _ALPHA_SPLITS
    return tuple(plan for plan in _ALPHA_SPLITS if plan.rule == spec.rule) or (
        AlphaSplit(spec.rule, math.nextafter(1 / classes, 0)),
    )


def limits(estimates: Estimates, spec: CertificationSpec) -> Limits:
    """Return the limits of every input."""
    shape = (len(estimates.classes), 1)
    plans = _alpha_splits(spec, estimates.scores.sums.shape[1])
    best = np.zeros(shape, dtype=np.int64)
    if len(plans) > 1:
        best = _predicted_radii(estimates, plans, spec).argmax(axis=1, keepdims=True)
    if spec.rule == "class_partitioning":
        lower, upper, alpha_upper = _partitioned(estimates, spec.alpha)
        return Limits(lower, upper, np.full(shape, spec.rule, dtype=object), alpha_upper, best)
    found = Limits(np.empty(shape), np.empty(shape), np.empty(shape, dtype=object), np.empty(shape), best)
    for number, plan in enumerate(plans):
        rows = best[:, 0] == number
        if rows.any():
            found.lower[rows], found.upper[rows] = _by_split(estimates.rows(rows), plan, spec)
            found.rules[rows], found.alpha_upper[rows] = plan.rule, spec.alpha - spec.alpha * plan.share
    return found


def _by_split(estimates: Estimates, plan: AlphaSplit, spec: CertificationSpec) -> tuple[Floats, Floats]:
    """Return lo of the leader and the largest up of the others, [inputs, 1] each."""
    alpha = spec.alpha * plan.share
    lower = estimates.limit(spec.bound, "lower", alpha, 0)
    if plan.rule == "one_vs_rest":
        return lower, 1 - lower
    upper = estimates.largest_upper(spec.bound, alpha)
    # 1 - lo is exact where lo is at least 1/2; below, it is the larger of the two, and no radius comes of it.
    return lower, np.minimum(upper, 1 - lower) if spec.head.sums_to_one else upper


def optimistic_radius(estimates: Estimates, spec: CertificationSpec, found: Limits) -> Floats:
    """Return the largest radii [inputs] that are still likely once all samples are drawn: to stop by, no claim.

    What the spec would make of as many samples as there may be, if the leader's mean were as large and its rival's as
    small as the samples so far leave likely. This needs no theorem: to stop too early costs a certificate, not its truth.
    """
    most = np.empty(len(estimates.classes))
    for number, plan in enumerate(_alpha_splits(spec, estimates.scores.sums.shape[1])):
        rows = found.plans[:, 0] == number
        if rows.any():
            part = estimates.rows(rows)
            leader, rival = part.best_case(0, "upper"), part.best_case(1, "lower")
            most[rows] = _predicted_radius(part, plan, spec, leader, rival)[:, 0]
    return most


def _predicted_radius(
    estimates: Estimates,
    plan: AlphaSplit,
    spec: CertificationSpec,
    leader: tuple[Floats, Floats],
    rival: tuple[Floats, Floats],
) -> Floats:
    """Return about the radii [inputs, 1] for as many draws as there may be, of scores with these means and variances.

    Nothing rests on them: bounds are those of real-valued counts, and nothing is rounded outward.
    """
    alpha = spec.alpha * plan.share
    low = np.minimum(estimates.forecast(spec.bound, *leader, alpha), 1 - 2.0**-53)
    high = 1 - low
    if plan.rule != "one_vs_rest":
        mean, variance = rival
        upper = 1 - estimates.forecast(spec.bound, 1 - mean, variance, alpha)
        high = np.minimum(high, upper) if spec.head.sums_to_one else upper
    return radius(spec.noise, low, np.maximum(high, np.finfo(np.float64).tiny), spec.lipschitz)


def _predicted_radii(estimates: Estimates, plans: Sequence[AlphaSplit], spec: CertificationSpec) -> Floats:
    """Return about the radii [inputs, plans] that plans would give, by the selection sample."""
    mean, variance = estimates.selected.only(estimates.classes).mean_and_variance()
    if estimates.selected.sums.shape[1] > 2:  # who has the rest is less sure the less of it was seen
        rest = (1 - mean[:, :1]) * estimates.selected.trials
        mean[:, 1:] *= rest / (rest + 1)
    leader, rival = (mean[:, :1], variance[:, :1]), (mean[:, 1:], variance[:, 1:])
    return np.concatenate([_predicted_radius(estimates, plan, spec, leader, rival) for plan in plans], axis=1)


def _partitioned(estimates: Estimates, alpha: float) -> tuple[Floats, Floats, Floats]:
    """Return lo of the leader, the largest up of a bucket of others and the ups' part of alpha, [inputs, 1] each."""
    scores, chosen = estimates.scores, estimates.classes[:, :1]
    partitions = [partition(votes) for votes in estimates.selected.sums]
    shares = np.array([alpha / len(buckets) for buckets in partitions])
    largest = np.array([[max(int(v[b].sum()) for b in p[1:])] for v, p in zip(scores.sums, partitions, strict=True)])
    lower, upper = np.empty(chosen.shape), np.empty(chosen.shape)
    for share in np.unique(shares):
        rows = shares == share
        trials = scores.trials[rows]
        lower[rows] = bounds.clopper_pearson_lower(scores.only(chosen).sums[rows], trials, share)
        upper[rows] = bounds.clopper_pearson_upper(largest[rows], trials, share)
    return lower, np.minimum(upper, 1 - lower), (alpha - shares)[:, None]
