"""The course of a certification: select, then draw the samples range by range, and stop where no more of them are needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from . import rules, sequences
from .certificate import Certificate, prove
from .evidence import BOUNDS, leading_classes
from .rules import Method

if TYPE_CHECKING:
    from .tally import Tally

Draw = Callable[[NDArray[np.int64], range, str, NDArray[np.int64] | None], "Tally"]
"""From the numbers of some inputs, sample indices, a stream and the classes to track, to the Tally of these samples."""


@dataclass(frozen=True)
class Goal:
    """When an input is decided.

    Parameters
    ----------
    radius : float, optional
        Once the radius is proved to be as large, or the samples say that it will not be.
    rtol : float, optional
        Once the radius that is proved is within this share of the largest that more samples could still prove.

    Raises
    ------
    TypeError, ValueError
        If both are given, or one is not a number, not positive, or rtol not below 1.

    Examples
    --------
    >>> Goal(radius=0.5).reached(np.array([0.4, 0.4, 0.6]), np.array([0.9, 0.45, 0.9])).tolist()
    [False, True, True]
    """

    radius: float | None = None
    rtol: float | None = None

    def __post_init__(self) -> None:
        if self.radius is not None and self.rtol is not None:
            raise ValueError(f"radius is {self.radius!r} and rtol is {self.rtol!r}; one of them must be None")
        for name, value, most in (("radius", self.radius, np.inf), ("rtol", self.rtol, 1)):
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float, np.floating, np.integer)):
                raise TypeError(f"{name} is {value!r}; it must be a number")
            if not 0 < value < most:
                raise ValueError(f"{name} is {value!r}; it must be above 0 and {'finite' if most == np.inf else 'below 1'}")

    def __bool__(self) -> bool:
        return self.radius is not None or self.rtol is not None

    def reached(self, proved: NDArray[np.float64], ceiling: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Tell which inputs are decided, from the radius of each and the most that it could become."""
        if self.radius is not None:
            return np.asarray((proved >= self.radius) | (ceiling < self.radius))
        assert self.rtol is not None
        return np.asarray((ceiling <= 0) | (proved >= (1 - self.rtol) * ceiling))


def ends(methods: Sequence[Method], goal: Goal, n: int) -> list[int]:
    """Return the sample counts at which ranges end, the last of them n: fixed by these arguments alone."""
    kinds = [BOUNDS[method.bound] for method in methods]
    if goal or any(kind.sequence and kind.ranges for kind in kinds):
        return sequences.look_ends(n)
    return sequences.range_ends(n) if any(kind.ranges for kind in kinds) else [n]


def run(
    draw: Draw,
    methods: Sequence[Method],
    goal: Goal,
    *,
    n0: int,
    n: int,
    seed: int,
    input_ids: Sequence[int],
    backend: str = "",
    streams: tuple[str, str] = ("selection", "estimation"),
) -> list[list[Certificate]]:
    """Return, for each input, the certificate by each method; an input is decided when all of its are.

    Parameters
    ----------
    draw : Draw
        What takes the samples.
    methods : sequence of Method
        Their heads are those of the Tallies.
    goal : Goal
        When to stop before n.
    n0, n : int
        Selection samples, and the most estimation samples.
    seed, input_ids, backend
        As in `certificates`.
    streams : (str, str)
        Of the two samples. If they are one, the estimation's indices follow on the selection's.
    """
    active = np.arange(len(input_ids))
    selection = draw(active, range(n0), streams[0], None)
    offset = n0 if streams[0] == streams[1] else 0
    tracked = leading_classes(selection) if any(BOUNDS[method.bound].ranges for method in methods) else None
    ranges: list[Tally] = []
    found: list[list[Certificate]] = [[] for _ in input_ids]
    for start, end in pairwise([0, *ends(methods, goal, n)]):
        ranges.append(draw(active, range(offset + start, offset + end), streams[1], tracked))
        if end < n and not goal:
            continue
        done = np.full(len(active), True)
        of_methods = []
        for method in methods:
            ids = [input_ids[i] for i in active.tolist()]
            certificates, evidence, limits = prove(
                method, selection, ranges, cap=n, seed=seed, input_ids=ids, backend=backend
            )
            of_methods.append(certificates)
            if end < n:
                radii = np.array([certificate.radius for certificate in certificates])
                done &= goal.reached(radii, rules.ceilings(evidence, method, limits))
        for place in np.flatnonzero(done):
            found[active[place]] = [certificates[place] for certificates in of_methods]
        left = np.flatnonzero(~done)
        if not len(left):
            break
        if len(left) < len(active):
            active, selection, ranges = active[left], selection.select(left), [tally.select(left) for tally in ranges]
            tracked = tracked if tracked is None else tracked[left]
    return found
