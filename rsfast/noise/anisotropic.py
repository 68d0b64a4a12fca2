"""Gaussian noise of a size of its own on each element or channel: certificates in ellipsoids along the axes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import _special
from .._check import is_real
from .base import Noise, NoiseParameters, register
from .constraints import POSITIVE, Array, Constraint, read_only
from .gaussian import Gaussian
from .norms import Factor, size

SAFE = 1 - 2.0**-40
"""What a computed factor is multiplied by to be rounded down: more than sums of 2^34 terms and their roots are off by."""


@register
@dataclass(frozen=True)
class AnisotropicGaussian(Noise):
    """Gaussian noise N(0, sigma_i^2), with a sigma for each element or channel of the input.

    The radius is measured in the Mahalanobis norm ``|delta / sigma|_2``, in standard deviations: a
    certificate holds in the ellipsoid of all delta below it. `radius_in` states it in l1, l2, linf,
    or as "volume", the radius of the l2 ball whose volume the ellipsoid has.

    Parameters
    ----------
    sigmas : array_like
        Standard deviations, in the units of the input, before any ``scale`` and ``shift``: of shape
        ``[*shape]``, one of each element; or [C], one of each channel, the first axis of shape. For
        inputs of one axis both are the same. Positive, finite and representable in float32.

    Raises
    ------
    TypeError, ValueError
        If sigmas are no such numbers. `parameters`, hence `certify`, `predict` and `sample`, raises
        ValueError if their shape does not fit the inputs.

    Notes
    -----
    With ``u = delta / sigma`` this is standard Gaussian noise on ``x / sigma``, whose certificate in
    l2 of u is that of Cohen et al. The sigmas must not depend on x.

    References
    ----------
    Eiras et al., "ANCER: Anisotropic Certification via Sample-wise Volume Maximization", 2021,
    Theorem 1 and Corollary 1; Cohen, Rosenfeld and Kolter, 2019, Theorem 1.

    Examples
    --------
    >>> noise = AnisotropicGaussian([0.125, 0.25, 0.5])
    >>> noise
    AnisotropicGaussian(sigmas=0.125 to 0.5 of shape [3])
    >>> rho = float(noise.potential(0.99))
    >>> [round(noise.radius_in(rho, norm, (3,)), 3) for norm in ("mahalanobis", "l2", "linf", "volume")]
    [2.326, 0.291, 0.254, 0.582]
    """

    sigmas: ArrayLike

    constraints: ClassVar[Mapping[str, Constraint]] = {"sigmas": Array(POSITIVE)}
    norm = "mahalanobis"
    norm_fields = ("sigmas",)
    draw = Gaussian.draw
    has_arrays = True

    def __post_init__(self) -> None:
        if is_real(self.sigmas):
            raise ValueError(
                f"sigmas must be an array, with a sigma of each element or channel, got {self.sigmas!r}; for the same sigma "
                f"everywhere use Gaussian({self.sigmas!r})"
            )
        super().__post_init__()

    @cached_property
    def applied(self) -> NDArray[np.float32]:
        """The sigmas as kernels apply them, rounded to float32."""
        return read_only(np.asarray(self.sigmas, dtype=np.float32))

    @cached_property
    def scale(self) -> float:
        """The smallest sigma."""
        return float(self.applied.min())

    def of_elements(self, shape: Sequence[int]) -> NDArray[np.float32]:
        """Return the sigma of each element ``[*shape]``; raise ValueError if sigmas do not fit.

        Examples
        --------
        >>> AnisotropicGaussian([1.0, 2.0]).of_elements((2, 3)).tolist()
        [[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]]
        """
        shape, own = tuple(shape), self.applied.shape
        if own not in (shape, shape[:1]):
            raise ValueError(
                f"sigmas must have shape {list(shape)}, one of each element of the inputs, or {list(shape[:1])}, one of "
                f"each channel, got shape {list(own)}"
            )
        return np.broadcast_to(self.applied if own == shape else self.applied.reshape(-1, *[1] * (len(shape) - 1)), shape)

    def check_fits(self, shape: Sequence[int]) -> None:
        """Raise ValueError if sigmas do not fit the shape."""
        self.of_elements(shape)

    def parameters(self, shape: Sequence[int]) -> NoiseParameters:
        """Return the draw and the parameter block that kernels take: the sigma of each element.

        Raises
        ------
        ValueError
            If sigmas do not fit the shape.
        """
        return NoiseParameters(self.draw.name, [self.scale], [self.of_elements(shape).ravel()])

    def potential(self, p: ArrayLike, lipschitz: float | None = None) -> NDArray[np.float64]:
        """Return ``Q(p) = Phi^-1(p)``, the function of the smoothed score that is 1-Lipschitz in the Mahalanobis norm.

        Parameters
        ----------
        p : array_like
            Smoothed scores in [0, 1]; 0 gives -inf and 1 gives inf.
        lipschitz : None
            No potential of this noise for Lipschitz scores is known: anything else is an error.

        Returns
        -------
        ndarray of float64
            In standard deviations, off by at most `potential_error`, relatively. NaN for p outside [0, 1].

        Raises
        ------
        ValueError
            If lipschitz is given.
        """
        self.check_lipschitz(lipschitz)
        return np.asarray(_special.ndtri(np.asarray(p, dtype=np.float64)))

    @property
    def conversions(self) -> Mapping[str, Factor]:
        """What `radius_in` multiplies a radius by, each the largest of a ball within the ellipsoid.

        - l1 and l2: the smallest sigma, where the ball's axis and the ellipsoid's meet;
        - linf: ``1 / sqrt(sum of sigma_i^-2)``, where a corner of the cube does;
        - volume: the geometric mean of the sigmas. This ball does not lie within the ellipsoid.
        """
        return {"l1": self.scale, "l2": self.scale, "linf": self._linf, "volume": self._geometric_mean}

    def _linf(self, shape: Sequence[int]) -> float:
        return SAFE / math.sqrt(float((self.of_elements(shape).astype(np.float64) ** -2).sum()))

    @cached_property
    def _geometric_mean(self) -> float:
        return SAFE * math.exp(float(np.log(self.applied.astype(np.float64)).mean()))

    def measure(self, delta: NDArray[np.float64]) -> float:
        """Return ``|delta / sigma|_2``, rounded up."""
        with np.errstate(over="ignore"):  # to infinity, which no radius reaches
            shares = np.abs(delta) / self.of_elements(delta.shape).astype(np.float64)
        return size(np.where(delta == 0, 0.0, np.maximum(shares, np.finfo(np.float64).tiny)), "l2")  # no underflow

    def score(self, z: Any) -> Any:
        """Return ``z_i / sigma_i^2``."""
        return z / self._variances(z)

    def laplacian(self, z: Any) -> Any:
        """Return the sum over elements of ``(z_i^2 / sigma_i^2 - 1) / sigma_i^2``."""
        variances = self._variances(z)
        return ((z**2 / variances - 1) / variances).reshape(len(z), math.prod(z.shape[1:])).sum(1)

    def _variances(self, z: Any) -> Any:
        return z.new_tensor(self.of_elements(z.shape[1:]).astype(np.float64)) ** 2
