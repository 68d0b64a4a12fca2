"""ANCER's class `Smooth`, for a noise of its own size on each element: change the import line of an existing loop."""

from __future__ import annotations

import math
import warnings
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import ArrayLike
from typing_extensions import Unpack

from .._check import check_choice
from ..engine.forward import Model
from ..engine.options import SmoothOptions
from ..noise import AnisotropicGaussian, Noise, Uniform
from . import cohen

_FIRST: WeakKeyDictionary[Model, float | Noise] = WeakKeyDictionary()  # sigma of each base classifier


class Certificate(Protocol):
    """What names the norm: `L1Certificate` and `L2Certificate`, those of ANCER too."""

    norm: str


class L2Certificate:
    """Gaussian noise. The arguments are ANCER's; none is used."""

    norm = "l2"

    def __init__(self, batch_size: int = 1, device: torch.device | str | None = None) -> None:
        pass


class L1Certificate:
    """Uniform noise. The argument is ANCER's, and not used."""

    norm = "l1"

    def __init__(self, device: torch.device | str | None = None) -> None:
        pass


class Smooth(cohen.Smooth):
    """ANCER's class: change the import line of an existing loop, and it draws, counts and bounds here.

    Parameters
    ----------
    base_classifier, num_classes, seed, **options
        As in `cohen.Smooth`.
    sigma : tensor or array_like
        One element: the standard deviation of Gaussian noise, or the lambda of uniform noise on
        [-lambda, lambda]. Or, for Gaussian noise, one standard deviation of each element of x,
        ``[*shape]`` or ``[1, *shape]``, or of each channel, [C, 1, 1] or [C]. It must not depend on x.
    certificate : L1Certificate or L2Certificate
        Its attribute `norm`, "l1" or "l2", names the noise.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong. Uniform noise of several lambdas is not implemented here.

    Warns
    -----
    UserWarning
        If another object has the same base classifier and another sigma.

    Notes
    -----
    `certify` returns the gap, as ANCER does: the radius in units of sigma, within which ``|delta /
    sigma|`` may lie. The l2 radius is the smallest sigma times that, and ANCER's radius proxy the
    geometric mean of sigma times that.

    A sigma that is optimised for each input makes another smoothed classifier of each. What is
    proved at x is about the one that keeps the sigma of x. A classifier that picks sigma by its
    input may change it within the radius, unless regions around earlier inputs are remembered and
    kept apart, as ANCER's and its predecessor's papers do afterwards.

    References
    ----------
    Eiras et al., "ANCER: Anisotropic Certification via Sample-wise Volume Maximization", 2022,
    Theorem 1 and Corollary 1; github.com/MotasemAlfarra/ANCER. Alfarra et al., "Data Dependent
    Randomized Smoothing", 2022, on memory.

    Examples
    --------
    >>> model = lambda x: torch.stack([x[:, 0, 0, 0], -x[:, 0, 0, 0]], dim=1)
    >>> sigma = torch.tensor([[[[0.25, 0.5], [0.5, 1.0]]]])
    >>> smooth = Smooth(model, 2, sigma, L2Certificate(1), seed=1)
    >>> prediction, gap = smooth.certify(torch.full((1, 2, 2), 0.5), 100, 1000, 0.001, 100)
    >>> prediction, 0 < gap <= 2
    (0, True)
    >>> proxy = torch.prod((sigma ** (1 / 4)).reshape(-1)).item() * gap
    >>> proxy >= sigma.min().item() * gap
    True
    """

    def __init__(
        self,
        base_classifier: Model,
        num_classes: int,
        sigma: torch.Tensor | ArrayLike,
        certificate: Certificate,
        *,
        seed: int | None = None,
        **options: Unpack[SmoothOptions],
    ) -> None:
        super().__init__(base_classifier, num_classes, _noise_of(sigma, certificate), seed=seed, **options)
        self.certificate = certificate
        try:
            first = _FIRST.setdefault(base_classifier, self.sigma)
        except TypeError:  # of a callable that no weak reference can be made to
            return
        if first != self.sigma:
            warnings.warn(
                "sigma is another one than before for the same base_classifier: if it was chosen by the input, the "
                "certificate is about the classifier that keeps this sigma, and about none that chooses it by the input",
                UserWarning,
                stacklevel=2,
            )

    def certify(
        self, x: torch.Tensor, n0: int, n: int, alpha: float, batch_size: int, device: Any = None
    ) -> tuple[int, float]:
        """Return (class, gap) at x, or (ABSTAIN, 0.0); wrong with probability at most alpha.

        Parameters as in `cohen.Smooth.certify`; `device` is not used, as noise is made where x is.
        """
        label, radius = self._certified(x, n0, n, alpha, batch_size)
        unit = self.sigma if isinstance(self.sigma, float) else self.sigma.scale if isinstance(self.sigma, Uniform) else 1.0
        return label, max(0.0, math.nextafter(radius / unit, -math.inf))

    def predict(self, x: torch.Tensor, n: int, alpha: float, batch_size: int, device: Any = None) -> int:
        """Return the class at x, or ABSTAIN; wrong with probability at most alpha. Parameters as in `certify`."""
        return self._predicted(x, n, alpha, batch_size)


def _noise_of(sigma: torch.Tensor | ArrayLike, certificate: Certificate) -> float | Noise:
    """Return the noise of this sigma and norm; a standard deviation as a float."""
    norm = check_choice("certificate.norm", getattr(certificate, "norm", None), ("l1", "l2"))
    sigmas = np.asarray(sigma.detach().cpu() if isinstance(sigma, torch.Tensor) else sigma, dtype=np.float64)
    if sigmas.size == 1:
        return Uniform(sigmas.item()) if norm == "l1" else sigmas.item()
    if norm == "l1":
        raise ValueError(
            f"sigma must have one element with an L1Certificate, got shape {list(sigmas.shape)}; uniform noise with a "
            "lambda for each element is not implemented here"
        )
    if sigmas.ndim == 4 and len(sigmas) == 1:
        sigmas = sigmas[0]
    return AnisotropicGaussian(sigmas.ravel() if sigmas.ndim == 3 and sigmas.shape[1:] == (1, 1) else sigmas)
