"""Heads: the score in [0, 1] that each class gets from a row of logits, and that smoothing averages.

What is averaged and certified is the score as `ops.accumulate` computes it: float32 logits, an integer in units of 2^-30,
rounded down, at most 2^30 over a row where `Head.sums_to_one`. It is the head's formula to about 1e-6, and it is a base
classifier in its own right, so nothing in a certificate rests on the difference.
"""

# ruff: noqa: I001  (errors and help list the heads in the order of these imports)
from .base import HEADS, Head, check_head, from_dict, register
from .votes import Votes
from .simplex import Softmax, Sparsemax
from .pointwise import ClippedLogits, Pointwise

__all__ = [
    "HEADS",
    "ClippedLogits",
    "Head",
    "Pointwise",
    "Softmax",
    "Sparsemax",
    "Votes",
    "check_head",
    "from_dict",
    "register",
]
