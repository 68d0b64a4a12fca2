"""Noise with a spectrum: white noise of any backend, shaped by torch.fft, and then what `perturb` does to any noisy input.

A backend draws the white noise, as `Gaussian` of sigma 1, into a float32 buffer of the batch's size. Groups of rows are then
transformed in float64, so that what the FFT rounds does not show in float32, but for about one element in 10^8.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from . import reference
from .calls import Perturbation

_ELEMENTS = {"cpu": 1 << 16, "cuda": 1 << 22}  # of a group: what stays in a cache; what keeps a GPU busy


def perturb(job: Perturbation, draw: Callable[[Perturbation], None]) -> None:
    """Fill ``job.out``; `draw` is a backend's `perturb`.

    Rows are shaped in groups whose size depends on the shape of x and the device only, the last one filled up with zeros. So
    every transform is made by one plan of the FFT library, whatever the batch.
    """
    batch, shape = job.samples.shape[0], job.x.shape[1:]
    size = max(1, _ELEMENTS.get(job.x.device.type, 1 << 16) // shape.numel())
    white = torch.zeros((-(-batch // size) * size, *shape), device=job.x.device)
    noise, zeros = job.noise._replace(gain=None), torch.zeros_like(job.x)
    draw(job._replace(x=zeros, noise=noise, scale=None, shift=None, clamp=None, channels_last=False, out=white[:batch]))
    for first in range(0, batch, size):
        rows = job.rows[first : first + size]
        shaped = filtered(white[first : first + size].double(), job.noise.gain)[: len(rows)]
        reference.finish((job.x[rows].double() + shaped).float(), job, job.out[first : first + size])


def filtered(z: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    """Return float64 z [B, *shape], each frequency of the axes that gain [C or 1, *half] has times its gain."""
    axes = tuple(range(1 - gain.ndim, 0))
    spectrum = torch.fft.rfftn(z, dim=axes) * gain
    shaped: torch.Tensor = torch.fft.irfftn(spectrum, s=z.shape[1 - gain.ndim :], dim=axes)
    return shaped
