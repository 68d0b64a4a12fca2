"""The native CPU backend: hands addresses to `_cpu`, on as many threads as torch uses, and if possible on the same."""

from __future__ import annotations

import ctypes
import os

import torch

from ..noise import STREAMS
from . import openmp
from .calls import Accumulation, Accumulator, Perturbation, Perturber
from .jobs import PerturbJob, accumulate_job, check_extension, perturb_job, set_logits, set_rows

try:
    from . import _cpu
except ImportError as error:
    raise ImportError(
        f"rsfast's CPU kernels do not load: {error}. If they are not built, reinstall rsfast with pip. If Python runs in a "
        "checkout's folder, it has found the sources: go to another folder, or `pip install --editable .` there."
    ) from error


def use_torch_openmp() -> str:
    """Make kernels run on the OpenMP threads that torch keeps, if it has loaded such a runtime, and return its file's name.

    After a model's last layer those threads spin for milliseconds in wait of more work. Threads of our own would have to
    share their cores, and perturb would take twice its time. Nothing is linked and nothing is loaded: without such a
    runtime, kernels start threads of their own, and the name is "".
    """
    if (found := openmp.runtime()) is None:
        return ""
    name, library = found
    _cpu.use_team(ctypes.cast(library.GOMP_parallel, ctypes.c_void_p).value or 0)
    return name


TEAM = use_torch_openmp()
os.register_at_fork(after_in_child=lambda: _cpu.use_team(0))  # OpenMP's threads do not survive a fork
_DRAWS = check_extension(_cpu)


def perturb(job: Perturbation) -> None:
    """Fill ``job.out``."""
    struct, _held = _struct(job)
    _cpu.perturb(ctypes.addressof(struct), torch.get_num_threads())


def accumulate(job: Accumulation) -> None:
    """Add every row of the logits to its input's slot."""
    struct = accumulate_job(job)
    _cpu.accumulate(ctypes.addressof(struct), torch.get_num_threads())


def perturber(job: Perturbation) -> Perturber:
    """Return `perturb` of this call with other rows. Its struct is made once: between calls of a model Python is slow."""
    struct, held = _struct(job)
    address, number = ctypes.addressof(struct), STREAMS.__getitem__

    def run(out: torch.Tensor, places: torch.Tensor, stream: str, _held: object = (job, held)) -> None:
        first = places.data_ptr()
        set_rows(struct, out, first, first + 16 * places.stride(0), number(stream))
        _cpu.perturb(address, torch.get_num_threads())

    return run


def accumulator(job: Accumulation) -> Accumulator:
    """Return `accumulate` of this call with other logits and rows."""
    struct = accumulate_job(job)
    address = ctypes.addressof(struct)

    def add(logits: torch.Tensor, places: torch.Tensor, _held: object = job) -> None:
        set_logits(struct, logits, places.data_ptr() + 8 * places.stride(0))
        _cpu.accumulate(address, torch.get_num_threads())

    return add


def noise_of_words(draw: str, words: torch.Tensor, out: torch.Tensor) -> None:
    """Fill `out` with what a draw makes of words: `ops.words.noise_of_words`."""
    _cpu.noise_of_words(_DRAWS[draw], words.data_ptr(), words.numel(), out.data_ptr())


def _struct(job: Perturbation) -> tuple[PerturbJob, object]:
    """Return the struct, and what it holds addresses of besides the job's tensors."""
    scale, shift = job.scale, job.shift
    if scale is not None and shift is not None:  # one value an element: a kernel then loads them as it loads x
        channels, elements = job.x.shape[1], job.x.shape[1:].numel()
        scale, shift = (t[:, None].expand(channels, elements // channels).contiguous() for t in (scale, shift))
    return perturb_job(job, scale, shift, _DRAWS), (scale, shift)
