"""Smoothing noises: what is added, in which norm a shift is measured, and the potential that turns a bound into a radius."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

STREAM_VERSION = 1
"""Version of the map from (seed, stream, input id, sample index) to noise. It changes when any bit of any noise changes."""

STREAMS = {"selection": 0, "estimation": 1, "training": 2, "user": 3}
"""Stream names and their numbers in the Philox counter; samples of different streams are independent."""


@dataclass(frozen=True)
class Gaussian:
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

    References
    ----------
    Cohen, Rosenfeld and Kolter, "Certified Adversarial Robustness via Randomized Smoothing", 2019, Theorem 1;
    Salman et al., "Provably Robust Deep Learning via Adversarially Trained Smoothed Classifiers", 2019, Lemma 1.

    Examples
    --------
    >>> round(float(Gaussian(0.5).potential(0.99)), 4)
    1.1632
    """

    sigma: float

    def __post_init__(self) -> None:
        if isinstance(self.sigma, bool) or not isinstance(self.sigma, (int, float, np.floating, np.integer)):
            raise TypeError(f"sigma is {self.sigma!r}; it must be a number")
        sigma = float(self.sigma)
        if not np.finfo(np.float32).tiny <= sigma <= np.finfo(np.float32).max:
            raise ValueError(f"sigma is {self.sigma!r}; it must be positive, finite and a normal float32")
        object.__setattr__(self, "sigma", sigma)

    @property
    def norm(self) -> str:
        """The norm in which radii are measured."""
        return "l2"

    def potential(self, p: ArrayLike) -> NDArray[np.float64]:
        """Return ``sigma * Phi^-1(p)``, the function of the smoothed score that is 1-Lipschitz in l2.

        Parameters
        ----------
        p : array_like
            Smoothed scores in [0, 1]; 0 gives -inf and 1 gives inf.

        Returns
        -------
        ndarray of float64
            In the units of the input. sigma is taken as the kernels apply it, rounded to float32.
        """
        return np.asarray(float(np.float32(self.sigma)) * ndtri(np.asarray(p, dtype=np.float64)))

    def to_dict(self) -> dict[str, Any]:
        """Return the noise's name and parameters; `from_dict` reads it back."""
        return {"name": "Gaussian", "sigma": self.sigma}


def from_dict(data: dict[str, Any]) -> Gaussian:
    """Return the noise that `Gaussian.to_dict` wrote.

    Raises
    ------
    ValueError
        If the name is not Gaussian.
    """
    parameters = dict(data)
    if (name := parameters.pop("name", None)) != "Gaussian":
        raise ValueError(f"noise is {name!r}; it must be Gaussian")
    return Gaussian(**parameters)
