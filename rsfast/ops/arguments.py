"""What users pass to the operations becomes tensors here, or an error that names the argument."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .._check import check_choice
from .._hints import conversion
from ..noise import STREAMS, Noise
from .checks import check_apart, require


def check_stream(stream: object) -> str:
    """Return `stream` if it names a stream; raise ValueError if not."""
    return str(check_choice("stream", stream, STREAMS))


def check_range(name: str, values: torch.Tensor, limit: int) -> None:
    """Raise ValueError unless all of `values` lie in [0, limit)."""
    if not values.numel():
        return
    low, high = map(int, values.aminmax())
    if low < 0 or high >= limit:
        raise ValueError(f"{name} must lie in [0, {limit}), got values from {low} to {high}")


def integers(name: str, values: Any, shape: str) -> torch.Tensor:
    """Return `values`, a tensor or what makes one, as int64; raise TypeError unless all are integers."""
    try:
        tensor = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise TypeError(f"{name} must be int64 {shape}, got {values!r}") from error
    if tensor.numel() and (tensor.dtype == torch.bool or tensor.is_floating_point() or tensor.is_complex()):
        raise TypeError(
            f"{name} must be int64 {shape}, got {tensor.dtype if isinstance(values, torch.Tensor) else repr(values)}"
        )
    return tensor.to(torch.int64)


def indices(name: str, values: object, length: int | None, limit: int, device: torch.device) -> torch.Tensor:
    """Return `values` (int64 tensor, range or sequence of ints) as a contiguous tensor; they must lie in [0, limit).

    A tensor's own values are left to `check_range` or the kernel.
    """
    tensor = as_indices(name, values, limit, device, f"[{'B' if length is None else length}]")
    require(name, tensor, (torch.int64,), (tensor.numel() if length is None else length,), device)
    return tensor


def as_indices(name: str, values: object, limit: int, device: torch.device, shape: str = "[B]") -> torch.Tensor:
    if isinstance(values, range):
        if len(values) and (min(values[0], values[-1]) < 0 or max(values[0], values[-1]) >= limit):
            raise ValueError(f"{name} must lie in [0, {limit}), got {values}")
        tensor = torch.arange(values.start, values.stop, values.step, device=device)
    elif isinstance(values, torch.Tensor):
        tensor = values
    elif isinstance(values, int):
        raise TypeError(f"{name} must be int64 {shape}, got {values!r}; pass a list, a range or a tensor")
    else:
        tensor = integers(name, values, shape)
        if not torch.compiler.is_compiling():
            check_range(name, tensor, limit)
        tensor = tensor.to(device)
    return tensor.contiguous()


def as_floats(x: torch.Tensor) -> torch.Tensor:
    """Return 8-bit images as float32 in [0, 1], ``x / 255``; a float32 tensor as it is."""
    return x.float() / 255 if x.dtype == torch.uint8 else x


def check_inputs(
    name: str, x: object, *, single: bool = False, given: str | None = None, form: str = "{}", noise: Noise | None = None
) -> torch.Tensor:
    """Return `x` contiguous if it is a float32 tensor ``[I, *shape]``, or if `single` ``[*shape]``, shape of rank 1 or more.

    Where the noise takes bytes it may be uint8, for `as_floats`.

    Raise an error that names it if not, and says what to write instead: `given` is how the user writes `x`, by default
    `name`, and `form` how what is made of it is passed.
    """
    given = name if given is None else given
    wanted = "[*shape]" if single else "[I, *shape]"
    if not isinstance(x, torch.Tensor) or x.layout != torch.strided:
        what = f"a {type(x).__name__}" if not isinstance(x, torch.Tensor) else x.layout
        step = conversion(given, x)
        hint = "" if step is None else f"; pass {form.replace('{}', step)}"
        raise TypeError(f"{name} must be a dense float32 tensor {wanted}, got {what}{hint}")
    if x.dtype != torch.float32 and not (noise is not None and noise.takes_bytes and x.dtype == torch.uint8):
        plain = x.is_floating_point() or x.dtype == torch.bool
        hint = "; call x.float()" if plain else "" if x.is_complex() else "; convert integer images with x.float() / 255"
        if x.dtype == torch.uint8 and noise is not None and noise.for_bytes:
            hint += f", or take {noise.for_bytes}, which is for 8-bit images as they are"
        raise TypeError(f"{name} must have dtype float32, got {x.dtype}{hint}")
    if x.ndim < (1 if single else 2) or x.numel() == 0:
        least = "one element" if single else "one input and one element"
        hint = f"; one input needs its batch axis: {given}[None]" if not single and x.ndim == 1 and x.numel() else ""
        raise ValueError(f"{name} must have shape {wanted} with at least {least}, got {list(x.shape)}{hint}")
    elements = x.numel() if single else x[0].numel()
    if elements > 1 << 34:
        raise ValueError(f"{name} must have at most 2^34 elements an input, got {elements}")
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
            raise TypeError(f"{name} must be a number or {channels} numbers, one a channel, got {value!r}") from error
        if moved.ndim == 0:
            moved = moved.expand(channels)
        if moved.shape != (channels,):
            raise ValueError(f"{name} must be a number or have shape [{channels}], one a channel, got {list(tensor.shape)}")
        # A value that is not finite makes logits that are not, and no votes. It is an error where that takes no waiting.
        if tensor.device.type == "cpu" and not torch.compiler.is_compiling() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name} must be finite, got {value!r}")
        tensors.append(moved.detach().resolve_neg().contiguous())
    return tensors[0], tensors[1]


def check_clamp(clamp: object) -> tuple[float, float] | None:
    """Return `clamp` as two floats with low <= high, and no -0, or None."""
    if clamp is None:
        return None
    try:
        low, high = (float(value) for value in clamp)  # type: ignore[attr-defined]
    except (TypeError, ValueError) as error:
        raise TypeError(f"clamp must be (low, high), got {clamp!r}") from error
    if not low <= high:
        raise ValueError(f"clamp must be (low, high) with low <= high, got {clamp!r}")
    return low + 0.0, high + 0.0  # -0 becomes 0


def check_copied(out: torch.Tensor, names: Sequence[str], given: Sequence[object], used: Sequence[object]) -> None:
    """Raise ValueError where `out` shares memory with an argument of which the operator gets a copy."""
    for name, value, tensor in zip(names, given, used, strict=True):
        if isinstance(value, np.ndarray):
            value = torch.from_numpy(value)
        if not isinstance(value, torch.Tensor) or value.device != out.device:
            continue
        if not isinstance(tensor, torch.Tensor) or value.data_ptr() != tensor.data_ptr():
            check_apart([("out", out)], [(name, value)])
