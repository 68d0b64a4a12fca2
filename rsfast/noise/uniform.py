"""Uniform noise: certificates in l1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .base import POSITIVE, Constraint, Draw, Noise, register


def _standard_uniform(words: Sequence[Any], math: Any) -> Sequence[Any]:
    magnitudes = [math.to_float((word << 1 | 1) & 0xFFFFFFFF) * 2.0**-32 for word in words]
    return [math.where(word >> 31 == 1, -z, z) for word, z in zip(words, magnitudes, strict=True)]


def bounded_potential(p: ArrayLike, lam: float) -> NDArray[np.float64]:
    """Return 2 lam (p - 1/2), lam rounded to float32, and NaN for p outside [0, 1]."""
    p, applied = np.asarray(p, dtype=np.float64), float(np.float32(lam))
    return np.asarray(np.where((p >= 0) & (p <= 1), 2 * applied * (p - 0.5), np.nan))


@register
@dataclass(frozen=True)
class Uniform(Noise):
    """Uniform noise on [-lam, lam], on every element of the input.

    The radius is measured in l1, in the units of the input before any ``scale`` and ``shift``, and
    is at most `lam`.

    Parameters
    ----------
    lam : float
        Half the width of the interval, in the units of the input; positive, finite and
        representable in float32. The standard deviation is ``lam / sqrt(3)``.

    Raises
    ------
    TypeError, ValueError
        If lam is not a positive number that float32 can hold.

    Notes
    -----
    Kernels draw ``|z| / lam = (2 k + 1) / 2^32`` with k the low 31 bits of a word, rounded to float32,
    and a sign (csrc/noise.h). Draws are exactly symmetric.

    References
    ----------
    Lee, Yuan, Chang and Jaakkola, "Tight Certificates of Adversarial Robustness for Randomly
    Smoothed Classifiers", 2019; Yang et al., "Randomized Smoothing of All Shapes and Sizes", 2020.

    Examples
    --------
    >>> round(float(Uniform(0.5).potential(0.99)), 4)
    0.49
    """

    lam: float

    constraints: ClassVar[Mapping[str, Constraint]] = {"lam": POSITIVE}
    norm = "l1"
    draw = Draw("uniform", {"lam": POSITIVE}, _standard_uniform)

    def potential(self, p: ArrayLike, lipschitz: float | None = None) -> NDArray[np.float64]:
        """Return Q(p) = 2 lam (p - 1/2), the function of the smoothed score that is 1-Lipschitz in l1.

        Parameters
        ----------
        p : array_like
            Smoothed scores in [0, 1]; 0 gives -lam and 1 gives lam.
        lipschitz : None
            No potential of uniform noise for Lipschitz scores is known: anything else is an error.

        Returns
        -------
        ndarray of float64
            In the units of the input, off by at most `potential_error`, relatively. lam is taken as
            the kernels apply it, rounded to float32. NaN for p outside [0, 1].

        Raises
        ------
        ValueError
            If lipschitz is given.

        Notes
        -----
        Two noisy inputs that differ by d have total variation ``1 - prod(1 - |d_i| / 2 lam)``, which
        is at most ``|d|_1 / 2 lam``, with equality where d has one element.

        Examples
        --------
        >>> Uniform(1.0).potential([0.25, 0.5, 1.0]).tolist()
        [-0.5, 0.0, 1.0]
        """
        self.check_lipschitz(lipschitz)
        return bounded_potential(p, self.lam)
