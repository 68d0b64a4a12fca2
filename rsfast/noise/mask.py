"""Masks: parts of the input are hidden at random, and certificates count the parts that an attacker changes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from .base import Draw, Noise, NoiseParameters, register
from .constraints import Constraint, Integer, Real

_STEPS = 2.0**24
_CHANCE = Real(1 / _STEPS, 1.0, "from 2^-24 to 1")
_FINITE = Real(-float(np.finfo(np.float32).max), float(np.finfo(np.float32).max), "finite in float32")
_MOST_CELLS = 1 << 31


def _uniform(words: Sequence[Any], math: Any) -> Sequence[Any]:
    return [math.to_float(word >> 8) * 2.0**-24 for word in words]


def _standard_mask(words: Any, noise: NoiseParameters, math: Any) -> Any:
    return words.in_fours(_uniform) if noise.each is None else _uniform([words.of_groups(noise.each)], math)[0]


def _masked(z: Any, x: Any, noise: NoiseParameters, math: Any) -> Any:
    keep, fill = noise.scalars
    return math.where(z < keep, x, fill)


@register
@dataclass(frozen=True)
class Mask(Noise):
    """Hide each part of the input behind `fill`, except with probability `keep`, when it stays as it is.

    The radius is in l0: the number of parts that an attacker may change, each in any way. A part is

    - an element, by default;
    - with ``patch=1`` a pixel, of which all channels are kept or hidden together;
    - with ``patch=p`` a cell of p positions along every axis but the first, over all channels: a
      square of p x p pixels of an image [channels, height, width]. Cells begin at position 0, and
      the last are smaller where p does not divide an axis.

    An attacker who changes a square of m x m pixels, wherever it is, touches at most
    ``(ceil((m - 1) / p) + 1)^2`` cells of side p.

    Parameters
    ----------
    keep : float
        The chance that a part is kept, from 2^-24 to 1. It is applied, and certified, as
        `chance`: rounded down to a multiple of 2^-24.
    fill : float
        What hides an element, in the units of the input; finite, rounded to float32. `scale` and
        `shift` come after it, and so does a clamp.
    patch : int
        The side of a cell, or 0 for single elements. Cells take inputs of at least 3 axes.

    Raises
    ------
    TypeError, ValueError
        If a parameter is no number or out of range.

    Notes
    -----
    Mask has no potential, as what r changed parts move a score by is not r times what one does. Its
    certificate is in `radius`.

    References
    ----------
    Levine and Feizi, "Robustness Certificates for Sparse Adversarial Attacks by Randomized
    Ablation", 2020; there the number of parts that are kept is fixed, and here it is binomial.

    Examples
    --------
    >>> Mask(0.1).radius(np.array([0.999]), np.array([0.001])).tolist()
    [6.0]
    """

    keep: float
    fill: float = 0.0
    patch: int = 0

    constraints: ClassVar[Mapping[str, Constraint]] = {
        "keep": _CHANCE,
        "fill": _FINITE,
        "patch": Integer(0, _MOST_CELLS - 1),
    }
    norm = "l0"
    norm_fields = ("patch",)
    more = "a smaller keep, below 1/2"
    draw = Draw("mask", {"keep": _CHANCE, "fill": _FINITE}, standard=_standard_mask, combine=_masked, each="int32")

    @property
    def chance(self) -> float:
        """The exact chance that a part is kept: `keep`, rounded down to a multiple of 2^-24.

        Examples
        --------
        >>> Mask(0.1).chance * 2**24
        1677721.0
        """
        return math.floor(self.keep * _STEPS) / _STEPS

    @property
    def has_arrays(self) -> bool:  # type: ignore[override]  # with single elements torch.compile need not trace any
        """Whether there is a patch."""
        return self.patch > 0

    @property
    def scale(self) -> float:
        """Infinite: the noise may change an element by any amount, so no input is too large for it."""
        return math.inf

    def parameters(self, shape: Sequence[int]) -> NoiseParameters:
        """Return the draw, its scalars, `chance` and the fill, and with a patch the cell of each element.

        Raises
        ------
        ValueError
            If there is a patch and the shape has fewer than 3 axes, or more than 2^31 cells.
        """
        self.check_fits(shape)
        return NoiseParameters(self.draw.name, [self.chance, self.fill], self._cells(tuple(shape)))

    def check_fits(self, shape: Sequence[int]) -> None:
        """Raise ValueError if there is a patch and the shape has fewer than 3 axes, or more than 2^31 cells."""
        if not self.patch:
            return
        if len(shape) < 3:
            raise ValueError(
                f"an input must have shape [channels, height, width], or more axes, with patch = {self.patch}, got "
                f"{list(shape)}; without a patch it may have any shape"
            )
        if math.prod(self._lengths(shape)) > _MOST_CELLS:
            raise ValueError(f"an input must have at most 2^31 cells with patch = {self.patch}, got shape {list(shape)}")

    def _lengths(self, shape: Sequence[int]) -> list[int]:
        return [-(-length // self.patch) for length in shape[1:]]

    def _cells(self, shape: tuple[int, ...]) -> list[NDArray[np.int32]]:
        if not self.patch:
            return []
        cells = np.zeros((1,) * len(shape), dtype=np.int64)
        for axis, (length, count) in enumerate(zip(shape[1:], self._lengths(shape), strict=True), 1):
            along = np.arange(length).reshape([-1 if other == axis else 1 for other in range(len(shape))])
            cells = cells * count + along // self.patch
        return [np.broadcast_to(cells, shape).reshape(-1).astype(np.int32)]

    def measure(self, delta: NDArray[np.float64]) -> int:
        """Return how many parts a perturbation changes: elements, or cells of the patch, where it is not 0.

        Examples
        --------
        >>> Mask(0.1, patch=2).measure(np.array([[[0.5, 0.5, 0.0], [0.5, 0.0, 0.1]]]))
        2
        """
        changed = np.argwhere(delta)
        return len(np.unique(changed[:, 1:] // self.patch, axis=0)) if self.patch else len(changed)

    def radius(
        self, p_lower: NDArray[np.float64], p_upper: NDArray[np.float64], lipschitz: float | None = None
    ) -> NDArray[np.float64]:
        """Return the largest number of changed parts at which a class stays ahead of all others.

        Parameters
        ----------
        p_lower, p_upper : ndarray of float64
            Bounds in [0, 1] on the class's score and on every other's; they broadcast.
        lipschitz : None
            Anything else is an error.

        Returns
        -------
        ndarray of float64
            Whole numbers, in parts (see `Mask`); 0 where nothing is proved.

        Notes
        -----
        ``b_r = (1 - chance)^r`` is the chance that none of r changed parts is kept. The classifier
        then sees the same input as before the change. So a score moves by at most ``1 - b_r``, and
        r is certified while ``p_lower - (1 - b_r) > p_upper + (1 - b_r)``, that is
        ``b_r > 1 - (p_lower - p_upper) / 2``. With ``p_upper = 1 - p_lower`` this is ``b_r > 3/2 -
        p_lower``. No bound that knows only the scores is tighter (the lemma of Neyman and Pearson).

        r is the largest whole number strictly below ``log1p(-(p_lower - p_upper) / 2) /
        log1p(-chance)``. Less than `potential_error` of this quotient is lost to rounding, and
        charged; so at a quotient that close above a whole number, r may be 1 too small.

        Examples
        --------
        >>> Mask(0.5).radius(np.array([0.75, 1.0]), np.array([0.25, 0.0])).tolist()
        [0.0, 0.0]
        >>> Mask(0.25).radius(np.array([0.75, 1.0]), np.array([0.25, 0.0])).tolist()
        [0.0, 2.0]
        """
        self.check_lipschitz(lipschitz)
        return self._parts_below((p_lower - p_upper) / 2)

    def reach(
        self, p_high: NDArray[np.float64], p_low: NDArray[np.float64], lipschitz: float | None = None
    ) -> NDArray[np.float64]:
        """Return the largest number of changed parts, 0 if there is none, whose ``1 - b_r`` is below ``p_high - p_low``.

        Examples
        --------
        >>> Mask(0.25).reach(np.array(1.0), np.array([0.25, 0.5])).tolist()
        [4.0, 2.0]
        """
        self.check_lipschitz(lipschitz)
        return self._parts_below(p_high - p_low)

    def _parts_below(self, move: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the largest number of changed parts that move a score by less than this; 0 if there is none."""
        if self.chance == 1:
            return np.zeros(np.shape(move))
        with np.errstate(divide="ignore"):  # a score cannot move by 1, however many parts are changed
            quotient = np.log1p(-move) / math.log1p(-self.chance)
        return np.asarray(np.maximum(np.ceil(quotient * (1 - self.potential_error)) - 1, 0.0))
