"""The two calls that backends take, arguments as tensors, what a kernel requires of these, whatever their values, and calls
that are made again and again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from .._check import check_choice
from ..heads.bins import BINS
from ..noise import DRAWS, STREAMS, NoiseParameters
from .checks import TYPES, memory_format, require

Perturber = Callable[[torch.Tensor, torch.Tensor, str], None]
"""``run(out, places, stream)``, as `perturbation.perturber` returns it."""

Accumulator = Callable[[torch.Tensor, torch.Tensor], None]
"""``add(logits, places)``, as `accumulation.accumulator` returns it."""

_INDEX = (torch.int64,)
_FLOAT = (torch.float32,)


class Perturbation(NamedTuple):
    """A call of `perturb`, as backends receive it once it is checked. All tensors are contiguous, out in its layout."""

    x: torch.Tensor
    rows: torch.Tensor
    input_ids: torch.Tensor
    samples: torch.Tensor
    noise: NoiseParameters
    seed: int
    stream: int
    scale: torch.Tensor | None  # float32 [channels], and then shift too
    shift: torch.Tensor | None
    clamp: Sequence[float] | None
    channels_last: bool
    out: torch.Tensor

    def at(self, out: torch.Tensor, places: torch.Tensor, stream: str) -> Perturbation:
        """Return the call for a batch, as a `Perturber` is given it."""
        return self._replace(rows=places[0], samples=places[2], stream=STREAMS[stream], out=out)

    def check(self) -> None:
        """Raise TypeError or ValueError, naming the argument, unless a kernel can take the call, whatever the values."""
        x, device = self.x, self.x.device
        require("x", x, _FLOAT, x.shape, device)
        if x.ndim < 2 or not 0 < x.numel() <= x.shape[0] * (1 << 34):
            raise ValueError(f"x must have shape [I, *shape] with 1 to 2^34 elements an input, got {list(x.shape)}")
        batch, channels = self.samples.numel(), x.shape[1]
        require("samples", self.samples, _INDEX, (batch,), device)
        require("rows", self.rows, _INDEX, (batch,), device)
        require("input_ids", self.input_ids, _INDEX, (x.shape[0],), device)
        self.noise.check()
        draw = DRAWS[self.noise.draw]
        if self.noise.each is not None:
            require("noise_tensors[0]", self.noise.each, (getattr(torch, draw.each),), (x.shape[1:].numel(),), device)
        for (name, dtype), table in zip(draw.tables.items(), self.noise.tables, strict=True):
            require(name, table, (getattr(torch, dtype),), table.shape, device)
        check_choice("stream", self.stream, STREAMS.values())
        if self.scale is not None and self.shift is not None:
            require("scale", self.scale, _FLOAT, (channels,), device)
            require("shift", self.shift, _FLOAT, (channels,), device)
        elif self.scale is not None or self.shift is not None:
            raise TypeError(f"scale and shift must both be tensors or both None, got {self.scale} and {self.shift}")
        if self.clamp is not None and not (len(self.clamp) == 2 and self.clamp[0] <= self.clamp[1]):
            raise ValueError(f"clamp must be (low, high) with low <= high, got {tuple(self.clamp)}")
        layout = memory_format(self.channels_last, x.ndim - 1)
        require("out", self.out, TYPES, (batch, *x.shape[1:]), device, layout)
        if self.out.requires_grad:
            raise ValueError(
                "out must be a tensor that autograd does not follow, got one that requires grad; pass out.detach()"
            )


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

    def at(self, logits: torch.Tensor, places: torch.Tensor) -> Accumulation:
        """Return the call for a batch, as an `Accumulator` is given it."""
        return self._replace(logits=logits, rows=places[1])

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
