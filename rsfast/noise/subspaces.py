"""Smoothing by subspaces: the classifier sees what a projection leaves of the input, with noise inside it or without."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .base import Noise, NoiseParameters, register
from .constraints import POSITIVE, Array, Constraint, FrozenArray, Integer, Real
from .gaussian import Gaussian
from .haar import haar_radius, haar_reach
from .norms import Factor, conversions

TOLERANCE = 1e-6
"""How far the products of a projection's rows may lie from those of orthonormal ones."""

_UP, _DOWN = 1 + 2.0**-48, 1 - 2.0**-48
_FINITE = Real(-float(np.finfo(np.float64).max), float(np.finfo(np.float64).max), "finite")


@dataclass(frozen=True)
class Orthonormal(Array):
    """Arrays of projections: matrices along the last two axes whose rows are orthonormal, to within `TOLERANCE`."""

    def check(self, name: str, value: Any) -> FrozenArray:
        """Return `value` as a `FrozenArray`."""
        found = super().check(name, value)
        array = found.array
        if array.shape[-2] > array.shape[-1]:
            raise ValueError(f"{name} must have no more rows than columns in a matrix, got shape {list(array.shape)}")
        off = np.abs(array @ array.swapaxes(-1, -2) - np.eye(array.shape[-2])).max()
        if not off <= TOLERANCE:
            raise ValueError(
                f"{name} must have orthonormal rows, to within {TOLERANCE:g}, got products off by {off:.3g}; take the "
                "transposed Q of numpy.linalg.qr(rows.T)"
            )
        return found


def _check_elements(what: str, d: int, shape: Sequence[int]) -> None:
    elements = math.prod(shape)
    if elements != d:
        raise ValueError(f"{what.format(elements)}, the number of elements of an input {list(shape)}, got {d}")


def _exactly_zero(rows: NDArray[np.float64], delta: NDArray[np.float64]) -> bool:
    """Return whether all products of rows [k, d] with delta [d] are 0 as real numbers, whatever their order."""
    used = np.flatnonzero(delta)
    return all(_exact_sum(row[used], delta[used]) == 0 for row in rows)


def _exact_sum(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Return the sum of products, correctly rounded: each product as two floats (Dekker), and `math.fsum` of all."""
    if np.any(np.abs(b) > 1e290):
        return math.inf  # where parts of a product overflow it cannot be told
    product = a * b
    if np.any((product == 0) & (a != 0) & (b != 0)) or np.any((np.abs(product) < 1e-250) & (product != 0)):
        return math.inf  # where a product underflows it cannot be told
    high = []
    for each in (a, b):
        scaled = each * 134217729.0
        high.append(scaled - (scaled - each))
    (ah, bh), (al, bl) = high, (a - high[0], b - high[1])
    error = ((ah * bh - product) + ah * bl + al * bh) + al * bl
    return math.fsum([*product.tolist(), *error.tolist()])


@register
@dataclass(frozen=True)
class SubspaceSmoothing(Noise):
    """Fixed projections, and no noise inside: evaluation j shows the classifier ``U_j^T U_j x``.

    Deterministic: there are as many evaluations as projections, all are counted, and certificates
    are exact. The radius is a number of projections. The class stays the same under every delta
    with ``U_j delta`` other than 0 for at most so many j, however large it is; so under all that no
    projection sees. `size` counts them.

    Parameters
    ----------
    projections : array_like [M, k, d]
        U_1 to U_M, each with orthonormal rows to within 1e-6, for inputs of d elements, flattened
        in logical order. Kept as a `FrozenArray` of float64.

    Raises
    ------
    TypeError, ValueError
        If projections are no such array. `parameters`, hence `certify`, raises ValueError if d is
        not the number of elements of an input.

    Notes
    -----
    With votes nA and nB for the first two classes, ``nA - nB > 2 m`` proves the class for m changed
    evaluations: each takes at most one vote from A and gives at most one to B.

    Numerics: ``U^T (U x)`` is computed in float64 and rounded once to float32. Its bits do not
    depend on the order of samples or the batch. They may differ between devices and libraries, by
    the last bit of about one float32 in 10^8.

    Examples
    --------
    >>> halves = SubspaceSmoothing(np.eye(4).reshape(2, 2, 4))
    >>> halves
    SubspaceSmoothing(projections=0 to 1 of shape [2, 2, 4])
    >>> halves.size([0.0, 0.0, 7.0, 0.0])
    1
    >>> [halves.exact_radius(np.array(lead)).item() for lead in (0, 1, 2, 3)]
    [0.0, 0.0, 0.0, 1.0]
    """

    projections: FrozenArray

    constraints: ClassVar[Mapping[str, Constraint]] = {"projections": Orthonormal(_FINITE, (3,))}
    norm = "projections"
    norm_fields = ("projections",)
    draw = Gaussian.draw
    has_arrays = True

    @property
    def scale(self) -> float:
        """Infinite: as nothing is added, inputs may have any size and any units."""
        return math.inf

    def parameters(self, shape: Sequence[int]) -> NoiseParameters:
        """Return the projections, and the draw of white noise, of which nothing is drawn."""
        self.check_fits(shape)
        return NoiseParameters(self.draw.name, [1.0], shaper="sampled projection", shaper_tensors=[self.projections.array])

    def check_fits(self, shape: Sequence[int]) -> None:
        """Raise ValueError if the projections are not of as many elements as the shape has."""
        _check_elements("projections must have {} columns", self.projections.shape[2], shape)

    @property
    def evaluations(self) -> int:
        """The number of projections."""
        return len(self.projections.array)

    def exact_radius(self, lead: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the largest number m of changed projections with ``lead > 2 m``; 0 where there is none."""
        return np.maximum((np.asarray(lead) - 1) // 2, 0).astype(np.float64)

    def measure(self, delta: NDArray[np.float64]) -> int:
        """Return how many projections see a perturbation: ``#{j : U_j delta is not 0}``.

        Parameters
        ----------
        delta : ndarray of float64
            d finite numbers, of any shape: the input that is compared, less the one that is certified.

        Returns
        -------
        int
            A projection counts unless its products with delta are 0 exactly, as those of real numbers.
            So a delta that was made orthogonal to rows in floating point mostly counts, and must: the
            last bits of what the classifier sees may change. `ops.changed` compares those bits.

        Examples
        --------
        >>> turned = SubspaceSmoothing(np.array([[[0.6, 0.8]], [[0.8, -0.6]]]))
        >>> turned.size([0.5, 0.5]), turned.size([0.0, 0.0])
        (2, 0)
        """
        return sum(not _exactly_zero(rows, delta.ravel()) for rows in self.projections.array)


@register
@dataclass(frozen=True)
class SubspaceGaussian(Noise):
    """One fixed projection with Gaussian noise inside: the classifier sees ``W^T (W x + sigma z)``, z in R^k.

    The radius is that of ``|W delta|_2``, in the units of the input: what lies in the kernel of W
    changes nothing, however large it is. `size` is this norm. `radius_in` states it in l1, l2 and
    linf.

    Parameters
    ----------
    projection : array_like [k, d]
        W, with orthonormal rows to within 1e-6, for inputs of d elements, flattened in logical order.
        Kept as a `FrozenArray` of float64.
    sigma : float
        Standard deviation of the noise in each direction of the subspace; as of `Gaussian`.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as above. `parameters`, hence `certify`, raises ValueError if d is not
        the number of elements of an input.

    Notes
    -----
    The classifier is one of ``u = W x``, smoothed by Gaussian noise in R^k: ``Q(p) = sigma Phi^-1(p)``.

    Numerics: z are the first k numbers of `Gaussian` noise of this sigma, to the bit in every
    backend. What follows is computed in float64 and rounded once to float32, as that of
    `SubspaceSmoothing`.

    References
    ----------
    Cohen, Rosenfeld and Kolter, 2019, Theorem 1, in R^k.

    Examples
    --------
    >>> noise = SubspaceGaussian(np.eye(2, 5), 0.5)
    >>> round(float(noise.potential(0.99)), 4)
    1.1632
    >>> round(noise.size([0.3, 0.4, 9.0, 9.0, 9.0]), 4)
    0.5
    """

    projection: FrozenArray
    sigma: float

    constraints: ClassVar[Mapping[str, Constraint]] = {"projection": Orthonormal(_FINITE, (2,)), "sigma": POSITIVE}
    norm = "projected l2"
    norm_fields = ("projection",)
    draw = Gaussian.draw
    has_arrays = True

    @property
    def scale(self) -> float:
        """The standard deviation, in the units of the input."""
        return self.sigma

    def parameters(self, shape: Sequence[int]) -> NoiseParameters:
        """Return the draw of the noise inside, and the projection [1, k, d]."""
        self.check_fits(shape)
        return NoiseParameters(
            self.draw.name, [self.sigma], shaper="projection", shaper_tensors=[self.projection.array[None].copy()]
        )

    def check_fits(self, shape: Sequence[int]) -> None:
        """Raise ValueError if the projection is not of as many elements as the shape has."""
        _check_elements("projection must have {} columns", self.projection.shape[1], shape)

    def potential(self, p: ArrayLike, lipschitz: float | None = None) -> NDArray[np.float64]:
        """Return ``Q(p) = sigma Phi^-1(p)``; parameters and errors are those of `Noise.potential`."""
        self.check_lipschitz(lipschitz)
        return Gaussian(self.sigma).potential(p)

    @property
    def conversions(self) -> Mapping[str, Factor]:
        """What `radius_in` multiplies a radius by: ``|W delta|_2`` is at most ``|delta|_2``, but for what W is off by.

        Its square is at most ``|delta|_2^2`` times the largest sum of a row of ``|W W^T|``. In l1 and linf a larger radius
        may hold.
        """
        most = float(np.abs(self.projection.array @ self.projection.array.T).sum(axis=1).max())
        l2 = _DOWN / math.sqrt(most * _UP)
        linf = conversions("l2")["linf"]
        assert callable(linf)
        return {"l1": l2, "l2": l2, "linf": lambda shape: l2 * linf(shape) * _DOWN}

    def measure(self, delta: NDArray[np.float64]) -> float:
        """Return ``|W delta|_2``, rounded up; 0 where all products are 0 exactly."""
        (k, d), flat = self.projection.shape, delta.ravel()
        if _exactly_zero(self.projection.array, flat):
            return 0.0
        # A sum of d products is off by at most d units of 2^-53 of the sum of their magnitudes, in whatever order.
        off = (d + 2) * 2.0**-53 * (np.abs(self.projection.array) @ np.abs(flat))
        seen = np.abs(self.projection.array @ flat) + off * _UP
        return math.nextafter(math.hypot(*seen) * (1 + (k + 4) * 2.0**-52), math.inf)


@register
@dataclass(frozen=True)
class HaarSubspaces(Noise):
    """A random subspace for each sample, with Gaussian noise inside: the classifier sees ``W^T (W x + sigma z)``.

    W are k orthonormal rows that span a subspace without a preferred direction (Haar's
    distribution), drawn anew for each sample, and z is in R^k. The radius is measured in l2, in the
    units of the input. It is larger than that of Gaussian noise of the same sigma, as a subspace
    sees about a share ``sqrt(k / d)`` of a perturbation's length; and so the classifier sees less.

    Parameters
    ----------
    sigma : float
        Standard deviation of the noise in each direction of the subspace; as of `Gaussian`.
    k, d : int
        Dimensions of the subspaces and of the inputs, ``1 <= k < d``. For k = d take `Gaussian`.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as above. `parameters`, hence `certify`, raises ValueError if d is not
        the number of elements of an input.

    Notes
    -----
    With ``T = (r / sigma) B``, r the length of a perturbation and B^2 of the distribution
    Beta(k/2, (d-k)/2), a score of at least p keeps ``f_r(p) = E Phi(c/T - T/2)``, where c solves
    ``E Phi(c/T + T/2) = p`` (Neyman and Pearson's lemma, for a test that knows the subspace). One
    class is ahead of another while ``f_r(p_lower) > 1 - f_r(1 - p_upper)``, as the other's
    complement keeps ``f_r(1 - p_upper)``. With ``p_upper = 1 - p_lower`` that is ``f_r > 1/2``.

    Numerics: expectations are bounded from below in 512 bins (haar.py), so that no radius exceeds
    that of the formula. It is below by about 1e-5 of it, and by 5e-4 at k = 1. It takes 3 ms for
    each pair of bounds.

    The rows of W come from the first k d numbers of `Gaussian` noise of this sigma, to the bit in
    every backend, by a QR decomposition in float64 whose R has a positive diagonal; sigma z are the
    k after them. The result is rounded once to float32, as that of `SubspaceSmoothing`. A sample
    takes memory of 12 k d bytes and 4 k^2 d operations.

    Examples
    --------
    >>> noise = HaarSubspaces(1.0, k=10, d=100)
    >>> round(float(noise.radius(np.array(0.99), np.array(0.01))), 3)
    7.514
    """

    sigma: float
    k: int
    d: int

    constraints: ClassVar[Mapping[str, Constraint]] = {"sigma": POSITIVE, "k": Integer(1, 2**34 - 1), "d": Integer(2, 2**34)}
    norm = "l2"
    draw = Gaussian.draw

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k >= self.d:
            raise ValueError(
                f"k must be from 1 to d - 1 = {self.d - 1}, got {self.k}; for k = d take Gaussian({self.sigma})"
            )

    def parameters(self, shape: Sequence[int]) -> NoiseParameters:
        """Return the draw of the subspaces and of the noise inside, and k."""
        self.check_fits(shape)
        return NoiseParameters(self.draw.name, [self.sigma], shaper="haar", shaper_scalars=[float(self.k)])

    def check_fits(self, shape: Sequence[int]) -> None:
        """Raise ValueError if d is not the number of elements of the shape."""
        _check_elements("d must be {}", self.d, shape)

    def radius(
        self, p_lower: NDArray[np.float64], p_upper: NDArray[np.float64], lipschitz: float | None = None
    ) -> NDArray[np.float64]:
        """Return the l2 radius, rounded down; 0 where the class is not ahead. Parameters are those of `Noise.radius`."""
        self.check_lipschitz(lipschitz)
        lower, upper = np.broadcast_arrays(p_lower, p_upper)
        sigma = float(np.float32(self.sigma))
        return np.asarray(haar_radius(lower, upper, self.k, self.d) * (sigma * _DOWN))

    def reach(
        self, p_high: NDArray[np.float64], p_low: NDArray[np.float64], lipschitz: float | None = None
    ) -> NDArray[np.float64]:
        """Return the l2 radius, rounded down, within which no score falls from p_high to p_low; 0 where it is not larger.

        None rises from p_low to p_high there, either: ``1 - f_r(1 - p)`` is the inverse of ``f_r``.
        """
        self.check_lipschitz(lipschitz)
        high, low = np.broadcast_arrays(p_high, p_low)
        return np.asarray(haar_reach(high, low, self.k, self.d) * (float(np.float32(self.sigma)) * _DOWN))
