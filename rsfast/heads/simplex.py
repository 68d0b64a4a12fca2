"""Heads that map a row of logits to the simplex: a score needs what the whole row sums."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .._check import as_real
from .base import Head, register


@dataclass(frozen=True)
class _Tempered(Head):
    temperature: float = 1.0

    def __post_init__(self) -> None:
        temperature = as_real("temperature", self.temperature, above=0)
        with np.errstate(over="ignore"):  # the error says it
            inverse = np.float32(1 / temperature)
        if not np.finfo(np.float32).tiny <= inverse <= np.finfo(np.float32).max:
            raise ValueError(f"temperature must have a normal float32 for 1/temperature, got {self.temperature!r}")
        object.__setattr__(self, "temperature", temperature)

    def parameters(self) -> tuple[float, float, float, float]:
        assert self.kind is not None
        return float(self.kind), float(np.float32(1 / self.temperature)), 0.0, 0.0


@register
@dataclass(frozen=True)
class Softmax(_Tempered):
    """``softmax(logits / temperature)``."""

    kind = 0
    option = "softmax:T"


@register
@dataclass(frozen=True)
class Sparsemax(_Tempered):
    """``sparsemax(logits / temperature)``, the Euclidean projection onto the simplex (Martins and Astudillo 2016)."""

    kind = 1
    option = "sparsemax:T"
