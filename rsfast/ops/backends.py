"""The backends, and the two torch operators that call them.

A backend is a module of this package with a function ``perturb`` and a function ``accumulate``; all give the same bits.
The operators are torch's view of them: they mutate what they fill and return nothing, so torch.compile, CUDA graphs and
fake tensors need to know no more. (They are defined through torch.library.Library: its custom_op decorator costs 50
microseconds a call, as much as a small kernel, where this costs 4.)
"""

from __future__ import annotations

import os
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple

import torch

from ..tally import MAX_SAMPLES, check_range

BACKENDS = ("reference", "cpu", "cuda", "triton")


class Perturbation(NamedTuple):
    """A checked call of `perturb`, as backends receive it. x and the index tensors are contiguous."""

    x: torch.Tensor
    rows: torch.Tensor
    input_ids: torch.Tensor
    samples: torch.Tensor
    sigma: float
    seed: int
    stream: int
    scale: torch.Tensor | None  # float32 [channels], and then shift too
    shift: torch.Tensor | None
    clamp: tuple[float, float] | None
    channels_last: bool
    out: torch.Tensor


class Accumulation(NamedTuple):
    """A checked call of `accumulate`, as backends receive it: logits [B, K] of any strides, the others contiguous."""

    logits: torch.Tensor
    rows: torch.Tensor
    parameters: torch.Tensor  # float32 [M, 4]: kind, scale, low and high of each soft head
    n: torch.Tensor
    counts: torch.Tensor
    sums: torch.Tensor
    squares: torch.Tensor
    tracked: torch.Tensor  # int64 [I, M, C], C often 0
    bin_counts: torch.Tensor
    bin_sums: torch.Tensor


_usable: set[tuple[str, torch.device]] = set()  # failures are not kept: they may pass


def why_not(name: str, device: torch.device) -> str:
    """Return why backend `name` cannot run on `device`, or ""."""
    if device.type == "cuda" and device.index is None and torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())
    if (name, device) in _usable:
        return ""
    reason = _find_out(name, device)
    if not reason:
        _usable.add((name, device))
    return reason


def _find_out(name: str, device: torch.device) -> str:
    if name == "reference":
        return ""
    if name == "cpu":
        return "" if device.type == "cpu" else f"the tensors are on '{device}'; they must be on the CPU"
    interpreted = name == "triton" and os.environ.get("TRITON_INTERPRET") == "1"  # on the CPU, to test kernels
    if device.type != ("cpu" if interpreted else "cuda"):  # ROCm calls itself cuda, too
        return f"the tensors are on '{device}'; they must be on a GPU"
    try:
        module = _module(name)
    except ImportError as error:
        return str(error)
    return str(module.why_not(device)) if name == "cuda" else ""


def backend_for(name: str, device: torch.device) -> str:
    """Return the backend that `name` means for tensors on `device`; "auto" takes the fastest that can run there.

    Raises
    ------
    ValueError
        If `name` is unknown, or that backend cannot work on `device`.
    """
    if name not in (*BACKENDS, "auto"):
        raise ValueError(f"backend is {name!r}; it must be 'auto' or one of {', '.join(map(repr, BACKENDS))}")
    if name != "auto":
        if reason := why_not(name, device):
            raise ValueError(f"backend is {name!r}, but {reason}")
        return name
    reasons = {name: why_not(name, device) for name in (("cpu",) if device.type == "cpu" else ("cuda", "triton"))}
    for name, reason in reasons.items():
        if not reason:
            return name
    raise ValueError(
        f"backend is 'auto', and no kernel can run on '{device}' ("
        + "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        + "); move the tensors to the CPU, or name backend='reference', which is plain PyTorch and slow"
    )


@cache
def _module(name: str) -> ModuleType:
    return import_module(f".{'triton_kernels' if name == 'triton' else name}", __package__)


_library: Any = torch.library.Library("rsfast", "DEF")  # type: ignore[no-untyped-call]
_library.define(
    "perturb(Tensor x, Tensor rows, Tensor input_ids, Tensor samples, float sigma, SymInt seed, int stream, Tensor? scale, "
    "Tensor? shift, float[]? clamp, bool channels_last, str backend, Tensor(a!) out) -> ()"
)
_library.define(
    "accumulate(Tensor logits, Tensor rows, Tensor parameters, str backend, Tensor(a!) n, Tensor(b!) counts, "
    "Tensor(c!) sums, Tensor(d!) squares, Tensor tracked, Tensor(e!) bin_counts, Tensor(f!) bin_sums) -> ()"
)


def _perturb(
    x: torch.Tensor,
    rows: torch.Tensor,
    input_ids: torch.Tensor,
    samples: torch.Tensor,
    sigma: float,
    seed: int,
    stream: int,
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
    clamp: list[float] | None,
    channels_last: bool,
    backend: str,
    out: torch.Tensor,
) -> None:
    backend = backend_for(backend, x.device)
    if backend in ("cpu", "reference"):  # kernels on a GPU check for themselves: to look from here is to wait
        check_range("rows", rows, x.shape[0])
        check_range("input_ids", input_ids, 1 << 32)
        check_range("samples", samples, 1 << 56)
    if out.numel() == 0:
        return
    if out.untyped_storage().data_ptr() == x.untyped_storage().data_ptr():
        raise ValueError("out shares its memory with x; it must be another tensor")
    _module(backend).perturb(
        Perturbation(
            x=x,
            rows=rows,
            input_ids=input_ids,
            samples=samples,
            sigma=sigma,
            seed=seed % (1 << 64),  # an operator's int is signed
            stream=stream,
            scale=scale,
            shift=shift,
            clamp=None if clamp is None else (clamp[0], clamp[1]),
            channels_last=channels_last,
            out=out,
        )
    )


def _accumulate(
    logits: torch.Tensor,
    rows: torch.Tensor,
    parameters: torch.Tensor,
    backend: str,
    n: torch.Tensor,
    counts: torch.Tensor,
    sums: torch.Tensor,
    squares: torch.Tensor,
    tracked: torch.Tensor,
    bin_counts: torch.Tensor,
    bin_sums: torch.Tensor,
) -> None:
    backend = backend_for(backend, logits.device)
    if backend in ("cpu", "reference"):
        check_range("rows", rows, n.shape[0])
        if (most := int(n.max())) + len(rows) > MAX_SAMPLES:
            raise OverflowError(f"an input has {most} samples and {len(rows)} more are added; a Tally holds 2^33 - 1")
    if logits.numel():
        _module(backend).accumulate(
            Accumulation(logits, rows, parameters, n, counts, sums, squares, tracked, bin_counts, bin_sums)
        )


for _name, _function in (("perturb", _perturb), ("accumulate", _accumulate)):
    _library.impl(_name, _function, "CompositeExplicitAutograd")
    torch.library.register_fake(f"rsfast::{_name}", lambda *_: None, lib=_library)
