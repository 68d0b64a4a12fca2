"""The smoothed classifier's class from votes, and how many samples a class or a certificate takes at least."""

from __future__ import annotations

import math

import numpy as np
from scipy.stats import binomtest

from ..heads import Votes
from .certificate import ABSTAIN
from .common import Integers, check_alpha
from .scores import Scores, TallyLike

_VOTES = Votes()


def prediction(votes: Integers, alpha: float) -> int:
    """Return the smoothed classifier's class, from votes [classes], or `ABSTAIN`.

    Parameters
    ----------
    votes : ndarray of int64
        Votes for each of two or more classes.
    alpha : float
        Probability that a class returned is not the smoothed classifier's.

    Returns
    -------
    int
        The class with most votes; `ABSTAIN` where the two-sided exact binomial test of the top two classes does not
        reject, at level alpha, that they are equally likely.

    Raises
    ------
    TypeError
        If alpha is not a number.
    ValueError
        If alpha is not in (0, 1).

    References
    ----------
    Cohen, Rosenfeld and Kolter, "Certified Adversarial Robustness via Randomized Smoothing", 2019, Proposition 1.

    Examples
    --------
    >>> prediction(np.array([2, 18]), 0.001), prediction(np.array([9, 11]), 0.001)
    (1, -1)
    """
    alpha = check_alpha(alpha)
    label, rival = np.argsort(-votes)[:2]  # which of two equal classes comes first does not matter: they abstain
    first, second = int(votes[label]), int(votes[rival])
    return int(label) if first and binomtest(first, first + second, 0.5).pvalue <= alpha else ABSTAIN


def predictions(tally: TallyLike, alpha: float) -> list[int]:
    """Return the `prediction` at every input of a Tally; draws that voted for nobody are left out.

    It is the test of `prediction`, with the same errors. ValueError if n is not what the Tally's provenance states.

    Examples
    --------
    >>> from rsfast import Tally
    >>> tally = Tally(2, 2)
    >>> for counts, votes in zip(tally.counts, ([2, 18], [9, 11])):
    ...     counts[0], counts[1] = votes
    >>> predictions(tally, 0.001)
    [1, -1]
    """
    tally.check_provenance()
    return [prediction(votes, alpha) for votes in Scores.of(tally, _VOTES).sums]


def smallest_certifiable_n(alpha: float) -> int:
    """Return the fewest estimation samples with which unanimous votes certify anything: ``alpha ** (1 / n) > 1/2``.

    Raises
    ------
    TypeError, ValueError
        If alpha is not a number in (0, 1).

    Examples
    --------
    >>> smallest_certifiable_n(0.001)
    10
    """
    mantissa, exponent = math.frexp(check_alpha(alpha))  # exact, where a logarithm is not at powers of 1/2
    return 2 - exponent if mantissa == 0.5 else 1 - exponent


def smallest_predictable_n(alpha: float) -> int:
    """Return the fewest samples with which `predictions` can answer: a unanimous test, ``2 ** (1 - n) <= alpha``.

    Raises
    ------
    TypeError, ValueError
        If alpha is not a number in (0, 1).

    Examples
    --------
    >>> smallest_predictable_n(0.001)
    11
    """
    return 2 - math.frexp(check_alpha(alpha))[1]
