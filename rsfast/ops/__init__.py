"""The two fused operations: `perturb` makes a batch of noisy inputs, `accumulate` adds a batch of logits to a Tally.

Here arguments are checked as far as that needs no look at a tensor's values; then each is one call of a torch operator,
``torch.ops.rsfast.perturb`` or ``accumulate`` (backends.py), which picks a backend. So torch.compile sees one node, and a
GPU is never waited for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ..noise import STREAMS, Gaussian, check_seed
from ..tally import Tally, check_range, integers
from .backends import BACKENDS, backend_for

TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
"""Of the batches that `perturb` makes, and of the logits that `accumulate` takes."""

__all__ = ["BACKENDS", "accumulate", "backend_for", "check_range", "check_seed", "perturb"]


def check_stream(stream: object) -> str:
    """Return `stream` if it names a stream; raise ValueError if not."""
    if not isinstance(stream, str) or stream not in STREAMS:
        raise ValueError(f"stream is {stream!r}; it must be one of {', '.join(map(repr, STREAMS))}")
    return stream


def indices(name: str, values: object, length: int | None, limit: int, device: torch.device) -> torch.Tensor:
    """Return `values` (int64 tensor, range or sequence of ints) as a contiguous tensor; they must lie in [0, limit).

    A tensor's own values are left to `check_range` or the kernel.
    """
    shape = f"[{'B' if length is None else length}]"
    if isinstance(values, range):
        if len(values) and (min(values[0], values[-1]) < 0 or max(values[0], values[-1]) >= limit):
            raise ValueError(f"{name} is {values}; it must lie in [0, {limit})")
        tensor = torch.arange(values.start, values.stop, values.step, device=device)
    elif isinstance(values, torch.Tensor):
        if values.dtype != torch.int64:
            raise TypeError(f"{name} has dtype {values.dtype}; it must be int64")
        tensor = values
    else:
        tensor = integers(name, values, shape)
        if not torch.compiler.is_compiling():
            check_range(name, tensor, limit)
        tensor = tensor.to(device)
    if tensor.ndim != 1 or (length is not None and tensor.shape[0] != length):
        raise ValueError(f"{name} has shape {list(tensor.shape)}; it must be {shape}")
    if tensor.device != device:
        raise ValueError(f"{name} is on '{tensor.device}'; it must be on '{device}', with the other tensors")
    return tensor.contiguous()


def check_inputs(name: str, x: object, *, single: bool = False) -> torch.Tensor:
    """Return `x` contiguous if it is a float32 tensor [I, *shape], or if `single` [*shape], shape of rank 1 or more.

    Raise an error that names it if not.
    """
    form = "[*shape]" if single else "[I, *shape]"
    if not isinstance(x, torch.Tensor) or x.layout != torch.strided:
        what = f"a {type(x).__name__}" if not isinstance(x, torch.Tensor) else x.layout
        raise TypeError(f"{name} is {what}; it must be a dense float32 tensor {form}")
    if x.dtype != torch.float32:
        hint = "; convert integer images with x.float() / 255" if not x.dtype.is_floating_point else "; call x.float()"
        raise TypeError(f"{name} has dtype {x.dtype}; it must be float32{hint}")
    if x.ndim < (1 if single else 2) or x.numel() == 0:
        least = "one element" if single else "one input and one element"
        raise ValueError(f"{name} has shape {list(x.shape)}; it must be {form} with at least {least}")
    elements = x.numel() if single else x[0].numel()
    if elements > 1 << 34:
        raise ValueError(f"{name} has {elements} elements an input; it must have at most 2^34")
    return x.detach().resolve_neg().contiguous()


def affine(
    scale: object, shift: object, channels: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor] | tuple[None, None]:
    """Return scale and shift as float32 [channels], with 1 and 0 for what is absent, or (None, None) if both are."""
    if scale is None and shift is None:
        return None, None
    tensors = []
    for name, value, neutral in (("scale", scale, 1.0), ("shift", shift, 0.0)):
        try:
            tensor = torch.as_tensor(neutral if value is None else value, dtype=torch.float32)
            moved = tensor.to(device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"{name} is {value!r}; it must be a number or {channels} numbers, one a channel") from error
        if moved.ndim == 0:
            moved = moved.expand(channels)
        if moved.shape != (channels,):
            raise ValueError(f"{name} has shape {list(tensor.shape)}; it must be a number or [{channels}], one a channel")
        # A value that is not finite makes logits that are not, and no votes. It is told where that takes no waiting.
        if tensor.device.type == "cpu" and not torch.compiler.is_compiling() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name} is {value!r}; it must be finite")
        tensors.append(moved.detach().resolve_neg().contiguous())
    return tensors[0], tensors[1]


def check_clamp(clamp: object) -> tuple[float, float] | None:
    """Return `clamp` as two floats with low <= high, or None."""
    if clamp is None:
        return None
    try:
        low, high = (float(value) for value in clamp)  # type: ignore[attr-defined]
    except (TypeError, ValueError) as error:
        raise TypeError(f"clamp is {clamp!r}; it must be (low, high)") from error
    if not low <= high or math.isnan(low):
        raise ValueError(f"clamp is {clamp!r}; it must be (low, high) with low <= high")
    return low, high


def memory_format(channels_last: bool, rank: int) -> torch.memory_format:
    """Return the torch memory format of a batch of inputs of `rank` axes; raise ValueError where channels_last has none."""
    if not channels_last:
        return torch.contiguous_format
    if rank not in (3, 4):
        raise ValueError(f"channels_last is True, but an input has {rank} axes; it must have 3 (C, H, W) or 4 (C, D, H, W)")
    return torch.channels_last if rank == 3 else torch.channels_last_3d


def _check_out(
    out: object, shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format, x: torch.Tensor
) -> None:
    if not isinstance(out, torch.Tensor):
        raise TypeError(f"out is {out!r}; it must be a tensor")
    if tuple(out.shape) != shape or out.dtype != dtype or out.device != x.device:
        raise ValueError(
            f"out is {out.dtype} {list(out.shape)} on '{out.device}'; it must be {dtype} {list(shape)} on '{x.device}'"
        )
    if not out.is_contiguous(memory_format=layout) or out.is_neg():
        raise ValueError(f"out has strides {out.stride()}; it must be contiguous in {layout}, and no lazy negation")


def perturb(
    x: torch.Tensor,
    noise: Gaussian,
    *,
    seed: int,
    samples: torch.Tensor | range | Sequence[int],
    rows: torch.Tensor | Sequence[int] | None = None,
    input_ids: torch.Tensor | Sequence[int] | None = None,
    stream: str = "estimation",
    scale: torch.Tensor | Sequence[float] | float | None = None,
    shift: torch.Tensor | Sequence[float] | float | None = None,
    clamp: tuple[float, float] | None = None,
    dtype: torch.dtype | None = None,
    channels_last: bool = False,
    out: torch.Tensor | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """Return a batch of noisy inputs: ``clamp(x[rows] + sigma * z) * scale + shift``, rounded once to `dtype`.

    The noise of an element is a function of (seed, stream, input id, sample index, place of the element in its input) alone:
    batch size, order, layout, threads, instruction set and backend do not change a bit of it.

    Parameters
    ----------
    x : float32 tensor [I, *shape]
        The inputs. The first axis of shape is the channel. Never modified.
    noise : Gaussian
        Its sigma is in the units of x, before `scale`.
    seed : int
        In [0, 2^64).
    samples : int64 tensor [B], range or sequence of ints
        Sample index of each output row, in [0, 2^56).
    rows : int64 tensor [B], optional
        Which input each output row perturbs. May be left out where I is 1, or where I is B.
    input_ids : int64 tensor [I], optional
        Identity of each input in the noise stream, in [0, 2^32); 0 to I - 1 by default.
    stream : str
        "selection", "estimation", "training" or "user".
    scale, shift : float or float32 tensor [C], optional
        The model's normalisation: ``scale = 1 / std``, ``shift = -mean / std``. Applied as one fma.
    clamp : (low, high), optional
        Applied after the noise and before scale and shift.
    dtype : torch.dtype
        float32 (default), float16, bfloat16 or float64.
    channels_last : bool
        Lay the result out as torch.channels_last (inputs of 3 axes) or torch.channels_last_3d (4 axes).
    out : tensor [B, *shape], optional
        Written and returned instead of a new tensor.
    backend : str
        "auto", "cuda", "triton", "cpu" or "reference".

    Returns
    -------
    tensor [B, *shape]

    Raises
    ------
    TypeError, ValueError
        Naming the argument, what it was and what it must be. Indices on a GPU are checked by the kernel, which stops the
        program with a device-side assertion.

    Notes
    -----
    Nothing waits for a GPU, and calls whose arguments are all on it may be captured in a CUDA graph.

    Numerics: Philox4x32-10 and Box-Muller in float32 as one fixed sequence of exactly rounded operations (csrc/noise.h);
    then fma(sigma, z, x), clamp, fma(scale, shift), all in float32; then one rounding to nearest even to float16 or
    bfloat16. float64 holds exactly the float32 values, for models whose weights are float64.

    Examples
    --------
    >>> x = torch.zeros(1, 2)
    >>> perturb(x, Gaussian(1.0), seed=0, samples=range(3)).shape
    torch.Size([3, 2])
    """
    x = check_inputs("x", x)
    if not isinstance(noise, Gaussian):
        raise TypeError(f"noise is {noise!r}; it must be a Gaussian")
    device, count, shape = x.device, x.shape[0], tuple(x.shape[1:])
    if not torch.compiler.is_compiling():  # then the operator chooses
        backend = backend_for(backend, device)
    samples = indices("samples", samples, None, 1 << 56, device)
    batch = samples.shape[0]
    if rows is None:
        if count not in (1, batch):
            raise ValueError(f"rows is None, with {count} inputs and {batch} samples; it must name the input of each sample")
        rows = torch.arange(batch, device=device) if count == batch else torch.zeros(batch, dtype=torch.int64, device=device)
    scale, shift = affine(scale, shift, shape[0], device)
    layout = memory_format(channels_last, len(shape))
    dtype = dtype if dtype is not None else getattr(out, "dtype", torch.float32)
    if dtype not in TYPES:
        raise TypeError(f"dtype is {dtype!r}; it must be one of {', '.join(map(str, TYPES))}")
    if out is None:
        out = torch.empty((batch, *shape), dtype=dtype, device=device, memory_format=layout)
    else:
        _check_out(out, (batch, *shape), dtype, layout, x)
    seed = check_seed(seed)
    torch.ops.rsfast.perturb(
        x,
        indices("rows", rows, batch, count, device),
        indices("input_ids", range(count) if input_ids is None else input_ids, count, 1 << 32, device),
        samples,
        noise.sigma,
        seed - (1 << 64) if seed >= 1 << 63 else seed,
        STREAMS[check_stream(stream)],
        scale,
        shift,
        check_clamp(clamp),
        channels_last,
        backend,
        out,
    )
    return out


def accumulate(
    logits: torch.Tensor,
    tally: Tally,
    *,
    rows: torch.Tensor | Sequence[int] | None = None,
    backend: str = "auto",
) -> None:
    """Add a batch of logits to `tally`: one vote a row, and the scores of every soft head, in one pass.

    Where the tally tracks classes, their scores go into its histograms, too.

    Parameters
    ----------
    logits : tensor [B, K], float32, float16, bfloat16 or float64, any strides
        K is tally.num_classes. Never modified.
    tally : Tally
        Updated in place. On the device of the logits.
    rows : int64 tensor [B], optional
        Which input of the tally each row belongs to. May be left out where the tally has one input.
    backend : str
        "auto", "cuda", "triton", "cpu" or "reference".

    Raises
    ------
    TypeError, ValueError
        Naming the argument, what it was and what it must be.
    OverflowError
        If an input could pass 2^33 - 1 samples, where its sums could overflow.

    Notes
    -----
    On a GPU as `perturb`: rows out of range, and a tally that is full, stop the program with a device-side assertion.

    Numerics: logits become float32 first, which makes infinities of float64 values beyond it. A row votes if it holds no NaN
    and its maximum is finite: a logit of -inf masks its class, which gets no vote and a score of 0. Any other row counts in
    n and in the last of counts, votes for no class and adds no score (in histograms one of 0). Ties go to the lowest class.
    Scores are integers in units of 2^-30, rounded down; squares are rounded up. Within a row sums are of integers in units
    of 2^-40, so every backend gives the same Tally.

    Examples
    --------
    >>> from rsfast import Tally
    >>> tally = Tally(1, 3)
    >>> accumulate(torch.tensor([[0.0, 2.0, 1.0], [5.0, 2.0, 1.0]]), tally)
    >>> tally.counts.tolist()
    [[1, 1, 0, 0]]
    """
    if not isinstance(tally, Tally):
        raise TypeError(f"tally is {tally!r}; it must be a Tally")
    if not isinstance(logits, torch.Tensor) or logits.layout != torch.strided:
        what = f"a {type(logits).__name__}" if not isinstance(logits, torch.Tensor) else logits.layout
        raise TypeError(f"logits is {what}; it must be a dense tensor [B, {tally.num_classes}]")
    if logits.ndim != 2 or logits.shape[1] != tally.num_classes:
        raise ValueError(
            f"logits has shape {list(logits.shape)}; it must be [B, {tally.num_classes}], the tally's num_classes"
        )
    if logits.dtype not in TYPES:
        raise TypeError(f"logits has dtype {logits.dtype}; it must be one of {', '.join(map(str, TYPES))}")
    if logits.device != tally.n.device:
        raise ValueError(f"logits is on '{logits.device}', the tally on '{tally.n.device}'; they must share a device")
    batch = logits.shape[0]
    if rows is None:
        if tally.num_inputs != 1:
            raise ValueError(
                f"rows is None, but the tally has {tally.num_inputs} inputs; it must name the input of each row"
            )
        rows = torch.zeros(batch, dtype=torch.int64, device=logits.device)
    if not torch.compiler.is_compiling():
        backend = backend_for(backend, logits.device)
    rows = indices("rows", rows, batch, tally.num_inputs, logits.device)
    torch.ops.rsfast.accumulate(
        logits.detach().resolve_neg(),
        rows,
        tally.parameters,
        backend,
        tally.n,
        tally.counts,
        tally.sums,
        tally.squares,
        tally.tracked,
        tally.bin_counts,
        tally.bin_sums,
    )
