"""The two fused operations: `perturb` makes a batch of noisy inputs, `accumulate` adds a batch of logits to a Tally.

Here arguments become tensors; then each is one call of a torch operator, ``torch.ops.rsfast.perturb`` or ``accumulate``
(backends.py), which checks them as far as that needs no look at a tensor's values, and picks a backend. So torch.compile
sees one node, a call of the operator itself is checked as well, and a GPU is never waited for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from .._hints import conversion
from ..noise import STREAMS, Gaussian, check_seed
from . import backends  # noqa: F401  (which defines the operators)
from .checks import TYPES, as_dtype, check_apart, memory_format, require
from .registry import BACKENDS, backend_for, check_backend
from .tally import Tally, check_range, integers

__all__ = [
    "BACKENDS",
    "TYPES",
    "accumulate",
    "as_dtype",
    "backend_for",
    "check_range",
    "check_seed",
    "memory_format",
    "perturb",
]


def check_stream(stream: object) -> str:
    """Return `stream` if it names a stream; raise ValueError if not."""
    if not isinstance(stream, str) or stream not in STREAMS:
        raise ValueError(f"stream is {stream!r}; it must be one of {', '.join(map(repr, STREAMS))}")
    return stream


def indices(name: str, values: object, length: int | None, limit: int, device: torch.device) -> torch.Tensor:
    """Return `values` (int64 tensor, range or sequence of ints) as a contiguous tensor; they must lie in [0, limit).

    A tensor's own values are left to `check_range` or the kernel.
    """
    tensor = _as_indices(name, values, limit, device, f"[{'B' if length is None else length}]")
    require(name, tensor, (torch.int64,), (tensor.numel() if length is None else length,), device)
    return tensor


def _as_indices(name: str, values: object, limit: int, device: torch.device, shape: str = "[B]") -> torch.Tensor:
    if isinstance(values, range):
        if len(values) and (min(values[0], values[-1]) < 0 or max(values[0], values[-1]) >= limit):
            raise ValueError(f"{name} is {values}; it must lie in [0, {limit})")
        tensor = torch.arange(values.start, values.stop, values.step, device=device)
    elif isinstance(values, torch.Tensor):
        tensor = values
    else:
        tensor = integers(name, values, shape)
        if not torch.compiler.is_compiling():
            check_range(name, tensor, limit)
        tensor = tensor.to(device)
    return tensor.contiguous()


def check_inputs(name: str, x: object, *, single: bool = False, given: str | None = None, form: str = "{}") -> torch.Tensor:
    """Return `x` contiguous if it is a float32 tensor [I, *shape], or if `single` [*shape], shape of rank 1 or more.

    Raise an error that names it if not, and says what to write instead: `given` is how the user writes `x`, by default
    `name`, and `form` how what is made of it is passed.
    """
    given = name if given is None else given
    wanted = "[*shape]" if single else "[I, *shape]"
    if not isinstance(x, torch.Tensor) or x.layout != torch.strided:
        what = f"a {type(x).__name__}" if not isinstance(x, torch.Tensor) else x.layout
        step = conversion(given, x)
        hint = "" if step is None else f"; pass {form.replace('{}', step)}"
        raise TypeError(f"{name} is {what}; it must be a dense float32 tensor {wanted}{hint}")
    if x.dtype != torch.float32:
        plain = x.is_floating_point() or x.dtype == torch.bool
        hint = "; call x.float()" if plain else "" if x.is_complex() else "; convert integer images with x.float() / 255"
        raise TypeError(f"{name} has dtype {x.dtype}; it must be float32{hint}")
    if x.ndim < (1 if single else 2) or x.numel() == 0:
        least = "one element" if single else "one input and one element"
        hint = f"; one input needs its batch axis: {given}[None]" if not single and x.ndim == 1 and x.numel() else ""
        raise ValueError(f"{name} has shape {list(x.shape)}; it must be {wanted} with at least {least}{hint}")
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
    if not low <= high:
        raise ValueError(f"clamp is {clamp!r}; it must be (low, high) with low <= high")
    return low, high


def _check_copied(out: torch.Tensor, given: Mapping[str, object], used: Sequence[torch.Tensor | None]) -> None:
    """Raise ValueError where `out` shares memory with an argument of which the operator gets a copy."""
    for (name, value), tensor in zip(given.items(), used, strict=True):
        if isinstance(value, np.ndarray):
            value = torch.from_numpy(value)
        if not isinstance(value, torch.Tensor) or value.device != out.device:
            continue
        if tensor is None or value.data_ptr() != tensor.data_ptr():
            check_apart([("out", out)], [(name, value)])


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
    dtype: torch.dtype | str | None = None,
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
        The inputs. The first axis of shape is the channel. Never modified, and taken as detached: no gradient reaches it
        (`nn.GaussianNoise` passes one on).
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
    dtype : torch.dtype or str
        float32 (default), float16, bfloat16 or float64, or its name.
    channels_last : bool
        Lay the result out as torch.channels_last (inputs of 3 axes) or torch.channels_last_3d (4 axes).
    out : tensor [B, *shape], optional
        Written and returned instead of a new tensor. It must share no memory with another argument, nor require grad.
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
    Nothing waits for a GPU, and calls whose arguments are all on it may be captured in a CUDA graph. So values of x are not
    looked at: that they are finite, and within `Gaussian.largest_input`, is checked by `certify`, `predict` and `sample`.

    Numerics: Philox4x32-10 and Box-Muller in float32 as one fixed sequence of exactly rounded operations (csrc/noise.h);
    then fma(sigma, z, x), clamp, fma(scale, shift), all in float32; then one rounding to nearest even to float16 or
    bfloat16. float64 holds exactly the float32 values, for models whose weights are float64.

    Examples
    --------
    >>> x = torch.zeros(1, 2)
    >>> perturb(x, Gaussian(1.0), seed=0, samples=range(3)).shape
    torch.Size([3, 2])
    """
    original, x = x, check_inputs("x", x)
    if not isinstance(noise, Gaussian):
        raise TypeError(f"noise is {noise!r}; it must be a Gaussian")
    device, count, shape = x.device, x.shape[0], tuple(x.shape[1:])
    given: Mapping[str, object] = {
        "x": original,
        "samples": samples,
        "rows": rows,
        "input_ids": input_ids,
        "scale": scale,
        "shift": shift,
    }
    given = given if out is not None else {}
    samples = indices("samples", samples, None, 1 << 56, device)
    batch = samples.shape[0]
    if rows is None:
        if count not in (1, batch):
            raise ValueError(f"rows is None, with {count} inputs and {batch} samples; it must name the input of each sample")
        rows = torch.arange(batch, device=device) if count == batch else torch.zeros(batch, dtype=torch.int64, device=device)
    scale, shift = affine(scale, shift, shape[0], device)
    layout = memory_format(channels_last, len(shape))
    dtype = as_dtype("dtype", dtype if dtype is not None else getattr(out, "dtype", torch.float32))
    if out is None:
        out = torch.empty((batch, *shape), dtype=dtype, device=device, memory_format=layout)
    elif not isinstance(out, torch.Tensor):
        raise TypeError(f"out is {out!r}; it must be a tensor")
    elif out.dtype != dtype:
        raise ValueError(f"out has dtype {out.dtype}; it must be {dtype}, as dtype is")
    elif out.is_neg():
        raise ValueError("out is a lazy negation; it must be a tensor of its own: call out.resolve_neg()")
    rows = _as_indices("rows", rows, count, device)
    input_ids = _as_indices("input_ids", range(count) if input_ids is None else input_ids, 1 << 32, device)
    if given and not torch.compiler.is_compiling():
        _check_copied(out, given, (x, samples, rows, input_ids, scale, shift))
    seed = check_seed(seed)
    torch.ops.rsfast.perturb(
        x,
        rows,
        input_ids,
        samples,
        noise.sigma,
        seed - (1 << 64) if seed >= 1 << 63 else seed,
        STREAMS[check_stream(stream)],
        scale,
        shift,
        check_clamp(clamp),
        channels_last,
        check_backend(backend),
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
    Threads may add to one tally: their calls, also of the operator itself, take turns. Reading it meanwhile is not safe.

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
        raise TypeError(f"tally must be a Tally, got {tally!r}")
    if not isinstance(logits, torch.Tensor) or logits.layout != torch.strided:
        what = f"a {type(logits).__name__}" if not isinstance(logits, torch.Tensor) else logits.layout
        raise TypeError(f"logits must be a dense tensor [B, {tally.num_classes}], got {what}")
    if rows is None:
        if tally.num_inputs != 1:
            raise ValueError(f"rows must name the input of each row, of the tally's {tally.num_inputs}, got None")
        rows = torch.zeros(logits.shape[:1], dtype=torch.int64, device=logits.device)
    if not tally.compiled and check_backend(backend) != "reference":
        raise ValueError(
            f"backend must be 'reference' for heads that kernels do not know, got {backend!r} and {tally.heads}"
        )
    torch.ops.rsfast.accumulate(
        logits.detach().resolve_neg(),
        _as_indices("rows", rows, tally.num_inputs, logits.device),
        tally.parameters,
        check_backend(backend),
        tally.n,
        tally.counts,
        tally.sums,
        tally.squares,
        tally.tracked_classes,
        tally.bin_counts,
        tally.bin_sums,
    )
