"""Randomized smoothing in two kernels: `perturb` makes a batch of noisy inputs, `accumulate` counts what a classifier says.

The noise of an element is a function of (seed, stream, input id, sample index, place of the element in its input) alone. So
batch size and order do not change a bit of it, nor does the backend: the package rsfast, which these kernels are from, makes
the same on CPUs, and makes certificates of the counts.
"""

from __future__ import annotations

import math
import os

import torch
from torch.autograd.graph import increment_version

from ._check import check_choice
from ._ops import add_op_namespace_prefix
from ._ops import ops as _operators
from .heads.bins import BINS
from .noise.base import DRAWS, Draw, NoiseParameters
from .noise.streams import STREAMS, check_seed, philox
from .ops.calls import Accumulation, Perturbation
from .ops.checks import check_apart, memory_format
from .ops.marks import check_marks
from .ops.triton_accumulate import accumulate as _launch_accumulate
from .ops.triton_perturb import perturb as _launch_perturb

__all__ = ["accumulate", "check_marks", "perturb", "philox"]

_DEVICES = ["cuda", "cpu"] if os.environ.get("TRITON_INTERPRET") == "1" else ["cuda"]  # "cuda" is AMD's GPUs, too


def _check_device(name: str, tensor: torch.Tensor) -> None:
    if tensor.device.type not in _DEVICES:
        raise ValueError(f"{name} must be on a GPU, got one on '{tensor.device}'; the package rsfast has kernels for CPUs")


class _Scale:
    """The scales that noise may have."""

    def check(self, name: str, value: float) -> None:
        if not math.ldexp(1.0, -126) <= value <= torch.finfo(torch.float32).max:
            raise ValueError(f"{name} must be positive, finite and a normal float32, got {value!r}")


DRAWS.update({name: Draw(name, {"noise_scale": _Scale()}) for name in ("gaussian", "laplace", "uniform")})


def perturb(
    x: torch.Tensor,
    samples: torch.Tensor,
    *,
    noise_scale: float | torch.Tensor,
    seed: int,
    draw: str = "gaussian",
    rows: torch.Tensor | None = None,
    input_ids: torch.Tensor | None = None,
    stream: str = "estimation",
    scale: torch.Tensor | None = None,
    shift: torch.Tensor | None = None,
    clamp: tuple[float, float] | None = None,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return ``clamp(x[rows] + noise_scale * z) * scale + shift`` with z the draw's noise, rounded once to `dtype`.

    Parameters
    ----------
    x : float32 tensor ``[I, *shape]``
        Contiguous, on a GPU, as are all other tensors.
    samples : int64 tensor [B]
        Sample index of each output row, in [0, 2^56).
    noise_scale : float, or float32 tensor [elements of an input]
        sigma of Gaussian noise, b of Laplace noise, half the width of uniform noise; positive.
    seed : int
        In [0, 2^64).
    draw : str
        "gaussian", "laplace" or "uniform".
    rows : int64 tensor [B], optional
        Which input each output row perturbs. May be left out where I is 1, or where I is B.
    input_ids : int64 tensor [I], optional
        Identity of each input in the noise stream, in [0, 2^32); 0 to I - 1 by default.
    stream : str
        "selection", "estimation", "training" or "user".
    scale, shift : float32 tensor [C], optional
        The model's normalisation by channel, the first axis of shape; both or neither.
    clamp : (low, high), optional
        Applied after the noise and before scale and shift.
    dtype : torch.dtype
        float32, float16, bfloat16 or float64, of a result that is new.
    channels_last : bool
        Lay the result out as torch.channels_last (inputs of 3 axes) or torch.channels_last_3d (4 axes).
    out : tensor ``[B, *shape]``, optional
        Written and returned instead of a new tensor.

    Returns
    -------
    tensor ``[B, *shape]``

    Raises
    ------
    TypeError, ValueError
        Naming the argument, what it was and what it must be. Values on the GPU are not looked at: a row whose sample, input
        or input id is out of range becomes NaN.
    """
    _check_device("x", x)
    count, batch = x.shape[0], samples.shape[0]
    if rows is None:
        if count not in (1, batch):
            raise ValueError(f"rows must name the input of each of {batch} samples, got None with {count} inputs")
        rows = torch.arange(batch, device=x.device) if count == batch else torch.zeros_like(samples)
    if input_ids is None:
        input_ids = torch.arange(count, device=x.device)
    if out is None:
        layout = memory_format(channels_last, x.ndim - 1)
        out = torch.empty((batch, *x.shape[1:]), dtype=dtype, device=x.device, memory_format=layout)
    seed = check_seed(seed)
    _operators.perturb(
        x.detach(),
        rows,
        input_ids,
        samples,
        draw,
        1.0 if isinstance(noise_scale, torch.Tensor) else noise_scale,
        noise_scale if isinstance(noise_scale, torch.Tensor) else None,
        seed - (1 << 64) if seed >= 1 << 63 else seed,  # an operator's int is signed
        STREAMS[check_choice("stream", stream, STREAMS)],
        scale,
        shift,
        clamp,
        channels_last,
        out,
    )
    return out


def accumulate(
    logits: torch.Tensor,
    n: torch.Tensor,
    counts: torch.Tensor,
    *,
    rows: torch.Tensor | None = None,
    heads: torch.Tensor | None = None,
    sums: torch.Tensor | None = None,
    squares: torch.Tensor | None = None,
) -> None:
    """Add a batch of logits: one vote a row, and the scores of every soft head, in one pass.

    Parameters
    ----------
    logits : tensor [B, K], float32, float16, bfloat16 or float64, any strides
        On a GPU, as are all other tensors.
    n : int64 tensor [I]
        Samples of each input. `check_marks` reads them, and raises the error if a row was out of range, or an input got more
        than 2^33 - 1 samples.
    counts : int64 tensor [I, K + 1]
        Votes for each class; last, rows that vote for none, as those with NaN.
    rows : int64 tensor [B], optional
        Which input each row belongs to. May be left out where I is 1.
    heads : float32 tensor [M, 4], optional
        Of each soft head: (0, 1 / T, 0, 0) of softmax at temperature T, (1, 1 / T, 0, 0) of sparsemax, and
        (2, 1 / (high - low), low, high) of logits clipped to [low, high].
    sums, squares : int64 tensors [I, M, K], with heads only
        Sums of scores, in units of 2^-30 and rounded down, and of their squares, rounded up.

    Raises
    ------
    TypeError, ValueError
        Naming the argument, what it was and what it must be.
    """
    _check_device("n", n)
    inputs, classes = n.shape[0], logits.shape[-1]
    given = [each is not None for each in (heads, sums, squares)]
    if any(given) and not all(given):
        raise TypeError("heads, sums and squares must all be tensors, or all None")
    if heads is None:
        heads = torch.empty((0, 4), device=n.device)
        sums = squares = n.new_empty((inputs, 0, classes))
    if rows is None:
        if inputs != 1:
            raise ValueError(f"rows must name the input of each row, of {inputs}, got None")
        rows = torch.zeros(logits.shape[0], dtype=torch.int64, device=n.device)
    _operators.accumulate(logits.detach().resolve_neg(), rows, heads, n, counts, sums, squares)


def _perturbation(x, rows, input_ids, samples, draw, noise_scale, noise_scales, seed, *rest) -> Perturbation:
    noise = NoiseParameters(draw, (noise_scale,), [] if noise_scales is None else [noise_scales])
    job = Perturbation(x, rows, input_ids, samples, noise, seed % (1 << 64), *rest)
    job.check()
    return job


def _perturb(*arguments) -> None:
    job = _perturbation(*arguments)
    if job.out.numel() == 0:
        return
    read = {"x": job.x, "rows": job.rows, "samples": job.samples, "input_ids": job.input_ids}
    read |= {"noise_scale": job.noise.each, "scale": job.scale, "shift": job.shift}
    check_apart([("out", job.out)], [(name, tensor) for name, tensor in read.items() if tensor is not None])
    increment_version(job.out)
    _launch_perturb(job)


def _accumulation(logits, rows, heads, n, counts, sums, squares) -> Accumulation:
    tracked = n.new_empty((n.shape[0], heads.shape[0], 0))  # a Tally's histograms: there are none here
    bins = tracked.new_empty((*tracked.shape, BINS))
    job = Accumulation(logits, rows, heads, n, counts, sums, squares, tracked, bins, bins)
    job.check()
    return job


def _accumulate(*arguments) -> None:
    job = _accumulation(*arguments)
    if not len(job.rows):
        return
    written = [("n", job.n), ("counts", job.counts), ("sums", job.sums), ("squares", job.squares)]
    check_apart(written, [("logits", job.logits), ("rows", job.rows), ("heads", job.parameters)])
    increment_version([tensor for _, tensor in written])
    _launch_accumulate(job)


def _register(name: str, schema: str, run, check) -> None:
    """Define an operator in this build's namespace: torch.compile sees one node, and needs no look into a kernel."""
    qualified = add_op_namespace_prefix(name)
    torch.library.define(qualified, schema)
    torch.library.impl(qualified, _DEVICES, run)

    @torch.library.register_fake(qualified)
    def _(*arguments) -> None:
        check(*arguments)


_register(
    "perturb",
    "(Tensor x, Tensor rows, Tensor input_ids, Tensor samples, str draw, float noise_scale, Tensor? noise_scales, "
    "SymInt seed, int stream, Tensor? scale, Tensor? shift, float[]? clamp, bool channels_last, Tensor(a!) out) -> ()",
    _perturb,
    _perturbation,
)
_register(
    "accumulate",
    "(Tensor logits, Tensor rows, Tensor heads, Tensor(a!) n, Tensor(b!) counts, Tensor(c!) sums, Tensor(d!) squares) -> ()",
    _accumulate,
    _accumulation,
)
