"""What a confidence bound may take from the samples of an input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..heads import Head
from ..noise import uniforms
from .common import Floats, Integers
from .scores import Scores, TallyLike, head_histograms, zeros_and_ones


class Estimates(NamedTuple):
    """The estimation sample of one head, and what the selection sample showed before it.

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
        head: Head,
        *,
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
            counts, sums = zip(*(head_histograms(tally, head, classes) for tally in ranges), strict=True)
            stacked = np.stack(counts, axis=2), np.stack(sums, axis=2)
        total = Scores.total(ranges, head)
        return cls(selected, total, classes, stacked, len(ranges), max_samples, seed, np.array(input_ids))

    @classmethod
    def unanimous(cls, head: Head, n0: int, ends: Sequence[int], num_classes: int) -> Estimates:
        """Return the estimates on one input where all samples agree, n0 and those of the ranges that end so.

        The first class always has score 1, the others 0: no other samples give a larger radius.
        """
        sizes = np.diff([0, *ends])
        return cls(
            Scores.unanimous(head, n0, num_classes),
            Scores.unanimous(head, ends[-1], num_classes),
            np.array([[0, 1]]),
            zeros_and_ones(np.array([[sizes, 0 * sizes]]), sizes),
            len(ends),
            ends[-1],
            seed=0,
            input_ids=np.array([0]),
        )

    def rows(self, rows: NDArray[np.bool_]) -> Estimates:
        """Return the estimates on some inputs."""
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
