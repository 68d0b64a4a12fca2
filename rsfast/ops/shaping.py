"""Noise that plain PyTorch makes of a backend's white noise, by an FFT or a matrix; then what `perturb` does to any noise.

A backend draws the white noise, as `Gaussian`, into a float32 buffer. Groups of rows are then shaped in float64. What is
rounded there does not show in float32, but for about one element in 10^8. Libraries treat each matrix of a group alone, but
several transforms at once. So groups that an FFT shapes have one size, which depends on the noise, the shape of x and the
device only: the last is filled up. A row then has the same bits whatever the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch.nn.functional import pad

from .._check import check_choice
from ..noise.correlated import half_shape
from . import reference
from .arguments import check_range
from .calls import Perturbation
from .checks import require

Tensor = torch.Tensor

_ELEMENTS = {"cpu": 1 << 16, "cuda": 1 << 22}  # of a group: what stays in a cache; what keeps a GPU busy


class Shaper(NamedTuple):
    """A way to shape noise, all of whose functions take the call.

    Parameters
    ----------
    check : callable
        Raises TypeError or ValueError unless its scalars and tensors fit the call, whatever their values.
    white : callable
        Returns the shape of the white noise of a sample; without elements where none is drawn.
    shape : callable
        ``shape(job, rows, samples, white)`` returns the noisy inputs float64 [B, *shape] of rows [B] and samples [B], for
        their white noise float64 [B, *white].
    alike : bool
        Whether all groups must have one size.
    """

    check: Callable[[Perturbation], None]
    white: Callable[[Perturbation], Sequence[int]]
    shape: Callable[[Perturbation, Tensor, Tensor, Tensor], Tensor]
    alike: bool = False


def check(job: Perturbation) -> None:
    """Raise TypeError or ValueError, naming the argument, unless the call's shaper can take it."""
    if job.noise.shaper:
        SHAPERS[check_choice("shaper", job.noise.shaper, SHAPERS)].check(job)


def perturb(job: Perturbation, draw: Callable[[Perturbation], None]) -> None:
    """Fill ``job.out``; `draw` is a backend's `perturb`."""
    shaper, device, batch = SHAPERS[job.noise.shaper], job.x.device, job.samples.shape[0]
    zeros = torch.zeros((job.x.shape[0], *shaper.white(job)), dtype=torch.float32, device=device)
    size = max(1, _ELEMENTS.get(device.type, 1 << 16) // max(zeros[0].numel(), job.x[0].numel()))
    size = size if shaper.alike else min(size, batch)
    white = torch.zeros((size, *zeros.shape[1:]), dtype=torch.float32, device=device)
    plain = job._replace(x=zeros, scale=None, shift=None, clamp=None, channels_last=False, out=white)
    for first in range(0, batch, size):
        rows, samples = (each[first : first + size] for each in (job.rows, job.samples))
        count = len(rows)
        if shaper.alike:
            rows, samples = pad(rows, (0, size - count)), pad(samples, (0, size - count))
        out = white[: len(rows)]
        if out.numel():
            draw(plain._replace(rows=rows, samples=samples, out=out))
        y = shaper.shape(job, rows, samples, out.double())[:count]
        reference.finish(y.float(), job, job.out[first : first + size])


def _inputs(job: Perturbation, rows: Tensor) -> Tensor:
    """Return the inputs of rows, float64 [B, *shape]; of a row out of range, for which a GPU draws NaN, any.

    To index with such a row would end the process's use of the GPU.
    """
    return job.x[rows.clamp(0, len(job.x) - 1)].double()


# A spectrum: a gain of each frequency of each channel


def _check_spectrum(job: Perturbation) -> None:
    (gain,), shape = job.noise.shaper_tensors, job.x.shape[1:]
    alike = len(shape) == 1 or gain.shape[:1] == (1,)  # an input of one axis is one channel
    wanted = (1 if alike else shape[0], *half_shape(shape))
    require("shaper_tensors[0]", gain, (torch.float64,), wanted, job.x.device)


def filtered(z: Tensor, gain: Tensor) -> Tensor:
    """Return float64 z [B, *shape], each frequency of the axes that gain [C or 1, *half] has times its gain."""
    axes = tuple(range(1 - gain.ndim, 0))
    spectrum = torch.fft.rfftn(z, dim=axes) * gain
    shaped: Tensor = torch.fft.irfftn(spectrum, s=z.shape[1 - gain.ndim :], dim=axes)
    return shaped


def _by_spectrum(job: Perturbation, rows: Tensor, samples: Tensor, white: Tensor) -> Tensor:
    return _inputs(job, rows) + filtered(white, job.noise.shaper_tensors[0])


# Subspaces, of inputs that are flattened in logical order


def _check_projections(job: Perturbation) -> None:
    (given,), elements = job.noise.shaper_tensors, job.x.shape[1:].numel()
    require("shaper_tensors[0]", given, (torch.float64,), (*given.shape[:2], elements), job.x.device)


def _flat(job: Perturbation, rows: Tensor) -> Tensor:
    """Return the inputs of rows as columns, float64 [B, elements, 1]."""
    return _inputs(job, rows).flatten(1)[:, :, None]


def _by_sampled_projection(job: Perturbation, rows: Tensor, samples: Tensor, white: Tensor) -> Tensor:
    """Return what the projection of the sample's number [k, elements] leaves of the input."""
    (given,) = job.noise.shaper_tensors
    if samples.device.type == "cpu":
        check_range("samples", samples, len(given))
    u = given[samples.clamp(0, len(given) - 1)]
    y: Tensor = (u.mT @ (u @ _flat(job, rows))).view(-1, *job.x.shape[1:])
    known = (samples >= 0) & (samples < len(given)) & (rows >= 0) & (rows < len(job.x))
    return y.masked_fill_(~known.view(-1, *[1] * (y.ndim - 1)), torch.nan)  # no noise that is NaN is drawn here


def _by_projection(job: Perturbation, rows: Tensor, samples: Tensor, white: Tensor) -> Tensor:
    """Return what the projection [1, k, elements] leaves of the input, noise added in the subspace."""
    w = job.noise.shaper_tensors[0].expand(len(rows), -1, -1)
    y: Tensor = (w.mT @ (w @ _flat(job, rows) + white[:, :, None])).view(-1, *job.x.shape[1:])
    return y


def _by_haar(job: Perturbation, rows: Tensor, samples: Tensor, white: Tensor) -> Tensor:
    """Return what a subspace leaves of the input, noise added in it: the span of the first k rows of white [k + 1, ...].

    The QR decomposition whose R has a positive diagonal is unique, so that its Q has the Haar distribution.
    """
    k = int(job.noise.shaper_scalars[0])
    elements = job.x.shape[1:].numel()
    q, r = torch.linalg.qr(white[:, : k * elements].view(-1, k, elements).mT)
    q = q * torch.where(r.diagonal(dim1=1, dim2=2) < 0, -1.0, 1.0)[:, None, :]
    y: Tensor = (q @ (q.mT @ _flat(job, rows) + white[:, k * elements :, None])).view(-1, *job.x.shape[1:])
    return y


def _check_haar(job: Perturbation) -> None:
    k, elements = job.noise.shaper_scalars[0], job.x.shape[1:].numel()
    if not (k == int(k) and 1 <= k < elements):
        raise ValueError(f"shaper_scalars must hold the dimension of subspaces, from 1 to {elements - 1}, got {k}")


def _haar_white(job: Perturbation) -> Sequence[int]:
    return (int(job.noise.shaper_scalars[0]) * (job.x.shape[1:].numel() + 1),)


SHAPERS = {
    "spectrum": Shaper(_check_spectrum, lambda job: job.x.shape[1:], _by_spectrum, alike=True),
    "sampled projection": Shaper(_check_projections, lambda job: (0,), _by_sampled_projection),
    "projection": Shaper(_check_projections, lambda job: job.noise.shaper_tensors[0].shape[1:2], _by_projection),
    "haar": Shaper(_check_haar, _haar_white, _by_haar),
}
"""Ways to shape noise, by the names that `NoiseParameters.shaper` has."""
