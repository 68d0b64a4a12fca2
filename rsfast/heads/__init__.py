"""Heads: the score in [0, 1] that each class gets from a row of logits, and that smoothing averages.

What is averaged and certified is the score as `ops.accumulate` computes it: float32 logits, an integer in units of 2^-30,
rounded down, at most 2^30 over a row where `Head.sums_to_one`. It is the formula below to about 1e-6, and it is a base
classifier in its own right, so nothing in a certificate rests on the difference.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np


def _finite(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.floating, np.integer)):
        raise TypeError(f"{name} is {value!r}; it must be a number")
    if not math.isfinite(value):
        raise ValueError(f"{name} is {value!r}; it must be finite")
    return float(value)


@dataclass(frozen=True)
class Head:
    """Base of all heads. ``sums_to_one`` tells whether a row's scores sum to at most 1."""

    soft: ClassVar[bool] = True
    """Whether a Tally holds its scores in sums, squares and histograms; votes are in ``Tally.counts``."""
    bits: ClassVar[int] = 30
    """A score q is an integer in [0, 2**bits] and stands for ``q * 2**-bits``."""
    slack: ClassVar[int] = 2
    """By how many units at most a score lies below the real-valued score that it stands for."""

    @property
    def sums_to_one(self) -> bool:
        return True

    def parameters(self) -> tuple[float, float, float, float]:
        """Return kind (csrc/accumulate.h), scale, low and high: float32 values, as the kernels compute with them."""
        raise TypeError(f"{self!r} has no parameters; it must be a soft head")

    def to_dict(self) -> dict[str, Any]:
        """Return the head's name and parameters; `from_dict` reads it back."""
        return {"name": type(self).__name__, **asdict(self)}


@dataclass(frozen=True)
class Votes(Head):
    """One-hot argmax of the logits; ties go to the lowest class. Cohen et al. 2019."""

    soft = False
    bits = slack = 0


@dataclass(frozen=True)
class _Tempered(Head):
    temperature: float = 1.0
    _kind: ClassVar[float]

    def __post_init__(self) -> None:
        temperature = _finite("temperature", self.temperature)
        if temperature <= 0 or not np.finfo(np.float32).tiny <= 1 / temperature <= np.finfo(np.float32).max:
            raise ValueError(f"temperature is {self.temperature!r}; it must be positive, and 1/temperature a normal float32")
        object.__setattr__(self, "temperature", temperature)

    def parameters(self) -> tuple[float, float, float, float]:
        return self._kind, float(np.float32(1 / self.temperature)), 0.0, 0.0


@dataclass(frozen=True)
class Softmax(_Tempered):
    """``softmax(logits / temperature)``."""

    _kind = 0.0


@dataclass(frozen=True)
class Sparsemax(_Tempered):
    """``sparsemax(logits / temperature)``, the Euclidean projection onto the simplex (Martins and Astudillo 2016)."""

    _kind = 1.0


@dataclass(frozen=True)
class ClippedLogits(Head):
    """``(clip(logits, low, high) - low) / (high - low)``. Rows do not sum to 1, so only the top-two rule applies."""

    low: float
    high: float

    def __post_init__(self) -> None:
        low, high = _finite("low", self.low), _finite("high", self.high)
        with np.errstate(over="ignore"):
            width = np.float32(high) - np.float32(low)
        if not (width > 0 and np.isfinite(width) and np.isfinite(np.float32(1) / width)):
            raise ValueError(f"low is {self.low!r} and high is {self.high!r}; low must be below high, both in float32")
        object.__setattr__(self, "low", low)
        object.__setattr__(self, "high", high)

    def parameters(self) -> tuple[float, float, float, float]:
        low, high = np.float32(self.low), np.float32(self.high)
        return 2.0, float(np.float32(1) / (high - low)), float(low), float(high)

    @property
    def sums_to_one(self) -> bool:
        return False


_HEADS = {cls.__name__: cls for cls in (Votes, Softmax, Sparsemax, ClippedLogits)}


def from_dict(data: dict[str, Any]) -> Head:
    """Return the head that `Head.to_dict` wrote.

    Raises
    ------
    ValueError
        If the name is not one of Votes, Softmax, Sparsemax, ClippedLogits.
    """
    parameters = dict(data)
    name = parameters.pop("name", None)
    if name not in _HEADS:
        raise ValueError(f"head is {name!r}; it must be one of {', '.join(_HEADS)}")
    return _HEADS[name](**parameters)
