"""Hard votes."""

from __future__ import annotations

from dataclasses import dataclass

from .base import Head, register


@register
@dataclass(frozen=True)
class Votes(Head):
    """One-hot argmax of the logits; ties go to the lowest class. Cohen et al. 2019."""

    kind = None
    option = "votes"
    bits = slack = 0
