"""Norms in which radii are measured: their words and units, and the largest balls of one norm in those of another."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._check import as_int

Factor = float | Callable[[Sequence[int]], float]
"""What a radius is multiplied by, in (0, inf) and rounded down; or a function of the input's shape that returns it."""


class Norm(NamedTuple):
    """How texts name a norm, and the unit of its radii."""

    words: str
    unit: str
    counted: bool = False
    """Whether radii are whole numbers."""


_INPUT_UNITS = "input units"

NORMS: Mapping[str, Norm] = {
    "l0": Norm("l0", "changed elements, pixels or patches", counted=True),
    "l1": Norm("l1", _INPUT_UNITS),
    "l2": Norm("l2", _INPUT_UNITS),
    "linf": Norm("linf", _INPUT_UNITS),
    "mahalanobis": Norm("Mahalanobis", "standard deviations"),
    "projected l2": Norm("projected l2", _INPUT_UNITS),
    "projections": Norm("projections", "changed projections", counted=True),
}
"""Norms by the names that noises and certificates have."""


def radius_label(norm: str | None, *, unit: bool = False) -> str:
    """Return what texts, tables and plots call a radius in this norm; None is a norm that is not known.

    Examples
    --------
    >>> radius_label("l2"), radius_label("mahalanobis", unit=True), radius_label(None, unit=True)
    ('l2 radius', 'Mahalanobis radius (standard deviations)', 'radius (input units)')
    """
    known = NORMS.get(norm or "", Norm(norm or "", "its units" if norm else _INPUT_UNITS))
    return f"{known.words} radius".lstrip() + (f" ({known.unit})" if unit else "")


def in_input_units(norm: str) -> bool:
    """Return whether radii in this norm have the units of the input.

    Examples
    --------
    >>> in_input_units("l1"), in_input_units("l0")
    (True, False)
    """
    return norm in NORMS and NORMS[norm].unit == _INPUT_UNITS


def is_counted(norm: str | None) -> bool:
    """Return whether radii in this norm are whole numbers; None is a norm that is not known.

    Examples
    --------
    >>> is_counted("l0"), is_counted("l1"), is_counted(None)
    (True, False, False)
    """
    return norm is not None and norm in NORMS and NORMS[norm].counted


_INVERSE = {"l1": 2, "l2": 1, "linf": 0}  # 2/p


def check_shape(shape: object) -> tuple[int, ...]:
    """Return the shape of an input as a tuple; raise TypeError or ValueError unless it holds positive ints.

    Examples
    --------
    >>> check_shape([3, 32, 32])
    (3, 32, 32)
    """
    if isinstance(shape, str) or not isinstance(shape, Sequence):
        raise TypeError(f"shape must be a sequence of ints, the shape of an input, got {shape!r}")
    sizes = tuple(as_int("shape", size) for size in shape)
    if any(size < 1 for size in sizes):
        raise ValueError(f"shape must hold positive ints, got {shape!r}")
    return sizes


def conversions(norm: str) -> dict[str, Factor]:
    """Return the other l_q norms, q in {1, 2, inf}, and what a radius in this l_p norm is multiplied by; {} if it is none.

    The l_p ball of radius r contains the l_q ball of radius ``r d^-max(0, 1/p - 1/q)`` (Hoelder's inequality), and no
    larger one: the two touch at a vector of one element, or of equal ones.

    Examples
    --------
    >>> found = conversions("l2")
    >>> found["l1"], round(found["linf"]((3, 32, 32)), 6)
    (1.0, 0.018042)
    """
    if norm not in _INVERSE:
        return {}
    steps = {other: _INVERSE[norm] - inverse for other, inverse in _INVERSE.items() if other != norm}
    return {other: _root_factor(step) if step > 0 else 1.0 for other, step in steps.items()}


def _root_factor(step: int) -> Callable[[Sequence[int]], float]:
    """Return the function of a shape of d elements that returns ``d^(-step/2)``, rounded down."""

    def factor(shape: Sequence[int]) -> float:
        power = math.prod(shape) ** step
        found = 1 / math.sqrt(power)
        while Fraction(found) ** 2 * power > 1:
            found = math.nextafter(found, 0)
        return found

    return factor


def as_delta(delta: Any) -> NDArray[np.float64]:
    """Return a perturbation as float64, exactly; take arrays, nested lists of floats and tensors of floats.

    Raises
    ------
    TypeError
        If it holds anything but real floating-point numbers of at most 64 bits.
    ValueError
        If it has no axis or no element, or holds NaN or infinity.

    Examples
    --------
    >>> as_delta([[0.5, -0.25]])
    array([[ 0.5 , -0.25]])
    """
    if hasattr(delta, "detach"):  # a tensor, of which NumPy takes neither bfloat16 nor one that requires a gradient
        delta = delta.detach().cpu()
        delta = delta.double() if delta.is_floating_point() else delta
    try:
        array = np.asarray(delta)
    except (TypeError, ValueError, RuntimeError) as error:  # as of lists of several lengths
        raise TypeError(f"delta must be an array of floating-point numbers: {error}") from None
    if array.dtype.kind in "iu" and array.size:
        raise TypeError(
            f"delta must hold floating-point numbers in the units of the input, got {array.dtype}; images of 8 bits have "
            "the units of [0, 1], so divide the difference of their bytes by 255"
        )
    if array.dtype.kind != "f" or array.itemsize > 8:  # longer ones would be rounded
        raise TypeError(f"delta must be an array of floating-point numbers of at most 64 bits, got {array.dtype}")
    if not array.ndim or not array.size:
        raise ValueError(f"delta must have the shape of the input, got shape {list(array.shape)}")
    wrong = np.argwhere(~np.isfinite(array))
    if len(wrong):
        place = tuple(wrong[0].tolist())
        raise ValueError(f"delta must hold finite numbers, got {float(array[place])} at place {place}")
    return array.astype(np.float64)


def size(values: ArrayLike, norm: str) -> float:
    """Return the l1, l2 or linf norm of float64 values, rounded up; inf if one is, or where it exceeds all floats.

    The values may be off by a relative ``2^-53`` each.

    Examples
    --------
    >>> 5 < size([3.0, -4.0], "l2") < 5 + 1e-14, size([0.0, 0.0], "l1"), size([3.0, -4.0], "linf")
    (True, 0.0, 4.0)
    """
    magnitudes = np.abs(np.asarray(values, dtype=np.float64)).ravel()
    most = float(magnitudes.max(initial=0))
    if most in (0, math.inf) or norm == "linf":
        return most
    shares = magnitudes / most  # no sum of them, or of their squares, overflows
    found = math.fsum(shares.tolist()) if norm == "l1" else math.sqrt(math.fsum((shares**2).tolist()))
    return math.nextafter(most * found * (1 + 2.0**-50), math.inf)


def scaled_down(radius: float, factor: float) -> float:
    """Return ``radius * factor``, rounded down; both are at least 0.

    Examples
    --------
    >>> scaled_down(0.3, 1.0)
    0.3
    """
    product = radius * factor
    exact = Fraction(radius) * Fraction(factor)
    return math.nextafter(product, 0) if Fraction(product) > exact else product
