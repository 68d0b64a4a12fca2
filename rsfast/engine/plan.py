"""Sampling plans: which samples are drawn, when an input has enough of them, and what follows from them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .._check import MAX_SAMPLES, as_real
from ..heads import Head, Votes
from ..stats import rules
from ..stats.certificate import Certificate, Execution
from ..stats.estimates import Estimates, Scores, head_histograms
from ..stats.exact import exact_predictions
from ..stats.prediction import predictions
from ..stats.proof import of_inputs, prove
from ..stats.registry import sample_ranges
from ..stats.rules import CertificationSpec

if TYPE_CHECKING:
    from ..ops.tally import Tally

_EAGER = Execution()


@dataclass(frozen=True)
class StoppingRule:
    """When an input is decided.

    Parameters
    ----------
    radius : float or sequence of float, optional
        Once the radius is proved to be as large, or a forecast from the samples is that it will not be. Of several, which
        must increase, once that is so of each.
    rtol : float, optional
        Once the radius that is proved is within this share of the largest that more samples could still prove.

    Raises
    ------
    TypeError, ValueError
        If both are given, or one is not a number, not positive, or rtol not below 1; or radii do not increase.

    Examples
    --------
    >>> StoppingRule(radius=0.5).reached(np.array([0.4, 0.4, 0.6]), np.array([0.9, 0.45, 0.9])).tolist()
    [False, True, True]
    >>> StoppingRule(radius=[0.5, 1.0]).reached(np.array([0.6, 0.6, 1.1]), np.array([1.2, 0.9, 1.2])).tolist()
    [False, True, True]
    """

    radius: float | Sequence[float] | None = None
    rtol: float | None = None

    def __post_init__(self) -> None:
        if self.radius is not None and self.rtol is not None:
            raise ValueError(f"rtol must be None where radius is given, got {self.rtol!r} and {self.radius!r}")
        if isinstance(self.radius, (Sequence, np.ndarray)) and not isinstance(self.radius, str):
            radii = tuple(as_real("radius", each, above=0) for each in self.radius)
            if not radii or any(after <= before for before, after in pairwise(radii)):
                raise ValueError(f"radius must be a number, or numbers that increase, got {self.radius!r}")
            object.__setattr__(self, "radius", radii[0] if len(radii) == 1 else radii)
        elif hasattr(self.radius, "__iter__") and not isinstance(self.radius, str):
            raise TypeError(f"radius must be a number, or a list of numbers that increase, got {self.radius!r:.80}")
        elif self.radius is not None:
            as_real("radius", self.radius, above=0)
        if self.rtol is not None:
            as_real("rtol", self.rtol, above=0, below=1)

    def __bool__(self) -> bool:
        return self.radius is not None or self.rtol is not None

    @property
    def radii(self) -> tuple[float, ...]:
        """All radii that are to be decided, the smallest first."""
        if self.radius is None:
            return ()
        return tuple(self.radius) if isinstance(self.radius, Sequence) else (self.radius,)

    def reached(self, proved: NDArray[np.float64], ceiling: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return which inputs are decided, from the radius of each and the most that it could become."""
        if self.radius is not None:
            radii = np.array(self.radii)
            return np.asarray(((proved[:, None] >= radii) | (ceiling[:, None] < radii)).all(axis=1))
        assert self.rtol is not None
        return np.asarray((ceiling <= 0) | (proved >= (1 - self.rtol) * ceiling))


def ends(specs: Sequence[CertificationSpec], stopping: StoppingRule, n: int) -> list[int]:
    """Return the sample counts at which ranges end, the last of them n: fixed by these arguments alone."""
    return sample_ranges([spec.limits_by for spec in specs], n, bool(stopping))


@lru_cache(maxsize=128)
def largest_radius(spec: CertificationSpec, stopping: StoppingRule, *, n0: int, n: int, num_classes: int) -> float:
    """Return the radius that follows from samples that all agree: no certificate of n samples has a larger one.

    Parameters
    ----------
    spec : CertificationSpec
        How radii are proved; of `proof.of_inputs`, so that they are in the units of the inputs.
    stopping : StoppingRule
        When to stop before n.
    n0, n : int
        Selection samples, and the most estimation samples.
    num_classes : int
        At least 2.

    Returns
    -------
    float
        0 where every input abstains. Infinite for the randomized bound, whose uniform may be as small as it likes.

    Examples
    --------
    >>> from rsfast.noise import Gaussian
    >>> round(largest_radius(CertificationSpec(Gaussian(0.25), 0.001), StoppingRule(), n0=100, n=10_000, num_classes=10), 3)
    0.8
    """
    if spec.limits_by.randomized:
        return float("inf")
    estimates = Estimates.unanimous(spec.head, n0, ends([spec], stopping, n), num_classes)
    found = rules.limits(estimates, spec)
    return max(0.0, float(rules.radius_of(spec, found.lower, found.upper)[0, 0]))


def smallest_n(spec: CertificationSpec, stopping: StoppingRule, *, n0: int, num_classes: int) -> int | None:
    """Return the fewest estimation samples with which samples that all agree certify anything; as `largest_radius`.

    None if no number of them up to 2^32 does, as of a mask that keeps half of the input.

    Examples
    --------
    >>> from rsfast.noise import Gaussian
    >>> smallest_n(CertificationSpec(Gaussian(0.25), 0.001), StoppingRule(), n0=100, num_classes=10)
    10
    """
    proves = partial(largest_radius, spec, stopping, n0=n0, num_classes=num_classes)
    most = 1
    while proves(n=most) == 0:
        most *= 2
        if most > MAX_SAMPLES:
            return None
    return bisect_left(range(most), True, lo=most // 2 + 1, key=lambda n: proves(n=n) > 0)


class SamplingPlan(Protocol):
    """What a sampler needs to know: which samples to draw of every input, and what follows from them."""

    heads: tuple[Head, ...]
    """What the Tallies sum."""
    stages: tuple[tuple[str, range], ...]
    """Streams and sample indices, in the order of drawing: the selection, maybe empty, then the estimation's ranges."""
    early: bool
    """Whether an input may be decided before its last stage."""
    by_range: bool
    """Whether results need the Tally of each range, else only their sum."""
    tracks: bool
    """Whether the Tallies of the estimation need `leading_classes` of the selection's."""
    lipschitz: bool
    """Whether results rest on a Lipschitz constant, so that logits below float32 are refused."""

    def undecided(self, selection: Tally, total: Tally, newest: Tally, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which inputs surely need the next sample range, at little cost.

        Rows are those of the inputs in the selections and in the sums of their ranges so far; `newest` holds the last range
        of each, in order. An input's ranges come one by one.
        """
        ...

    def evaluate(self, selection: Tally, ranges: Sequence[Tally], input_ids: Sequence[int]) -> list[Any]:
        """Return the result of each input after these sample ranges; None where it needs the next one."""
        ...


class Certification:
    """Plan a certification: select, then estimate range by range, and stop where an input is decided.

    Parameters
    ----------
    specs : sequence of CertificationSpec
        Each gives a certificate; an input is decided when all of its are.
    stopping : StoppingRule
        When to stop before n.
    n0, n : int
        Selection samples, and the most estimation samples; of deterministic noise 0 and its evaluations.
    seed, backend, execution
        As in `certificates`.
    streams : (str, str)
        Of the two samples. If they are one, the estimation's indices follow on the selection's.

    Raises
    ------
    ValueError
        If a spec has a Lipschitz constant and the execution computes below float32.
    """

    def __init__(
        self,
        specs: Sequence[CertificationSpec],
        stopping: StoppingRule,
        *,
        n0: int,
        n: int,
        seed: int,
        backend: str = "",
        execution: Execution = _EAGER,
        streams: tuple[str, str] = ("selection", "estimation"),
    ) -> None:
        self.specs, self.stopping, self.n = tuple(of_inputs(spec, execution) for spec in specs), stopping, n
        self._groups = rules.alike(self.specs)
        self.recorded: dict[str, Any] = {"seed": seed, "backend": backend, "execution": execution}
        self.heads = tuple(dict.fromkeys(spec.head for spec in specs))
        offset = n0 if streams[0] == streams[1] else 0
        ranges = pairwise([0, *ends(specs, stopping, n)])
        self.stages = (
            (streams[0], range(n0)),
            *((streams[1], range(offset + start, offset + end)) for start, end in ranges),
        )
        self.early = bool(stopping)
        self.by_range = any(spec.limits_by.histograms for spec in specs)
        self._rough = [spec.limits_by.rough() for spec in self.specs]
        self._splits = np.zeros((len(specs), 0), dtype=np.int64)  # of each row that `undecided` was given
        self.tracks = any(spec.limits_by.histograms and spec.head.soft for spec in specs)
        self.lipschitz = any(spec.lipschitz is not None for spec in specs)

    def undecided(self, selection: Tally, total: Tally, newest: Tally, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which inputs `evaluate` would surely not decide: limits that are no tighter than the bound's say so."""
        found = np.full(len(rows), False)
        if not self._splits.size:
            self._splits = np.zeros((len(self.specs), selection.num_inputs), dtype=np.int64)
        for spec, rough, splits in zip(self.specs, self._rough, self._splits, strict=True):
            selected, scores = (Scores.of(tally, spec.head).rows(rows) for tally in (selection, total))
            classes, histograms = selected.leading_classes(), None
            if spec.limits_by.histograms:
                counts, sums = head_histograms(newest, [spec.head], classes)
                histograms = counts[:, :, None], sums[:, :, None]
            estimates = Estimates(selected, scores, classes, histograms, 0, self.n, 0, rows)
            if (first := scores.trials[:, 0] == newest.n.numpy()).any():
                splits[rows[first]] = rules.best_splits(estimates.rows(first), spec)[:, 0]
            limits = rules.limits(estimates, spec, splits[rows, None], rough)
            radii = rules.radius_of(spec, limits.lower, limits.upper)[:, 0]
            found |= ~self.stopping.reached(radii, rules.optimistic_radius(estimates, spec, limits, rough)) & (
                scores.trials[:, 0] < self.n
            )
        return found

    def evaluate(
        self, selection: Tally, ranges: Sequence[Tally], input_ids: Sequence[int]
    ) -> list[list[Certificate] | None]:
        """Return the certificates of each input, one a spec; None where it is not decided yet."""
        selected, done = selection if self.stages[0][1] else None, np.full(len(input_ids), True)
        of_specs: dict[int, list[Certificate]] = {}
        for places in self._groups:
            specs, rough = [self.specs[place] for place in places], self._rough[places[0]]
            certificates, estimates, limits = prove(
                specs, selected, ranges, max_samples=self.n, input_ids=input_ids, **self.recorded
            )
            of_specs |= zip(places, certificates, strict=True)
            last = estimates.scores.trials[:, 0] == self.n
            if not last.all():
                radii = np.array([certificate.radius for of_spec in certificates for certificate in of_spec])
                reached = last | self.stopping.reached(radii, rules.optimistic_radius(estimates, specs[0], limits, rough))
                done &= reached.reshape(len(specs), -1).all(axis=0)
        found = zip(*(of_specs[place] for place in range(len(self.specs))), strict=True)
        return [list(certificates) if decided else None for certificates, decided in zip(found, done.tolist(), strict=True)]


class Prediction:
    """Plan a prediction: n votes of each input.

    Parameters
    ----------
    n : int
        Samples of each input.
    alpha : float
        As in `predictions`; 0 where they are all evaluations of deterministic noise.
    """

    early = by_range = tracks = lipschitz = False
    heads: tuple[Head, ...] = (Votes(),)

    def __init__(self, n: int, alpha: float) -> None:
        self.stages: tuple[tuple[str, range], ...] = (("selection", range(0)), ("estimation", range(n)))
        self.alpha = alpha

    def undecided(self, selection: Tally, total: Tally, newest: Tally, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        return np.full(len(rows), False)

    def evaluate(self, selection: Tally, ranges: Sequence[Tally], input_ids: Sequence[int]) -> list[int]:
        """Return the class of each input, or ABSTAIN."""
        exact = self.alpha == 0
        return exact_predictions(Scores.of(ranges[0], Votes()).sums) if exact else predictions(ranges[0], self.alpha)
