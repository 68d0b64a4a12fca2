"""What all kernels need of Triton: the compiler's options, polynomials, orders of elements, and the device of a launch."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# The kernels are in Triton's language, which has types of its own.

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
import triton.language as tl

# No contraction of products and sums to fma; no checks of integer overflow, which come with TRITON_DEBUG=1: Philox wraps on
# purpose.
OPTIONS: dict[str, Any] = {"enable_fp_fusion": False, "sanitize_overflow": False}
MOST = 65535  # programs along the second or third axis of a grid


def coefficients(text: str) -> Any:
    """Return numbers in hexadecimal as a constant of kernels."""
    return tl.constexpr(tuple(map(float.fromhex, text.split())))


@triton.jit
def horner(x, coefficients: tl.constexpr, degree: tl.constexpr):
    """The polynomial with these coefficients, highest first, by fma."""
    value = tl.fma(x, coefficients[0], coefficients[1])
    for i in tl.static_range(2, degree + 1):
        value = tl.fma(value, x, coefficients[i])
    return value


@triton.jit
def interleave(parts):
    """Elements i of each of 4 or 8 parts, one part after the other, for all i."""
    if len(parts) == 4:
        a, b, c, d = parts
        return tl.interleave(tl.interleave(a, c), tl.interleave(b, d))
    else:
        a, b, c, d, e, f, g, h = parts
        return tl.interleave(interleave((a, c, e, g)), interleave((b, d, f, h)))


@triton.jit
def deinterleave(values, PARTS: tl.constexpr):
    """The 4 or 8 parts that `interleave` takes."""
    even, odd = tl.split(tl.reshape(values, [values.shape[0] // 2, 2]))
    if PARTS == 4:
        a, c = tl.split(tl.reshape(even, [even.shape[0] // 2, 2]))
        b, d = tl.split(tl.reshape(odd, [odd.shape[0] // 2, 2]))
        return a, b, c, d
    else:
        a, c, e, g = deinterleave(even, 4)
        b, d, f, h = deinterleave(odd, 4)
        return a, b, c, d, e, f, g, h


def on(device: torch.device) -> AbstractContextManager[Any]:
    """Make `device` the current one where it is a GPU: Triton launches on that."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
