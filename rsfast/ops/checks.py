"""What both operators require of their tensors: kernels take addresses, and trust every shape."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
"""Of the batches that `perturb` makes, and of the logits that `accumulate` takes."""

Named = tuple[str, torch.Tensor]


def as_dtype(name: str, value: object, known: Sequence[torch.dtype] = TYPES, otherwise: str = "") -> torch.dtype:
    """Return the dtype of `known` that `value` is or names; `otherwise` is what else an error says that it may be.

    Raises
    ------
    TypeError, ValueError
        If it is another, or the name of none of them.

    Examples
    --------
    >>> as_dtype("dtype", "bfloat16"), as_dtype("dtype", "torch.float64")
    (torch.bfloat16, torch.float64)
    """
    if isinstance(value, torch.dtype) and value in known:
        return value
    names = [str(each).removeprefix("torch.") for each in known]
    if isinstance(value, str) and value.removeprefix("torch.") in names:
        return known[names.index(value.removeprefix("torch."))]
    kind = ValueError if isinstance(value, str) else TypeError
    allowed = f"{', '.join(map(str, known))}, or a name: {', '.join(map(repr, names))}"
    raise kind(f"{name} must be {otherwise}one of {allowed}, got {value!r}")


def memory_format(channels_last: bool, rank: int) -> torch.memory_format:
    """Return the torch memory format of a batch of inputs of `rank` axes; raise ValueError where channels_last has none."""
    if not channels_last:
        return torch.contiguous_format
    if rank not in (3, 4):
        raise ValueError(
            f"channels_last must be False unless inputs have 3 (C, H, W) or 4 (C, D, H, W) axes, got True and {rank} axes"
        )
    return torch.channels_last if rank == 3 else torch.channels_last_3d


def require(
    name: str,
    tensor: torch.Tensor,
    types: Sequence[torch.dtype],
    shape: tuple[int, ...],
    device: torch.device,
    layout: torch.memory_format | None = torch.contiguous_format,
) -> None:
    """Raise TypeError or ValueError unless a tensor has one of `types`, this shape, device and layout (any if None)."""
    if tensor.dtype not in types:
        known = ", ".join(str(each).removeprefix("torch.") for each in types)
        raise TypeError(f"{name} must have dtype {known}, got {tensor.dtype}")
    if tensor.shape != shape:
        raise ValueError(f"{name} must have shape {list(shape)}, got {list(tensor.shape)}")
    if tensor.device != device:
        raise ValueError(f"{name} must be on '{device}', with the other tensors, got one on '{tensor.device}'")
    if layout is not None and not tensor.is_contiguous(memory_format=layout):
        raise ValueError(f"{name} must be contiguous in {layout}, got strides {tensor.stride()}")


def check_apart(written: Iterable[Named], read: Iterable[Named]) -> None:
    """Raise ValueError where a tensor that is written shares memory with another one of either kind.

    Of a tensor counts all from its first byte to its last: also what strides leave out between them.
    """
    spans = [(*_span(tensor), name, True) for name, tensor in written if tensor.numel()]
    spans += [(*_span(tensor), name, False) for name, tensor in read if tensor.numel()]
    spans.sort()
    until, last, until_written, last_written = 0, "", 0, ""  # where those before end, and the name of the one that ends last
    for first, end, name, is_written in spans:
        if first < until_written or (is_written and first < until):
            pair = (last_written, name) if first < until_written else (name, last)
            raise ValueError("{} must have memory of its own, got some that {} has, too".format(*pair))
        if end > until:
            until, last = end, name
        if is_written and end > until_written:
            until_written, last_written = end, name


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    """Return the addresses of a tensor's first byte and of the one after its last."""
    first = tensor.data_ptr()
    if tensor.is_contiguous():
        return first, first + tensor.nbytes
    last = sum((length - 1) * stride for length, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return first, first + (last + 1) * tensor.element_size()
