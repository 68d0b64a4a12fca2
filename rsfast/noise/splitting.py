"""Splitting noise: certificates in l1 that quantise the input at random, or without chance on a grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .base import POSITIVE, Constraint, Draw, Noise, NoiseParameters, register
from .constraints import Flag, Integer, Real
from .uniform import bounded_potential

_MOST = 65535  # evaluations and levels: what 16 bits hold, so that every number on the grid is exact in float32
_LAM = Real(2.0**-9, 2.0**15, "from 1/512 to 32768")
_COUNT = Real(0, _MOST, f"from 0 to {_MOST}")


def _same(words: Sequence[Any], math: Any) -> Sequence[Any]:
    return words


def _standard_splitting(words: Any, noise: NoiseParameters, math: Any) -> Any:
    count = int(noise.scalars[0])
    if not count:
        return words.in_fours(_same)
    place = ((words.fixed().in_fours(_same) >> 16) * count >> 16) + (words.samples % count)[:, None]
    return place % count << 16 | 0x8000


def _split(z: Any, x: Any, noise: NoiseParameters, math: Any) -> Any:
    count, step, inverse_width, units, half_unit = noise.scalars
    place, low = math.to_float(z >> 16), math.to_float(z & 0xFFFF) * (step * 2.0**-16)

    def edge(k: Any) -> Any:
        return math.fma(math.fma(k, count or 65536.0, place), step, low)

    at = x * units
    k = math.nearest_integer((at - math.fma(place, step, low)) * inverse_width)
    nearest = edge(k)
    below = nearest < at
    other = edge(math.where(below, k + 1, k - 1))
    first, last = math.where(below, nearest, other), math.where(below, other, nearest)
    ends = math.where(first < 0, 0.0, first) + math.where(last > units, units, last)
    return math.corrected_quotient(ends, 2 * units, half_unit)


@register
@dataclass(frozen=True)
class Splitting(Noise):
    """Splitting noise: every element becomes the centre of its cell of width 2 lam, where the cells' edges are shifted.

    The cells of element i are ``(s_i + 2 lam k, s_i + 2 lam (k + 1)]`` for all integers k, with the
    shift s_i uniform on (0, 2 lam). In place of x_i the classifier gets the centre of the cell that
    holds it, cut to [0, 1]:

        (max(s_i + 2 lam k, 0) + min(s_i + 2 lam (k + 1), 1)) / 2

    Inputs are images in [0, 1]: `certify`, `predict` and `sample` refuse other values. The radius is
    measured in l1, in the units of the input before any ``scale`` and ``shift``.

    Parameters
    ----------
    lam : float
        Half the width of a cell, from 1/512 to 32768; rounded to float32 if random.
    deterministic : bool
        Whether to leave nothing to chance. Inputs are then multiples of ``1 / levels``, and the
        shift of element i in sample s is ``((t_i + s) mod N + 1/2) / levels``, for fixed integers t_i
        that depend on the seed alone. ``N = 2 lam levels`` samples are the whole noise: `evaluations`.
    levels : int
        Of the grid of deterministic noise, from 1 to 65535: images of 8 bits have 255.

    Raises
    ------
    TypeError, ValueError
        If a parameter is not what it must be, or ``2 lam levels`` of deterministic noise is not an
        integer from 1 to 65535, to within 2^-22 of itself.

    Notes
    -----
    An element's output is a function of its cell and of s_i, so what the classifier sees changes
    only where a cell does: with probability at most ``|d|_1 / 2 lam`` for a shift d, whatever the
    joint distribution of the s_i.

    Floating point does this to the proof. Deterministic noise: nothing. For every x on the grid
    (rounded to float32) the kernels find the exact cell, and the exact centre, rounded once. Each
    step of one element by 1 / levels changes its cell in exactly one of the N samples. Random noise:
    edges are at ``2 lam (w / 2^32 + k)`` for a word w of 32 random bits, rounded to the nearest
    float32 (and by 2^-40 of a cell before), and are compared with x exactly. So for x_i in [0, 1]
    the cell of a changed element changes with probability at most ``|d_i| / 2 lam + 2^-31``. The
    certificate leaves out the second term: a shift that changes m elements may cost m 2^-31 more
    of the score than it counts (7e-5 where it changes all of an image of 3 x 224 x 224).

    References
    ----------
    Levine and Feizi, "Improved, Deterministic Smoothing for L1 Certified Robustness", 2021,
    theorems 1 and 2.

    Examples
    --------
    >>> round(float(Splitting(0.5).potential(0.99)), 4)
    0.49
    >>> noise = Splitting(0.5, deterministic=True)
    >>> noise.evaluations, noise.exact_radius([101, 1, -3]).round(4).tolist()
    (255, [0.1961, 0.0, -0.0078])
    """

    lam: float
    deterministic: bool = False
    levels: int = 255

    constraints: ClassVar[Mapping[str, Constraint]] = {"lam": _LAM, "deterministic": Flag(), "levels": Integer(1, _MOST)}
    norm = "l1"
    for_bytes = "Splitting(lam, deterministic=True) noise"
    input_range = (0.0, 1.0)
    draw = Draw(
        "splitting",
        {"evaluations": _COUNT, "step": POSITIVE, "inverse_width": POSITIVE, "units": POSITIVE, "half_unit": POSITIVE},
        standard=_standard_splitting,
        combine=_split,
        each="",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "grid", self.levels if self.deterministic else None)
        exact = 2 * self.lam * self.levels
        if self.deterministic and not (1 <= round(exact) <= _MOST and abs(exact - round(exact)) <= exact * 2.0**-22):
            raise ValueError(
                f"lam must be such that 2 lam levels is an integer from 1 to {_MOST} if deterministic, got lam = {self.lam} "
                f"and levels = {self.levels}, of which it is {exact:g}; lam may be "
                f"{_nearest(exact) / (2 * self.levels)!r}, which is {_nearest(exact)} / {2 * self.levels}"
            )

    @property
    def evaluations(self) -> int | None:
        """``2 lam levels`` if deterministic, else None."""
        return round(2 * self.lam * self.levels) if self.deterministic else None

    def parameters(self, shape: Sequence[int]) -> NoiseParameters:
        """Return the draw and its scalars: lengths are in units of the input if random, and of the grid if deterministic."""
        count, units = self.evaluations or 0, self.grid or 1  # of the grid, or of the input
        width = count or 2 * float(np.float32(self.lam))
        step = 1.0 if count else width / 65536
        scalars = [np.float32(value) for value in (count, step, 1 / width, units, 1 / (2 * units))]
        return NoiseParameters(self.draw.name, [float(value) for value in scalars])

    def potential(self, p: ArrayLike, lipschitz: float | None = None) -> NDArray[np.float64]:
        """Return Q(p) = 2 lam (p - 1/2), the function of the smoothed score that is 1-Lipschitz in l1.

        Parameters
        ----------
        p : array_like
            Smoothed scores in [0, 1]; 0 gives -lam and 1 gives lam.
        lipschitz : None
            No potential of splitting noise for Lipschitz scores is known: anything else is an error.

        Returns
        -------
        ndarray of float64
            In the units of the input, off by at most `potential_error`, relatively. lam is taken as
            the kernels apply it, rounded to float32. NaN for p outside [0, 1].

        Raises
        ------
        ValueError
            If lipschitz is given.

        Examples
        --------
        >>> Splitting(1.0).potential([0.25, 0.5, 1.0]).tolist()
        [-0.5, 0.0, 1.0]
        """
        self.check_lipschitz(lipschitz)
        return bounded_potential(p, self.lam)

    def exact_radius(self, lead: ArrayLike) -> NDArray[np.float64]:
        """Return the l1 radius ``(ceil(lead / 2) - 1) / levels`` that no chance is in.

        Parameters
        ----------
        lead : array_like of int
            Votes for a class less the most for any other, of all `evaluations`.

        Returns
        -------
        ndarray of float64
            Rounded down. The class stays ahead on all grid points within it; a radius of 0 proves
            the class of the input alone, and a negative one proves nothing.

        Raises
        ------
        TypeError
            If the noise is random.

        Notes
        -----
        A grid unit of l1 changes one evaluation at most, and that takes one vote from the class and
        gives one to another. So the class is ahead after m units while lead > 2 m.
        """
        if not self.deterministic:
            raise TypeError(f"deterministic must be True for an exact radius, got {self!r}; use radius")
        units = (np.asarray(lead, dtype=np.int64) + 1) // 2 - 1
        radius = units / self.levels
        high = radius.astype(np.float32).astype(np.float64)  # so that each product below is exact
        above = (high * self.levels - units) + (radius - high) * self.levels > 0
        return np.asarray(np.where(above, np.nextafter(radius, -np.inf), radius))


def _nearest(exact: float) -> int:
    return min(max(round(exact), 1), _MOST)
