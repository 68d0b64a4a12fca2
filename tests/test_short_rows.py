"""ops.perturb of short rows on a CPU: they take a lane each where that pays, with the bits of the reference all the same."""

import functools

import pytest
import torch
from conftest import assert_same_bits, poison
from test_perturb import TRANSFORMS, TYPES, arguments, inputs

from rsfast.noise import Gaussian
from rsfast.ops import perturb

ROWS = 71  # two times the most rows that are made at once, and a few
BATCHES = (1, 3, 17, ROWS)
LENGTHS = [(length,) for length in (1, 2, 3, 4, 5, 7, 8, 10, 16, 31, 63, 65, 100, 160)]
IMAGES = [(1, 1, 7), (3, 2, 2), (2, 3, 5), (3, 4, 5), (5, 3, 1)]  # a mask hides all channels of a pixel


def short_rows(shape, transform):
    """Rows of one input, then of three in no order. Samples pass 2^32 and 2^40, and some lie anywhere."""
    generator = torch.Generator().manual_seed(sum(shape))
    samples = torch.arange(ROWS) + 2**32 - 20
    samples[40:] += 2**40 - 2**32
    samples[::6] = torch.randint(2**56, (len(samples[::6]),), generator=generator)
    rows = torch.randint(3, (ROWS,), generator=generator)
    rows[:35] = 1
    return arguments(shape, transform, torch.float32) | {"samples": samples, "rows": rows}


@functools.cache
def expected(shape, transform):
    return perturb(**short_rows(shape, transform), backend="reference")


def assert_is_the_reference(shape, transform, dtype, batch):
    """Also that nothing is written before `out` or after it."""
    keywords = short_rows(shape, transform)
    keywords |= {"samples": keywords["samples"][:batch], "rows": keywords["rows"][:batch], "dtype": dtype}
    wanted = expected(shape, transform)[:batch].to(dtype)
    memory = poison((wanted.numel() + 12,), dtype)
    out = memory[5:-7].view(wanted.shape)
    perturb(**keywords, out=out, backend="cpu")
    assert_same_bits(out, wanted)
    assert memory[:5].isnan().all()
    assert memory[-7:].isnan().all()


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_every_length(dtype, isa):
    for length in range(1, 71):
        for batch in BATCHES:
            assert_is_the_reference((length,), "all", dtype, batch)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_every_noise(transform, isa):
    for number, shape in enumerate(LENGTHS + IMAGES):
        for batch in BATCHES:
            assert_is_the_reference(shape, transform, TYPES[(number + batch) % 4], batch)


def test_threads(isa, threads):
    """Large enough for three, whose shares begin and end anywhere."""
    keywords = {"x": inputs(2, (5,)), "noise": Gaussian(0.3), "seed": 8, "samples": range(40_001)}
    keywords["rows"] = [i % 7 % 2 for i in range(40_001)]
    threads(1)
    alone = perturb(**keywords)
    assert_same_bits(alone[-99:], perturb(**keywords, backend="reference")[-99:])
    for count in (2, 3):
        threads(count)
        assert_same_bits(perturb(**keywords, out=poison((40_001, 5))), alone)
