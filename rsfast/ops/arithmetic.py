"""The kernels' arithmetic in plain PyTorch: float32 stays float32, and whatever is not exact there is built from float64."""

from __future__ import annotations

import torch

Tensor = torch.Tensor

_MASK = 0xFFFFFFFF

where = torch.where
searchsorted = torch.searchsorted


def to_float(word: Tensor) -> Tensor:
    """Return int64 values as float32, rounded once."""
    return word.double().float()


def fma(a: Tensor | float, b: Tensor | float, c: Tensor | float) -> Tensor:
    """Return a * b + c, float32 with one rounding: exact product, sum rounded to odd in float64, then to float32."""
    a, b, c = (torch.as_tensor(value, dtype=torch.float32).double() for value in (a, b, c))
    product = a * b
    total = product + c
    shadow = total - product
    error = (product - (total - shadow)) + (c - shadow)
    bits = total.view(torch.int64)
    even_and_inexact = ((error > 0) | (error < 0)) & (bits & 1 == 0)
    odd = torch.where((error > 0) == (total > 0), bits + 1, bits - 1)
    return torch.where(even_and_inexact, odd, bits).view(torch.float64).float()


def nearest_integer(value: Tensor) -> Tensor:
    """Return the integer nearest to float32 values of at most 2^22, ties to even, as csrc/noise.h does."""
    return (value + 12582912.0) - 12582912.0


def corrected_quotient(dividend: Tensor, divisor: float, reciprocal: float) -> Tensor:
    """Return dividend / divisor for the reciprocal rounded to float32, as csrc/noise.h does: corrected by its error."""
    quotient = dividend * reciprocal
    return fma(fma(quotient, -divisor, dividend), reciprocal, quotient)


def sqrt(value: Tensor) -> Tensor:
    """Return the correctly rounded square root, float32, of positive float32 values; torch's own may be off by an ulp.

    A root belongs to its neighbour if the value lies beyond the square of the midpoint between the two, which float64 holds.
    """
    exact, root = value.double(), value.sqrt()
    up, down = (torch.nextafter(root, torch.full_like(root, limit)) for limit in (torch.inf, 0.0))
    above, below = ((root.double() + neighbour.double()) / 2 for neighbour in (up, down))
    return torch.where(exact > above * above, up, torch.where(exact < below * below, down, root))


def horner(x: Tensor, coefficients: str) -> Tensor:
    first, *rest = (float.fromhex(c) for c in coefficients.split())
    result = torch.full_like(x, first)
    for c in rest:
        result = fma(result, x, c)
    return result


def centred_uniform(word: Tensor) -> tuple[Tensor, Tensor]:
    """Return u = (word + 1/2) / 2^32 for int64 words, as csrc/uniform.h does: u or 1 - u, and whether it is 1 - u."""
    near_one = word > 0xBFFFFFFF
    return (to_float(torch.where(near_one, word ^ _MASK, word)) + 0.5) * 2.0**-32, near_one


def centred_uniform_31(word: Tensor) -> tuple[Tensor, Tensor]:
    """Return u = (2 k + 1) / 2^32, k the low 31 bits of int64 words, as csrc/uniform.h does; see `centred_uniform`."""
    odd = (word << 1 | 1) & _MASK
    near_one = odd > 0xBFFFFFFF
    return to_float(torch.where(near_one, (1 << 32) - odd, odd)) * 2.0**-32, near_one


def minus_two_log(value: Tensor, near_one: Tensor) -> Tensor:
    """Return -2 ln(u) of a uniform number, as csrc/noise.h does."""
    mantissa, exponent = torch.frexp(value)  # mantissa in [1/2, 1); here it is to be in [3/4, 3/2)
    below = mantissa < 0.75
    f = torch.where(near_one, -value, torch.where(below, 2 * mantissa, mantissa) - 1)
    e = torch.where(near_one, torch.zeros_like(exponent), torch.where(below, exponent - 1, exponent)).float()
    q = horner(
        f,
        "-0x1.ca09bep-4 0x1.f64a52p-3 -0x1.334838p-2 0x1.57d2cap-2 -0x1.99026ep-2 0x1.ffe9b4p-2 -0x1.555694p-1 0x1p0 -0x1p1",
    )
    return fma(q, f, e * float.fromhex("-0x1.62e43p+0"))


def box_muller(radius: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Return r cos(theta) and r sin(theta), float32, for int64 words, as csrc/noise.h does."""
    r = sqrt(minus_two_log(*centred_uniform(radius)))
    remainder = (angle << 2) & _MASK
    remainder = torch.where(remainder >= 1 << 31, remainder - (1 << 32), remainder)
    x = to_float(remainder) * 2.0**-31
    quadrant = ((angle + 0x20000000) & _MASK) >> 30
    square = x * x
    s = horner(square, "-0x1.2d92dep-15 0x1.465e9p-9 -0x1.4abbb8p-4 -0x1.a34d4cp-26")
    s = fma(x, float.fromhex("0x1.921fb6p-1"), s * x)
    c = horner(square, "0x1.d9bf06p-19 -0x1.55c58cp-12 0x1.03c1dcp-6 -0x1.3bd3ccp-2 0x1p0")
    odd = quadrant & 1 == 1
    cosine, sine = r * torch.where(odd, s, c), r * torch.where(odd, c, s)
    return torch.where((quadrant == 1) | (quadrant == 2), -cosine, cosine), torch.where(quadrant >= 2, -sine, sine)
