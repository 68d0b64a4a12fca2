"""From votes to predictions, and how many samples they take at least."""

from __future__ import annotations

import math

import numpy as np

from ..heads import Votes
from .bounds.clopper_pearson import majority_p_value
from .certificate import ABSTAIN
from .common import Integers, check_alpha
from .estimates import Scores, TallyLike, leader_and_rival

_VOTES = Votes()


def prediction(votes: Integers, alpha: float) -> int:
    """Return the smoothed classifier's class, from votes [classes], or `ABSTAIN`.

    Parameters
    ----------
    votes : ndarray of int64
        Votes for each of two or more classes.
    alpha : float
        Probability that a class returned is not the smoothed classifier's; TypeError or ValueError if not in (0, 1).

    Returns
    -------
    int
        The class with most votes; `ABSTAIN` where the two-sided exact binomial test of the top two classes does not
        reject, at level alpha, that they are equally likely. Its p-value is rounded up.

    References
    ----------
    Cohen, Rosenfeld and Kolter, "Certified Adversarial Robustness via Randomized Smoothing", 2019, Proposition 1.

    Examples
    --------
    >>> prediction(np.array([2, 18]), 0.001), prediction(np.array([9, 11]), 0.001)
    (1, -1)
    """
    return _predictions(votes[None], alpha)[0]


def _predictions(votes: Integers, alpha: float) -> list[int]:
    """Return the `prediction` from each row of votes [inputs, classes]."""
    alpha = check_alpha(alpha)
    label = votes.argmax(axis=1, keepdims=True)  # which of two equal classes comes first does not matter: they abstain
    p_value = majority_p_value(*leader_and_rival(votes, label))
    found: list[int] = np.where(p_value <= alpha, label, ABSTAIN)[:, 0].tolist()
    return found


def predictions(tally: TallyLike, alpha: float) -> list[int]:
    """Return the `prediction` at every input of a Tally; draws that voted for nobody are left out.

    It is the test of `prediction`, with the same errors. ValueError if n is not what the Tally's provenance states, or its
    noise is deterministic: `exact_certificates` has the class that all evaluations give.

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
    if tally.provenance is not None and tally.provenance.noise.evaluations is not None:
        raise ValueError(
            f"tally must be of random noise, got one of {tally.provenance.noise!r:.100}; give it to exact_certificates"
        )
    return _predictions(Scores.of(tally, _VOTES).sums, alpha)


def smallest_predictable_n(alpha: float) -> int:
    """Return the fewest samples with which `predictions` can answer: a unanimous test, ``2 ** (1 - n) <= alpha``.

    Examples
    --------
    >>> smallest_predictable_n(0.001)
    11
    """
    return 2 - math.frexp(check_alpha(alpha))[1]
