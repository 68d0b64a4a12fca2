"""Isotropic Gaussian noise: its potential, the function that turns a bound into a radius."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import _special
from .base import POSITIVE, Constraint, Draw, Noise, register
from .constraints import Real

_LIPSCHITZ = Real(np.nextafter(0, 1), np.finfo(np.float64).max, "positive and finite")

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(48)  # exact to a unit in the last place in both uses below
_WEIGHTS /= 2  # of a mean over [-1, 1]


def check_lipschitz(lipschitz: object) -> float:
    """Return the Lipschitz constant of a score as a float.

    Raises
    ------
    TypeError, ValueError
        If lipschitz is not a number, or not positive and finite.

    Examples
    --------
    >>> check_lipschitz(5)
    5.0
    """
    return _LIPSCHITZ.check("lipschitz", lipschitz)


def _log_normal_tail(u: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return log P(Z > u)."""
    return np.asarray(_special.log_ndtr(-u))


def _log_tail_integral(u: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the log of the integral of P(Z > v) over v > u, ``phi(u) - u P(Z > u)``."""
    v = np.minimum(np.abs(u), 100.0)  # beyond, it is 0 next to whatever it is added to
    tail = np.log1p(-v * np.sqrt(np.pi / 2) * _special.erfcx(v / np.sqrt(2))) - v * v / 2 - np.log(2 * np.pi) / 2
    return np.where(u < 0, np.log(np.where(u < 0, np.exp(tail) - u, 1)), tail)


def _log_mean(
    log_tail: Callable[[NDArray[np.float64]], NDArray[np.float64]], t: NDArray[np.float64], a: float
) -> NDArray[np.float64]:
    """Return log((G(t - a) - G(t + a)) / 2a) for the tail G of a density: its mean over [t - a, t + a]."""
    near, far = log_tail(t - a), log_tail(t + a)
    return np.asarray(near + np.log1p(-np.exp(far - near)) - np.log(2 * a))


def _weighted(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean over [-1, 1] of what has these values [:, nodes]; no BLAS, whose rounding depends on the rows."""
    return np.asarray((values * _WEIGHTS).sum(axis=1))


def _quantile(q: NDArray[np.float64], a: float) -> NDArray[np.float64]:
    """Return the t >= 0 that Z + U exceeds with probability q: Z normal, U uniform on [-a, a], 0 < q <= 1/2.

    Newton's method, on one of two forms of the equation that lose nothing to cancellation:

    - ``q >= 1/4``: ``P(0 < Z + U < t) = 1/2 - q``, the left side ``t / 2b`` times the mean of ``erf(u / sqrt(2))`` over
      ``[b - w, b + w]`` with b the larger of a and t and w the smaller, so that all of it is positive;
    - else ``log S = log q`` with S the mean of ``P(Z > u)`` over ``[t - a, t + a]``: a sum, or where a is so large that one
      of the two is much the smaller, the antiderivative's difference.

    Both left sides are concave in t (Z + U is log-concave, its density falls on t > 0), so Newton's steps cannot diverge.
    Z and U are symmetric and unimodal, hence either alone exceeds t less often than their sum: a lower bracket. U is at
    most a: an upper one.
    """
    z = -_special.ndtri(q)
    low, high = np.maximum(z, a * (1 - 2 * q)), z + a
    t, central, solved = low, q >= 0.25, np.zeros(q.shape, dtype=bool)
    for _ in range(200):
        log_density = _log_mean(_log_normal_tail, t, a)
        wide, narrow = np.maximum(t, a), np.minimum(t, a)
        middle = t / (2 * wide) * _weighted(_special.erf((wide[:, None] + narrow[:, None] * _NODES) / np.sqrt(2)))
        if a < 1:
            logs = _log_normal_tail(t[:, None] + a * _NODES)
            log_tail = logs[:, 0] + np.log(_weighted(np.exp(logs - logs[:, :1])))
        else:
            log_tail = _log_mean(_log_tail_integral, t, a)
        step = np.where(central, 0.5 - q - middle, log_tail - np.log(q)) * np.exp(
            np.where(central, 0, log_tail) - log_density
        )
        t = np.where(solved, t, np.clip(t + step, low, high))  # no p's result depends on the others
        solved |= np.abs(step) <= 1e-8 * np.minimum(t, 1)  # what is left is of the order of its square
        if solved.all():
            return np.asarray(t)
    raise ArithmeticError(f"the potential's equation was not solved for a = {a!r}, q = {q!r}")


def _standard_normal(words: Sequence[Any], math: Any) -> Sequence[Any]:
    return *math.box_muller(words[0], words[1]), *math.box_muller(words[2], words[3])


@register
@dataclass(frozen=True)
class Gaussian(Noise):
    """Isotropic Gaussian noise N(0, sigma^2) on every element of the input.

    The radius is measured in l2, in the units of the input before any ``scale`` and ``shift``: with images in [0, 1] and
    the model's normalisation passed as ``scale``/``shift``, sigma is in pixel units.

    Parameters
    ----------
    sigma : float
        Standard deviation, in the units of the input; positive, finite and representable in float32.

    Raises
    ------
    ValueError
        If sigma is not a positive number that float32 can hold.

    Notes
    -----
    The theorem is about real numbers, and the noise is float32: which values a sum of x and noise can
    take depends on x, and a classifier made for the purpose can tell. For such classifiers certificates
    are false. One is on record that tests whether elements near 0 are multiples of 2^-24: at sigma 0.5
    an 8-bit image got radius 0.32, beside another at distance 0.217 where the other class is certain. No
    network is known that does it unasked. `GridGaussian` closes the gap for 8-bit images: its sums are
    exact, and its certificates hold whatever the classifier does.

    References
    ----------
    Cohen, Rosenfeld and Kolter, "Certified Adversarial Robustness via Randomized Smoothing", 2019, Theorem 1;
    Salman et al., "Provably Robust Deep Learning via Adversarially Trained Smoothed Classifiers", 2019, appendix A;
    Jin et al., "Getting a-Round Guarantees", 2022, on floating point.

    Examples
    --------
    >>> round(float(Gaussian(0.5).potential(0.99)), 4)
    1.1632
    """

    sigma: float

    constraints: ClassVar[Mapping[str, Constraint]] = {"sigma": POSITIVE}
    norm = "l2"
    for_bytes = "GridGaussian noise"
    draw = Draw("gaussian", {"sigma": POSITIVE}, _standard_normal)

    def check_lipschitz(self, lipschitz: float | None) -> float | None:
        """Return the Lipschitz constant as a float, or None; raise an error as the function `check_lipschitz`."""
        return None if lipschitz is None else check_lipschitz(lipschitz)

    def potential(self, p: ArrayLike, lipschitz: float | None = None) -> NDArray[np.float64]:
        """Return Q(p), the function of the smoothed score that is 1-Lipschitz in l2.

        ``sigma * Phi^-1(p)`` for any score. If the base score is known to be L-Lipschitz, the quantile at p of
        ``N(0, sigma^2) + U(-1/2L, 1/2L)``, which is larger: it grows to ``(p - 1/2) / L`` as ``L * sigma`` goes to 0, and
        falls to the former as it grows.

        Parameters
        ----------
        p : array_like
            Smoothed scores in [0, 1]; 0 gives -inf and 1 gives inf.
        lipschitz : float, optional
            L, a Lipschitz constant in l2 of the base score, a function of the input with values in [0, 1]; per unit of the
            input. Taken as ``1e-6 / sigma`` where it is smaller.

        Returns
        -------
        ndarray of float64
            In the units of the input, off by at most `POTENTIAL_ERROR`, relatively. sigma is taken as the kernels apply it,
            rounded to float32. ``Q(1 - p) = -Q(p)`` to the last bit where ``1 - p`` is exact.

        Raises
        ------
        TypeError, ValueError
            If lipschitz is not a number, or not positive and finite.

        Notes
        -----
        Among all L-Lipschitz functions h into [0, 1] with a given mean ``E h(x + noise)``, a ramp of slope L has the largest
        derivative of that mean, ``E h(x + z) z / sigma^2``: ramp - h changes sign once, at some z0, so that its product with
        z - z0 is nowhere negative, and its own mean is 0. The mean of a ramp, as a function of its position, is the
        distribution function of the sum above. A ramp attains it.

        References
        ----------
        Cohen, Rosenfeld and Kolter, 2019, Theorem 1, and Salman et al., 2019, appendix A, of which this is the version for
        Lipschitz scores; its derivative at ``p = 1/2``: Delattre et al., "The Lipschitz-Variance-Margin Tradeoff for
        Enhanced Randomized Smoothing", 2024, Theorem 1.

        Examples
        --------
        >>> Gaussian(1.0).potential([0.5, 0.999], lipschitz=0.1).round(4).tolist()
        [0.0, 6.9384]
        """
        p, sigma = np.asarray(p, dtype=np.float64), float(np.float32(self.sigma))
        lipschitz = self.check_lipschitz(lipschitz)
        if lipschitz is None:
            return np.asarray(sigma * _special.ndtri(p))
        # A smaller L is raised, which is safe: no radius above 500,000 sigma. A larger one differs by 1e-17, relatively.
        a = 1 / (2 * min(max(lipschitz * sigma, 1e-6), 1e8))
        t = np.array(np.abs(_special.ndtri(p)))  # for p of 0, 1, and outside [0, 1]
        inside = (p > 0) & (p < 1)
        t[inside] = _quantile(np.minimum(p, 1 - p)[inside], a)
        return np.asarray(sigma * np.copysign(t, p - 0.5))

    def score(self, z: Any) -> Any:
        """Return ``z / sigma^2``, with sigma as the kernels apply it, rounded to float32."""
        return z / float(np.float32(self.sigma)) ** 2

    def laplacian(self, z: Any) -> Any:
        """Return ``(|z|^2 / sigma^2 - D) / sigma^2``, D the number of elements."""
        variance, flat = float(np.float32(self.sigma)) ** 2, z.reshape(len(z), math.prod(z.shape[1:]))
        return ((flat**2).sum(1) / variance - flat.shape[1]) / variance
