"""What Tallies hold of a head's scores, as NumPy arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ..heads import Head
from ..heads.bins import BINS, BITS
from ..noise.provenance import Provenance
from .common import Floats, Integers


@runtime_checkable
class TallyLike(Protocol):
    """What certificates need of a `Tally`. It hands over NumPy arrays, so that nothing here imports torch."""

    num_inputs: int
    num_classes: int
    heads: tuple[Head, ...]
    soft_heads: tuple[Head, ...]
    provenance: Provenance | None

    def head_sums(self, head: Head) -> tuple[Integers, Integers, Integers]:
        """Return the sums and squares [inputs, classes] of a head's scores, and the trials [inputs, 1]."""

    def head_histograms(self, head: Head) -> tuple[Integers, Integers, Integers]:
        """Return a soft head's tracked classes [inputs, C], and their bin counts and bin sums [inputs, C, BINS]."""

    def check_provenance(self, name: str = "tally") -> None:
        """Raise ValueError if n is not what the provenance states."""


class Scores(NamedTuple):
    """Sums and squares [inputs, classes] and trials [inputs, 1] of one head; see `moments` for units."""

    sums: Integers
    squares: Integers
    trials: Integers
    bits: int
    """log2 of the unit: 0 for votes."""
    slack: int

    @classmethod
    def of(cls, tally: TallyLike, head: Head) -> Scores:
        """Return the scores under `head`, one of the Tally's."""
        return cls(*tally.head_sums(head), head.bits, head.slack)

    @classmethod
    def total(cls, ranges: Sequence[TallyLike], head: Head) -> Scores:
        """Return the scores of several Tallies together."""
        total, *parts = (cls.of(tally, head) for tally in ranges)
        for part in parts:
            sums, squares, trials = (mine + theirs for mine, theirs in zip(total[:3], part[:3], strict=True))
            total = total._replace(sums=sums, squares=squares, trials=trials)
        return total

    @classmethod
    def unanimous(cls, head: Head, n: int, num_classes: int) -> Scores:
        """Return those of one input whose n samples all agree: the first class has score 1, the others 0."""
        sums = np.zeros((1, num_classes), dtype=np.int64)
        sums[0, 0] = n << head.bits
        return cls(sums, sums, np.array([[n]]), head.bits, head.slack)

    def only(self, classes: Integers) -> Scores:
        """Return the scores of classes [inputs, n], in that order."""
        return self._replace(
            sums=np.take_along_axis(self.sums, classes, axis=1), squares=np.take_along_axis(self.squares, classes, axis=1)
        )

    def without(self, classes: Integers) -> Scores:
        """Return the scores with those of these classes set to zero: no upper limit is below that of zero."""
        sums, squares = self.sums.copy(), self.squares.copy()
        np.put_along_axis(sums, classes, 0, axis=1)
        np.put_along_axis(squares, classes, 0, axis=1)
        return self._replace(sums=sums, squares=squares)

    def rows(self, rows: NDArray[np.bool_]) -> Scores:
        """Return the scores of some inputs."""
        return self._replace(sums=self.sums[rows], squares=self.squares[rows], trials=self.trials[rows])

    def mean_and_variance(self) -> tuple[Floats, Floats]:
        """Return the sample's own [inputs, classes], not rounded outward: nothing may rest on them."""
        mean = self.sums / (self.trials * 2.0**self.bits)
        return mean, np.maximum(self.squares / (self.trials * 2.0**self.bits) - mean**2, 0)

    def leading_classes(self) -> Integers:
        """Return [inputs, 2]: the class with the largest sum and the next, of equals the lowest first."""
        return np.argsort(-self.sums, axis=1, kind="stable")[:, :2]


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
    found = [Scores.of(selection, head).leading_classes() for head in selection.soft_heads]
    return np.stack(found, axis=1) if found else np.empty((selection.num_inputs, 0, 2), dtype=np.int64)


def zeros_and_ones(ones: Integers, trials: Integers) -> tuple[Integers, Integers]:
    """Return the histograms, counts and sums [..., BINS], of scores that are 1 so often, and 0 otherwise."""
    counts = np.zeros((*ones.shape, BINS), dtype=np.int64)
    sums = counts.copy()
    counts[..., 0], counts[..., -1], sums[..., -1] = trials - ones, ones, ones << BITS
    return counts, sums


def head_histograms(tally: TallyLike, head: Head, classes: Integers) -> tuple[Integers, Integers]:
    """Return the histograms, counts and sums [inputs, 2, BINS], of the scores of two classes of each input.

    Raises
    ------
    ValueError
        If the Tally does not hold them.
    """
    if not head.soft:
        votes = Scores.of(tally, head)
        return zeros_and_ones(votes.only(classes).sums, votes.trials)
    tracked, counts, sums = tally.head_histograms(head)
    if tracked.shape[1] != 2 or not np.array_equal(tracked, classes):
        what = "none" if tracked.shape[1] == 0 else f"those of the classes {tracked.tolist()}"
        raise ValueError(
            f"estimation must hold histograms of the two classes that the selection sample puts first, got {what}; take "
            "them from sample(tracked_classes=leading_classes(selection)), or a run certified with a bound that bets, or "
            "take a bound that needs none, such as 'empirical_bernstein' where sampling does not stop early"
        )
    return counts, sums
