"""perturb against the torch expression that it replaces, and against its own random words alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.cases import IMAGES, SIGMA, torch_perturb
from benchmarks.conftest import alternate, in_fresh_process, record
from rsfast import Gaussian, ops
from rsfast.ops import _cpu


def verified_input(name: str) -> tuple[torch.Tensor, int]:
    """Return one input and the batch size; before that, check a few rows of the batch against the reference."""
    batch, *shape = IMAGES[name]
    x = torch.rand(1, *shape)
    few = ops.perturb(x, Gaussian(SIGMA), seed=1, samples=range(3), backend="reference")
    assert torch.equal(ops.perturb(x, Gaussian(SIGMA), seed=1, samples=range(batch))[:3], few)
    return x, batch


def against_torch(name: str, dtype: torch.dtype) -> tuple[float, float]:
    """Return the ratio of times, and ours in elements a second."""
    x, batch = verified_input(name)
    out = torch.empty(batch, *x.shape[1:], dtype=dtype)
    ratio, seconds = alternate(
        lambda: ops.perturb(x, Gaussian(SIGMA), seed=1, samples=range(batch), out=out), lambda: torch_perturb(x, batch)
    )
    return ratio, out.numel() / seconds


def against_words(name: str, threads: int) -> tuple[float, float]:
    """Return the ratio of times, and ours in elements a second."""
    torch.set_num_threads(threads)
    x, batch = verified_input(name)
    out = torch.empty(batch, *x.shape[1:])
    words = np.empty(out.numel(), np.uint32)
    where = {"c1": 0, "c2": 0, "c3": 0, "first_block": 0, "blocks": len(words) // 4, "out": words.ctypes.data}
    ratio, seconds = alternate(
        lambda: ops.perturb(x, Gaussian(SIGMA), seed=1, samples=range(batch), out=out),
        lambda: _cpu.philox_words(seed=1, **where, threads=threads),
    )
    return ratio, out.numel() / seconds


@pytest.mark.parametrize("name", list(IMAGES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_perturb_torch(name, dtype):
    ratio, speed = in_fresh_process(against_torch, name, dtype)
    target = 20 if _cpu.isa() == "avx512" else 10
    what = f"perturb, {str(dtype)[6:]}, {name} batch"
    record(what, "repeat + randn_like * sigma", ratio, target, f"{speed / 1e6:.0f} M elements/s")


@pytest.mark.parametrize("name", list(IMAGES))
@pytest.mark.parametrize("threads", sorted({1, torch.get_num_threads()}))
def test_perturb_words(name, threads):
    ratio, speed = in_fresh_process(against_words, name, threads)
    what = f"perturb, float32, {name} batch, {threads} thread{'s' * (threads > 1)}"
    record(what, "Philox words alone", ratio, 0.6, f"{speed / 1e6:.0f} M elements/s")
