"""csrc/jobs.h in Python: what the native backends are told of a call, as a struct whose address they are given."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from types import ModuleType

import torch

from ..noise import DRAWS
from .accumulation import Accumulation
from .perturbation import Perturbation

_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float64: 3}


class NoiseParameters(ctypes.Structure):
    """See csrc/jobs.h."""

    _fields_ = (("draw", ctypes.c_int), ("scalars", ctypes.c_float * 4), ("tensors", ctypes.c_void_p * 2))


class PerturbJob(ctypes.Structure):
    """See csrc/jobs.h."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("rows", ctypes.c_void_p),
        ("input_ids", ctypes.c_void_p),
        ("samples", ctypes.c_void_p),
        ("inputs", ctypes.c_int64),
        ("batch", ctypes.c_int64),
        ("elements", ctypes.c_int64),
        ("channels", ctypes.c_int64),
        ("noise", NoiseParameters),
        ("seed", ctypes.c_uint64),
        ("stream", ctypes.c_int),
        ("scale", ctypes.c_void_p),
        ("shift", ctypes.c_void_p),
        ("clamp", ctypes.c_bool),
        ("clamp_low", ctypes.c_float),
        ("clamp_high", ctypes.c_float),
        ("out", ctypes.c_void_p),
        ("type", ctypes.c_int),
        ("channels_last", ctypes.c_bool),
    )


class AccumulateJob(ctypes.Structure):
    """See csrc/jobs.h."""

    _fields_ = (
        ("logits", ctypes.c_void_p),
        ("type", ctypes.c_int),
        ("row_stride", ctypes.c_int64),
        ("class_stride", ctypes.c_int64),
        ("batch", ctypes.c_int64),
        ("classes", ctypes.c_int64),
        ("heads", ctypes.c_int64),
        ("inputs", ctypes.c_int64),
        ("tracked_classes", ctypes.c_int64),
        ("slots", ctypes.c_void_p),
        ("parameters", ctypes.c_void_p),
        ("n", ctypes.c_void_p),
        ("counts", ctypes.c_void_p),
        ("sums", ctypes.c_void_p),
        ("squares", ctypes.c_void_p),
        ("tracked", ctypes.c_void_p),
        ("bin_counts", ctypes.c_void_p),
        ("bin_sums", ctypes.c_void_p),
    )


SIZES = (ctypes.sizeof(PerturbJob), ctypes.sizeof(AccumulateJob))
"""To be compared with those of an extension, in case it was built from another version."""


def number_draws(module: ModuleType) -> dict[str, int]:
    """Return the numbers of an extension's draws by name; raise ImportError unless it has every draw of rsfast.noise."""
    numbers = {name: number for number, name in enumerate(module.draws())}
    if missing := DRAWS.keys() - numbers.keys():
        raise ImportError(f"{module.__name__} lacks the draws {', '.join(sorted(missing))}: reinstall rsfast with pip.")
    return numbers


def perturb_job(
    job: Perturbation, scale: torch.Tensor | None, shift: torch.Tensor | None, draws: Mapping[str, int]
) -> PerturbJob:
    """Return the struct. It holds addresses: the tensors must outlive it. `draws` are the extension's numbers."""
    draw, scalars, tensors = job.noise
    low, high = job.clamp or (0.0, 0.0)
    return PerturbJob(
        x=job.x.data_ptr(),
        rows=job.rows.data_ptr(),
        input_ids=job.input_ids.data_ptr(),
        samples=job.samples.data_ptr(),
        inputs=job.x.shape[0],
        batch=job.samples.shape[0],
        elements=job.x.shape[1:].numel(),
        channels=job.x.shape[1],
        noise=NoiseParameters(draws[draw], tuple(scalars), tuple(t.data_ptr() for t in tensors)),
        seed=job.seed,
        stream=job.stream,
        scale=None if scale is None else scale.data_ptr(),
        shift=None if shift is None else shift.data_ptr(),
        clamp=job.clamp is not None,
        clamp_low=low,
        clamp_high=high,
        out=job.out.data_ptr(),
        type=_TYPES[job.out.dtype],
        channels_last=job.channels_last,
    )


def accumulate_job(job: Accumulation) -> AccumulateJob:
    """Return the struct. It holds addresses: the tensors must outlive it."""
    return AccumulateJob(
        logits=job.logits.data_ptr(),
        type=_TYPES[job.logits.dtype],
        row_stride=job.logits.stride(0),
        class_stride=job.logits.stride(1),
        batch=job.logits.shape[0],
        classes=job.logits.shape[1],
        heads=job.parameters.shape[0],
        inputs=job.n.shape[0],
        tracked_classes=job.tracked_classes.shape[2],
        slots=job.rows.data_ptr(),
        parameters=job.parameters.data_ptr(),
        n=job.n.data_ptr(),
        counts=job.counts.data_ptr(),
        sums=job.sums.data_ptr(),
        squares=job.squares.data_ptr(),
        tracked=job.tracked_classes.data_ptr(),
        bin_counts=job.bin_counts.data_ptr(),
        bin_sums=job.bin_sums.data_ptr(),
    )
