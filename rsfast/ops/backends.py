"""The two torch operators, which call a backend.

They are torch's view of the backends: they mutate what they fill and return nothing, so torch.compile, CUDA graphs and
fake tensors need to know no more. (They are defined through torch.library.Library: its custom_op decorator costs 50
microseconds a call, as much as a small kernel, where this costs 4.)
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from threading import Lock
from typing import Any, NamedTuple

import torch
from torch.autograd.graph import increment_version

from ..heads.bins import BINS
from ..noise import STREAMS
from .checks import TYPES, check_apart, memory_format, require
from .registry import find
from .tally import MAX_SAMPLES, check_range

_INDEX = (torch.int64,)
_FLOAT = (torch.float32,)
_SIGMAS = torch.finfo(torch.float32)


class Perturbation(NamedTuple):
    """A call of `perturb`, as backends receive it once it is checked. All tensors are contiguous, out in its layout."""

    x: torch.Tensor
    rows: torch.Tensor
    input_ids: torch.Tensor
    samples: torch.Tensor
    sigma: float
    seed: int
    stream: int
    scale: torch.Tensor | None  # float32 [channels], and then shift too
    shift: torch.Tensor | None
    clamp: Sequence[float] | None
    channels_last: bool
    out: torch.Tensor

    def check(self) -> None:
        """Raise TypeError or ValueError, naming the argument, unless a kernel can take the call, whatever the values."""
        x, device = self.x, self.x.device
        require("x", x, _FLOAT, x.shape, device)
        if x.ndim < 2 or not 0 < x.numel() <= x.shape[0] * (1 << 34):
            raise ValueError(f"x has shape {list(x.shape)}; it must be [I, *shape], with 1 to 2^34 elements an input")
        batch, channels = self.samples.numel(), x.shape[1]
        require("samples", self.samples, _INDEX, (batch,), device)
        require("rows", self.rows, _INDEX, (batch,), device)
        require("input_ids", self.input_ids, _INDEX, (x.shape[0],), device)
        if not _SIGMAS.tiny <= self.sigma <= _SIGMAS.max:
            raise ValueError(f"sigma is {self.sigma}; it must be positive, finite and a normal float32")
        if self.stream not in STREAMS.values():
            raise ValueError(f"stream is {self.stream}; it must be one of {', '.join(map(str, STREAMS.values()))}")
        if self.scale is not None and self.shift is not None:
            require("scale", self.scale, _FLOAT, (channels,), device)
            require("shift", self.shift, _FLOAT, (channels,), device)
        elif self.scale is not None or self.shift is not None:
            raise TypeError(f"scale is {self.scale} and shift is {self.shift}; both must be tensors or neither")
        if self.clamp is not None and not (len(self.clamp) == 2 and self.clamp[0] <= self.clamp[1]):
            raise ValueError(f"clamp is {tuple(self.clamp)}; it must be (low, high) with low <= high")
        layout = memory_format(self.channels_last, x.ndim - 1)
        require("out", self.out, TYPES, (batch, *x.shape[1:]), device, layout)
        if self.out.requires_grad:
            raise ValueError("out requires grad; it must be a tensor that autograd does not follow")


class Accumulation(NamedTuple):
    """A call of `accumulate`, as backends receive it once it is checked: logits of any strides, the others contiguous."""

    logits: torch.Tensor
    rows: torch.Tensor
    parameters: torch.Tensor  # float32 [M, 4]: kind, scale, low and high of each soft head
    n: torch.Tensor
    counts: torch.Tensor
    sums: torch.Tensor
    squares: torch.Tensor
    tracked_classes: torch.Tensor  # int64 [I, M, C], C often 0
    bin_counts: torch.Tensor
    bin_sums: torch.Tensor

    def check(self) -> None:
        """Raise TypeError or ValueError, naming the argument, unless a kernel can take the call, whatever the values."""
        logits, device = self.logits, self.n.device
        if logits.device != device:
            raise ValueError(f"logits must be on '{device}', as the tally is, got some on '{logits.device}'")
        inputs = self.n.numel()
        require("n", self.n, _INDEX, (inputs,), device)
        require("counts", self.counts, _INDEX, (inputs, *self.counts.shape[-1:]), device)
        classes = self.counts.shape[1] - 1
        if logits.layout != torch.strided:
            raise TypeError(f"logits must be a dense tensor, got {logits.layout}")
        if logits.ndim != 2 or logits.shape[1] != classes:
            raise ValueError(f"logits must have shape [B, {classes}], of the tally's num_classes, got {list(logits.shape)}")
        if not 2 <= classes <= 1 << 20:
            raise ValueError(f"logits must have from 2 to 2^20 classes, got shape {list(logits.shape)}")
        require("logits", logits, TYPES, logits.shape, device, layout=None)
        require("rows", self.rows, _INDEX, (logits.shape[0],), device)
        require("parameters", self.parameters, _FLOAT, (*self.parameters.shape[:1], 4), device)
        heads = self.parameters.shape[0]
        require("sums", self.sums, _INDEX, (inputs, heads, classes), device)
        require("squares", self.squares, _INDEX, (inputs, heads, classes), device)
        require("tracked_classes", self.tracked_classes, _INDEX, (inputs, heads, *self.tracked_classes.shape[-1:]), device)
        bins = (*self.tracked_classes.shape, BINS)
        require("bin_counts", self.bin_counts, _INDEX, bins, device)
        require("bin_sums", self.bin_sums, _INDEX, bins, device)


_library: Any = torch.library.Library("rsfast", "DEF")  # type: ignore[no-untyped-call]
_library.define(
    "perturb(Tensor x, Tensor rows, Tensor input_ids, Tensor samples, float sigma, SymInt seed, int stream, Tensor? scale, "
    "Tensor? shift, float[]? clamp, bool channels_last, str backend, Tensor(a!) out) -> ()"
)
_library.define(
    "accumulate(Tensor logits, Tensor rows, Tensor parameters, str backend, Tensor(a!) n, Tensor(b!) counts, "
    "Tensor(c!) sums, Tensor(d!) squares, Tensor tracked_classes, Tensor(e!) bin_counts, Tensor(f!) bin_sums) -> ()"
)


def _perturb(*arguments: Any) -> None:
    *told, backend, out = arguments
    told[5] %= 1 << 64  # the seed: an operator's int is signed
    job = Perturbation._make([*told, out])
    job.check()
    backend = find(backend, job.x.device)
    if backend.on_host:  # kernels on a GPU check for themselves: to look from here is to wait
        check_range("rows", job.rows, job.x.shape[0])
        check_range("input_ids", job.input_ids, 1 << 32)
        check_range("samples", job.samples, 1 << 56)
    if out.numel() == 0:
        return
    read = [("x", job.x), ("rows", job.rows), ("samples", job.samples), ("input_ids", job.input_ids)]
    if job.scale is not None and job.shift is not None:
        read += [("scale", job.scale), ("shift", job.shift)]
    check_apart([("out", out)], read)
    increment_version(out)
    backend.kernels.perturb(job)


_turns = [Lock() for _ in range(64)]
"""By the address of n: calls on one Tally take turns. Two Tallies that share a lock wait for each other now and then."""
os.register_at_fork(after_in_child=lambda: _turns.__setitem__(slice(None), [Lock() for _ in _turns]))


def _accumulate(*arguments: Any) -> None:
    logits, rows, parameters, backend, *tally = arguments
    job = Accumulation(logits, rows, parameters, *tally)
    job.check()
    backend = find(backend, logits.device)
    if not len(rows):
        return
    written = [("n", job.n), ("counts", job.counts), ("sums", job.sums), ("squares", job.squares)]
    written += [("bin_counts", job.bin_counts), ("bin_sums", job.bin_sums)]
    check_apart(
        written, [("logits", logits), ("rows", rows), ("parameters", parameters), ("tracked_classes", job.tracked_classes)]
    )
    if backend.on_host:
        check_range("rows", rows, job.n.shape[0])
        check_range("tracked_classes", job.tracked_classes, logits.shape[1])
    with _turns[job.n.data_ptr() // 64 % len(_turns)]:
        if backend.on_host and (most := int(job.n.max())) + len(rows) > MAX_SAMPLES:
            raise OverflowError(f"a Tally must hold at most 2^33 - 1 samples of an input, got {most} and {len(rows)} more")
        increment_version([tensor for _, tensor in written])
        backend.kernels.accumulate(job)


def _check_perturb(*arguments: Any) -> None:
    """Check a call on tensors without memory, which torch.compile makes, and refuse one on the device "meta"."""
    *told, backend, out = arguments
    job = Perturbation._make([*told, out])
    job.check()
    if job.x.device.type == "meta":
        find(backend, job.x.device)


def _check_accumulate(*arguments: Any) -> None:
    logits, rows, parameters, backend, *tally = arguments
    Accumulation(logits, rows, parameters, *tally).check()
    if logits.device.type == "meta":
        find(backend, logits.device)


for _name, _function, _check in (("perturb", _perturb, _check_perturb), ("accumulate", _accumulate, _check_accumulate)):
    _library.impl(_name, _function, "CompositeExplicitAutograd")
    torch.library.register_fake(f"rsfast::{_name}", _check, lib=_library)
