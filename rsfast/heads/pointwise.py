"""Heads whose score of a class is a function of its logit alone."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .._check import as_real
from .base import Head, register

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Pointwise(Head):
    """Base of these heads. Rows do not sum to 1, so only the top-two rule applies."""

    sums_to_one = False

    @staticmethod
    @abstractmethod
    def score(logits: Tensor, scale: float, low: float, high: float) -> Tensor:
        """Return the scores int64, in units of 2^-30, of float32 logits, with the numbers of `Head.parameters`.

        The oracle of every kernel: each float32 operation is exactly rounded, and the product with 2^30 is rounded down.
        """


@register
@dataclass(frozen=True)
class ClippedLogits(Pointwise):
    """``(clip(logits, low, high) - low) / (high - low)``."""

    low: float
    high: float
    kind = 2
    option = "clipped:LOW:HIGH"

    def __post_init__(self) -> None:
        low, high = as_real("low", self.low), as_real("high", self.high)
        with np.errstate(over="ignore"):
            width = np.float32(high) - np.float32(low)
        if not (width > 0 and np.isfinite(width) and np.isfinite(np.float32(1) / width)):
            raise ValueError(f"low must be below high, both in float32, got {self.low!r} and {self.high!r}")
        object.__setattr__(self, "low", low)
        object.__setattr__(self, "high", high)

    def parameters(self) -> tuple[float, float, float, float]:
        low, high = np.float32(self.low), np.float32(self.high)
        return float(self.kind), float(np.float32(1) / (high - low)), float(low), float(high)

    @staticmethod
    def score(logits: Tensor, scale: float, low: float, high: float) -> Tensor:
        s = (logits.clamp(low, high) - low) * scale
        return (s.clamp(max=1) * 2.0**30).long()
