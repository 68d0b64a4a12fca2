"""csrc/jobs.h in Python: what the native backends are told of a call, as a struct whose address they are given."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch

from .._versions import __version__
from ..noise import DRAWS
from .calls import Accumulation, Perturbation

_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float64: 3}


def _fields(*groups: tuple[str, Any]) -> list[tuple[str, Any]]:
    """Return a struct's fields from groups of neighbours of one type, their names apart by spaces."""
    return [(name, ctype) for names, ctype in groups for name in names.split()]


class NoiseParameters(ctypes.Structure):
    """See csrc/jobs.h."""

    _fields_ = _fields(
        ("draw", ctypes.c_int), ("scalars", ctypes.c_float * 5), ("each", ctypes.c_void_p), ("tables", ctypes.c_void_p * 2)
    )


class PerturbJob(ctypes.Structure):
    """See csrc/jobs.h."""

    _fields_ = _fields(
        ("x rows input_ids samples", ctypes.c_void_p),
        ("inputs batch elements channels", ctypes.c_int64),
        ("noise", NoiseParameters),
        ("seed", ctypes.c_uint64),
        ("stream", ctypes.c_int),
        ("scale shift", ctypes.c_void_p),
        ("clamp", ctypes.c_bool),
        ("clamp_low clamp_high", ctypes.c_float),
        ("out", ctypes.c_void_p),
        ("type", ctypes.c_int),
        ("channels_last", ctypes.c_bool),
    )


class AccumulateJob(ctypes.Structure):
    """See csrc/jobs.h."""

    _fields_ = _fields(
        ("logits", ctypes.c_void_p),
        ("type", ctypes.c_int),
        ("row_stride class_stride batch classes heads inputs tracked_classes", ctypes.c_int64),
        ("slots parameters n counts sums squares tracked bin_counts bin_sums", ctypes.c_void_p),
    )


def check_extension(module: ModuleType) -> dict[str, int]:
    """Return the numbers of an extension's draws by name; raise ImportError if it was built from another version."""
    version = module.version() if hasattr(module, "version") else "a version before 0.2.0"
    if version != __version__ or module.sizes() != (ctypes.sizeof(PerturbJob), ctypes.sizeof(AccumulateJob)):
        raise ImportError(
            f"{module.__file__} was built from another version of rsfast, {version}, and this is {__version__}: remove the "
            "file, and reinstall rsfast with pip."
        )
    numbers = {name: number for number, name in enumerate(module.draws())}
    if missing := DRAWS.keys() - numbers.keys():
        raise ImportError(f"{module.__name__} lacks the draws {', '.join(sorted(missing))}: reinstall rsfast with pip.")
    return numbers


def perturb_job(
    job: Perturbation, scale: torch.Tensor | None, shift: torch.Tensor | None, draws: Mapping[str, int]
) -> PerturbJob:
    """Return the struct. It holds addresses: the tensors must outlive it. `draws` are the extension's numbers."""
    noise = job.noise
    low, high = job.clamp or (0.0, 0.0)
    struct = PerturbJob(
        inputs=job.x.shape[0],
        elements=job.x.shape[1:].numel(),
        channels=job.x.shape[1],
        noise=NoiseParameters(
            draws[noise.draw],
            tuple(noise.scalars),
            None if noise.each is None else noise.each.data_ptr(),
            tuple([table.data_ptr() for table in noise.tables]),
        ),
        seed=job.seed,
        scale=None if scale is None else scale.data_ptr(),
        shift=None if shift is None else shift.data_ptr(),
        clamp=job.clamp is not None,
        clamp_low=low,
        clamp_high=high,
        type=_TYPES[job.out.dtype],
        channels_last=job.channels_last,
        x=job.x.data_ptr(),
        input_ids=job.input_ids.data_ptr(),
    )
    set_rows(struct, job.out, job.rows.data_ptr(), job.samples.data_ptr(), job.stream)
    return struct


def set_rows(struct: PerturbJob, out: torch.Tensor, rows: int, samples: int, stream: int) -> None:
    """Put what changes from batch to batch into the struct: rows and samples are addresses."""
    struct.out, struct.batch, struct.stream = out.data_ptr(), out.shape[0], stream
    struct.rows, struct.samples = rows, samples


def accumulate_job(job: Accumulation) -> AccumulateJob:
    """Return the struct. It holds addresses: the tensors must outlive it."""
    same = ("parameters", "n", "counts", "sums", "squares", "bin_counts", "bin_sums")
    struct = AccumulateJob(
        classes=job.logits.shape[1],
        heads=job.parameters.shape[0],
        inputs=job.n.shape[0],
        tracked_classes=job.tracked_classes.shape[2],
        tracked=job.tracked_classes.data_ptr(),
        **{name: getattr(job, name).data_ptr() for name in same},
    )
    set_logits(struct, job.logits, job.rows.data_ptr())
    return struct


def set_logits(struct: AccumulateJob, logits: torch.Tensor, rows: int) -> None:
    """Put what changes from batch to batch into the struct: rows is an address."""
    struct.logits, struct.type, struct.batch = logits.data_ptr(), _TYPES[logits.dtype], logits.shape[0]
    struct.row_stride, struct.class_stride = logits.stride()
    struct.slots = rows
