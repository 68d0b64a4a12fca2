"""`perturb`: a batch of noisy inputs in one pass, as a function, for a loop over batches, and as a torch operator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch.autograd.graph import increment_version

from ..noise import STREAMS, Noise, NoiseParameters, check_noise, check_seed
from . import shaping
from .arguments import (
    affine,
    as_floats,
    as_indices,
    check_clamp,
    check_copied,
    check_inputs,
    check_range,
    check_stream,
    indices,
)
from .calls import Perturbation, Perturber
from .checks import as_dtype, check_apart, memory_format
from .registry import check_backend, find

_READ = ("x", "samples", "rows", "input_ids", "scale", "shift")


def perturb(
    x: torch.Tensor,
    noise: Noise,
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
    """Return a batch of noisy inputs: ``clamp(x[rows] + noise) * scale + shift``, rounded once to `dtype`.

    The noise of an element is a function of (seed, stream, input id, sample index, place of the element in its input) alone:
    batch size, order, layout, threads, instruction set and backend do not change a bit of it.

    Parameters
    ----------
    x : float32 tensor ``[I, *shape]``
        The inputs; or uint8, for `GridGaussian` noise. The first axis of shape is the channel. Never modified, and taken as
        detached: no gradient reaches it (`nn.GaussianNoise` passes one on).
    noise : Noise
        Its parameters are in the units of x, before `scale`.
    seed : int
        In [0, 2^64).
    samples : int64 tensor [B], range or sequence of ints
        Sample index of each output row, in [0, 2^56). Of deterministic `Splitting`, sample ``evaluations + s`` is sample s.
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
    out : tensor ``[B, *shape]``, optional
        Written and returned instead of a new tensor. It must share no memory with another argument, nor require grad.
    backend : str
        "auto", "cuda", "triton", "cpu" or "reference".

    Returns
    -------
    tensor ``[B, *shape]``

    Raises
    ------
    TypeError, ValueError
        Naming the argument, what it was and what it must be. Indices on a GPU raise none: see the notes.

    Notes
    -----
    Where rows, samples or input_ids on a GPU are out of range, the kernel writes NaN into the row of the result that they
    belong to. Such a row of logits votes for no class: it counts in the last of `Tally.counts`.

    Nothing waits for a GPU, and calls whose arguments are all on it may be captured in a CUDA graph. So values of x are not
    looked at: `certify`, `predict` and `sample` check that they are finite, within `Noise.largest_input` and
    `Noise.input_range`, and on the noise's grid. Noise with arrays copies them to the GPU when it first meets a shape, and
    torch.compile breaks its graph there.

    Numerics: Philox4x32-10 and the noise's draw, standard noise z, in float32 as one fixed sequence of exactly rounded
    operations (csrc/noise.h); then fma(z, the noise's scale, x), clamp, fma(scale, shift), all in float32; then one rounding
    to nearest even to float16 or bfloat16. float64 holds exactly the float32 values, for models whose weights are float64.
    `CorrelatedGaussian` shapes z by an FFT, whose rounding it states: its noise has these bits up to that.

    Examples
    --------
    >>> from rsfast.noise import Gaussian
    >>> x = torch.zeros(1, 2)
    >>> perturb(x, Gaussian(1.0), seed=0, samples=range(3)).shape
    torch.Size([3, 2])
    """
    given = (x, samples, rows, input_ids, scale, shift)
    x, parameters, scale, shift = _inputs(x, noise, scale, shift)
    device, count, shape = x.device, x.shape[0], x.shape[1:]
    samples = indices("samples", samples, None, 1 << 56, device)
    batch = samples.shape[0]
    rows = _default_rows(count, batch, device) if rows is None else rows
    layout = memory_format(channels_last, len(shape))
    dtype = as_dtype("dtype", dtype if dtype is not None else getattr(out, "dtype", torch.float32))
    result = torch.empty((batch, *shape), dtype=dtype, device=device, memory_format=layout) if out is None else out
    if out is not None:
        _check_out(out, dtype)
    rows = as_indices("rows", rows, count, device)
    input_ids = as_indices("input_ids", range(count) if input_ids is None else input_ids, 1 << 32, device)
    if out is not None and not torch.compiler.is_compiling():
        check_copied(out, _READ, given, (x, samples, rows, input_ids, scale, shift))
    seed = check_seed(seed)
    torch.ops.rsfast.perturb(
        x,
        rows,
        input_ids,
        samples,
        parameters.draw,
        parameters.scalars,
        parameters.tensors,
        seed - (1 << 64) if seed >= 1 << 63 else seed,
        STREAMS[check_stream(stream)],
        scale,
        shift,
        check_clamp(clamp),
        channels_last,
        check_backend(backend),
        result,
        shaper=parameters.shaper,
        shaper_scalars=parameters.shaper_scalars,
        shaper_tensors=parameters.shaper_tensors,
    )
    return result


def perturber(
    x: torch.Tensor,
    noise: Noise,
    *,
    seed: int,
    input_ids: torch.Tensor | Sequence[int],
    scale: torch.Tensor | Sequence[float] | float | None = None,
    shift: torch.Tensor | Sequence[float] | float | None = None,
    clamp: tuple[float, float] | None = None,
    dtype: torch.dtype | str | None = None,
    channels_last: bool = False,
    backend: str = "auto",
) -> Perturber:
    """Return `perturb` of these inputs, for a loop over batches: what stays the same is checked once, here.

    Its calls check nothing, and so cost a tenth of one of `perturb`. They read x as it is then.

    Parameters
    ----------
    x : float32 tensor ``[I, *shape]``
        Contiguous, and detached.
    noise, seed, input_ids, scale, shift, clamp, dtype, channels_last, backend
        As in `perturb`, as are the errors raised.

    Returns
    -------
    callable
        ``run(out, places, stream)`` fills `out`, ``[B, *shape]`` of that dtype and layout, for B inputs, ``places[0]`` in
        [0, I), and samples, ``places[2]`` in [0, 2^56). `places` is int64 [3, B] on the device of x, each row contiguous.

    Examples
    --------
    >>> from rsfast.noise import Gaussian
    >>> x, places, out = torch.zeros(1, 2), torch.tensor([[0, 0, 0], [0, 0, 0], [5, 6, 7]]), torch.empty(3, 2)
    >>> perturber(x, Gaussian(1.0), seed=0, input_ids=[0])(out, places, "estimation")
    >>> torch.equal(out, perturb(x, Gaussian(1.0), seed=0, samples=range(5, 8)))
    True
    """
    x, parameters, scale, shift = _inputs(x, noise, scale, shift)
    ids = as_indices("input_ids", input_ids, 1 << 32, x.device)
    none = ids.new_empty(0)
    layout = memory_format(channels_last, x.ndim - 1)
    dtype = as_dtype("dtype", torch.float32 if dtype is None else dtype)
    out = torch.empty((0, *x.shape[1:]), dtype=dtype, device=x.device, memory_format=layout)
    rest = (check_seed(seed), STREAMS["estimation"], scale, shift, check_clamp(clamp), channels_last, out)
    job = Perturbation(x, none, ids, none, parameters, *rest)
    job.check()
    shaping.check(job)
    found = find(check_backend(backend), x.device)
    if found.on_host:
        check_range("input_ids", ids, 1 << 32)

    if not parameters.shaper:
        return found.perturber(job)
    return lambda out, places, stream: shaping.perturb(job.at(out, places, stream), found.kernels.perturb)


def _inputs(
    x: torch.Tensor, noise: Noise, scale: Any, shift: Any
) -> tuple[torch.Tensor, NoiseParameters, torch.Tensor | None, torch.Tensor | None]:
    x = as_floats(check_inputs("x", x, noise=check_noise("noise", noise)))
    parameters = (_arrays if noise.has_arrays else _scalars)(noise, tuple(x.shape[1:]), x.device)
    return x, parameters, *affine(scale, shift, x.shape[1], x.device)


def _scalars(noise: Noise, shape: tuple[int, ...], device: torch.device) -> NoiseParameters:
    return noise.parameters(shape)


def _arrays(noise: Noise, shape: tuple[int, ...], device: torch.device) -> NoiseParameters:
    # A compiler would follow what NumPy does, in its own arithmetic: the graph breaks here.
    if torch.compiler.is_compiling():
        eager: Callable[..., NoiseParameters] = torch.compiler.disable(_on_device)  # type: ignore[no-untyped-call]
        return eager(noise, shape, device)
    return _on_device(noise, shape, device)


@lru_cache(maxsize=64)
def _on_device(noise: Noise, shape: tuple[int, ...], device: torch.device) -> NoiseParameters:
    """Return the parameter block with tensors instead of arrays."""
    found = noise.parameters(shape)
    tensors, more = (
        [torch.tensor(array, device=device).contiguous() for array in each] for each in (found.tensors, found.shaper_tensors)
    )
    return found._replace(tensors=tensors, shaper_tensors=more)


def _default_rows(count: int, batch: int, device: torch.device) -> torch.Tensor:
    if count not in (1, batch):
        raise ValueError(f"rows must name the input of each of {batch} samples, got None with {count} inputs")
    return torch.arange(batch, device=device) if count == batch else torch.zeros(batch, dtype=torch.int64, device=device)


def _check_out(out: object, dtype: torch.dtype) -> None:
    if not isinstance(out, torch.Tensor):
        raise TypeError(f"out must be a tensor, got {out!r}")
    if out.dtype != dtype:
        raise ValueError(f"out must have dtype {dtype}, as dtype is, got {out.dtype}")
    if out.is_neg():
        raise ValueError("out must be a tensor of its own, got a lazy negation; call out.resolve_neg()")


def _job(arguments: Sequence[Any], shaped: Mapping[str, Any]) -> tuple[Perturbation, str]:
    """Return the operator's arguments as a call that is checked, and the name of its backend."""
    x, rows, input_ids, samples, draw, scalars, tensors, seed, *rest, backend, out = arguments
    noise = NoiseParameters(draw, scalars, tensors, **shaped)  # without what has its default
    seed %= 1 << 64  # an operator's int is signed
    job = Perturbation._make((x, rows, input_ids, samples, noise, seed, *rest, out))
    job.check()
    shaping.check(job)
    return job, backend


def _perturb(*arguments: Any, **shaped: Any) -> None:
    job, backend = _job(arguments, shaped)
    found = find(backend, job.x.device)
    if found.on_host:  # kernels on a GPU check for themselves: to look from here is to wait
        check_range("rows", job.rows, job.x.shape[0])
        check_range("input_ids", job.input_ids, 1 << 32)
        check_range("samples", job.samples, 1 << 56)
    if job.out.numel() == 0:
        return
    read = [("x", job.x), ("rows", job.rows), ("samples", job.samples), ("input_ids", job.input_ids)]
    if job.scale is not None and job.shift is not None:
        read += [("scale", job.scale), ("shift", job.shift)]
    check_apart([("out", job.out)], read)
    increment_version(job.out)
    if job.noise.shaper:
        shaping.perturb(job, found.kernels.perturb)
    else:
        found.kernels.perturb(job)


def _check_perturb(*arguments: Any, **shaped: Any) -> None:
    """Check a call on tensors without memory, which torch.compile makes, and refuse one on the device "meta"."""
    job, backend = _job(arguments, shaped)
    if job.x.device.type == "meta":
        find(backend, job.x.device)


_library: Any = torch.library.Library("rsfast", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define(
    "perturb(Tensor x, Tensor rows, Tensor input_ids, Tensor samples, str draw, float[] noise_scalars, "
    "Tensor[] noise_tensors, SymInt seed, int stream, Tensor? scale, Tensor? shift, float[]? clamp, bool channels_last, "
    'str backend, Tensor(a!) out, *, str shaper="", float[] shaper_scalars=[], Tensor[]? shaper_tensors=None) -> ()'
)
_library.impl("perturb", _perturb, "CompositeExplicitAutograd")
torch.library.register_fake("rsfast::perturb", _check_perturb, lib=_library)
