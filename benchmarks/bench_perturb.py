"""perturb against the torch expression that it replaces and its own random words alone; other noises against Gaussian."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.cases import IMAGES, NOISE, SIGMA, TIMES_OF_GAUSSIAN, noises, torch_grid_perturb, torch_perturb
from benchmarks.conftest import Seconds, alternate
from rsfast import GridGaussian, ops
from rsfast.noise import Noise
from rsfast.ops import _cpu

OTHER_NOISES = list(noises(IMAGES["ImageNet"][1:]))[1:]


def verified(x: torch.Tensor, batch: int, dtype: torch.dtype, noise: Noise = NOISE) -> Callable[[], torch.Tensor]:
    """Return a call of perturb, of which a few rows have been checked against the reference."""
    out, few = torch.empty(batch, *x.shape[1:], dtype=dtype), [0, 1, batch - 1]
    perturb = partial(ops.perturb, x, noise, seed=1)
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

    def theirs() -> None:
        _cpu.philox_words(1, 0, 0, 0, 0, len(words) // 4, words.ctypes.data, threads)

    return alternate(verified(torch.rand(1, *shape), batch, torch.float32), theirs, rounds)


def against_gaussian(rounds: int, noise: str) -> Seconds:
    torch.set_num_threads(1)
    batch, *shape = IMAGES["ImageNet"]
    x, known = torch.rand(1, *shape), noises(shape)
    ours, theirs = (verified(x, batch, torch.float32, known[name]) for name in (noise, "Gaussian"))
    return alternate(ours, theirs, rounds)


def against_levels(rounds: int, batch: int) -> Seconds:
    torch.set_num_threads(1)
    noise, shape = GridGaussian(SIGMA), IMAGES["ImageNet"][1:]
    x, (_, thresholds) = torch.rand(1, *shape), noise.parameters(shape).tensors
    theirs = partial(torch_grid_perturb, x, batch, thresholds[:-1].tolist())
    return alternate(verified(x, batch, torch.float32, noise), theirs, rounds)


def row(name: str, what: str) -> dict[str, Any]:
    return {"what": f"perturb, {what}", "detail": partial(speed, math.prod(IMAGES[name]))}


def speed(elements: int, seconds: float) -> str:
    return f"{elements / seconds / 1e6:.0f} M elements/s"


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


@pytest.mark.parametrize("noise", OTHER_NOISES)
def test_perturb_noise(compare, noise):
    target = TIMES_OF_GAUSSIAN.get(noise)
    compare(
        against_gaussian, noise, against="Gaussian", target=target, **row("ImageNet", f"{noise}, ImageNet batch, 1 thread")
    )


def test_perturb_noise_levels(compare):
    batch = 2  # the words of more do not fit into the cache, where a pass over them is fastest
    what, elements = f"perturb, GridGaussian, {batch} ImageNet images, 1 thread", batch * math.prod(IMAGES["ImageNet"][1:])
    against = "torch, one comparison pass a level"
    compare(against_levels, batch, what=what, against=against, target=5, detail=partial(speed, elements))
