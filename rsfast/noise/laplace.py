"""Laplace noise: certificates in l1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .base import POSITIVE, Constraint, Draw, Noise, register


def _standard_laplace(words: Sequence[Any], math: Any) -> Sequence[Any]:
    magnitudes = [math.minus_two_log(*math.centred_uniform_31(word)) * 0.5 for word in words]
    return [math.where(word >> 31 == 1, -z, z) for word, z in zip(words, magnitudes, strict=True)]


@register
@dataclass(frozen=True)
class Laplace(Noise):
    """Laplace noise of density ``exp(-|z| / b) / 2b`` on every element of the input.

    The radius is measured in l1, in the units of the input before any ``scale`` and ``shift``.

    Parameters
    ----------
    b : float
        Scale, in the units of the input; positive, finite and representable in float32. The
        standard deviation is ``b sqrt(2)``.

    Raises
    ------
    TypeError, ValueError
        If b is not a positive number that float32 can hold.

    Notes
    -----
    Kernels draw ``|z| / b = -ln(u)`` with u one of 2^31 numbers, centred in equal cells of (0, 1),
    and a sign (csrc/noise.h): the chance of ``|z| > t`` is within 2^-32 of ``exp(-t / b)`` for every
    t, and no value is beyond ``32 ln 2 = 22.18 b``.

    References
    ----------
    Teng, Lee and Yuan, "l1 Adversarial Robustness Certificates: a Randomized Smoothing Approach",
    2019.

    Examples
    --------
    >>> round(float(Laplace(0.5).potential(0.99)), 4)
    1.956
    """

    b: float

    constraints: ClassVar[Mapping[str, Constraint]] = {"b": POSITIVE}
    norm = "l1"
    draw = Draw("laplace", {"b": POSITIVE}, _standard_laplace)

    def potential(self, p: ArrayLike, lipschitz: float | None = None) -> NDArray[np.float64]:
        """Return Q(p), the function of the smoothed score that is 1-Lipschitz in l1.

        ``b ln(2p)`` below 1/2 and ``-b ln(2(1 - p))`` above.

        Parameters
        ----------
        p : array_like
            Smoothed scores in [0, 1]; 0 gives -inf and 1 gives inf.
        lipschitz : None
            No potential of Laplace noise for Lipschitz scores is known: anything else is an error.

        Returns
        -------
        ndarray of float64
            In the units of the input, off by at most `potential_error`, relatively. b is taken as
            the kernels apply it, rounded to float32. ``Q(1 - p) = -Q(p)`` to the last bit where
            ``1 - p`` is exact.

        Raises
        ------
        ValueError
            If lipschitz is given.

        Notes
        -----
        The derivative of a smoothed score p along element i is ``E h sign(z_i) / b``, of magnitude
        at most ``min(p, 1 - p) / b``; the norm dual to l1 takes the largest element. A score that
        is an indicator of one element attains it.

        Examples
        --------
        >>> Laplace(1.0).potential([0.25, 0.5, 0.75]).round(4).tolist()
        [-0.6931, 0.0, 0.6931]
        """
        self.check_lipschitz(lipschitz)
        p, b = np.asarray(p, dtype=np.float64), float(np.float32(self.b))
        with np.errstate(divide="ignore", invalid="ignore"):
            # Near 1/2 the logarithm is of 1 - (1 - 2q), which loses nothing; below 1/4 it is of 2q, as exactly.
            q = np.minimum(p, 1 - p)
            size = np.where(q < 0.25, -np.log(2 * q), -np.log1p(2 * q - 1))
        return np.asarray(b * np.copysign(size, p - 0.5))

    def score(self, z: Any) -> Any:
        """Return ``sign(z) / b``, with b as the kernels apply it, rounded to float32."""
        return z.sign() / float(np.float32(self.b))
