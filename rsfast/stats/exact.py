"""Exact certificates: of deterministic noise every evaluation is counted, so that nothing is left to chance."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np

from ..heads import Head
from ..noise import STREAM_VERSION, Noise
from ..noise.provenance import Provenance
from .certificate import ABSTAIN
from .common import Floats, Integers, largest
from .estimates import Estimates, TallyLike
from .registry import Bound

EXACT = "exact"
"""The name of the bound, and of the rule, of an exact certificate."""


class Exact(Bound):
    """The shares of votes themselves, rounded outward. They never fail, so no alpha is spent; only exact specs take it."""

    name = EXACT

    def lower(self, estimates: Estimates, place: int, alpha: float) -> Floats:
        ours = estimates.at(place)
        return _rounded_down(ours.sums, ours.trials)

    def upper(self, estimates: Estimates, place: int, alpha: float) -> Floats:
        ours = estimates.at(place)
        return _rounded_up(ours.sums, ours.trials)

    def upper_of_others(self, estimates: Estimates, alpha: float, count: int = 1) -> Floats:
        others = estimates.others()
        return _rounded_up(largest(others.sums, count), others.trials)

    def forecast(self, estimates: Estimates, mean: Floats, variance: Floats, alpha: float) -> Floats:
        return mean


def _rounded_down(counts: Integers, n: Integers) -> Floats:
    def share(count: int, n: int) -> float:
        found = count / n
        return found if Fraction(found) <= Fraction(count, n) else math.nextafter(found, 0)

    return np.asarray(np.frompyfunc(share, 2, 1)(counts, n), dtype=np.float64)


def _rounded_up(counts: Integers, n: Integers) -> Floats:
    def share(count: int, n: int) -> float:
        found = count / n
        return found if Fraction(found) >= Fraction(count, n) else math.nextafter(found, 1)

    return np.asarray(np.frompyfunc(share, 2, 1)(counts, n), dtype=np.float64)


def check_exact(noise: Noise, head: Head, **options: Any) -> None:
    """Raise ValueError, naming the option, where one has a meaning that it cannot have with deterministic noise.

    Parameters
    ----------
    noise : Noise
        Deterministic: its `evaluations` is a number.
    head : Head
        Must vote: what a changed evaluation does to the lead is known of votes.
    **options
        ``n0``, ``n``, ``alpha``, ``bound``, ``rule``; all others must be None. Those left out are not checked.

    Examples
    --------
    >>> from rsfast import SubspaceSmoothing, Votes
    >>> check_exact(SubspaceSmoothing([[[1.0, 0.0]], [[0.0, 1.0]]]), Votes(), n=2, alpha=0, rtol=0.1)
    Traceback (most recent call last):
        ...
    ValueError: rtol must be None with deterministic noise, whose 2 evaluations are all counted, got 0.1; leave it out
    """
    n = noise.evaluations
    possible: dict[str, tuple[object, ...]] = {"n0": (0,), "n": (n,), "alpha": (0,)}
    possible |= dict.fromkeys(("bound", "rule"), (EXACT, "auto"))
    options.pop("top_k", None)  # which means the same with any noise
    why = f"with deterministic noise, whose {n} evaluations are all counted"
    for name, value in options.items():
        allowed = possible.get(name, (None,))
        if isinstance(value, bool) or value not in allowed:
            raise ValueError(f"{name} must be {allowed[-1]!r} {why}, got {value!r}; leave it out")
    if head.soft:
        raise ValueError(f"head must be Votes() {why}, got {head!r}")


def check_whole(name: str, tally: TallyLike) -> Provenance:
    """Return the provenance of a Tally; raise ValueError unless it states every evaluation of deterministic noise, once."""
    tally.check_provenance(name)
    where = tally.provenance
    if where is None:
        raise ValueError(f"{name}.provenance must state which samples the Tally holds, as one from sample does, got None")
    if (n := where.noise.evaluations) is None:
        raise ValueError(f"{name} must be of deterministic noise, got one of {where.noise!r:.100}; see certificates")
    if where.stream_version != STREAM_VERSION:
        raise ValueError(f"{name}.provenance.stream_version must be {STREAM_VERSION}, got {where.stream_version}")
    for input_id, samples in zip(where.input_ids, where.samples, strict=True):
        if samples != (range(n),):
            raise ValueError(
                f"{name} must hold the samples 0 to {n - 1} of input {input_id}, all evaluations, got {samples}"
            )
    return where


def exact_predictions(votes: Integers) -> list[int]:
    """Return the class with most votes at each input, from votes [inputs, classes] of all evaluations; a tie abstains.

    Examples
    --------
    >>> exact_predictions(np.array([[2, 5, 3], [4, 1, 4]]))
    [1, -1]
    """
    best = votes.max(axis=1, keepdims=True)
    return np.where((votes == best).sum(axis=1) == 1, votes.argmax(axis=1), ABSTAIN).tolist()  # type: ignore[no-any-return]
