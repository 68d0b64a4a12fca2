"""perturb against the torch expression that it replaces, and against its own random words alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.cases import IMAGES, SIGMA, torch_perturb
from benchmarks.conftest import Seconds, alternate
from rsfast import Gaussian, ops
from rsfast.ops import _cpu


def verified(x: torch.Tensor, batch: int, dtype: torch.dtype) -> Callable[[], torch.Tensor]:
    """Return a call of perturb, of which a few rows have been checked against the reference."""
    out, few = torch.empty(batch, *x.shape[1:], dtype=dtype), [0, 1, batch - 1]
    perturb = partial(ops.perturb, x, Gaussian(SIGMA), seed=1)
    ours = partial(perturb, samples=range(batch), out=out)
    assert torch.equal(ours()[few], perturb(samples=few, dtype=dtype, backend="reference"))
    return ours


def against_torch(rounds: int, name: str, dtype: torch.dtype) -> Seconds:
    batch, *shape = IMAGES[name]
    x = torch.rand(1, *shape)
    return alternate(verified(x, batch, dtype), partial(torch_perturb, x, batch), rounds)


def against_words(rounds: int, name: str, threads: int) -> Seconds:
    torch.set_num_threads(threads)
    batch, *shape = IMAGES[name]
    words = np.empty(math.prod(IMAGES[name]), np.uint32)
    where = {"c1": 0, "c2": 0, "c3": 0, "first_block": 0, "blocks": len(words) // 4}

    def theirs() -> None:
        _cpu.philox_words(seed=1, **where, out=words.ctypes.data, threads=threads)

    return alternate(verified(torch.rand(1, *shape), batch, torch.float32), theirs, rounds)


def row(name: str, what: str) -> dict[str, Any]:
    elements = math.prod(IMAGES[name])
    return {"what": f"perturb, {what}", "detail": lambda seconds: f"{elements / seconds / 1e6:.0f} M elements/s"}


@pytest.mark.parametrize("name", list(IMAGES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_perturb_torch(compare, name, dtype):
    against, target = "repeat + randn_like * sigma", 20 if _cpu.isa() == "avx512" else 10
    compare(against_torch, name, dtype, against=against, target=target, **row(name, f"{str(dtype)[6:]}, {name} batch"))


@pytest.mark.parametrize("name", list(IMAGES))
@pytest.mark.parametrize("threads", sorted({1, torch.get_num_threads()}))
def test_perturb_words(compare, name, threads):
    what = f"float32, {name} batch, {threads} thread{'s' * (threads > 1)}"
    compare(against_words, name, threads, against="Philox words alone", target=0.6, **row(name, what))
