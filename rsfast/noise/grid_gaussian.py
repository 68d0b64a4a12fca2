"""Rounded Gaussian noise on the grid of 8-bit images: certificates in l2 that floating point cannot break."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import prod
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import _special
from .base import Draw, Noise, NoiseParameters, register
from .constraints import Constraint, Real
from .rounded_normal import Tails, round_up, tails

_MOST_ELEMENTS = 1 << 26
_LEVELS = 255
_RECIPROCAL = float(np.float32(1 / _LEVELS))
_OCTAVES = 32  # of a 31-bit word plus 1/2, rounded to float32: from 2^-1 to 2^31
_HALF = 0x3F000000  # the bits of 1/2
_MANTISSA = 23


def _guide(thresholds: NDArray[np.int64]) -> tuple[int, NDArray[np.int32]]:
    """Return the table in which kernels look levels up, and how many bits of a float its cells leave out.

    A word of 63 bits v has as many levels as there are thresholds above it. Its high 31 bits plus 1/2, as a float32, lose
    their low bits, and are the place of a cell: cells are narrow where thresholds are dense, in the tail. A cell holds the
    high half of the one threshold that lies in it (-1 if none does), and how many lie above the cell. A word whose high half
    is that of the threshold needs its low half, too. Several thresholds are only in cells of one high half.

    Parameters
    ----------
    thresholds : ndarray of int64
        Below 2^63, decreasing.

    Returns
    -------
    shift : int
    guide : ndarray of int32, [cells, 2]
    """
    high = (thresholds >> 32).astype(np.int32)
    for shift in range(_MANTISSA, -1, -1):

        def cell(words: NDArray[np.int32], shift: int = shift) -> NDArray[np.int64]:
            bits = (words.astype(np.float32) + np.float32(0.5)).view(np.int32).astype(np.int64)
            return (bits >> shift) - (_HALF >> shift)

        cells = cell(high)
        shared = np.flatnonzero(cells[1:] == cells[:-1])
        below = np.maximum(high - 1, 0)
        if np.all((high[shared] == high[shared + 1]) & ((high[shared] == 0) | (cell(below)[shared] != cells[shared]))):
            guide = np.full(((_OCTAVES << (_MANTISSA - shift)) + 1, 2), -1, dtype=np.int32)
            guide[cells, 0] = high
            guide[:, 1] = len(cells) - np.searchsorted(cells[::-1], np.arange(len(guide)), side="right")
            return shift, guide
    raise ArithmeticError("no guide table separates these thresholds")


@lru_cache(maxsize=16)
def _tables(s: Fraction) -> tuple[int, NDArray[np.int32], NDArray[np.int64]]:
    """Return the guide table with its shift, and the thresholds with a 0 behind them."""
    thresholds = tails(s).counts.astype(np.int64)  # a tail is below 1/2, and so its count below 2^63
    return *_guide(thresholds), np.append(thresholds, 0)


def _standard(words: Any, noise: NoiseParameters, math: Any) -> Any:
    """Return the levels, from 64 bits for each element: the sign, and where the other 63 lie among the thresholds."""
    high, low = words.in_fours(lambda words, _: words), words.more().in_fours(lambda words, _: words)
    thresholds = noise.tables[1].flip(0)
    level = len(thresholds) - math.searchsorted(thresholds, (high & 0x7FFFFFFF) << 32 | low, right=True)
    return math.where(high >> 31 == 1, -math.to_float(level), math.to_float(level))


def _combined(z: Any, x: Any, noise: NoiseParameters, math: Any) -> Any:
    """Return (round(255 x) + z) / 255, correctly rounded."""
    return math.corrected_quotient(math.nearest_integer(x * 255.0) + z, 255.0, _RECIPROCAL)


@register
@dataclass(frozen=True)
class GridGaussian(Noise):
    """Gaussian noise rounded to the grid of 8-bit images, k/255: for uint8 images, and float images on that grid.

    The radius is measured in l2, in units of [0, 1], and holds for every shift between two points of
    the grid. Floating point cannot break it: all sums are exact.

    Parameters
    ----------
    sigma : float
        Standard deviation of the noise before it is rounded, in units of [0, 1]; from 2^-9, about
        half a step of the grid, to 8.

    Raises
    ------
    TypeError, ValueError
        If sigma is not a number from 2^-9 to 8.

    Notes
    -----
    The noise of an element is k/255 with probability ``P(k) = Phi((k + 1/2)/s) - Phi((k - 1/2)/s)`` and
    ``s = 255 sigma``: that of ``round(s Z)``, Z standard normal. For an integer u, ``u + round(s Z)`` is
    ``round(u + s Z)``. So what the base classifier sees is its input with Gaussian noise, rounded, and
    the classifier after rounding is one more classifier on R^d: the certificate of continuous Gaussian
    noise holds for it, at every shift between points of the grid. (Noise with P(k) proportional to
    ``exp(-k^2 / 2 s^2)`` has no such certificate.)

    Kernels take u as the integer nearest to ``255 x``, and k from 64 random bits: a sign, and the number
    of thresholds that the others lie below (csrc/noise.h). ``(u + k) / 255`` is rounded correctly, so the
    model sees a function of the exact sum, and without noise an 8-bit image as float32. Thresholds are
    computed in exact arithmetic, to the nearest multiple of 2^-64; the noise is exactly symmetric. Its
    distance from the exact distribution is `total_variation`, and `radius` charges that of 2^26 elements.

    References
    ----------
    Voracek and Hein, "Sound Randomized Smoothing in Floating-Point Arithmetic", 2023; Jin, Rubinstein and
    others, "Getting a-Round Guarantees: Floating-Point Attacks on Certified Robustness", 2022.

    Examples
    --------
    >>> noise = GridGaussian(0.25)
    >>> round(float(noise.potential(0.99)), 4), noise.total_variation(3 * 224 * 224) < 2e-12
    (0.5816, True)
    """

    sigma: float

    constraints: ClassVar[Mapping[str, Constraint]] = {"sigma": Real(2.0**-9, 8.0, "from 2^-9 to 8")}
    norm = "l2"
    draw = Draw(
        "grid_gaussian",
        {"shift": Real(0, _MANTISSA, f"from 0 to {_MANTISSA}")},
        standard=_standard,
        combine=_combined,
        tables={"guide": "int32", "thresholds": "int64"},
    )
    grid = _LEVELS
    input_range = (-256.0, 256.0)  # beyond, float32 tells points of the grid badly apart
    has_arrays = True

    @property
    def _tails(self) -> Tails:
        return tails(_LEVELS * Fraction(self.sigma))

    def parameters(self, shape: Sequence[int]) -> NoiseParameters:
        """Return the draw and its tables.

        Raises
        ------
        ValueError
            If inputs of this shape have more than 2^26 elements, for which `radius` does not charge.
        """
        if prod(shape) > _MOST_ELEMENTS:
            raise ValueError(
                f"inputs must have at most 2^26 elements with {self.name} noise, whose rounding is charged for as many, got "
                f"{prod(shape)}"
            )
        shift, *tables = _tables(_LEVELS * Fraction(self.sigma))
        return NoiseParameters(self.draw.name, [float(shift)], tables)

    def total_variation(self, elements: int) -> float:
        """Return an upper bound on the total variation between the noise of so many elements and the exact one.

        It is `elements` times that of one element, which follows from the thresholds.

        Examples
        --------
        >>> GridGaussian(0.5).total_variation(2**26) < 2e-9
        True
        """
        return round_up(elements * Fraction(self._tails.total_variation))

    def potential(self, p: ArrayLike, lipschitz: float | None = None) -> NDArray[np.float64]:
        """Return Q(p) = sigma Phi^-1(p), the function of the smoothed score that is 1-Lipschitz in l2.

        It is that of the exact distribution; `radius` charges what the drawn one is off by.

        Parameters
        ----------
        p : array_like
            Smoothed scores in [0, 1]; 0 gives -inf and 1 gives inf.
        lipschitz : None
            Anything else is an error: after rounding, a Lipschitz score jumps.

        Returns
        -------
        ndarray of float64
            In units of [0, 1], off by at most `potential_error`, relatively.

        Raises
        ------
        ValueError
            If lipschitz is given.

        Examples
        --------
        >>> GridGaussian(1.0).potential([0.5, 0.9]).round(4).tolist()
        [0.0, 1.2816]
        """
        self.check_lipschitz(lipschitz)
        return np.asarray(self.sigma * _special.ndtri(np.asarray(p, dtype=np.float64)))

    def radius(
        self, p_lower: NDArray[np.float64], p_upper: NDArray[np.float64], lipschitz: float | None = None
    ) -> NDArray[np.float64]:
        """Return the radius, as `Noise.radius` does, from bounds moved outward by the total variation of 2^26 elements."""
        charge = self.total_variation(_MOST_ELEMENTS)
        lower = np.maximum(np.nextafter(p_lower - charge, -np.inf), 0)
        upper = np.minimum(np.nextafter(p_upper + charge, np.inf), 1)
        return super().radius(lower, upper, lipschitz)
