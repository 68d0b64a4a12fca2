"""The native CUDA backend: hands addresses to rsfast.ops._cuda, on the tensors' device and torch's current stream there."""

from __future__ import annotations

import ctypes

import torch

from .calls import Accumulation, Perturbation
from .jobs import accumulate_job, check_extension, perturb_job

try:
    from . import _cuda
except ImportError as error:
    raise ImportError(
        f"rsfast's CUDA kernels do not load: {error}. They are built where nvcc is found; RSFAST_CUDA=1 insists on it."
    ) from error
_DRAWS = check_extension(_cuda)


def unavailable_reason(device: torch.device) -> str:
    """Return why these kernels cannot run on `device`, or ""."""
    if torch.version.hip is not None:
        return "this is a build of torch for ROCm"
    return _cuda.unavailable_reason(_place(device)[0])


def _place(device: torch.device) -> tuple[int, int]:
    index = device.index if device.index is not None else torch.cuda.current_device()
    return index, torch.cuda.current_stream(index).cuda_stream


def perturb(job: Perturbation) -> None:
    """Queue the work that fills ``job.out``."""
    struct = perturb_job(job, job.scale, job.shift, _DRAWS)
    _cuda.perturb(ctypes.addressof(struct), *_place(job.out.device))


def accumulate(job: Accumulation) -> None:
    """Queue the work that adds every row of the logits to its input's slot."""
    struct = accumulate_job(job)
    _cuda.accumulate(ctypes.addressof(struct), *_place(job.n.device))


def noise_of_words(draw: str, words: torch.Tensor, out: torch.Tensor) -> None:
    """Queue the work that fills `out` with what a draw makes of words: `ops.words.noise_of_words`."""
    _cuda.noise_of_words(_DRAWS[draw], words.data_ptr(), words.numel(), out.data_ptr(), *_place(words.device))
