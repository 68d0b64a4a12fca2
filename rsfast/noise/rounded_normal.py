"""The rounded normal distribution in exact arithmetic: its tails as 64-bit integers, and how far these are off."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

BITS = 64
"""Tails are multiples of 2^-64."""

_F = 256  # fractional bits of the fixed point
_GUARD = 2.0**-96  # what the error of a tail is below, in units of 2^-64: see `_probabilities`


class Tails(NamedTuple):
    """The chances that a rounded normal number is at least 1, 2, 3, ..., and the error of all chances together."""

    counts: NDArray[np.uint64]
    """The multiples of 2^-64 nearest to the chances, decreasing, as integers; those that would be 0 are left out."""
    total_variation: float
    """An upper bound on the total variation between the distribution that these make and the exact one."""


@lru_cache(maxsize=16)
def tails(s: Fraction) -> Tails:
    """Return the chances ``P(round(s Z) >= j) = 1 - Phi((j - 1/2) / s)``, Z standard normal, of j = 1, 2, 3, ...

    Parameters
    ----------
    s : Fraction
        From 0.49 to 2^16.

    Notes
    -----
    The distribution is symmetric: ``P(0) = 1 - 2 P(>= 1)`` and ``P(-j) = P(j)``. With e_j the error of
    the j-th count, in units of 2^-64, its total variation from the exact one is
    ``(|e_1| + sum of |e_j - e_{j+1}|) / 2^64``. Counts that are 0 have errors that fall to 0, so theirs
    add up to the first.

    Examples
    --------
    >>> found = tails(Fraction(1))
    >>> len(found.counts), (found.counts[:2] / 2**64).round(4).tolist(), found.total_variation < 2**-61
    (9, [0.3085, 0.0668], True)
    """
    if not Fraction(49, 100) <= s <= 1 << 16:
        raise ValueError(f"s must be from 0.49 to 2^16, got {s}")
    counts: list[int] = []
    errors: list[int] = []  # in units of 2^-F
    half = 1 << (_F - BITS - 1)
    tail, probabilities = 1 << (_F - 1), _probabilities(s)
    tail -= next(probabilities) >> 1  # P(0) lies on both sides
    while tail >= half:
        counts.append((tail + half) >> (_F - BITS))
        errors.append((counts[-1] << (_F - BITS)) - tail)
        tail -= next(probabilities)
    errors.append(-tail)
    total = abs(errors[0]) + sum(abs(a - b) for a, b in pairwise(errors)) + abs(tail)
    # Each of the errors is known to within _GUARD, and stands in two terms.
    bound = Fraction(total, 1 << _F) + 2 * (len(errors) + 1) * Fraction(_GUARD) / (1 << BITS)
    return Tails(np.array(counts, dtype=np.uint64), round_up(bound))


def round_up(value: Fraction) -> float:
    """Return a float that is not below the fraction, and next to it."""
    nearest = float(value)
    return nearest if Fraction(nearest) >= value else math.nextafter(nearest, math.inf)


def _probabilities(s: Fraction) -> Iterator[int]:
    """Yield P(0), P(1), P(2), ... as integers in units of 2^-F.

    With d = 1/s, P(k) is the integral of the normal density over ``[(k - 1/2) d, (k + 1/2) d]``, that is
    ``phi(k d) d`` times the mean of ``exp(-c u - u^2 / 2)`` over u in [-h, h], where c = k d and h = d/2.
    The even terms of its Taylor series are what is left of them: b_n u^n with

        b_0 = 1,  b_1 = -c,  b_{n+1} = -(c b_n + b_{n-1}) / (n + 1),

    taken here times h^n. phi(k d) follows from phi((k - 1) d) by two products.

    Errors, in units of 2^-F, for s from 0.49 to 2^16 and k d up to 10.3, beyond which nobody asks: c h is at
    most 10.6 and h at most 1.03, so the absolute values of the terms sum to less than exp(c h + h^2 / 2) <
    2^17. c h and h^2 are off by 1, hence a step by less than 2^19, which later steps multiply by less than
    2^17; over less than 2^8 steps that makes 2^44. The density is off by less than 2 (k + 2)^2 < 2^42, and its
    factor is at most 2^17. So P(k) is off by less than 2^61, and the sum of less than 2^20 of them by less
    than 2^81 2^-256 = 2^-111 2^-64.
    """
    one, (n, d) = 1 << _F, (s.denominator, s.numerator)  # d = n / d
    squared = (n * n << _F) // (d * d)  # d^2
    power, ratio, factor = one, _exp_minus(squared >> 1), _exp_minus(squared)
    density = (math.isqrt((one * one * one) // (2 * _pi())) * n) // d  # phi(0) d
    k = 0
    while True:
        ch, hh = (k * n * n << _F) // (2 * d * d), squared >> 2
        before, term, total, order = one, -ch, one, 1
        while order * one < 4 * (ch + hh) or abs(before) + abs(term) > 8:
            before, term, order = term, -((ch * term + hh * before) >> _F) // (order + 1), order + 1
            if order % 2 == 0:
                total += term // (order + 1)
        yield ((density * power >> _F) * total) >> _F
        power, ratio, k = power * ratio >> _F, ratio * factor >> _F, k + 1


def _exp_minus(y: int) -> int:
    """Return exp(-y), y in units of 2^-F and at least 0, to within 1 of these units."""
    guard = 64
    y, one = y << guard, 1 << (_F + guard)
    total, term, order = one, one, 1
    while term:
        term = (term * y >> (_F + guard)) // order
        total, order = total + term, order + 1
    return (one * one // total) >> guard


def _pi() -> int:
    """Return pi in units of 2^-F, to within 1 of them (Machin: 16 arctan(1/5) - 4 arctan(1/239))."""
    guard = 64

    def arctan_of_inverse(x: int) -> int:
        term = total = (1 << (_F + guard)) // x
        order = 1
        while term:
            term = -term // (x * x)
            order += 2
            total += term // order
            if term == -1:  # floor division of a negative number stays there
                break
        return total

    return (16 * arctan_of_inverse(5) - 4 * arctan_of_inverse(239)) >> guard
