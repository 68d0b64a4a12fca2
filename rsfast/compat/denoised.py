"""Diffusion denoised smoothing's class `Smooth`, whose model is called with a time: change the import line of its loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from typing_extensions import Unpack

from ..engine.forward import Forward, Model
from ..engine.options import SmoothOptions
from ..engine.sampling import Sampling, check_model
from ..noise import Noise
from . import cohen

TimedModel = Callable[[torch.Tensor, Any], torch.Tensor]
"""Anything that maps a batch [B, *shape] and a time to logits [B, K]."""

_UNUSED = ("scale", "shift", "clamp")  # of noisy inputs, which a model that draws the noise never is given


@dataclass(frozen=True, eq=False)
class _AtTime:
    """A model at a time; with `row` ``[1, *shape]`` it gets copies of that, in place of noisy inputs."""

    model: TimedModel
    t: Any
    row: torch.Tensor | None = None

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        return self.model(batch if self.row is None else batch.copy_(self.row), self.t)


def _check_random(
    forward: Forward, noisy: Callable[[torch.Tensor], torch.Tensor], sizes: Sequence[int], about: object
) -> None:
    """Raise ValueError if a model that is to draw noise returns the same logits for two copies of an input."""
    with forward.running():
        one, other = forward.eagerly(noisy(torch.arange(2)))
    if torch.equal(one, other):
        raise ValueError(
            "base_classifier must draw noise of its own for each row where it is called with t, got the same logits for two "
            "copies of x; pass what takes noisy images as noisy=, or t=None for a model that is called with a batch only"
        )


class _OwnNoise(Sampling):
    """The sampling of a model that draws its noise itself."""

    probe = staticmethod(_check_random)  # the usual one warns of a model that is random


class Smooth(cohen.Smooth):
    """The class of diffusion denoised smoothing: change the import line of an existing loop; it counts and bounds here.

    Parameters
    ----------
    base_classifier : callable
        From a batch of images ``[B, *shape]`` in [0, 1] and a time to logits [B, num_classes]. It adds
        the noise of that time itself, to ``2 x - 1``, and denoises.
    num_classes : int
    sigma : float
        Standard deviation of that noise in the units of x: half of what it is in those of ``2 x -
        1``.
    t : object
        The time, handed to the model as it is. None: the model takes a batch only, and noise is
        added here.
    noisy : callable, optional
        What the model does once the noise is there: from a batch of noisy images x + noise, in the
        units of x, and a time to logits. Then the noise comes from the noise stream, and
        base_classifier is not called.
    seed, **options
        As in `cohen.Smooth`. A model that draws its noise itself takes neither a seed nor scale,
        shift and clamp: its noise is that of torch's generator, so call `torch.manual_seed`.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong. In `certify` and `predict`, if two copies of x get the same logits.
        Also if the model has a `diffusion` with the original's schedule, and its noise at time t is
        less than sigma.

    Notes
    -----
    But for these two checks the model is trusted: its noise must be Gaussian, drawn for each row by
    itself, and of standard deviation at least sigma in the units of x. A batch on which memory runs
    out is drawn again.

    References
    ----------
    Carlini et al., "(Certified!!) Adversarial Robustness for Free!", 2023;
    github.com/ethz-spylab/diffusion_denoised_smoothing.

    Examples
    --------
    >>> def denoise(noisy, t):  # a model that would also denoise
    ...     return torch.stack([noisy.mean((1, 2, 3)), 0.5 - noisy.mean((1, 2, 3))], dim=1)
    >>> smooth = Smooth(denoise, 2, 0.25, t=20, noisy=denoise, seed=1)
    >>> prediction, radius = smooth.certify(torch.full((1, 2, 2), 0.5), n0=100, n=1000, alpha=0.001, batch_size=100)
    >>> prediction, 0 < radius <= 0.5
    (0, True)
    """

    def __init__(
        self,
        base_classifier: TimedModel | Model,
        num_classes: int,
        sigma: float | Noise,
        t: Any,
        *,
        noisy: TimedModel | None = None,
        seed: int | None = None,
        **options: Unpack[SmoothOptions],
    ) -> None:
        super().__init__(base_classifier, num_classes, sigma, seed=seed, **options)  # type: ignore[arg-type]
        self.t, self.noisy = t, noisy
        if noisy is not None:
            check_model("noisy", noisy)
        if self.draws_noise and seed is not None:
            raise ValueError(
                f"seed must be None where the model draws the noise, got {seed!r}; call torch.manual_seed, or pass what the "
                "model does with noisy images as noisy="
            )

    @property
    def draws_noise(self) -> bool:
        """Whether the model draws the noise itself."""
        return self.noisy is None and self.t is not None

    def _sampling(self, model: Any, row: torch.Tensor, noise: Noise, num_classes: int, **options: Any) -> Sampling:
        if not self.draws_noise:
            given: Model = model if self.noisy is None else _AtTime(self.noisy, self.t)
            return super()._sampling(given, row, noise, num_classes, **options)
        if isinstance(self.sigma, Noise):
            raise ValueError(f"sigma must be a number where the model draws the noise, got {self.sigma!r}")
        if unused := [name for name in _UNUSED if options.get(name) is not None]:
            raise ValueError(f"{unused[0]} must be None where the model draws the noise, got {options[unused[0]]!r}")
        _check_schedule(model, self.t, self.sigma)
        return _OwnNoise(_AtTime(model, self.t, row), row, noise, num_classes, **options)


def _check_schedule(model: Any, t: Any, sigma: float) -> None:
    """Raise ValueError if a model shows the schedule of its noise, as the original's do, and it is less than sigma at t."""
    diffusion = getattr(model, "diffusion", None)
    signal, added = (getattr(diffusion, name, None) for name in ("sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod"))
    if signal is None or added is None:
        return
    most = float(added[t] / signal[t])
    if not 2 * sigma <= most:
        raise ValueError(
            f"sigma must be at most {most / 2:.6g}, the model's noise at t = {t} in the units of x (half of that in the "
            f"units of 2 x - 1), got {sigma}; take the t whose noise is at least 2 sigma"
        )
