"""The torch operator of `accumulate`, which calls a backend; that of `perturb` is in perturbation.py.

Operators are torch's view of the backends: they mutate what they fill and return nothing, so torch.compile, CUDA graphs and
fake tensors need to know no more. (They are defined through torch.library.Library: its custom_op decorator costs 50
microseconds a call, as much as a small kernel, where this costs 4.)
"""

from __future__ import annotations

import os
from threading import Lock
from typing import Any, NamedTuple

import torch
from torch.autograd.graph import increment_version

from ..heads.bins import BINS
from .checks import TYPES, check_apart, require
from .registry import find
from .tally import MAX_SAMPLES, check_range

_INDEX = (torch.int64,)
_FLOAT = (torch.float32,)


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
    "accumulate(Tensor logits, Tensor rows, Tensor parameters, str backend, Tensor(a!) n, Tensor(b!) counts, "
    "Tensor(c!) sums, Tensor(d!) squares, Tensor tracked_classes, Tensor(e!) bin_counts, Tensor(f!) bin_sums) -> ()"
)


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


def _check_accumulate(*arguments: Any) -> None:
    logits, rows, parameters, backend, *tally = arguments
    Accumulation(logits, rows, parameters, *tally).check()
    if logits.device.type == "meta":
        find(backend, logits.device)


_library.impl("accumulate", _accumulate, "CompositeExplicitAutograd")
torch.library.register_fake("rsfast::accumulate", _check_accumulate, lib=_library)
