"""What samples say of a smoothed score: every confidence bound by its name, on what Tallies hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv

from ..heads import Head, Votes
from ..heads.bins import BINS
from ..noise import uniforms
from . import bounds, sequences

if TYPE_CHECKING:
    from ..ops.tally import Tally

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


class BoundSpec(NamedTuple):
    """What a bound is for."""

    scores: bool
    """Soft scores too, rather than votes alone."""
    sequence: bool = False
    """Any number of looks, rather than one at a fixed n."""
    ranges: bool = False
    """It takes the sample in ranges, of soft scores the histograms."""


BOUNDS = {
    "clopper_pearson": BoundSpec(scores=False),
    "randomized_clopper_pearson": BoundSpec(scores=False),
    "hoeffding": BoundSpec(scores=True),
    "empirical_bernstein": BoundSpec(scores=True),
    "betting": BoundSpec(scores=True, ranges=True),
    "beta_binomial_sequence": BoundSpec(scores=False, sequence=True),
    "betting_sequence": BoundSpec(scores=True, sequence=True, ranges=True),
}
"""The confidence bounds by name."""

_LIKELY = 0.01
"""Chance of what `Estimates.best_case` leaves out: smaller, and fewer inputs are given up that all samples would certify."""

_OF_MOMENTS = ("hoeffding", "empirical_bernstein")


class Scores(NamedTuple):
    """What a Tally holds of one head: sums and squares [inputs, classes], trials [inputs, 1]; see `bounds.moments`."""

    sums: Integers
    squares: Integers
    trials: Integers
    bits: int
    slack: int

    @classmethod
    def of(cls, tally: Tally, head: Head) -> Scores:
        """Return the scores under `head`, one of the Tally's."""
        trials = tally.n.cpu().numpy()[:, None]
        if isinstance(head, Votes):
            votes = tally.counts.cpu().numpy()[:, :-1]  # the last column is no class
            return cls(votes, votes, trials, bits=0, slack=0)
        index = tally.soft_heads.index(head)
        return cls(tally.sums[:, index].cpu().numpy(), tally.squares[:, index].cpu().numpy(), trials, bits=30, slack=2)

    @classmethod
    def total(cls, ranges: Sequence[Tally], head: Head) -> Scores:
        """Return the scores of several Tallies together."""
        total, *parts = (cls.of(tally, head) for tally in ranges)
        for part in parts:
            sums, squares, trials = (mine + theirs for mine, theirs in zip(total[:3], part[:3], strict=True))
            total = total._replace(sums=sums, squares=squares, trials=trials)
        return total

    def only(self, classes: Integers) -> Scores:
        """Return the scores of classes [inputs, n], in that order."""
        return self._replace(
            sums=np.take_along_axis(self.sums, classes, axis=1), squares=np.take_along_axis(self.squares, classes, axis=1)
        )

    def without(self, classes: Integers) -> Scores:
        """Zero the scores of these classes: no upper limit is below that of zero."""
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

    def limit_of_moments(self, bound: str, side: str, alpha: float) -> Floats:
        """Return one of `_OF_MOMENTS`, "lower" or "upper", of every class."""
        low, high, variance = bounds.moments(self.sums, self.squares, self.trials, bits=self.bits, slack=self.slack)
        mean = low if side == "lower" else high
        known = (mean, self.trials) if bound == "hoeffding" else (mean, variance, self.trials)
        return np.asarray(getattr(bounds, f"{bound}_{side}")(*known, alpha))


def leading_classes(selection: Tally) -> Integers:
    """Return the classes whose histograms a betting bound wants: of each input and soft head those with the largest sums.

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
    from ..ops.tally import Tally  # who has one has imported torch

    if not isinstance(selection, Tally):
        raise TypeError(f"selection is {selection!r}; it must be a Tally")
    found = [Scores.of(selection, head).leading_classes() for head in selection.soft_heads]
    return np.stack(found, axis=1) if found else np.empty((selection.num_inputs, 0, 2), dtype=np.int64)


def _of_zeros_and_ones(ones: Integers, trials: Integers) -> tuple[Integers, Integers]:
    """Return counts and sums [..., BINS] of scores that are 1 so often, and 0 otherwise."""
    counts = np.zeros((*ones.shape, BINS), dtype=np.int64)
    sums = counts.copy()
    counts[..., 0], counts[..., -1], sums[..., -1] = trials - ones, ones, ones << 30
    return counts, sums


def _histogram(tally: Tally, head: Head, classes: Integers, bound: str) -> tuple[Integers, Integers]:
    """Return counts and sums [inputs, 2, BINS] of the scores of these classes."""
    if isinstance(head, Votes):
        votes = Scores.of(tally, head)
        return _of_zeros_and_ones(votes.only(classes).sums, votes.trials)
    index = tally.soft_heads.index(head)
    tracked = tally.tracked_classes[:, index].cpu().numpy()
    if tracked.shape[1] != 2 or not np.array_equal(tracked, classes):
        what = "no histograms" if tracked.shape[1] == 0 else f"histograms of the classes {tracked.tolist()}"
        raise ValueError(
            f"estimation has {what}; the bound {bound!r} must have those of the two classes that the selection sample puts "
            "first: from sample(tracked_classes=leading_classes(selection)), or a run certified with a bound that bets"
            + ("" if BOUNDS[bound].sequence else "; a bound that needs none is 'empirical_bernstein'")
        )
    return tally.bin_counts[:, index].cpu().numpy(), tally.bin_sums[:, index].cpu().numpy()


def _forecast_proportion(mean: Floats, trials: Integers | int, alpha: Floats | float) -> Floats:
    """Return Clopper and Pearson's lower limit, of counts that need not be integers, rounded either way."""
    successes = np.maximum(mean * trials, 1e-9)
    return np.asarray(betaincinv(successes, trials - successes + 1, alpha))


def _forecast(bound: str, mean: Floats, variance: Floats, trials: Integers | int, alpha: float) -> Floats:
    """Return about what a bound for one look gives for a sample with this mean and variance; nothing may rest on it."""
    if not BOUNDS[bound].scores:
        return _forecast_proportion(mean, trials, alpha)
    if BOUNDS[bound].ranges:
        return sequences.typical_betting_lower(mean, variance, trials, alpha)
    known = (mean, trials) if bound == "hoeffding" else (mean, variance, trials)
    return np.asarray(getattr(bounds, f"{bound}_lower")(*known, alpha))


class Estimates(NamedTuple):
    """The estimation sample of one head, and what the selection sample said before it.

    The selection sample names two classes of each input, the leader and its rival, and forecasts their scores, which some
    bounds start from. Those two get the bound that was asked for. The others get an upper limit that needs no more than
    the sums. The true runner-up is one class, which the estimation sample has no say in: its limit holds, whichever it is.
    """

    selected: Scores
    scores: Scores
    classes: Integers  # [inputs, 2]
    histograms: tuple[Integers, Integers] | None  # counts and sums [inputs, 2, ranges, BINS] of those classes
    looks: int
    cap: int  # most samples there could have been
    seed: int
    input_ids: Integers  # [inputs]

    @classmethod
    def of(
        cls,
        selected: Scores,
        ranges: Sequence[Tally],
        head: Head,
        bound: str,
        cap: int,
        seed: int,
        input_ids: Sequence[int],
    ) -> Estimates:
        """Collect what `bound` needs of the ranges of an estimation sample.

        Raises
        ------
        ValueError
            If the Tallies do not hold it.
        """
        classes = selected.leading_classes()
        histograms = None
        if BOUNDS[bound].ranges:
            pairs = [_histogram(tally, head, classes, bound) for tally in ranges]
            histograms = np.stack([counts for counts, _ in pairs], axis=2), np.stack([sums for _, sums in pairs], axis=2)
        return cls(selected, Scores.total(ranges, head), classes, histograms, len(ranges), cap, seed, np.array(input_ids))

    @classmethod
    def unanimous(cls, head: Head, bound: str, n0: int, ends: Sequence[int], num_classes: int) -> Estimates:
        """Return that of one input where all samples agree: of n0, and of an estimation sample in ranges that end so.

        The first class always has score 1, the others 0: no other samples give a larger radius.
        """
        bits, slack = (0, 0) if isinstance(head, Votes) else (30, 2)

        def scores(n: int) -> Scores:
            sums = np.zeros((1, num_classes), dtype=np.int64)
            sums[0, 0] = n << bits
            return Scores(sums, sums, np.array([[n]]), bits, slack)

        sizes = np.diff([0, *ends])
        histograms = _of_zeros_and_ones(np.array([[sizes, 0 * sizes]]), sizes) if BOUNDS[bound].ranges else None
        classes = np.array([[0, 1]])
        return cls(scores(n0), scores(ends[-1]), classes, histograms, len(ends), ends[-1], seed=0, input_ids=np.array([0]))

    def rows(self, rows: NDArray[np.bool_]) -> Estimates:
        """Return the estimates on some inputs."""
        return self._replace(
            selected=self.selected.rows(rows),
            scores=self.scores.rows(rows),
            classes=self.classes[rows],
            histograms=self.histograms and (self.histograms[0][rows], self.histograms[1][rows]),
            input_ids=self.input_ids[rows],
        )

    def limit(self, bound: str, side: str, alpha: float, place: int) -> Floats:
        """Return the "lower" or "upper" limit [inputs, 1] of the leader's score (`place` 0) or its rival's (1)."""
        which = self.classes[:, place : place + 1]
        ours = self.scores.only(which)
        if bound in _OF_MOMENTS:
            return ours.limit_of_moments(bound, side, alpha)
        function = getattr(bounds if hasattr(bounds, f"{bound}_{side}") else sequences, f"{bound}_{side}")
        before = self.selected.only(which)
        if bound == "clopper_pearson":
            return np.asarray(function(ours.sums, ours.trials, alpha))
        if bound == "randomized_clopper_pearson":
            u = np.array([[uniforms(self.seed, input_id)[place]] for input_id in self.input_ids.tolist()])
            return np.asarray(function(ours.sums, ours.trials, alpha, u))
        if bound == "beta_binomial_sequence":
            a, b = before.sums + 0.5, before.trials - before.sums + 0.5
            return np.asarray(function(ours.sums, ours.trials, alpha, a=a, b=b))
        assert self.histograms is not None
        counts, sums = (values[:, place] for values in self.histograms)
        mean, variance = before.mean_and_variance()
        options = {"sums": sums, "prior": (mean[:, 0], variance[:, 0], before.trials[:, 0])}
        if side == "upper":
            options["slack"] = self.scores.slack
        if bound == "betting":
            return np.asarray(function(counts, alpha, **options))[:, None]
        return np.asarray(function(counts, alpha, self.cap, every=False, **options))[:, None]

    def forecast(self, bound: str, mean: Floats, variance: Floats, alpha: float) -> Floats:
        """Return about the lower limit [inputs, 1] that `cap` samples with this mean and variance would give."""
        if bound == "betting_sequence":
            return _forecast("betting", mean, variance, self.cap, alpha / max(1, self.cap.bit_length() - 4))
        if bound == "beta_binomial_sequence":  # what its mixture pays for not knowing the proportion
            return _forecast_proportion(mean, self.cap, alpha / np.sqrt(1 + self.cap / self.selected.trials))
        return _forecast(bound, mean, variance, self.cap, alpha)

    def best_case(self, place: int, side: str) -> tuple[Floats, Floats]:
        """Return the largest ("upper") or smallest mean that `cap` samples are likely to have, and the sample's variance.

        Of the leader's score (`place` 0), or of the largest other (1): whichever class that is, its limit counts.
        """
        which = self.classes[:, :1]
        if place == 1:
            others = self.scores.sums.copy()
            np.put_along_axis(others, which, -1, axis=1)
            which = others.argmax(axis=1, keepdims=True)
        mean, variance = self.scores.only(which).mean_and_variance()
        bound = "betting" if self.scores.bits else "clopper_pearson"
        if side == "lower":
            limit = _forecast(bound, mean, variance, self.scores.trials, _LIKELY)
        else:
            limit = 1 - _forecast(bound, 1 - mean, variance, self.scores.trials, _LIKELY)
        # The mean of all samples holds those that there are: from it the sample's mean is less far than from the true one.
        return mean + (limit - mean) * np.sqrt(1 - self.scores.trials / self.cap), variance

    def largest_upper(self, bound: str, alpha: float) -> Floats:
        """Return the largest of the upper limits [inputs, 1] of all classes but the leader."""
        rival = self.limit(bound, "upper", alpha, 1)
        others = self.scores.without(self.classes)
        sequence = BOUNDS[bound].sequence
        if others.sums.shape[1] == 2:
            return rival
        if bound in _OF_MOMENTS or self.scores.bits:
            name = bound if bound in _OF_MOMENTS else "empirical_bernstein"
            share = alpha / (self.looks * (self.looks + 1)) if sequence else alpha  # shares of all looks sum to 1 at most
            upper = others.limit_of_moments(name, "upper", share).max(axis=1, keepdims=True)
        else:  # increasing in the count, so the largest count is all it takes
            most = others.sums.max(axis=1, keepdims=True)
            function = sequences.beta_binomial_sequence_upper if sequence else bounds.clopper_pearson_upper
            upper = function(most, self.scores.trials, alpha)
        return np.asarray(np.maximum(rival, upper))
