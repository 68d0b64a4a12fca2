"""What Tallies hold of a head's scores, as NumPy arrays, and what a confidence bound may take of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._check import as_integers
from ..heads import Head
from ..heads.bins import BINS, BITS
from ..noise import uniforms
from ..noise.provenance import Provenance
from .common import Floats, Integers, as_trials


@runtime_checkable
class TallyLike(Protocol):
    """What certificates need of a `Tally`. It hands over NumPy arrays, so that nothing here imports torch."""

    num_inputs: int
    num_classes: int
    heads: tuple[Head, ...]
    soft_heads: tuple[Head, ...]
    provenance: Provenance | None

    def head_sums(self, *heads: Head) -> tuple[Integers, Integers, Integers]:
        """Return the sums and squares [heads * inputs, classes] of heads' scores, and the trials [heads * inputs, 1]."""

    def head_histograms(self, *heads: Head) -> tuple[Integers, Integers, Integers]:
        """Return soft heads' tracked classes [heads * inputs, C], and their bin counts and bin sums [.., C, BINS]."""

    def check_provenance(self, name: str = "tally") -> None:
        """Raise ValueError if n is not what the provenance states."""


def _places(classes: Integers) -> tuple[Integers, Integers]:
    """Return the index of classes [inputs, n] in an array [inputs, classes]; take_along_axis takes four times as long."""
    return np.arange(len(classes))[:, None], classes


class Scores(NamedTuple):
    """Sums and squares [inputs, classes] and trials [inputs, 1] of a head; see `moments` for units.

    Heads of the same `bits` and `slack` may be stacked along the inputs' axis: all inputs of the first head come first.
    """

    sums: Integers
    squares: Integers
    trials: Integers
    bits: int
    """log2 of the unit: 0 for votes."""
    slack: int

    @classmethod
    def of(cls, tally: TallyLike, *heads: Head) -> Scores:
        """Return the scores under heads of the Tally, stacked."""
        return cls(*tally.head_sums(*heads), heads[0].bits, heads[0].slack)

    @classmethod
    def total(cls, ranges: Sequence[TallyLike], *heads: Head) -> Scores:
        """Return the scores of several Tallies together."""
        parts = zip(*(tally.head_sums(*heads) for tally in ranges), strict=True)
        sums, squares, trials = (reduce(np.add, part) for part in parts)
        return cls(sums, squares, trials, heads[0].bits, heads[0].slack)

    @classmethod
    def unanimous(cls, head: Head, n: int, num_classes: int) -> Scores:
        """Return those of one input whose n samples all agree: the first class has score 1, the others 0."""
        sums = np.zeros((1, num_classes), dtype=np.int64)
        sums[0, 0] = n << head.bits
        return cls(sums, sums, np.array([[n]]), head.bits, head.slack)

    def only(self, classes: Integers) -> Scores:
        """Return the scores of classes [inputs, n], in that order."""
        places = _places(classes)
        return self._replace(sums=self.sums[places], squares=self.squares[places])

    def without(self, classes: Integers) -> Scores:
        """Return the scores with those of these classes set to zero: no upper limit is below that of zero."""
        sums, squares, places = self.sums.copy(), self.squares.copy(), _places(classes)
        sums[places] = squares[places] = 0
        return self._replace(sums=sums, squares=squares)

    def rows(self, rows: NDArray[np.bool_] | Integers) -> Scores:
        """Return the scores of some inputs."""
        return self._replace(sums=self.sums[rows], squares=self.squares[rows], trials=self.trials[rows])

    def mean_and_variance(self) -> tuple[Floats, Floats]:
        """Return the sample's own [inputs, classes], not rounded outward: nothing may rest on them."""
        mean = self.sums / (self.trials * 2.0**self.bits)
        return mean, np.maximum(self.squares / (self.trials * 2.0**self.bits) - mean**2, 0)

    def moments(self) -> tuple[Floats, Floats, Floats]:
        """Return the `moments` [inputs, classes] of these scores."""
        return moments(self.sums, self.squares, self.trials, bits=self.bits, slack=self.slack)

    def leading_classes(self) -> Integers:
        """Return [inputs, 2]: the class with the largest sum and the next, of equals the lowest first."""
        return _leading(self.sums)

    def largest_others(self, leader: Integers, count: int) -> Integers:
        """Return [inputs, count]: classes with the largest sums but the leader [inputs, 1], of equals the lowest first."""
        sums = self.sums.copy()
        np.put_along_axis(sums, leader, -1, axis=1)
        return sums.argmax(axis=1, keepdims=True) if count == 1 else np.argsort(-sums, axis=1, kind="stable")[:, :count]


def leading_classes(selection: TallyLike) -> Integers:
    """Return the classes whose histograms a betting bound needs: those with the largest sums, of each input and soft head.

    Parameters
    ----------
    selection : Tally
        Of the selection sample.

    Returns
    -------
    ndarray of int64 [I, M, 2]
        For ``sample(tracked_classes=...)`` or ``Tally(tracked_classes=...)`` of the estimation sample.

    Raises
    ------
    TypeError
        If selection is not a Tally.

    Examples
    --------
    >>> from rsfast import Softmax, Tally
    >>> selection = Tally(1, 3, [Softmax()])
    >>> selection.sums[0, 0] += selection.sums.new_tensor([5, 0, 9])
    >>> leading_classes(selection).tolist()
    [[[2, 0]]]
    """
    if not isinstance(selection, TallyLike):
        raise TypeError(f"selection must be a Tally, got {selection!r:.100}; sample() returns one")
    heads = selection.soft_heads
    if not heads:
        return np.empty((selection.num_inputs, 0, 2), dtype=np.int64)
    return Scores.of(selection, *heads).leading_classes().reshape(len(heads), -1, 2).swapaxes(0, 1)


def _leading(sums: Integers) -> Integers:
    first, rest = sums.argmax(axis=1, keepdims=True), sums.copy()
    rest[_places(first)] = -1
    return np.concatenate([first, rest.argmax(axis=1, keepdims=True)], axis=1)


def leader_and_rival(sums: Integers, leader: Integers) -> tuple[Integers, Integers]:
    """Return the sums [heads * inputs, 1] of a class of each input that each head chose, and the largest of another class.

    Examples
    --------
    >>> [each.tolist() for each in leader_and_rival(np.array([[3, 9, 4]]), np.array([[1], [2]]))]
    [[[9], [4]], [[4], [9]]]
    """
    inputs = np.tile(np.arange(len(sums)), len(leader) // len(sums))[:, None]
    leading = _leading(sums)[inputs[:, 0]]
    rival = np.where(leader == leading[:, :1], leading[:, 1:], leading[:, :1])
    return sums[inputs, leader], sums[inputs, rival]


def zeros_and_ones(ones: Integers, trials: Integers) -> tuple[Integers, Integers]:
    """Return the histograms, counts and sums [..., BINS], of scores that are 1 so often, and 0 otherwise."""
    counts = np.zeros((*ones.shape, BINS), dtype=np.int64)
    sums = counts.copy()
    counts[..., 0], counts[..., -1], sums[..., -1] = trials - ones, ones, ones << BITS
    return counts, sums


def head_histograms(tally: TallyLike, heads: Sequence[Head], classes: Integers) -> tuple[Integers, Integers]:
    """Return the histograms, counts and sums [heads * inputs, 2, BINS], of the scores of two classes of each input.

    Raises
    ------
    ValueError
        If the Tally does not hold them.
    """
    if not heads[0].soft:
        votes = Scores.of(tally, *heads)
        return zeros_and_ones(votes.only(classes).sums, votes.trials)
    tracked, counts, sums = tally.head_histograms(*heads)
    if tracked.shape[1] != 2 or not np.array_equal(tracked, classes):
        what = "none" if tracked.shape[1] == 0 else f"those of the classes {tracked.tolist()}"
        raise ValueError(
            f"estimation must hold histograms of the two classes that the selection sample puts first, got {what}; take "
            "them from sample(tracked_classes=leading_classes(selection)), or a run certified with a bound that bets, or "
            "take a bound that needs none, such as 'empirical_bernstein' where sampling does not stop early"
        )
    return counts, sums


class Estimates(NamedTuple):
    """The estimation sample of one head, or of heads stacked as in `Scores`, and what the selection sample showed before it.

    The selection sample names two classes of each input, the leader (`place` 0) and its rival (`place` 1). It also
    forecasts their scores, which some bounds start from. These two classes get the bound that was asked for. All others
    get an upper limit that needs only their sums. The true runner-up is one fixed class, whatever the estimation sample
    shows. So its limit holds, whichever of the two it gets.
    """

    selected: Scores
    scores: Scores
    classes: Integers  # [inputs, 2]
    histograms: tuple[Integers, Integers] | None  # counts and sums [inputs, 2, stages, BINS] of those classes
    analyses: int  # taken so far, with the present one
    max_samples: int  # most samples there could have been
    seed: int
    input_ids: Integers  # [inputs]

    @classmethod
    def of(
        cls,
        selected: Scores,
        ranges: Sequence[TallyLike],
        heads: Sequence[Head],
        histograms: bool,
        max_samples: int,
        seed: int,
        input_ids: Sequence[int],
    ) -> Estimates:
        """Collect the estimates from the sample ranges of an estimation, with their histograms if a bound needs them.

        Raises
        ------
        ValueError
            If the Tallies do not hold the histograms.
        """
        classes = selected.leading_classes()
        stacked = None
        if histograms:
            counts, sums = zip(*(head_histograms(tally, heads, classes) for tally in ranges), strict=True)
            stacked = np.stack(counts, axis=2), np.stack(sums, axis=2)
        total, ids = Scores.total(ranges, *heads), np.tile(np.array(input_ids), len(heads))
        return cls(selected, total, classes, stacked, len(ranges), max_samples, seed, ids)

    @classmethod
    def unanimous(cls, head: Head, n0: int, ends: Sequence[int], num_classes: int) -> Estimates:
        """Return the estimates on one input where all samples agree, n0 and those of the ranges that end so.

        The first class always has score 1, the others 0: no other samples give a larger radius.
        """
        sizes = np.diff([0, *ends])
        selected, scores = (Scores.unanimous(head, n, num_classes) for n in (n0, ends[-1]))
        histograms = zeros_and_ones(np.array([[sizes, 0 * sizes]]), sizes)
        return cls(selected, scores, np.array([[0, 1]]), histograms, len(ends), ends[-1], 0, np.array([0]))

    def rows(self, rows: NDArray[np.bool_] | Integers) -> Estimates:
        """Return the estimates on some inputs."""
        if rows.dtype == np.bool_ and rows.all():
            return self
        return self._replace(
            selected=self.selected.rows(rows),
            scores=self.scores.rows(rows),
            classes=self.classes[rows],
            histograms=self.histograms and (self.histograms[0][rows], self.histograms[1][rows]),
            input_ids=self.input_ids[rows],
        )

    def at(self, place: int) -> Scores:
        """Return the estimation's scores [inputs, 1] of the leader (`place` 0) or its rival (1)."""
        return self.scores.only(self.classes[:, place : place + 1])

    def before(self, place: int) -> Scores:
        """Return the selection's scores [inputs, 1] of the leader (`place` 0) or its rival (1)."""
        return self.selected.only(self.classes[:, place : place + 1])

    def others(self) -> Scores:
        """Return the estimation's scores of all classes, those of the leader and its rival set to zero."""
        return self.scores.without(self.classes)

    def histograms_at(self, place: int) -> tuple[Integers, Integers]:
        """Return counts and sums [inputs, stages, BINS] of the leader's (`place` 0) or its rival's (1) scores."""
        assert self.histograms is not None
        counts, sums = self.histograms
        return counts[:, place], sums[:, place]

    def uniforms_at(self, place: int) -> Floats:
        """Return the uniform [inputs, 1] of the leader (`place` 0) or its rival (1): a function of seed and input id."""
        return np.array([[uniforms(self.seed, input_id)[place]] for input_id in self.input_ids.tolist()])


def moments(
    sums: ArrayLike, squares: ArrayLike, trials: ArrayLike, *, bits: int = 30, slack: int = 2
) -> tuple[Floats, Floats, Floats]:
    """Return the sample mean, rounded down and rounded up, and the sample variance, rounded up, of integer scores.

    Parameters
    ----------
    sums : array_like of int
        Sum of the scores q of all draws, each an integer in [0, 2**bits] that stands for ``q * 2**-bits``.
    squares : array_like of int
        Sum of ``ceil(q * q / 2**bits)``. Broadcasts with sums and trials.
    trials : array_like of int
        Number of draws, from 1 to 2**33.
    bits : int
        Size of the unit: 30 in a Tally's sums, 0 for counts of votes.
    slack : int
        By how many units a score may lie below the real-valued score that it stands for: 2 in a Tally's sums, 0 for votes.

    Returns
    -------
    mean_lower, mean_upper, variance : ndarray of float64
        ``sums / trials * 2**-bits`` rounded down; the same plus ``slack * 2**-bits``, rounded up, at most 1; the unbiased
        variance rounded up, inf for a single draw. Each at most one unit in the last place from the exact value.

    Raises
    ------
    TypeError
        If sums, squares or trials hold anything but integers.
    ValueError
        If an argument is out of range, or no draws have these sums and squares.

    Notes
    -----
    ``(trials * squares * 2**bits - sums**2) / (trials * (trials - 1)) * 4**-bits``, in Python's integers: in float64 the
    difference cancels when the scores agree. The integer scores are a variable in [0, 1] of their own, never above the
    score they stand for; a lower bound on their mean is one on the score's, an upper bound needs the slack.

    Examples
    --------
    >>> [float(value) for value in moments(3 << 29, 5 << 28, 2, slack=0)]  # the scores 1 and 1/2
    [0.7499999999999999, 0.7500000000000001, 0.12500000000000003]
    """
    unit = 2**bits

    def exact(total: int, square: int, n: int) -> tuple[float, float, float]:
        spread = n * square * unit - total**2
        if total > n * unit:
            raise ValueError(f"sums must be at most trials * 2**{bits}, with trials {n}, got {total}")
        if spread < 0 or square > total:
            raise ValueError(f"squares must be that of {n} scores in units of 2**-{bits} with sums {total}, got {square}")
        mean_lower = max(math.nextafter(total / (n * unit), -math.inf), 0.0)
        mean_upper = min(math.nextafter((total + slack * n) / (n * unit), math.inf), 1.0)
        return mean_lower, mean_upper, math.nextafter(spread / (n * (n - 1) * unit**2), math.inf) if n > 1 else math.inf

    # frompyfunc hands over Python's integers, which do not overflow and whose quotient is correctly rounded.
    values = np.frompyfunc(exact, 3, 3)(as_integers("sums", sums, 0), as_integers("squares", squares, 0), as_trials(trials))
    mean_lower, mean_upper, variance = (np.asarray(value, dtype=np.float64) for value in values)
    return mean_lower, mean_upper, variance
