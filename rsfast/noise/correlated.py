"""Stationary Gaussian noise with a spectrum: certificates in its Mahalanobis norm, and against bands of frequencies."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import _special
from .._check import as_real
from .anisotropic import SAFE
from .base import Noise, NoiseParameters, register
from .constraints import POSITIVE, Array, Constraint, Real
from .gaussian import Gaussian
from .norms import Factor, check_shape, scaled_down, size

_SPAN = 2.0**20  # of eigenvalues that are not 0: what float32 rounds of the strongest is not to drown the weakest
_FFT_ERROR = 2.0**-40
"""What the l2 norm of a computed unitary transform is off by, of the input's: more than ``2^-50 log2 d``, an FFT's error."""
_SYMMETRY = 2.0**-40  # relative difference of eigenvalues that stand for one frequency


def _axes(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the lengths of the axes along which noise is stationary: all but the channel's, or the only one."""
    if not shape:
        raise ValueError("shape must have at least one axis with CorrelatedGaussian noise, got []")
    return tuple(shape[1:] or shape)


def half_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of what `numpy.fft.rfftn` makes of a channel of an input.

    Examples
    --------
    >>> half_shape((3, 32, 32)), half_shape((10,))
    ((32, 17), (6,))
    """
    *others, last = _axes(shape)
    return (*others, last // 2 + 1)


def frequencies(shape: Sequence[int]) -> NDArray[np.float64]:
    """Return the magnitude of each frequency, in cycles per element, in the layout of a spectrum.

    Parameters
    ----------
    shape : sequence of int
        Of an input. The first axis is the channel, unless it is the only one.

    Returns
    -------
    ndarray of float64
        As `numpy.fft.rfftn` lays the frequencies of a channel out: for inputs [C, H, W] of shape
        [H, W // 2 + 1], for [C, W] and [W] of shape [W // 2 + 1]. From 0 to 1/2 along one axis.

    Examples
    --------
    >>> frequencies((3, 4, 4)).round(2).tolist()[:2]
    [[0.0, 0.25, 0.5], [0.25, 0.35, 0.56]]
    """
    *others, last = _axes(check_shape(shape))
    along = np.meshgrid(*map(np.fft.fftfreq, others), np.fft.rfftfreq(last), indexing="ij")
    return np.asarray(np.sqrt(sum(each**2 for each in along)))


def _multiplicities(shape: Sequence[int]) -> NDArray[np.float64]:
    """Return how many frequencies each of the last axis of a spectrum stands for: itself, and mostly its negative."""
    last = _axes(shape)[-1]
    counts = np.full(last // 2 + 1, 2.0)
    counts[0] = 1
    if last % 2 == 0:
        counts[-1] = 1
    return counts


@register
@dataclass(frozen=True)
class CorrelatedGaussian(Noise):
    """Stationary Gaussian noise: each frequency of a channel has a variance of its own, and channels are independent.

    White noise z, that of `Gaussian` of sigma 1 to the bit, is shaped along all axes but the
    channel's: ``y = x + irfftn(rfftn(z) sqrt(spectrum))``. So the noise is periodic: opposite edges
    are neighbours. An input of one axis is one channel. An image without a channel axis needs one,
    [1, H, W]; [H, W] is H channels.

    The radius is measured in the Mahalanobis norm ``|S^-1/2 delta|_2`` of the covariance S, in
    standard deviations. `radius_in` states it in l1, l2, linf, or as "volume", the radius of the l2
    ball whose volume the ellipsoid has; and `band_radius` as the l2 radius against perturbations of
    a band of frequencies.

    Parameters
    ----------
    spectrum : array_like
        The eigenvalues of the covariance: the variance of each frequency, in squared units of the
        input, in the layout of `numpy.fft.rfftn`: [H, W // 2 + 1] for inputs [C, H, W], and
        [W // 2 + 1] for [C, W] or [W]. A further first axis, [C, H, W // 2 + 1], has one spectrum a
        channel. A constant ``sigma^2`` is white noise of that sigma. Eigenvalues are 0 or more,
        those above 0 at least ``2^-20`` of the largest, and not all 0. Frequencies k and -k have the
        same, where the layout holds both.

    Raises
    ------
    TypeError, ValueError
        If spectrum holds no such numbers. `parameters`, hence `certify`, `predict` and `sample`,
        raises ValueError if its shape does not fit the inputs, or it is not symmetric.

    Notes
    -----
    Where an eigenvalue is 0 the covariance has no inverse. A perturbation that has a part of such a
    frequency has an infinite Mahalanobis norm: no radius covers it, and radii in other norms are 0.
    `size` is infinite for every change of such a channel; take `band_radius`.

    Numerics: z has the bits that every backend gives. The transforms and the sum with x are computed
    from it in float64, by torch.fft, and y is rounded once, to float32. Before that rounding the
    deviation of every frequency is off by less than ``2^-36`` of itself (we found ``2^-38``), which
    radii are charged for. What of y stays bit-equal:

    - Order, other inputs and the batch do not change a bit. A sample is transformed within a group
      whose size depends on the shape of x and the device only, and FFT libraries compute all
      transforms of a group alike, as tests check.
    - Another number of threads, instruction set, device or FFT library may change the transform's
      last bits in float64. That shows in about one float32 in 10^8, by its last bit.

    References
    ----------
    Cohen, Rosenfeld and Kolter, 2019, Theorem 1, for ``S^-1/2 x``; Eiras et al., "ANCER: Anisotropic
    Certification via Sample-wise Volume Maximization", 2021. Cyclic convolutions are diagonal in the
    Fourier basis: Gray, "Toeplitz and Circulant Matrices: A Review", 2006, section 3.

    Examples
    --------
    >>> noise = CorrelatedGaussian.low_pass((3, 32, 32), cutoff=0.125, sigma=0.25)
    >>> noise.settings
    'spectrum = 0.0108936 to 1.08936 of shape [32, 17]'
    >>> rho = float(noise.potential(0.99))
    >>> round(noise.radius_in(rho, "l2"), 3), round(noise.band_radius(rho, frequencies((3, 32, 32)) <= 0.125), 3)
    (0.243, 2.428)
    """

    spectrum: ArrayLike

    constraints: ClassVar[Mapping[str, Constraint]] = {
        "spectrum": Array(Real(0, POSITIVE.high, "0 or more, and finite float32"))
    }
    norm = "mahalanobis"
    norm_fields = ("spectrum",)
    draw = Gaussian.draw
    has_arrays = True
    potential_error = 2.0**-36

    def __post_init__(self) -> None:
        super().__post_init__()
        largest = float(self._eigenvalues.max())
        if largest < POSITIVE.low:
            raise ValueError(
                f"spectrum must have an eigenvalue of at least {POSITIVE.low:.3g}, got {largest:g} as the largest"
            )
        least = float(self._eigenvalues[self._eigenvalues > 0].min())
        if largest > _SPAN * least:
            raise ValueError(
                f"spectrum must have eigenvalues that are 0 or at least 2^-20 of the largest, {largest:g}, got {least:g}; "
                "raise such eigenvalues, or set them to 0"
            )

    @cached_property
    def _eigenvalues(self) -> NDArray[np.float64]:
        return np.asarray(self.spectrum)

    @classmethod
    def low_pass(cls, shape: Sequence[int], cutoff: float, sigma: float, floor: float = 0.01) -> CorrelatedGaussian:
        """Return noise that is strong up to a frequency, and weak beyond it.

        Parameters
        ----------
        shape : sequence of int
            Of an input. The first axis is the channel, unless it is the only one.
        cutoff : float
            The largest frequency of the strong band, in cycles per element; at least 0.
        sigma : float
            The standard deviation of each element, in the units of the input.
        floor : float
            The variance of a frequency beyond cutoff, as a share of the strong band's: 0, or from
            ``2^-20`` to 1. With 0 there is no l2 radius.

        Raises
        ------
        TypeError, ValueError
            If an argument is out of range, or the strong band's variance is no normal float32.
        """
        shape = check_shape(shape)
        cutoff, floor = as_real("cutoff", cutoff, least=0), as_real("floor", floor, least=0, most=1)
        if 0 < floor < 1 / _SPAN:
            raise ValueError(f"floor must be 0 or from 2^-20 to 1, got {floor}")
        sigma = POSITIVE.check("sigma", sigma)
        spectrum = np.where(frequencies(shape) <= cutoff, 1.0, floor)
        power = float((spectrum * _multiplicities(shape)).sum()) / math.prod(_axes(shape))
        strongest = sigma**2 / power
        if not POSITIVE.low <= strongest <= POSITIVE.high:
            raise ValueError(
                f"sigma must give the strong band a variance that is a normal float32, got {sigma}, which gives "
                f"{strongest:g}"
            )
        return cls(spectrum * strongest)

    @cached_property
    def scale(self) -> float:
        """The standard deviation of the weakest frequency whose eigenvalue is not 0."""
        return math.sqrt(float(self._eigenvalues[self._eigenvalues > 0].min(initial=np.inf)))

    def of_channels(self, shape: Sequence[int]) -> NDArray[np.float64]:
        """Return the spectrum with an axis for the channel, of length C or 1; raise ValueError if it does not fit."""
        shape, own = tuple(shape), self._eigenvalues.shape
        half = half_shape(shape)
        allowed = [half, (shape[0], *half)] if len(shape) > 1 else [half]
        if own not in allowed:
            raise ValueError(
                f"spectrum must have shape {' or '.join(str(list(each)) for each in allowed)} for inputs of shape "
                f"{list(shape)}, got shape {list(own)}"
            )
        found = self._eigenvalues.reshape(-1, *half).copy()
        for column in [0] if _axes(shape)[-1] % 2 else [0, -1]:
            values = found[..., column]
            mirrored = _negative_frequencies(values)
            if np.any(np.abs(values - mirrored) > _SYMMETRY * np.maximum(values, mirrored)):
                raise ValueError(
                    f"spectrum must be symmetric, with the same eigenvalue at frequencies k and -k, got others in its "
                    f"column {column}; give both their mean"
                )
            found[..., column] = (values + mirrored) / 2
        return found

    def check_fits(self, shape: Sequence[int]) -> None:
        """Raise ValueError if the spectrum does not fit the shape, or is not symmetric."""
        self.of_channels(shape)

    def parameters(self, shape: Sequence[int]) -> NoiseParameters:
        """Return the draw of white noise, and the gain of each frequency, ``sqrt(spectrum)``.

        Raises
        ------
        ValueError
            If the spectrum does not fit the shape, or is not symmetric.
        """
        return NoiseParameters(self.draw.name, [1.0], shaper="spectrum", shaper_tensors=[np.sqrt(self.of_channels(shape))])

    def potential(self, p: ArrayLike, lipschitz: float | None = None) -> NDArray[np.float64]:
        """Return ``Q(p) = Phi^-1(p)``, as `AnisotropicGaussian.potential` does; parameters and errors are the same."""
        self.check_lipschitz(lipschitz)
        return np.asarray(_special.ndtri(np.asarray(p, dtype=np.float64)))

    @property
    def conversions(self) -> Mapping[str, Factor]:
        """What `radius_in` multiplies a radius by; all are 0 if an eigenvalue is.

        - l2: the root of the least eigenvalue;
        - l1: ``1 / sqrt(m)``, m the mean of 1 / eigenvalue over a channel's frequencies, the largest of
          all channels: the diagonal of the covariance's inverse;
        - linf: the l2 radius over ``sqrt(d)``, d the elements of an input. A larger one may hold;
        - volume: the geometric mean of the roots of all eigenvalues. This ball does not lie within the
          ellipsoid.
        """
        least = float(self._eigenvalues.min())
        return {
            "l1": lambda shape: SAFE / math.sqrt(float(self._mean(np.reciprocal, shape).max())),
            "l2": SAFE * math.sqrt(least),
            "linf": lambda shape: SAFE * math.sqrt(least / math.prod(shape)),
            "volume": lambda shape: SAFE * math.exp(float(self._mean(np.log, shape).mean()) / 2),
        }

    def measure(self, delta: NDArray[np.float64]) -> float:
        """Return the Mahalanobis norm ``|S^-1/2 delta|_2``, rounded up.

        It is infinite where a channel that delta changes has an eigenvalue of 0: whether delta has no
        part of that frequency cannot be told from rounded numbers. For such noise take `band_radius`.

        Notes
        -----
        ``|S^-1/2 delta|_2^2`` is the sum over frequencies k of ``|D_k|^2 / e_k``, D the unitary discrete
        Fourier transform of delta. The computed D is off by less than ``2^-40 |delta|_2``, which is
        charged as if all of it were in the weakest frequency. That is at most ``2^-30`` of the norm.
        """
        axes = _axes(delta.shape)
        channels = delta.reshape(-1, *axes)
        changed = channels.reshape(len(channels), -1).any(axis=1)
        if not changed.any():
            return 0.0
        half = half_shape(delta.shape)
        spectrum = np.broadcast_to(self.of_channels(delta.shape), (len(channels), *half))[changed]
        if not spectrum.all():
            return math.inf
        most = float(np.abs(delta).max())
        scaled = channels[changed] / most  # its transform does not overflow
        transform = np.abs(np.fft.rfftn(scaled, axes=range(1, scaled.ndim)))
        found = size(transform * np.sqrt(_multiplicities(delta.shape) / (math.prod(axes) * spectrum)), "l2")
        off = _FFT_ERROR * size(scaled, "l2") / math.sqrt(float(spectrum.min()))
        return math.nextafter(most * (found + off) * (1 + _FFT_ERROR), math.inf)

    def _mean(
        self, function: Callable[[NDArray[np.float64]], NDArray[np.float64]], shape: Sequence[int]
    ) -> NDArray[np.float64]:
        """Return the mean of a function of the eigenvalues over all frequencies of each channel, [C] or [1]."""
        with np.errstate(divide="ignore"):
            values = function(self.of_channels(shape)) * _multiplicities(shape)
        return np.asarray(values.reshape(len(values), -1).sum(axis=1) / math.prod(_axes(shape)))

    def band_radius(self, radius: float, band: ArrayLike) -> float:
        """Return the l2 radius against perturbations of some frequencies only, rounded down.

        Parameters
        ----------
        radius : float
            Certified, in the Mahalanobis norm; finite and at least 0.
        band : array_like of bool
            Which frequencies perturbations have, of the shape of the spectrum, or of one channel of it:
            for all shapes, ``frequencies(shape) <= cutoff`` is a low band. Where the layout holds k
            and -k, a real perturbation has both or neither.

        Returns
        -------
        float
            ``radius sqrt(e)``, e the least eigenvalue of the band.

        Raises
        ------
        TypeError, ValueError
            If band holds anything but bools, no True, or has another shape.
        """
        radius, band = as_real("radius", radius, least=0), np.asarray(band)
        if band.dtype != np.bool_:
            raise TypeError(f"band must be an array of bools, got {band.dtype}")
        own = self._eigenvalues.shape
        if band.shape not in (own, own[1:]) or not band.any():
            raise ValueError(
                f"band must be True somewhere, and have shape {list(own)}, as spectrum has, got {int(band.sum())} True and "
                f"shape {list(band.shape)}"
            )
        least = float(self._eigenvalues[np.broadcast_to(band, own)].min())
        return scaled_down(radius, SAFE * math.sqrt(least))


def _negative_frequencies(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return values ``[C, *others]`` at the frequencies -k of others."""
    axes = tuple(range(1, values.ndim))
    return np.asarray(np.roll(np.flip(values, axes), 1, axes))
