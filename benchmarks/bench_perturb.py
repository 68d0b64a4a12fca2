"""perturb against the torch expression that it replaces, and against its own random words alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.cases import IMAGES, SIGMA, torch_perturb
from benchmarks.conftest import record
from rsfast import Gaussian, _cpu, ops


@pytest.fixture(params=list(IMAGES))
def case(request):
    """A verified case: the batch equals the reference's on a few rows before anything is timed."""
    batch, *shape = IMAGES[request.param]
    x = torch.rand(1, *shape)
    few = ops.perturb(x, Gaussian(SIGMA), seed=1, samples=range(3), backend="reference")
    assert torch.equal(ops.perturb(x, Gaussian(SIGMA), seed=1, samples=range(batch))[:3], few)
    return request.param, x, batch


def rate(elements: int, seconds: float) -> str:
    return f"{elements / seconds / 1e6:.0f} M elements/s"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_perturb_torch(case, dtype, paired, benchmark):
    name, x, batch = case
    out = torch.empty(batch, *x.shape[1:], dtype=dtype)

    def ours():
        ops.perturb(x, Gaussian(SIGMA), seed=1, samples=range(batch), out=out)

    ratio = paired(ours, lambda: torch_perturb(x, batch))
    speed = rate(out.numel(), benchmark.stats.stats.median)
    target = 20 if _cpu.isa() == "avx512" else 10
    record(f"perturb, {str(dtype)[6:]}, {name} batch", "repeat + randn_like * sigma", ratio, target, speed)


@pytest.mark.parametrize("threads", [1, 0], ids=["one thread", "all threads"])
def test_perturb_words(case, threads, paired, benchmark):
    name, x, batch = case
    out = torch.empty(batch, *x.shape[1:])
    words = np.empty(out.numel(), np.uint32)
    all_threads = torch.get_num_threads()
    count = threads or all_threads

    def ours():
        ops.perturb(x, Gaussian(SIGMA), seed=1, samples=range(batch), out=out)

    def theirs():
        _cpu.philox_words(
            seed=1, c1=0, c2=0, c3=0, first_block=0, blocks=len(words) // 4, out=words.ctypes.data, threads=count
        )

    torch.set_num_threads(count)
    try:
        ratio = paired(ours, theirs)
    finally:
        torch.set_num_threads(all_threads)
    speed = rate(out.numel(), benchmark.stats.stats.median)
    record(f"perturb, float32, {name} batch, {count} threads", "Philox words alone", ratio, 0.6, speed)
