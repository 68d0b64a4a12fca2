"""Rules: from the estimates on an input's classes to the two limits that its radius follows from, and to that radius."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._check import check_count
from ..heads import Head, Votes, check_head
from ..noise import Noise, check_lipschitz, check_noise
from .bounds.betting import typical_betting_lower
from .bounds.clopper_pearson import forecast_proportion
from .common import Floats, check_alpha, largest
from .estimates import Estimates, Scores, TallyLike
from .exact import EXACT, Exact, check_exact
from .registry import BOUNDS, Bound, resolve_bound
from .top_k import shares_of_rest, top_k_radius

_VOTES = Votes()

RULES = ("one_vs_rest", "top_two", "class_partitioning", "bonferroni")

LIKELY = 0.01
"""Chance of what `best_case` leaves out: smaller, and fewer inputs are given up that all samples would certify."""


@dataclass(frozen=True)
class CertificationSpec:
    """How radii are proved. It is fixed before the estimation sample; ``rule="auto"`` also uses the selection sample.

    Parameters
    ----------
    noise, alpha, head, bound, rule
        As in `certificates`. The bound "auto" is replaced by the one that it stands for. With deterministic noise alpha is
        0, the head votes, and bound and rule are "exact".
    lipschitz : float, optional
        An l2 Lipschitz constant of every class's base score; per unit of what the model takes until `proof.of_inputs`.
    early : bool
        Whether sampling may stop early, so that the samples are analysed more than once.
    top_k : int
        How many classes may have the largest scores: within the radius the certified class is one of them.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range, or they do not fit each other.

    Examples
    --------
    >>> from rsfast.noise import Gaussian
    >>> CertificationSpec(Gaussian(0.5), 0.001).bound, CertificationSpec(Gaussian(0.5), 0.001, early=True).bound
    ('clopper_pearson', 'beta_binomial_sequence')
    """

    noise: Noise
    alpha: float
    head: Head = _VOTES
    bound: str = "auto"
    rule: str = "auto"
    lipschitz: float | None = None
    early: bool = False
    top_k: int = 1

    def __post_init__(self) -> None:
        check_noise("noise", self.noise).check_lipschitz(self.lipschitz)
        if self.exact:
            given = {name: getattr(self, name) for name in ("alpha", "bound", "rule", "lipschitz")}
            check_exact(self.noise, check_head("head", self.head), **given, max_samples=self.early or None)
            alpha, bound, rule = 0.0, EXACT, EXACT
        else:
            bound, rule = resolve(self.head, self.bound, self.rule, self.lipschitz, early=self.early)
            alpha = check_alpha(self.alpha)
        top_k = check_count("top_k", self.top_k)
        if rule == "class_partitioning" and top_k > 1:
            raise ValueError(
                f"rule must be auto, one_vs_rest, top_two or bonferroni with top_k = {top_k}, got {rule!r}; it bounds "
                "classes together, and so not the k-th of them"
            )
        for name, value in (("alpha", alpha), ("bound", bound), ("rule", rule), ("top_k", top_k)):
            object.__setattr__(self, name, value)

    def check_classes(self, num_classes: int) -> None:
        """Raise ValueError unless there are more classes than `top_k`.

        Examples
        --------
        >>> from rsfast.noise import Gaussian
        >>> CertificationSpec(Gaussian(0.5), 0.001, top_k=10).check_classes(10)
        Traceback (most recent call last):
            ...
        ValueError: top_k must be less than num_classes, which is 10, got 10; every class is among the first 10
        """
        if self.top_k > 1 and self.top_k >= num_classes:
            raise ValueError(
                f"top_k must be less than num_classes, which is {num_classes}, got {self.top_k}; every class is among the "
                f"first {self.top_k}"
            )

    @property
    def exact(self) -> bool:
        """Whether the noise is deterministic: all evaluations are counted, no class is selected before, and alpha is 0."""
        return self.noise.evaluations is not None

    @property
    def limits_by(self) -> Bound:
        """The bound that gives the limits."""
        return Exact() if self.exact else BOUNDS[self.bound]


def resolve(head: Head, bound: str, rule: str, lipschitz: float | None = None, *, early: bool = False) -> tuple[str, str]:
    """Return the bound that "auto" stands for, and the rule where "auto" leaves one choice; check that all fit each other.

    Raises
    ------
    TypeError
        If head is not a Head, or lipschitz not a number.
    ValueError
        If bound or rule is unknown, or does not fit. `Bound` declares what a bound can do. One-vs-rest needs scores that
        sum to at most 1, class partitioning a bound that pools classes, and a Lipschitz constant continuous scores.

    Examples
    --------
    >>> resolve(Votes(), "auto", "auto")
    ('clopper_pearson', 'auto')
    """
    check_head("head", head)
    found = resolve_bound(bound, head, early)
    if rule == "auto" and not head.sums_to_one:
        rule = "top_two"
    if rule not in ("auto", *RULES):
        raise ValueError(f"rule must be one of auto, {', '.join(RULES)}, got {rule!r}")
    if rule == "one_vs_rest" and not head.sums_to_one:
        raise ValueError(
            f"rule must be top_two or bonferroni with the head {head}, got {rule!r}; its scores do not sum to 1"
        )
    if rule == "class_partitioning" and early:
        raise ValueError(f"rule must be one for any number of analyses where sampling may stop early, got {rule!r}")
    if rule == "class_partitioning" and not found.pools:
        pooling = " or ".join(name for name, each in BOUNDS.items() if each.pools)
        raise ValueError(
            f"bound must be {pooling} with the rule {rule!r}, which adds the votes of classes, got {found.name!r}"
        )
    if lipschitz is not None:
        check_lipschitz(lipschitz)
        if not head.soft:
            raise ValueError(f"lipschitz must be None with the head {head}, which jumps from 0 to 1, got {lipschitz!r}")
    return found.name, rule


def alike(specs: Sequence[CertificationSpec]) -> list[list[int]]:
    """Return the places of specs in groups that are proved together: they agree in all but how scores follow from logits.

    Examples
    --------
    >>> from rsfast import Gaussian, Softmax
    >>> alike([CertificationSpec(Gaussian(0.5), 0.001, head) for head in (Softmax(1), Votes(), Softmax(2))])
    [[0, 2], [1]]
    """
    groups: dict[object, list[int]] = {}
    for place, spec in enumerate(specs):
        head, what = spec.head, [getattr(spec, each.name) for each in fields(spec) if each.name != "head"]
        groups.setdefault((*what, head.soft, head.bits, head.slack, head.sums_to_one), []).append(place)
    return list(groups.values())


def partition(votes: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Return the buckets of classes that class partitioning bounds, from selection votes [classes].

    Parameters
    ----------
    votes : ndarray of int64
        Votes of the selection sample for each of two or more classes.

    Returns
    -------
    list of ndarray of int64
        Each of the first two classes, then one class after the other, most votes first. Once those left have together no
        more votes than the second, they are the last bucket. Of equal classes the lowest comes first.

    Raises
    ------
    ValueError
        If votes is not of two or more classes.

    References
    ----------
    Delattre, Caillon, Barthélemy, Fagnou and Allauzen, "Bridging the Theoretical Gap in Randomized Smoothing", 2025,
    class partitioning method.

    Examples
    --------
    >>> [bucket.tolist() for bucket in partition(np.array([0, 5, 80, 4, 3, 8]))]
    [[2], [5], [1], [0, 3, 4]]
    """
    if votes.ndim != 1 or len(votes) < 2:
        raise ValueError(f"votes must be [classes], two or more, got shape {list(votes.shape)}")
    order = np.argsort(-votes, kind="stable")
    left = votes.sum() - np.cumsum(votes[order])  # after each class
    single = 2 + int(np.argmax(left[1:] <= votes[order[1]]))  # none is left after the last, so there is one
    return [order[i : i + 1] for i in range(single)] + ([np.sort(order[single:])] if single < len(order) else [])


def radius(noise: Noise, p_lower: ArrayLike, p_upper: ArrayLike, lipschitz: float | None = None) -> NDArray[np.float64]:
    """Return the radius within which a class stays ahead of all others, given bounds on their smoothed scores.

    Parameters
    ----------
    noise : Noise
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
        ``(Q(p_lower) - Q(p_upper)) / 2`` with Q the noise's potential, rounded down, in the units of the input; of a noise
        without one, as `Mask`, what its `radius` says. Finite or -inf, and not positive where the class is not proved to be
        ahead.

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
    >>> from rsfast.noise import Gaussian
    >>> round(float(radius(Gaussian(0.5), 0.99, 0.01)), 4)
    1.1632
    """
    return noise.radius(*_check_limits(p_lower, p_upper), lipschitz)


def _check_limits(p_lower: ArrayLike, p_upper: ArrayLike) -> tuple[Floats, Floats]:
    lower, upper = np.asarray(p_lower, dtype=np.float64), np.asarray(p_upper, dtype=np.float64)
    if not np.all((lower >= 0) & (lower < 1)):
        raise ValueError(f"p_lower must be at least 0 and below 1, got {p_lower!r}")
    if not np.all((upper > 0) & (upper <= 1)):
        raise ValueError(f"p_upper must be above 0 and at most 1, got {p_upper!r}")
    return lower, upper


def radius_of(spec: CertificationSpec, p_lower: Floats, p_upper: Floats) -> Floats:
    """Return the radii [inputs, 1] that follow from limits as in `Limits`; with top_k 1 they are `radius`, as are errors."""
    lower, upper = _check_limits(p_lower, p_upper)
    return top_k_radius(spec.noise, lower, upper, spec.lipschitz, sums_to_one=spec.head.sums_to_one)


class AlphaSplit(NamedTuple):
    """A rule, and the shares of alpha that lo and each up have."""

    rule: str
    share: float
    share_of_up: float


class Limits(NamedTuple):
    """What a spec makes of the estimates, [inputs, 1] each."""

    lower: Floats
    """Lower limit of the leader's score."""
    upper: Floats
    """Upper limits [inputs, top_k] of the others' scores: of the largest, the next and so on. So without top_k of all."""
    rules: NDArray[np.object_]
    alpha_upper: Floats
    """The part of alpha that the upper limits have."""
    splits: NDArray[np.int64]
    """Places in `_alpha_splits`."""


def _alpha_splits(spec: CertificationSpec, classes: int) -> tuple[AlphaSplit, ...]:
    each = 1 / 2 if spec.top_k == 1 else math.nextafter(1 / (2 * spec.top_k), 0)
    splits = (AlphaSplit("one_vs_rest", 1.0, 0.0), AlphaSplit("top_two", 1 / 2, each))
    if spec.rule == "auto":
        return splits
    share = math.nextafter(1 / classes, 0)
    return tuple(split for split in splits if split.rule == spec.rule) or (AlphaSplit(spec.rule, share, share),)


def best_splits(estimates: Estimates, spec: CertificationSpec) -> NDArray[np.int64]:
    """Return the place of each input's split [inputs, 1] in `_alpha_splits`: a function of the selection sample."""
    splits = _alpha_splits(spec, estimates.scores.sums.shape[1])
    if len(splits) == 1:
        return np.zeros((len(estimates.classes), 1), dtype=np.int64)
    return np.asarray(_predicted_radii(estimates, splits, spec).argmax(axis=1, keepdims=True))


def limits(
    estimates: Estimates, spec: CertificationSpec, best: NDArray[np.int64] | None = None, rough: Bound | None = None
) -> Limits:
    """Return the limits of every input; those of `Bound.rough` prove nothing. `best` is what `best_splits` returned."""
    shape = (len(estimates.classes), 1)
    splits = _alpha_splits(spec, estimates.scores.sums.shape[1])
    best = best_splits(estimates, spec) if best is None else best
    bound = rough or spec.limits_by
    if spec.rule == "class_partitioning":
        lower, upper, alpha_upper = _partitioned(estimates, spec)
        return Limits(lower, upper, np.full(shape, spec.rule, dtype=object), alpha_upper, best)
    uppers = np.empty((len(best), spec.top_k))
    found = Limits(np.empty(shape), uppers, np.empty(shape, dtype=object), np.empty(shape), best)
    for number, split in enumerate(splits):
        rows = best[:, 0] == number
        if rows.any():
            found.lower[rows], found.upper[rows] = _by_split(estimates.rows(rows), split, spec, bound)
            found.rules[rows], found.alpha_upper[rows] = split.rule, spec.alpha - spec.alpha * split.share
    return found


def _by_split(estimates: Estimates, split: AlphaSplit, spec: CertificationSpec, bound: Bound) -> tuple[Floats, Floats]:
    """Return lo of the leader [inputs, 1] and the largest ups of the others [inputs, top_k].

    Of the true k largest others, fixed classes, each has an up that fails with up's share of alpha. Where none fails, the
    i-th largest up of all others is at least the i-th largest of these k ups, and so at least the i-th largest true score.
    So the shares of k ups are all that alpha pays for, whatever the number of classes.
    """
    alpha, k = spec.alpha * split.share, spec.top_k
    if split.rule == "one_vs_rest":
        lower = bound.lower(estimates, 0, alpha)
        return lower, shares_of_rest(lower, k)
    if k == 1:
        lower, upper = bound.both(estimates, alpha)
    else:
        lower, upper = bound.lower(estimates, 0, alpha), bound.uppers(estimates, spec.alpha * split.share_of_up, k)
    return lower, np.minimum(upper, shares_of_rest(lower, k)) if spec.head.sums_to_one else upper


def _partitioned(estimates: Estimates, spec: CertificationSpec) -> tuple[Floats, Floats, Floats]:
    """Return lo of the leader, the largest up of a bucket of others and the ups' part of alpha, [inputs, 1] each."""
    scores = estimates.scores
    partitions = [partition(votes) for votes in estimates.selected.sums]
    shares = np.array([spec.alpha / len(buckets) for buckets in partitions])
    largest = np.array([[max(int(v[b].sum()) for b in p[1:])] for v, p in zip(scores.sums, partitions, strict=True)])
    votes = np.hstack([estimates.at(0).sums, largest])  # the largest bucket takes the rival's place
    pooled = estimates._replace(
        scores=scores._replace(sums=votes, squares=votes), classes=np.broadcast_to([0, 1], (len(votes), 2))
    )
    lower, upper = np.empty(largest.shape), np.empty(largest.shape)
    for share in np.unique(shares):
        rows = shares == share
        lower[rows] = spec.limits_by.lower(pooled.rows(rows), 0, share)
        upper[rows] = spec.limits_by.upper(pooled.rows(rows), 1, share)
    return lower, np.minimum(upper, 1 - lower), (spec.alpha - shares)[:, None]


def predicted_radii(selection: TallyLike, specs: Sequence[CertificationSpec], n: int) -> Floats:
    """Return about the radii [specs, inputs] that n samples like those of the selection would prove. They are no claim.

    A spec that is chosen by them depends on the selection sample only, so the certificate from other samples holds.

    Examples
    --------
    >>> from rsfast import Gaussian, Tally
    >>> selection = Tally(1, 2)
    >>> selection.n[0], selection.counts[0, 0], selection.counts[0, 1] = 100, 90, 10
    >>> predicted_radii(selection, [CertificationSpec(Gaussian(sigma), 0.001) for sigma in (0.25, 0.5)], 10_000).round(3)
    array([[0.307],
           [0.614]])
    """
    found = np.empty((len(specs), selection.num_inputs))
    for places in alike(specs):
        spec, heads = specs[places[0]], [specs[place].head for place in places]
        scores, ids = Scores.of(selection, *heads), range(selection.num_inputs)
        estimates = Estimates.of(scores, [selection], heads, False, n, 0, ids)
        radii = _predicted_radii(estimates, _alpha_splits(spec, selection.num_classes), spec)
        found[places] = radii.max(axis=1).reshape(len(places), -1)
    return found


def optimistic_radius(estimates: Estimates, spec: CertificationSpec, found: Limits, rough: Bound) -> Floats:
    """Return the largest radii [inputs] that are still likely once all samples are drawn. They are no claim.

    They are what the spec would make of as many samples as there may be, if the leader's mean were as large and its
    rival's as small as the samples so far leave likely. To stop too early costs a certificate, but none becomes wrong.
    """
    most = np.empty(len(estimates.classes))
    for number, split in enumerate(_alpha_splits(spec, estimates.scores.sums.shape[1])):
        rows = found.splits[:, 0] == number
        if rows.any():
            part = estimates.rows(rows)
            leader, others = best_case(part, 0, "upper"), best_case(part, spec.top_k, "lower")
            predicted = _predicted_limits(part, split, spec, rough, leader, others)
            most[rows] = radius_of(spec, *predicted)[:, 0]
    return most


def best_case(estimates: Estimates, others: int, side: str) -> tuple[Floats, Floats]:
    """Return the largest ("upper") or smallest mean that all samples are likely to have, and the sample's variance.

    They are those of the leader's score where `others` is 0, or else of so many of the largest others: whichever classes
    these are, their limits count.
    """
    which = estimates.classes[:, :1]
    if others:
        which = estimates.scores.largest_others(which, others)
    mean, variance = estimates.scores.only(which).mean_and_variance()
    trials = estimates.scores.trials

    def likely_lower(mean: Floats) -> Floats:
        if estimates.scores.bits:
            return typical_betting_lower(mean, variance, trials, LIKELY)
        return forecast_proportion(mean, trials, LIKELY)

    limit = likely_lower(mean) if side == "lower" else 1 - likely_lower(1 - mean)
    # The mean of all samples holds those that there are: from it the sample's mean is less far than from the true one.
    return mean + (limit - mean) * np.sqrt(1 - trials / estimates.max_samples), variance


def _predicted_limits(
    estimates: Estimates,
    split: AlphaSplit,
    spec: CertificationSpec,
    bound: Bound,
    leader: tuple[Floats, Floats],
    others: tuple[Floats, Floats],
) -> tuple[Floats, Floats]:
    """Return about the limits, [inputs, 1] and [inputs, top_k], for as many draws as there may be, of scores like these.

    Scores are given by means and variances: that of the leader, and of the largest others.

    Nothing rests on them: bounds are those of real-valued counts, and nothing is rounded outward.
    """
    low = np.minimum(bound.forecast(estimates, *leader, spec.alpha * split.share), 1 - 2.0**-53)
    high = shares_of_rest(low, spec.top_k)
    if split.rule != "one_vs_rest":
        mean, variance = others
        upper = largest(1 - bound.forecast(estimates, 1 - mean, variance, spec.alpha * split.share_of_up), spec.top_k)
        high = np.minimum(high, upper) if spec.head.sums_to_one else upper
    return low, np.maximum(high, sys.float_info.min)


def _predicted_radii(estimates: Estimates, splits: Sequence[AlphaSplit], spec: CertificationSpec) -> Floats:
    """Return about the radii [inputs, splits] that splits would give, by the selection sample."""
    first = estimates.classes[:, :1]
    classes = np.hstack([first, estimates.selected.largest_others(first, spec.top_k)])
    mean, variance = estimates.selected.only(classes).mean_and_variance()
    if estimates.selected.sums.shape[1] > 2:  # the fewer samples outside the leader were seen, the less sure the rival is
        rest = (1 - mean[:, :1]) * estimates.selected.trials
        mean[:, 1:] *= rest / (rest + 1)
    leader, others = (mean[:, :1], variance[:, :1]), (mean[:, 1:], variance[:, 1:])
    predicted = [_predicted_limits(estimates, split, spec, spec.limits_by, leader, others) for split in splits]
    return np.hstack([radius_of(spec, *limits) for limits in predicted])
