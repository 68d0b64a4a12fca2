"""What a certificate of one model and few paired samples prove about a changed model.

Both models see the same noise. The mass that class A loses, P(f = A, f' != A), is at most the disagreement of the two. So
P(f' = A) >= P(f = A) - P(f = A, f' != A): the certificate's own samples bound the first term, few pairs the second. The
votes of the changed model bound P(f' = A) by themselves, too. The two limits share alpha, and the better one counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..noise import Noise
from .bounds.beta_binomial import beta_binomial_sequence_lower, beta_binomial_sequence_upper
from .bounds.clopper_pearson import clopper_pearson_lower, clopper_pearson_upper, forecast_proportion
from .certificate import Certificate
from .common import Floats, Integers
from .registry import BOUNDS
from .rules import LIKELY, radius

RULE = "incremental"
"""The rule of these certificates."""

_BEFORE, _PAIRS = 0.1, 0.45
"""Shares of alpha: of the limit from the certificate's samples, and of each of the two limits from pairs. The first moves
its limit little, as its samples are many."""

_MISSES = {"a": 0.1, "b": 1.0}
"""Mixture of the sequences, over the chance that the models disagree, or that the changed one misses A: both are small."""

_ANOTHER = 5e-10
"""Level of each of the four limits that show another model: small, as every input of a run is tested."""

BOUND = "beta_binomial_sequence"
"""The bound of the pairs, which holds at any number of them."""


class Before(NamedTuple):
    """What a certificate of the first model rests on."""

    counts: tuple[int, int]
    n: int
    rule: str
    bound: str
    noise: Noise

    @classmethod
    def of(cls, certificate: Certificate) -> Before:
        """Return that of a certificate."""
        return cls(*(getattr(certificate, name) for name in cls._fields))


class Pairs(NamedTuple):
    """Votes of paired samples, integers [inputs].

    A is an input's class, and "another" whichever other class has most of them.
    """

    trials: Integers
    kept: Integers
    """Of the changed model, for A."""
    lost: Integers
    """For A by the first model, but not by the changed one."""
    rival: Integers
    """Of the changed model, for another."""
    gained: Integers
    """For another by the changed model, but not by the first."""

    @classmethod
    def of(cls, votes: Integers, trials: Integers, classes: Integers) -> Pairs:
        """Return those of votes [inputs, 3, K] of the first model, of the changed one, and on which both agree."""
        rows = np.arange(len(classes))
        first, changed, agreed = np.moveaxis(votes, 1, 0)
        others = changed - agreed, changed.copy()
        for each in others:
            each[rows, classes] = 0
        gained, rival = (each.max(axis=1) for each in others)
        lost = first[rows, classes] - agreed[rows, classes]
        return cls(trials, changed[rows, classes], lost, rival, gained)


class Limits(NamedTuple):
    """Limits [inputs] of p_A from below and of every other class from above, and the radius that they prove."""

    lower: Floats
    upper: Floats
    radius: Floats


def check_before(certificates: Sequence[Certificate]) -> None:
    """Raise ValueError unless certificates are of votes under random noise, for the first class: others are not derived."""
    for place, each in enumerate(certificates):
        if each.noise.evaluations is not None or each.head.soft or each.top_k > 1:
            what = f"the head {each.head}, {each.noise!r:.80} and top_k = {each.top_k}"
            raise ValueError(f"certificates[{place}] must be of votes, random noise and top_k = 1, got {what}; certify anew")


def proved(before: Sequence[Before], pairs: Pairs, alpha: float) -> Limits:
    """Return what certificates of the first model, which did not abstain, and pairs prove about the changed model.

    Parameters
    ----------
    before : sequence of Before
        One an input. Under one-vs-rest, ``1 - lower`` bounds all other classes.
    pairs : Pairs
        At any number of pairs: the limits hold at all of them at once. They may be of the certificates' own noise, as a
        union bound needs no independence.
    alpha : float
        Probability that the limits of an input are wrong.

    References
    ----------
    Ugare, Suresh, Banerjee, Singh and Misailovic, "Incremental Randomized Smoothing Certification", 2024. They bound all
    disagreement; here it is only the mass that A loses, and the changed model's own votes.

    Examples
    --------
    >>> from rsfast.noise import Gaussian
    >>> one = np.array([1000])
    >>> before = Before((99_000, 1000), 100_000, "one_vs_rest", "clopper_pearson", Gaussian(0.5))
    >>> found = proved([before], Pairs(one, kept=one - 10, lost=0 * one, rival=0 * one + 10, gained=0 * one), 0.001)
    >>> bool(0.97 < found.lower[0] < 0.99), bool(0.9 < found.radius[0] < 1.2)
    (True, True)
    """

    def below(votes: Integers, n: Integers, share: float) -> Floats:
        return beta_binomial_sequence_lower(votes, n, share, a=_MISSES["b"], b=_MISSES["a"])

    def above(votes: Integers, n: Integers, share: float) -> Floats:
        return beta_binomial_sequence_upper(votes, n, share, **_MISSES)

    return _limits(before, pairs, alpha, below, above)


def still_likely(before: Sequence[Before], pairs: Pairs, alpha: float, most: int) -> Floats:
    """Return the largest radii [inputs] that are likely once there are `most` pairs. They are no claim."""

    def forecast(likely: Floats, share: float) -> Floats:
        return forecast_proportion(likely, most, share * most ** -_MISSES["a"])  # the mixture's price

    def likely_above(votes: Integers, n: Integers) -> Floats:
        mean = votes / n
        return np.asarray(mean + (1 - forecast_proportion(1 - mean, n, LIKELY) - mean) * np.sqrt(1 - n / most))

    def below(votes: Integers, n: Integers, share: float) -> Floats:
        return forecast(likely_above(votes, n), share)

    def above(votes: Integers, n: Integers, share: float) -> Floats:
        return 1 - forecast(likely_above(n - votes, n), share)

    return _limits(before, pairs, alpha, below, above).radius


_Limit = Callable[[Integers, Integers, float], Floats]


def _earlier(bound: str) -> tuple[_Limit, _Limit]:
    """Return the lower and the upper limit of a certificate's own samples: a sequence unless they were read only once."""
    if bound in BOUNDS and not BOUNDS[bound].sequence:
        return clopper_pearson_lower, clopper_pearson_upper
    return beta_binomial_sequence_lower, beta_binomial_sequence_upper


def of_another_model(before: Sequence[Before], votes: Integers, trials: Integers) -> NDArray[np.bool_]:
    """Return which certificates are hardly of a model with so many votes for their classes; all [inputs].

    The limits of both shares of votes then lie apart. Under one model that happens with probability 2e-9 at most.

    Examples
    --------
    >>> from rsfast import Gaussian
    >>> before = [Before((99_900, 100), 100_000, "one_vs_rest", "clopper_pearson", Gaussian(0.25))] * 3
    >>> of_another_model(before, np.array([1000, 997, 900]), np.full(3, 1000)).tolist()
    [False, False, True]
    """
    low = beta_binomial_sequence_lower(votes, trials, _ANOTHER)
    high = beta_binomial_sequence_upper(votes, trials, _ANOTHER)
    found = np.empty(len(before), dtype=bool)
    for earlier in {_earlier(each.bound) for each in before}:
        rows = np.array([_earlier(each.bound) == earlier for each in before])
        theirs, n = np.array([(each.counts[0], each.n) for each in before])[rows].T
        least, most = (limit(theirs, n, _ANOTHER) for limit in earlier)
        found[rows] = (low[rows] > most) | (high[rows] < least)
    return found


def _limits(before: Sequence[Before], pairs: Pairs, alpha: float, below: _Limit, above: _Limit) -> Limits:
    """Return the limits, of which `below` and `above` give those of the pairs."""
    found = Limits(*(np.empty(len(before)) for _ in Limits._fields))
    groups: dict[tuple[tuple[_Limit, _Limit], bool], list[int]] = {}
    for place, each in enumerate(before):
        groups.setdefault((_earlier(each.bound), each.rule == "one_vs_rest"), []).append(place)
    for (earlier, one_vs_rest), places in groups.items():
        share = alpha if one_vs_rest else alpha / 2
        votes, n = np.array([before[place].counts for place in places]), np.array([before[place].n for place in places])
        part = Pairs(*(each[places] for each in pairs))
        kept = earlier[0](votes[:, 0], n, share * _BEFORE) - above(part.lost, part.trials, share * _PAIRS)
        lower = np.maximum(np.nextafter(kept, -1), below(part.kept, part.trials, share * _PAIRS))
        lower = np.clip(lower, 0, 1 - 2.0**-53)
        upper = 1 - lower
        if not one_vs_rest:
            gained = earlier[1](votes[:, 1], n, share * _BEFORE) + above(part.gained, part.trials, share * _PAIRS)
            most = np.minimum(np.nextafter(gained, 2), above(part.rival, part.trials, share * _PAIRS))
            upper = np.clip(np.minimum(most, upper), 2.0**-1022, 1)
        noise = before[places[0]].noise
        found.lower[places], found.upper[places] = lower, upper
        found.radius[places] = radius(noise, lower, upper)
    return found
