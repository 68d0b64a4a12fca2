"""rs4a's predictions, probability bounds and noises: change the import lines of `src.smooth` and `src.noises`."""

from __future__ import annotations

import math
import warnings
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.distributions import Categorical
from typing_extensions import Unpack

from .. import noise as noises
from .. import ops
from .._check import as_int, as_real, check_count
from ..api import sample
from ..engine.forward import Model
from ..engine.options import SampleOptions
from ..engine.sampling import warn_if_hopeless
from ..heads import Softmax
from ..noise.norms import conversions
from ..stats import proof, rules
from ..stats.bounds.clopper_pearson import clopper_pearson_lower
from ..stats.common import check_alpha
from ._shared import count_classes, rounded_down, seed_or_random

__all__ = ["Gaussian", "Laplace", "Noise", "Uniform", "certify_prob_lb", "smooth_predict_hard", "smooth_predict_soft"]

_NORMS = {1: "l1", 2: "l2", math.inf: "linf"}
"""Norms by the numbers of rs4a."""


class Noise:
    """A noise of rs4a: `Gaussian`, `Laplace` or `Uniform`.

    Parameters
    ----------
    dim : int
        Elements of an input.
    sigma, lambd : float
        Standard deviation of an element, or the parameter of the distribution; one of them, in the units of x.
    device : str
        Not used: noise is drawn where x is.
    seed : int, optional
        Of `sample`, in [0, 2^64); drawn from the operating system if left out.

    Attributes
    ----------
    noise : rsfast.noise.Noise
        What is drawn.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, or not one of sigma and lambd is given.

    Notes
    -----
    Of the noises of rs4a these are the ones that rsfast certifies. `certify_linf` of `Laplace` and `Uniform` is what follows
    from the l1 radius: divided by `dim`. That of `Uniform` is larger there, at most 1.39 times, and that of `Laplace` is an
    approximation there, and not proved: `legacy=True` returns it.

    References
    ----------
    Yang et al., "Randomized Smoothing of All Shapes and Sizes", 2020; github.com/tonyduan/rs4a.

    Examples
    --------
    >>> noise = Gaussian(dim=3072, sigma=0.5)
    >>> round(noise.certify(torch.tensor([0.99]), adv=2).item(), 4), noise.lambd
    (1.1632, 0.5)
    """

    kind: ClassVar[type[noises.Noise]]
    sigma_of_one: ClassVar[float]
    """The standard deviation where lambd is 1."""

    def __init__(
        self,
        dim: int,
        sigma: float | None = None,
        lambd: float | None = None,
        device: object = "cpu",
        *,
        seed: int | None = None,
    ) -> None:
        if (sigma is None) == (lambd is None):
            raise ValueError(f"sigma or lambd must be given, and not both, got {sigma!r} and {lambd!r}")
        if (dim := as_int("dim", dim)) < 1:
            raise ValueError(f"dim must be at least 1, got {dim}")
        self.dim, self.device, self._seed, self._drawn = dim, device, seed_or_random(seed), 0
        if sigma is None:
            self.lambd = as_real("lambd", lambd, above=0)
            self.sigma = self.lambd * self.sigma_of_one
        else:
            self.sigma = as_real("sigma", sigma, above=0)
            self.lambd = self.sigma / self.sigma_of_one
        self.noise = self.kind(self.lambd)  # type: ignore[call-arg]  # each of the three takes one number

    def __str__(self) -> str:
        return f"{type(self).__name__}(dim={self.dim}, lambd={self.lambd}, sigma={self.sigma})"

    def plotstr(self) -> str:
        """Return the name in plots."""
        return type(self).__name__

    def sample(self, x: torch.Tensor) -> torch.Tensor:
        """Return x ``[N, *shape]`` with noise, other noise in every call: for training."""
        drawn = ops.perturb(
            torch.zeros_like(x), self.noise, seed=self._seed, samples=torch.full((len(x),), self._drawn), stream="training"
        )
        self._drawn += 1
        return x + drawn

    def certify(self, prob_lb: torch.Tensor, adv: float, *, legacy: bool = False) -> torch.Tensor:
        """Return the radii in the norm l_adv, rounded down, from lower bounds on probabilities; negative below 1/2.

        Parameters
        ----------
        prob_lb : float tensor
            In [0, 1): what `certify_prob_lb` returns.
        adv : 1, 2 or inf
            The noise's own norm, or one in which a ball is known to lie within that of its own.
        legacy : bool
            For `Laplace` and adv = inf only: the number of rs4a, which is no certificate. It warns.

        Returns
        -------
        float32 tensor
            Of the shape and on the device of prob_lb.

        Raises
        ------
        TypeError, ValueError
            If prob_lb is not as above, or adv another number.
        """
        if not isinstance(prob_lb, torch.Tensor) or not prob_lb.is_floating_point():
            raise TypeError(f"prob_lb must be a tensor of floats, got {prob_lb!r:.60}")
        if adv not in _NORMS:
            raise ValueError(f"adv must be 1, 2 or inf, in which rsfast certifies {type(self).__name__} noise, got {adv!r}")
        p = np.atleast_1d(prob_lb.detach().cpu().double().numpy())
        if not bool(((p >= 0) & (p < 1)).all()):
            raise ValueError(f"prob_lb must hold numbers at least 0 and below 1, got {prob_lb!r:.80}")
        radii = self._legacy(p, adv) if legacy else self._radii(p, _NORMS[adv])
        return rounded_down(radii).reshape(prob_lb.shape).to(prob_lb.device)

    def _radii(self, p: NDArray[np.float64], norm: str) -> NDArray[np.float64]:
        radii = rules.radius(self.noise, p, 1 - p)
        if norm == self.noise.norm:
            return radii
        factor = conversions(self.noise.norm)[norm]
        return np.nextafter(radii * (factor((self.dim,)) if callable(factor) else factor), -np.inf)

    def _legacy(self, p: NDArray[np.float64], adv: float) -> NDArray[np.float64]:
        if not isinstance(self, Laplace) or adv != math.inf:
            raise ValueError(f"legacy must be False, but for Laplace noise and adv = inf, got {self} and adv = {adv!r}")
        warnings.warn(
            "the l-infinity radius of Laplace noise is rs4a's approximation for many dimensions, and no certificate",
            UserWarning,
            stacklevel=3,
        )
        return noises.Gaussian(self.lambd).potential(p) / math.sqrt(self.dim)

    def certify_l1(self, prob_lb: torch.Tensor) -> torch.Tensor:
        """Return the l1 radii; as `certify`."""
        return self.certify(prob_lb, 1)

    def certify_l2(self, prob_lb: torch.Tensor) -> torch.Tensor:
        """Return the l2 radii; as `certify`."""
        return self.certify(prob_lb, 2)

    def certify_linf(self, prob_lb: torch.Tensor) -> torch.Tensor:
        """Return the l-infinity radii; as `certify`."""
        return self.certify(prob_lb, math.inf)


class Gaussian(Noise):
    """Gaussian noise; lambd is sigma. Certifies l2."""

    kind, sigma_of_one = noises.Gaussian, 1.0


class Laplace(Noise):
    """Laplace noise of scale lambd. Certifies l1."""

    kind, sigma_of_one = noises.Laplace, math.sqrt(2)


class Uniform(Noise):
    """Uniform noise on [-lambd, lambd]. Certifies l1."""

    kind, sigma_of_one = noises.Uniform, 3**-0.5


_KINDS = {kind.__name__: kind for kind in (Gaussian, Laplace, Uniform)}


def _noise_of(noise: Any) -> noises.Noise:
    """Return rsfast's noise for one of this module, of rs4a's own classes, or of rsfast."""
    if isinstance(noise, noises.Noise):
        return noise
    kind = _KINDS.get(type(noise).__name__)
    if kind is None or not hasattr(noise, "lambd"):
        raise TypeError(f"noise must be one of {', '.join(_KINDS)}, or a noise of rsfast, got {noise!r}")
    return noise.noise if isinstance(noise, Noise) else kind(1, lambd=noise.lambd).noise


def _arguments(
    model: Model,
    x: torch.Tensor,
    noise: Any,
    sample_size: int,
    noise_batch_size: int,
    seed: int | None,
    options: SampleOptions,
) -> dict[str, Any]:
    """Return the arguments of `sample`, checked as far as it does not; the model runs on one row."""
    drawn, n, rows = (
        _noise_of(noise),
        check_count("sample_size", sample_size),
        check_count("noise_batch_size", noise_batch_size),
    )
    x = ops.check_inputs("x", x, noise=drawn)
    if (dim := getattr(noise, "dim", None)) not in (None, x[0].numel()):  # l-infinity radii depend on it
        raise ValueError(f"dim of noise must be {x[0].numel()}, the elements of an input, got {dim!r}")
    found = {"model": model, "inputs": x, "noise": drawn, "num_classes": count_classes(model, x), "n": n}
    return found | {"seed": seed_or_random(seed), "batch_size": len(x) * min(rows, n)} | options


def _categorical(weights: torch.Tensor) -> Categorical:
    if not bool((weights.sum(dim=1) > 0).all()):
        raise ValueError("model must return finite logits for a sample of every input, got none for one of them")
    return Categorical(probs=weights.float())


def smooth_predict_hard(
    model: Model,
    x: torch.Tensor,
    noise: Any,
    sample_size: int = 64,
    noise_batch_size: int = 512,
    *,
    seed: int | None = None,
    **options: Unpack[SampleOptions],
) -> Categorical:
    """Return the shares of the classes among the votes at each input.

    Parameters
    ----------
    model : callable
        From a batch ``[B, *shape]`` to logits [B, K].
    x : float32 tensor ``[I, *shape]``
    noise : Noise
        Of this module, of rs4a's own, or of rsfast.
    sample_size : int
        Samples of each input.
    noise_batch_size : int
        The most samples of each input in a batch.
    seed : int, optional
        In [0, 2^64); drawn from the operating system if left out. `certify_prob_lb` takes other noise, at the same seed too.
    **options
        As in `rsfast.sample`: input_ids, scale, shift, dtype and so on.

    Returns
    -------
    torch.distributions.Categorical
        ``probs`` [I, K], on the device of x.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, or no logits of an input are finite.

    Examples
    --------
    >>> model = lambda x: torch.stack([x[:, 0], -x[:, 0]], dim=1)
    >>> smooth_predict_hard(model, torch.full((1, 1), 0.5), Gaussian(1, sigma=0.25), seed=1).probs.argmax(dim=1)
    tensor([0])
    """
    tally = sample(**_arguments(model, x, noise, sample_size, noise_batch_size, seed, options), stream="selection")
    return _categorical(tally.to("cpu").counts[:, :-1].to(x.device))


def smooth_predict_soft(
    model: Model,
    x: torch.Tensor,
    noise: Any,
    sample_size: int = 64,
    noise_batch_size: int = 512,
    *,
    seed: int | None = None,
    **options: Unpack[SampleOptions],
) -> Categorical:
    """Return the mean of the softmax over the samples of each input; otherwise as `smooth_predict_hard`.

    Examples
    --------
    >>> model = lambda x: torch.stack([x[:, 0], -x[:, 0]], dim=1)
    >>> smooth_predict_soft(model, torch.full((1, 1), 0.5), Gaussian(1, sigma=0.25), seed=1).probs.shape
    torch.Size([1, 2])
    """
    arguments = _arguments(model, x, noise, sample_size, noise_batch_size, seed, options)
    tally = sample(**arguments, stream="selection", heads=(Softmax(1.0),))
    return _categorical(tally.to("cpu").sums[:, 0].double().to(x.device))


def certify_prob_lb(
    model: Model,
    x: torch.Tensor,
    top_cats: torch.Tensor,
    alpha: float,
    noise: Any,
    sample_size: int = 10**5,
    noise_batch_size: int = 512,
    *,
    seed: int | None = None,
    **options: Unpack[SampleOptions],
) -> torch.Tensor:
    """Return a lower bound on each input's probability of its class, rounded down; wrong with probability at most alpha.

    Parameters
    ----------
    top_cats : int64 tensor [I]
        A class of each input, chosen without these samples: ``smooth_predict_hard(...).probs.argmax(dim=1)``.
    alpha : float
        Failure probability, in (0, 1), of each bound. It is one-sided: rs4a's own bound fails with half of alpha.
    model, x, noise, sample_size, noise_batch_size, seed, **options
        As in `smooth_predict_hard`.

    Returns
    -------
    float32 tensor [I], on the CPU
        Of one input it has no axis, as there.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong.

    Examples
    --------
    >>> model = lambda x: torch.stack([x[:, 0], -x[:, 0]], dim=1)
    >>> x = torch.tensor([[0.5], [-0.5]])
    >>> bounds = certify_prob_lb(model, x, torch.tensor([0, 1]), 0.001, Gaussian(1, sigma=0.25), 1000, seed=1)
    >>> bounds > 0.9
    tensor([True, True])
    """
    alpha, n = check_alpha(alpha), check_count("sample_size", sample_size)
    warn_if_hopeless("certify_prob_lb", n, alpha, proof.smallest_certifiable_n(alpha))
    arguments = _arguments(model, x, noise, n, noise_batch_size, seed, options)
    if not isinstance(top_cats, torch.Tensor) or top_cats.dtype != torch.int64 or top_cats.shape != x.shape[:1]:
        found = f"{top_cats.dtype} {list(top_cats.shape)}" if isinstance(top_cats, torch.Tensor) else repr(top_cats)
        raise TypeError(f"top_cats must be an int64 tensor {list(x.shape[:1])}, a class of each input, got {found}")
    ops.check_range("top_cats", top_cats, arguments["num_classes"])
    tally = sample(**arguments, stream="estimation")
    votes = tally.to("cpu").counts.gather(1, top_cats.cpu()[:, None])[:, 0]
    return rounded_down(clopper_pearson_lower(votes.numpy(), n, alpha)).squeeze()
