"""The interface of a confidence bound, and the registry of all bounds by name. CONTRIBUTING.md shows how to add one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import ClassVar

import numpy as np

from ..heads import Head
from .common import Floats, analysis_ends, largest
from .estimates import Estimates


class Bound(ABC):
    """A confidence bound on a class's mean score: what it can do, what it needs, and the limits that it gives.

    Limits are arrays [inputs, 1]. Each fails with probability at most the alpha that it is given. A bound works on any
    sample ranges that are fixed before the sample.

    Attributes
    ----------
    name : str
        As ``certify(bound=...)`` takes it.
    scores : bool
        Whether it bounds soft scores, too. All bounds take votes.
    sequence : bool
        Whether its limits hold at every analysis at once. Only then may sampling stop early.
    preferred : bool
        Whether ``bound="auto"`` may pick it: it stands for the first preferred bound that is available.
    histograms : bool
        Whether it needs histograms of the scores in sample ranges (`Estimates.histograms_at`).
    randomized : bool
        Whether it needs a uniform (`Estimates.uniforms_at`). No samples then give a largest radius.
    pools : bool
        Whether it bounds classes together whose votes are added up, as the rule class partitioning needs.
    """

    name: ClassVar[str]
    scores: ClassVar[bool] = False
    sequence: ClassVar[bool] = False
    preferred: ClassVar[bool] = False
    histograms: ClassVar[bool] = False
    randomized: ClassVar[bool] = False
    pools: ClassVar[bool] = False

    @abstractmethod
    def lower(self, estimates: Estimates, place: int, alpha: float) -> Floats:
        """Return the lower limit of the score of the leader (`place` 0) or its rival (1)."""

    @abstractmethod
    def upper(self, estimates: Estimates, place: int, alpha: float) -> Floats:
        """Return the upper limit of the score of the leader (`place` 0) or its rival (1)."""

    def upper_of_others(self, estimates: Estimates, alpha: float, count: int = 1) -> Floats:
        """Return the `count` largest upper limits of `Estimates.others`, [inputs, count], each of which fails with alpha.

        By default they are those of a bound that needs only their sums.
        """
        if estimates.scores.bits:  # a bound for one analysis
            alpha, name = self.alpha_of_analysis(alpha, estimates.analyses), "empirical_bernstein"
        else:
            name = "beta_binomial_sequence" if self.sequence else "clopper_pearson"
        return BOUNDS[name].upper_of_others(estimates, alpha, count)

    def uppers(self, estimates: Estimates, alpha: float, count: int) -> Floats:
        """Return the `count` largest upper limits of all classes but the leader, largest first, each of this alpha."""
        found = [self.upper(estimates, 1, alpha)]
        if others := min(count, estimates.scores.sums.shape[1] - 2):
            found.append(self.upper_of_others(estimates, alpha, others))
        return largest(np.hstack(found), count)

    def both(self, estimates: Estimates, alpha: float) -> tuple[Floats, Floats]:
        """Return the lower limit of the leader's score and the largest upper limit of the others, each with this alpha."""
        upper = self.upper(estimates, 1, alpha)
        if estimates.scores.sums.shape[1] > 2:
            upper = np.asarray(np.maximum(upper, self.upper_of_others(estimates, alpha)))
        return self.lower(estimates, 0, alpha), upper

    @abstractmethod
    def forecast(self, estimates: Estimates, mean: Floats, variance: Floats, alpha: float) -> Floats:
        """Return about the lower limit that ``estimates.max_samples`` scores with this mean and variance would give.

        Rules are chosen by it, and sampling stops by it. Nothing that is proved rests on it.
        """

    def sample_ranges(self, n: int) -> list[int]:
        """Return where the ranges of a sample of n end, for a single analysis at its end."""
        return [n]

    def rough(self) -> Bound:
        """Return a cheaper bound whose limits prove nothing: at least as tight, and hardly tighter. By default this one.

        It is for one plan and spec, and sees the sample ranges of each input in order, each once. In its estimates, scores
        are those of all ranges so far, histograms those of the last, and input ids name places of inputs.
        """
        return self

    def analysis_ends(self, n: int) -> list[int]:
        """Return where the ranges of a sample of at most n end that may stop at each: a rule fixed by integers alone."""
        return analysis_ends(n)

    def alpha_of_analysis(self, alpha: float, analysis: int) -> float:
        """Return the part of alpha that a bound for a single analysis gets at the analysis of this number, from 1.

        The parts of all analyses sum to at most alpha.
        """
        return alpha / (analysis * (analysis + 1)) if self.sequence else alpha

    def unavailable_reason(self, head: Head, early: bool) -> str:
        """Return why this bound cannot be used for a head, or where sampling may stop early; empty if it can."""
        if early and not self.sequence:
            return "it holds for one analysis, at a number of samples fixed before"
        if not self.scores and head.soft:
            return f"it counts votes, and the head {head} has scores"
        return ""


BOUNDS: dict[str, Bound] = {}
"""The confidence bounds by name."""


def register(*bounds: Bound) -> None:
    """Add bounds to `BOUNDS`; raise ValueError if there is another bound of the same name."""
    for bound in bounds:
        if bound.name in BOUNDS or bound.name == "auto":
            raise ValueError(f"name must not be that of another bound, got {bound.name!r}")
        BOUNDS[bound.name] = bound


def available(head: Head, early: bool) -> list[str]:
    """Return the names of the bounds that can be used for a head, and where sampling may stop early if it may."""
    return [name for name, bound in BOUNDS.items() if not bound.unavailable_reason(head, early)]


def resolve_bound(name: str, head: Head, early: bool) -> Bound:
    """Return the bound of this name; "auto" stands for the first preferred one that is available.

    Raises
    ------
    ValueError
        If the name is unknown, or the bound is unavailable.

    Examples
    --------
    >>> from rsfast import Votes
    >>> resolve_bound("auto", Votes(), early=False).name
    'clopper_pearson'
    """
    choices = available(head, early)
    if name == "auto":
        return next(BOUNDS[choice] for choice in choices if BOUNDS[choice].preferred)
    if not isinstance(name, str) or name not in BOUNDS:
        raise ValueError(f"bound must be one of auto, {', '.join(BOUNDS)}, got {name!r}")
    if reason := BOUNDS[name].unavailable_reason(head, early):
        where = " where sampling may stop early" if early else f" with the head {head}"
        raise ValueError(f"bound must be one of auto, {', '.join(choices)}{where}, got {name!r}; {reason}")
    return BOUNDS[name]


def sample_ranges(bounds: Collection[Bound], n: int, early: bool) -> list[int]:
    """Return where the ranges of a sample of n end that serves all of these bounds.

    These are the finest that one of them wants. Where sampling may stop early they are the coarsest: some bounds share alpha
    between the analyses, and those that do not hold at any of them.

    Examples
    --------
    >>> sample_ranges([BOUNDS["betting_sequence"], BOUNDS["beta_binomial_sequence"]], 50, early=True)
    [16, 24, 32, 48, 50]
    """
    if early:
        return min((bound.analysis_ends(n) for bound in bounds), key=len)
    return max((bound.sample_ranges(n) for bound in bounds), key=len)
