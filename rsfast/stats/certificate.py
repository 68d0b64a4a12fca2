"""Certificates: what is proved about an input."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from ..heads import Head
from ..heads import from_dict as head_from_dict
from ..noise import Noise
from ..noise import from_dict as noise_from_dict
from .execution import Execution

ABSTAIN = -1
"""The prediction where nothing is proved at the failure probability that was asked for."""

_NAMES = {"max_samples": "cap"}
"""Fields whose name in files is older."""


@dataclass(frozen=True)
class Certificate:
    """What is proved about one input: the smoothed classifier returns ``prediction`` within ``radius`` of it.

    It holds with probability at least ``1 - alpha`` over the samples. It unpacks as ``prediction, radius``. A
    `pandas.DataFrame` of a list of them has a row for each, and a column for each field.

    Parameters
    ----------
    prediction : int
        The class, or `ABSTAIN`.
    radius : float
        In ``norm``, in the units of the input, rounded down; 0 for an abstention.
    norm : str
        The norm of the noise.
    p_lower, p_upper : float
        Lower bound on the selected class's smoothed score, upper bound on every other class's.
    counts : tuple of int
        Votes, in the estimation sample, for the selected class and for the one of the others that got most.
    n0, n : int
        Selection and estimation samples used.
    max_samples : int
        The most estimation samples there could have been: more than n where sampling stopped early; 0 if not known.
        `to_dict` calls it "cap".
    alpha : float
        Probability that the certificate is wrong.
    alpha_upper : float
        The part of it that p_upper may fail with; the rest is p_lower's.
    lipschitz : float, optional
        The Lipschitz constant of the base scores that the radius rests on, per unit of the input.
    rule, bound : str
        As used: one of `rules.RULES`, one of `registry.BOUNDS`.
    head : Head
        The score that was averaged.
    noise : Noise
        The smoothing noise.
    seed, stream_version, input_id : int
        The noise depends on them and the sample indices only.
    backend : str
        What computed it; the result does not depend on it.
    execution : Execution
        How the base classifier was run.

    Examples
    --------
    >>> from rsfast import Gaussian, Votes
    >>> prediction, radius = Certificate(3, 0.5, "l2", 0.85, 0.15, (90, 7), 10, 100, 0.05, "one_vs_rest",
    ...                                  "clopper_pearson", Votes(), Gaussian(0.5), seed=0, stream_version=1, input_id=0)
    >>> prediction, radius
    (3, 0.5)
    """

    prediction: int
    radius: float
    norm: str
    p_lower: float
    p_upper: float
    counts: tuple[int, int]
    n0: int
    n: int
    alpha: float
    rule: str
    bound: str
    head: Head
    noise: Noise
    seed: int
    stream_version: int
    input_id: int
    backend: str = ""
    alpha_upper: float = 0.0
    lipschitz: float | None = None
    max_samples: int = 0
    execution: Execution = field(default_factory=Execution)

    @property
    def abstained(self) -> bool:
        """Whether the prediction is `ABSTAIN`."""
        return self.prediction == ABSTAIN

    def __getitem__(self, place: int) -> int | float:
        """Return the prediction or the radius, which is what unpacking needs."""
        return (self.prediction, self.radius)[place]

    if TYPE_CHECKING:  # type checkers ask for it, but pandas would take for a row of two numbers what has it

        def __iter__(self) -> Iterator[int | float]: ...

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as values that JSON can hold; `from_dict` gives back an equal Certificate."""
        data = {_NAMES.get(each.name, each.name): getattr(self, each.name) for each in fields(self)}
        written = {name: data[name].to_dict() for name in ("head", "noise", "execution")}
        return data | written | {"counts": list(self.counts)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Certificate:
        """Return the Certificate that `to_dict` wrote.

        Without an ``execution`` it gets the default, and without a ``norm`` that of its noise.

        Raises
        ------
        TypeError
            If a field is missing or unknown.
        ValueError
            If the head or the noise has an unknown name, or they or the execution a parameter out of range.
        """
        read: dict[str, Callable[[Any], Any]] = {
            "head": head_from_dict,
            "noise": noise_from_dict,
            "counts": tuple,
            "execution": Execution.from_dict,
        }
        names = {written: name for name, written in _NAMES.items()}
        found = {names.get(name, name): read[name](value) if name in read else value for name, value in data.items()}
        if "norm" not in found and "noise" in found:
            found["norm"] = found["noise"].norm
        return cls(**found)
