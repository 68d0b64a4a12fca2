"""What both operations need of Triton: the compiler's options, polynomials, and the device that a launch is for."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# The kernels are in Triton's language, which has types of its own.

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
import triton.language as tl

# No contraction of products and sums to fma; and the checks of indices, for which debug is on, but not those of integer
# overflow that come with it: Philox wraps on purpose.
OPTIONS: dict[str, Any] = {"enable_fp_fusion": False, "debug": True, "sanitize_overflow": False}
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


def on(device: torch.device) -> AbstractContextManager[Any]:
    """Make `device` the current one where it is a GPU: Triton launches on that."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
