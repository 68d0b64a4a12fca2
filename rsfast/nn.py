"""Modules for training classifiers that are then smoothed."""

from __future__ import annotations

import secrets
from typing import Any

import torch
from torch import nn

from . import ops
from .noise import Gaussian


class _Perturb(torch.autograd.Function):
    """`ops.perturb` of a batch, with the gradient of ``x + noise``: that of x."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, samples: torch.Tensor, source: torch.Tensor, sigma: float, seed: int) -> Any:
        channels_last = x.ndim in (4, 5) and not x.is_contiguous() and x.is_contiguous(memory_format=_LAST[x.ndim])
        return ops.perturb(
            x.float(),
            Gaussian(sigma),
            seed=seed,
            samples=samples,
            input_ids=source,
            stream="training",
            dtype=x.dtype,
            channels_last=channels_last,
        )

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        return gradient, None, None, None, None


_TYPES = (torch.float32, torch.float16, torch.bfloat16)  # float64 would lose digits on its way through float32
_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


class GaussianNoise(nn.Module):
    """Add Gaussian noise in training mode, each row of each batch its own; do nothing in eval mode.

    Put it before a classifier that is trained to be smoothed. Noise is that of `ops.perturb`, from the stream "training":
    nothing that is drawn here is ever drawn in a certification, whatever the seeds.

    Parameters
    ----------
    sigma : float
        Standard deviation, in the units of the input.
    seed : int, optional
        In [0, 2^64); drawn from the operating system if left out.

    Attributes
    ----------
    count : int64 tensor, a buffer
        Rows that have got their noise. It is in the state_dict, so training that resumes goes on with the same bits.

    Raises
    ------
    TypeError, ValueError
        If sigma or seed is out of range; in forward, if x is not float32, float16 or bfloat16 of rank 2 or more.

    Notes
    -----
    The gradient is that of x, and torch.compile makes one graph of it. The noise of each rank under torch.distributed and of
    each replica under DataParallel is its own. None of this has run on a GPU yet: replicas were tried on the CPU.

    References
    ----------
    Cohen, Rosenfeld and Kolter, "Certified Adversarial Robustness via Randomized Smoothing", 2019, section 4.

    Examples
    --------
    >>> noise = GaussianNoise(0.25, seed=1)
    >>> x = torch.zeros(2, 3)
    >>> noise(x).std() > 0, noise.eval()(x).std() > 0
    (tensor(True), tensor(False))
    """

    count: torch.Tensor

    def __init__(self, sigma: float, *, seed: int | None = None) -> None:
        super().__init__()
        self.sigma = Gaussian(sigma).sigma
        self.seed = ops.check_seed(secrets.randbits(64) if seed is None else seed)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def extra_repr(self) -> str:
        return f"sigma={self.sigma}, seed={self.seed}"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x [B, *shape] plus noise, of the same type and memory format; x itself in eval mode."""
        if not self.training:
            return x
        if x.dtype not in _TYPES:
            raise TypeError(f"x has dtype {x.dtype}; it must be one of {', '.join(map(str, _TYPES))}")
        samples = self.count + torch.arange(x.shape[0], device=x.device)
        source = torch.full_like(samples, _source(x.device))
        noisy: torch.Tensor = _Perturb.apply(x, samples, source, self.sigma, self.seed)  # type: ignore[no-untyped-call]
        self.count += x.shape[0]
        return noisy


def _source(device: torch.device) -> int:
    """Return a number of this rank and device, for the place of the input id in the noise stream."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return (torch.distributed.get_rank() if distributed else 0) << 8 | (device.index or 0)
