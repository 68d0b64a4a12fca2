"""ops.perturb: every backend and instruction set gives the same bits, nothing else changes them, and errors are told."""

import functools
import math
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from conftest import Flushing, assert_same_bits, bits, poison

from rsfast import ops
from rsfast.noise import AnisotropicGaussian, Gaussian, GridGaussian, Laplace, Mask, Splitting, Uniform
from rsfast.ops import perturb

TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
SHAPES = (
    (1,),
    (7,),
    (63,),
    (64,),
    (65,),
    (4097,),
    (1, 1),
    (5, 3),
    (2, 129),
    (1, 1, 1),
    (3, 5, 7),
    (3, 32, 32),
    (1, 9, 17),
    (257, 1, 1),
    (130, 2, 3),
    (2, 17, 31),
    (1, 1, 1, 1),
    (3, 2, 5, 7),
    (4, 7, 8, 9),
    (70, 1, 2, 2),
    (2, 3, 2, 3, 5),
)
LAYOUTS = [(shape, last) for shape in SHAPES for last in (False, True) if not last or len(shape) in (3, 4)]
SIGMA = Gaussian(0.3)
TRANSFORMS = {
    "none": (SIGMA, False, False, None),
    "scale": (SIGMA, True, False, None),
    "shift": (SIGMA, False, True, None),
    "scale and shift": (SIGMA, True, True, None),
    "clamp": (SIGMA, False, False, (-0.25, 0.75)),
    "all": (SIGMA, True, True, (0.0, 1.0)),
    "Laplace": (Laplace(0.3), True, True, (0.0, 1.0)),
    "Uniform": (Uniform(0.3), True, True, (0.0, 1.0)),
    "GridGaussian": (GridGaussian(0.3), True, True, (0.0, 1.0)),
    "AnisotropicGaussian": (AnisotropicGaussian, True, True, (0.0, 1.0)),  # a sigma for each element, see `noise_of`
    "Mask": (Mask(0.3, 0.25), True, True, (0.0, 1.0)),
    "Mask of pixels": (Mask(0.3, 0.25, patch=1), True, True, (0.0, 1.0)),
    "Mask of patches": (Mask(0.3, 0.25, patch=4), True, True, (0.0, 1.0)),
    "Splitting": (Splitting(0.3), True, True, (0.0, 0.75)),
    "deterministic Splitting": (Splitting(0.1, deterministic=True, levels=35), True, True, (0.25, 1.0)),
}


def noise_of(transform, shape):
    """The transform's noise; of a class with one value of each element, those of `shape`; no patches without positions."""
    noise = TRANSFORMS[transform][0]
    if isinstance(noise, Mask) and len(shape) < 3:
        return replace(noise, patch=0)
    return noise(0.3 + np.arange(math.prod(shape)).reshape(shape) % 97 / 60) if isinstance(noise, type) else noise


def memory_format(shape, channels_last):
    return {3: torch.channels_last, 4: torch.channels_last_3d}[len(shape)] if channels_last else torch.contiguous_format


def inputs(count, shape, seed=0):
    return torch.rand((count, *shape), generator=torch.Generator().manual_seed(seed)) * 2 - 0.5


def arguments(shape, transform, dtype, channels_last=False):
    """Three inputs and eight rows of them, in no order, samples beyond 2^32 among them."""
    _, with_scale, with_shift, clamp = TRANSFORMS[transform]
    channel = torch.arange(shape[0], dtype=torch.float32)
    return {
        "x": inputs(3, shape),
        "noise": noise_of(transform, shape),
        "seed": 0x9E3779B97F4A7C15,
        "samples": [0, 1, 5, 2**32 + 3, 2**32 - 1, 7, 1, 2**56 - 1],
        "rows": [2, 0, 0, 1, 2, 1, 1, 0],
        "input_ids": [11, 2**32 - 1, 4],
        "scale": 1 / (0.2 + channel / 7) if with_scale else None,
        "shift": (channel - 1.5) / 3 if with_shift else None,
        "clamp": clamp,
        "dtype": dtype,
        "channels_last": channels_last,
    }


@functools.cache
def unrounded(shape, transform):
    return perturb(**arguments(shape, transform, torch.float32), backend="reference")


def expected(shape, transform, dtype):
    """What the reference gives in float32, rounded or widened to `dtype` by torch."""
    return unrounded(shape, transform).to(dtype)


def poisoned(shape, dtype, channels_last=False):
    return poison(shape, dtype, memory_format(shape[1:], channels_last))


# Bit for bit


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_cpu_is_the_reference(transform, dtype, isa):
    for shape, channels_last in LAYOUTS:
        keywords = arguments(shape, transform, dtype, channels_last)
        before = keywords["x"].clone()
        out = poisoned((8, *shape), dtype, channels_last)
        assert perturb(**keywords, out=out, backend="cpu") is out
        assert_same_bits(out, expected(shape, transform, dtype))
        assert_same_bits(keywords["x"], before)
        fresh = perturb(**keywords, backend="cpu")
        assert fresh.is_contiguous(memory_format=memory_format(shape, channels_last))
        assert_same_bits(fresh, out)


IMAGE = {"noise": SIGMA, "seed": 1, "samples": [3, 2**40], "rows": [1, 0], "scale": [4.0, 5.0, 6.0], "shift": -2.0}
IMAGE |= {"dtype": torch.bfloat16}


@pytest.fixture(scope="module")
def image():
    x = inputs(2, (3, 224, 224))
    return x, perturb(x, **IMAGE, backend="reference")


@pytest.mark.parametrize("channels_last", [False, True])
def test_an_image_of_224(image, channels_last, isa):
    x, expected = image
    out = poisoned((2, 3, 224, 224), torch.bfloat16, channels_last)
    perturb(x, **IMAGE, channels_last=channels_last, out=out)
    assert_same_bits(out, expected)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_reference_writes_out_in_full(dtype):
    for shape, channels_last in LAYOUTS:
        keywords = arguments(shape, "all", dtype, channels_last)
        before = keywords["x"].clone()
        out = poisoned((8, *shape), dtype, channels_last)
        assert perturb(**keywords, out=out, backend="reference") is out
        assert_same_bits(out, expected(shape, "all", dtype))
        assert_same_bits(keywords["x"], before)


def test_what_the_transforms_are():
    """clamp(x + sigma z) * scale + shift in float64, from z drawn at sigma 1 and x 0: within a few roundings."""
    for transform, (_, with_scale, with_shift, clamp) in TRANSFORMS.items():
        keywords = arguments((3, 5, 7), transform, torch.float32)
        plain = {key: keywords[key] for key in ("seed", "samples", "rows", "input_ids")}
        noise, each = keywords["noise"], transform == "AnisotropicGaussian"
        if noise.draw.combine is not Gaussian.draw.combine:  # not added to x; it has a test of its own
            continue
        size = torch.tensor(noise.of_elements((3, 5, 7))).double() if each else 0.3
        z = perturb(torch.zeros(3, 3, 5, 7), Gaussian(1.0) if each else type(noise)(1.0), **plain).double()
        y = keywords["x"][keywords["rows"]].double() + size * z
        y = y.clamp(*clamp) if clamp else y
        y = y * (keywords["scale"].double()[:, None, None] if with_scale else 1)
        y = y + (keywords["shift"].double()[:, None, None] if with_shift else 0)
        assert torch.allclose(perturb(**keywords).double(), y, rtol=1e-6, atol=1e-6)


def test_numbers_for_scale_and_shift(isa):
    x = inputs(1, (3, 4, 5))
    one = perturb(x, SIGMA, seed=1, samples=range(4), scale=2.5, shift=-0.5)
    assert_same_bits(one, perturb(x, SIGMA, seed=1, samples=range(4), scale=[2.5] * 3, shift=torch.full((3,), -0.5)))


# What changes nothing


def test_batch_size_order_and_subsets(isa):
    """Each row alone, rows permuted, batches of 1 to 5, a range cut in two: the same rows."""
    shape = (3, 9, 11)
    keywords = arguments(shape, "all", torch.float32)
    whole = perturb(**keywords)
    samples, rows = torch.tensor(keywords.pop("samples")), torch.tensor(keywords.pop("rows"))
    order = torch.tensor([5, 2, 7, 0, 3, 6, 1, 4])
    assert_same_bits(perturb(**keywords, samples=samples[order], rows=rows[order]), whole[order])
    for size in (1, 2, 3, 5):
        parts = [perturb(**keywords, samples=samples[i : i + size], rows=rows[i : i + size]) for i in range(0, 8, size)]
        assert_same_bits(torch.cat(parts), whole)
    keywords |= {"x": keywords["x"][:1], "input_ids": [11]}
    ranged = perturb(**keywords, samples=range(100, 140))
    parts = [perturb(**keywords, samples=range(*ends)) for ends in ((100, 117), (117, 140))]
    assert_same_bits(torch.cat(parts), ranged)
    assert_same_bits(perturb(**keywords, samples=range(139, 99, -3)), ranged.flip(0)[::3])


def test_inputs_by_id(isa):
    """Which tensor an input stands in changes nothing, its id alone counts."""
    x = inputs(3, (2, 40))
    together = perturb(x, SIGMA, seed=1, samples=[9, 9, 9], input_ids=[7, 8, 9])
    for i in range(3):
        assert_same_bits(perturb(x[i : i + 1], SIGMA, seed=1, samples=[9], input_ids=[7 + i]), together[i : i + 1])
    assert_same_bits(
        perturb(x, SIGMA, seed=1, samples=[9] * 3), perturb(x, SIGMA, seed=1, samples=[9] * 3, input_ids=range(3))
    )


@pytest.mark.parametrize("channels_last", [False, True])
def test_threads(threads, isa, channels_last):
    """Large enough for five threads: 2^16 elements each are worth one."""
    x = inputs(2, (3, 100, 101))
    keywords = {"noise": SIGMA, "seed": 8, "samples": range(14), "rows": [i % 2 for i in range(14)], "scale": 2.0}
    threads(1)
    alone = perturb(x, **keywords, channels_last=channels_last)
    for count in (2, 3, 5):
        threads(count)
        out = poisoned(alone.shape, torch.float32, channels_last)
        assert_same_bits(perturb(x, **keywords, channels_last=channels_last, out=out), alone)


def test_concurrent_callers(isa, threads):
    """Four Python threads at once, each call on two threads of its own."""
    threads(2)
    x = inputs(1, (3, 100, 101))
    expected = [perturb(x, SIGMA, seed=seed, samples=range(9)) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            found = list(pool.map(lambda seed: perturb(x, SIGMA, seed=seed, samples=range(9)), range(4)))
            for a, b in zip(found, expected, strict=True):
                assert_same_bits(a, b)


AFTER_A_FORK = """
import os, torch
from rsfast.noise import Gaussian
from rsfast.ops import perturb
torch.set_num_threads(2)
x = torch.zeros(1, 3, 200, 200)
before = perturb(x, Gaussian(1.0), seed=1, samples=range(20))
child = os.fork()
if child == 0:
    import signal
    signal.alarm(120)
    after = perturb(x, Gaussian(1.0), seed=1, samples=range(20))
    os._exit(after.numpy().tobytes() != before.numpy().tobytes())
assert os.waitpid(child, 0)[1] == 0
"""


def test_after_a_fork():
    """A child process, as multiprocessing and data loaders fork them, may go on: it ends, with the same bits."""
    subprocess.run([sys.executable, "-c", AFTER_A_FORK], check=True)


def test_x_of_any_strides(isa):
    x = inputs(2, (3, 8, 10))
    expected = perturb(x, SIGMA, seed=2, samples=[5, 6])
    spread = torch.zeros(2, 3, 16, 20)[:, :, ::2, ::2].copy_(x)
    transposed = x.transpose(1, 3).contiguous().transpose(1, 3)
    for other in (spread, transposed, x.contiguous(memory_format=torch.channels_last), x.clone().requires_grad_()):
        assert_same_bits(perturb(other, SIGMA, seed=2, samples=[5, 6]), expected)
    assert_same_bits(
        perturb(x[:1, :1, :1].expand(1, 3, 8, 10), SIGMA, seed=2, samples=[5]),
        perturb(x[:1, :1, :1].repeat(1, 3, 8, 1), SIGMA, seed=2, samples=[5]),
    )


def test_x_that_is_a_lazy_negation(isa):
    """The imaginary part of a lazy conjugate is a view whose elements are negated when they are read."""
    x = torch.complex(torch.zeros(2, 40), inputs(2, (40,))).conj().imag
    assert x.is_neg()
    assert_same_bits(perturb(x, SIGMA, seed=2, samples=[5, 6]), perturb(x.clone(), SIGMA, seed=2, samples=[5, 6]))


def test_contiguous_lazy_negations(isa):
    """Of x, and of scale and shift."""
    one = torch.complex(torch.zeros(1, 1), torch.ones(1, 1)).conj().imag
    assert one.is_neg()
    assert one.is_contiguous()
    keywords = {"noise": SIGMA, "seed": 2, "samples": [5]}
    expected = perturb(one.clone(), **keywords, scale=one.clone()[0], shift=one.clone()[0])
    assert_same_bits(perturb(one, **keywords, scale=one[0], shift=one[0]), expected)


def test_out_that_is_a_lazy_negation_is_refused():
    out = torch.complex(torch.zeros(1, 1), torch.ones(1, 1)).conj().imag
    with pytest.raises(ValueError, match=r"^out must be a tensor of its own, got a lazy negation; "):
        perturb(torch.ones(1, 1), SIGMA, seed=2, samples=[5], out=out)


def test_index_tensors_of_any_strides(isa):
    x = inputs(2, (40,))
    expected = perturb(x, SIGMA, seed=2, samples=[5, 6, 7], rows=[1, 0, 1], input_ids=[3, 4])
    samples, rows, ids = (
        torch.tensor([[value, -1] for value in values]).t()[0] for values in ([5, 6, 7], [1, 0, 1], [3, 4])
    )
    assert not samples.is_contiguous()
    assert_same_bits(perturb(x, SIGMA, seed=2, samples=samples, rows=rows, input_ids=ids), expected)


@pytest.mark.parametrize("count", [1, 3])
def test_flushing_subnormals_in_the_caller(isa, threads, count):
    """It reaches neither the kernel nor its threads, which read and write subnormals all the same."""
    threads(count)
    x = torch.linspace(-1, 1, 50_000)[None] * 2.0**-126
    keywords = {"noise": Gaussian(2.0**-126), "seed": 4, "samples": range(4), "scale": 0.5}
    keywords["shift"] = torch.full((50_000,), 2.0**-140)
    expected = perturb(x, **keywords)
    subnormal = (expected != 0) & (expected.abs() < 2.0**-126)
    assert subnormal.float().mean() > 0.5
    assert_same_bits(expected[:, -99:], perturb(x, **keywords, backend="reference")[:, -99:])
    with Flushing():
        found = perturb(x, **keywords)
    assert torch.equal(bits(found), bits(expected))


def test_empty_batch():
    assert perturb(torch.zeros(1, 3, 4), SIGMA, seed=0, samples=range(0)).shape == (0, 3, 4)
    assert perturb(torch.zeros(2, 3, 4), SIGMA, seed=0, samples=[], rows=[], backend="reference").shape == (0, 3, 4)


# Values that are not ordinary


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("clamp", [None, (-1.0, 1.0), (-math.inf, 2.0)])
def test_nan_and_infinity(backend, dtype, clamp):
    """NaN stays NaN, clamped or not; infinity stays itself, or becomes the bound; neighbours do not notice."""
    x = inputs(1, (3, 50))
    keywords = {"noise": SIGMA, "seed": 1, "samples": range(3), "clamp": clamp, "dtype": dtype, "scale": 2.0, "shift": 0.5}
    clean = perturb(x, **keywords, backend=backend)
    low, high = clamp or (-math.inf, math.inf)
    for place, value in (((0, 0), math.nan), ((0, 1), -math.nan), ((1, 49), math.inf), ((2, 3), -math.inf)):
        x[0][place] = value
    found = perturb(x, **keywords, backend=backend)
    assert found[:, 0, :2].isnan().all()
    assert (found[:, 1, 49] == 2 * high + 0.5).all()
    assert (found[:, 2, 3] == 2 * low + 0.5).all()
    untouched = ~torch.isin(torch.arange(150).view(3, 50), torch.tensor([0, 1, 99, 103]))
    assert_same_bits(found[:, untouched], clean[:, untouched])
    assert_same_bits(found, perturb(x, **keywords, backend="cpu" if backend == "reference" else "reference"))


def test_infinite_clamp_and_overflow(isa):
    """x near the largest float32 overflows as IEEE says, and float16 beyond 65519.99 is infinite."""
    x = torch.tensor([[3.4e38, -3.4e38, 65519.0, 65520.0, -65520.0, 1e5]])
    found = perturb(x, Gaussian(1e-3), seed=0, samples=[0], clamp=(-math.inf, math.inf), dtype=torch.float16)
    assert found.tolist() == [[math.inf, -math.inf, 65504.0, math.inf, -math.inf, math.inf]]
    found = perturb(x, Gaussian(3e38), seed=0, samples=range(64))
    assert_same_bits(found, perturb(x, Gaussian(3e38), seed=0, samples=range(64), backend="reference"))
    assert found.isinf().any()


def test_rounding_to_float16_at_every_boundary(isa):
    """All float16 values, the midpoints between them and their neighbours, against NumPy's conversion.

    sigma is so small that sigma z + x rounds to x; float16's own subnormals are far above it.
    """
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    middles = (halves[1:].astype(np.float64) + halves[:-1]) / 2
    ties = np.append(middles, 65520.0).astype(np.float32)
    points = np.concatenate([halves[1:], *(np.nextafter(ties, np.float32(to)) for to in (0, np.inf)), ties])
    points = np.concatenate([points, -points])
    found = perturb(torch.from_numpy(points)[None], Gaussian(2.0**-126), seed=0, samples=[0], dtype=torch.float16)
    with np.errstate(over="ignore"):
        assert_same_bits(found[0], torch.from_numpy(points.astype(np.float16)))


def test_rounding_to_bfloat16_at_every_boundary(isa):
    """The same for bfloat16 from 2^-90 up, against rounding to nearest even written out on exact numbers."""
    top = np.arange(37 << 7, 0x7F80, dtype=np.int64)  # high halves of floats from 2^-90 up
    as_float = lambda high: (high.astype(np.uint32) << 16).view(np.float32)  # noqa: E731
    below, above = as_float(top), as_float(top + 1)  # the last above is infinity
    tie = ((top << 16) + 0x8000).astype(np.uint32).view(np.float32)
    even = np.where(top % 2 == 0, below, above)
    points = np.concatenate([below, np.nextafter(tie, np.float32(0)), tie, np.nextafter(tie, np.float32(np.inf))])
    expected = np.concatenate([below, below, even, above])
    keywords = {"noise": Gaussian(2.0**-126), "seed": 0, "samples": [0], "dtype": torch.bfloat16}
    for sign in (1, -1):
        found = perturb(torch.from_numpy(sign * points)[None], **keywords)
        assert_same_bits(found[0].float(), torch.from_numpy(sign * expected))


@pytest.mark.parametrize(
    ("dtype", "sigma", "magnitude"),
    [
        (torch.float32, 2.0**-126, 2.0**-126),
        (torch.float32, 2.0**-126, 0.0),
        (torch.bfloat16, 2.0**-126, 2.0**-126),
        (torch.float64, 2.0**-126, 2.0**-126),
        (torch.float16, 2.0**-16, 2.0**-15),
        (torch.float16, 2.0**-24, 0.0),
    ],
    ids=str,
)
def test_subnormal_outputs(dtype, sigma, magnitude, isa):
    """Results below the least normal number of their type, as the reference has them."""
    keywords = {"x": inputs(1, (500,)) * magnitude, "noise": Gaussian(sigma), "seed": 3, "samples": range(8), "dtype": dtype}
    found = perturb(**keywords)
    assert_same_bits(found, perturb(**keywords, backend="reference"))
    tiny = torch.finfo(torch.float32 if dtype == torch.float64 else dtype).tiny
    assert ((found != 0) & (found.abs() < tiny)).float().mean() > 0.2


def test_zero_has_a_sign(isa):
    """A result that underflows to -0 is -0 in every backend, with a clamp at 0 and without."""
    tiny = Gaussian(2.0**-126)
    z = perturb(torch.zeros(1, 4096), Gaussian(1.0), seed=6, samples=[0])
    unit = 2.0**-149
    exact = z.double() * 2.0**-126 / unit  # sigma z in units of the least subnormal
    x = (-(exact.round()) * unit).float()  # so that |sigma z + x| is at most half a unit
    for clamp in (None, (0.0, 1.0), (-1.0, 0.0), (-0.0, 0.0)):
        keywords = {"noise": tiny, "seed": 6, "samples": [0], "clamp": clamp}
        found = perturb(x, **keywords)
        if clamp is None:
            assert (torch.signbit(found) & (found == 0)).any()
            assert (~torch.signbit(found) & (found == 0)).any()
        assert_same_bits(found, perturb(x, **keywords, backend="reference"))


def test_a_limit_of_minus_zero_is_zero(isa):
    """Where y is clamped to it, every backend writes +0."""
    x = torch.tensor([-5.0, 5.0]).repeat_interleave(64)[None]
    for clamp in ((-0.0, 1.0), (-1.0, -0.0)):
        keywords = {"noise": Gaussian(0.1), "seed": 1, "samples": [0], "clamp": clamp}
        found = perturb(x, **keywords)
        assert (found == 0).sum() == 64
        assert not torch.signbit(found[found == 0]).any()
        assert_same_bits(found, perturb(x, **keywords, backend="reference"))


# Memory


def room(count):
    """Bytes for `count` float32 values, as a float32 tensor whose other views share them."""
    return torch.zeros(count, dtype=torch.float32)


def sharing(argument, how):
    """A call's arguments with an `out` that shares bytes with one of them."""
    keywords = {"x": inputs(2, (3, 8)), "samples": [5, 6], "rows": [1, 0], "input_ids": [3, 4], "scale": [1.0, 2.0, 3.0]}
    keywords |= {"shift": [0.5, 0.25, 0.125], "seed": 1, "noise": SIGMA}
    memory = room(200)
    out = memory[40:88].view(2, 3, 8)
    if how == "begins in":  # the last element of `out` is the first of the argument
        start = 87
    else:  # the argument's last element, or all of it, lies in `out`
        start = {"ends in": 41 - torch.tensor(keywords[argument]).numel() if argument != "x" else 40 - 47, "lies in": 44}[
            how
        ]
    value = torch.as_tensor(keywords[argument])
    if value.dtype == torch.int64:
        start, memory = start // 2, memory.view(torch.int64)
    start = max(start, 0)
    return keywords | {argument: memory[start : start + value.numel()].view(value.shape).copy_(value)}, out


@pytest.mark.parametrize("argument", ["x", "samples", "rows", "input_ids", "scale", "shift"])
@pytest.mark.parametrize("how", ["begins in", "ends in", "lies in"])
def test_out_that_shares_memory_is_refused(argument, how, isa):
    """Whatever the views and types, and as a NumPy array over the same memory."""
    keywords, out = sharing(argument, how)
    given = keywords[argument]
    forms = [given] if argument == "x" else [given, given.numpy()]
    for form in forms:
        for backend in ("cpu", "reference"):
            before = out.clone()
            with pytest.raises(ValueError, match=rf"^out must have memory of its own, got some that {argument} has"):
                perturb(**keywords | {argument: form}, out=out, backend=backend)
            assert torch.equal(out, before)


def test_out_that_shares_memory_with_what_is_copied_is_refused():
    """x and indices with strides are copied for the kernel; x would be overwritten all the same."""
    memory = room(96)
    x = memory.view(48, 2)[:, 0].view(2, 3, 8)
    assert not x.is_contiguous()
    with pytest.raises(ValueError, match=r"^out must have memory of its own, got some that x has"):
        perturb(x, SIGMA, seed=1, samples=[5, 6], out=memory[48:].view(2, 3, 8))
    rows = memory.view(torch.int64)[:4:2]
    with pytest.raises(ValueError, match=r"^out must have memory of its own, got some that rows has"):
        perturb(inputs(2, (3, 8)), SIGMA, seed=1, samples=[5, 6], rows=rows, out=memory[:48].view(2, 3, 8))
    scale = torch.ones(48, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"^out must have memory of its own, got some that scale has"):
        perturb(inputs(2, (3, 8)), SIGMA, seed=1, samples=[5, 6], scale=scale[5:8], out=scale.view(2, 3, 8))


def test_out_beside_the_others_in_one_buffer():
    """Tensors of one storage that share no byte are taken: right before and right after `out`, channels_last too."""
    x = inputs(2, (3, 8, 4))
    expected = perturb(x, SIGMA, seed=1, samples=[5, 6])
    memory = room(3 * 192)
    first = memory[:192].view(2, 3, 8, 4).copy_(x)
    after = memory[192:384].view(2, 3, 8, 4)
    assert_same_bits(perturb(first, SIGMA, seed=1, samples=[5, 6], out=after), expected)
    last = memory[384:].view(2, 3, 8, 4).copy_(x)
    channels_last = memory[192:384].view(2, 8, 4, 3).permute(0, 3, 1, 2)
    assert_same_bits(perturb(last, SIGMA, seed=1, samples=[5, 6], out=channels_last, channels_last=True), expected)
    assert_same_bits(first, x)
    assert_same_bits(last, x)


def test_autograd_notices_that_out_was_overwritten():
    """What was saved for backward and then filled anew is an error there, not a wrong gradient."""
    x, weight = inputs(1, (4,)), torch.ones(2, 4, requires_grad=True)
    for backend in ("cpu", "reference"):
        out = perturb(x, SIGMA, seed=1, samples=[0, 1])
        loss = (out * weight).sum()
        perturb(x, SIGMA, seed=1, samples=[2, 3], out=out, backend=backend)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
    buffer = torch.zeros(6, 4)
    before = buffer._version
    perturb(x, SIGMA, seed=1, samples=[0, 1], out=buffer[2:4])
    assert buffer._version > before


def test_out_that_requires_grad_is_refused():
    leaf = torch.zeros(2, 4, requires_grad=True)
    for out in (leaf, leaf * 2):
        for grad in (True, False):
            with (
                torch.set_grad_enabled(grad),
                pytest.raises(ValueError, match=r"^out must be .* autograd does not follow, got one "),
            ):
                perturb(inputs(1, (4,)), SIGMA, seed=1, samples=[0, 1], out=out)


def test_no_gradient_reaches_x():
    x = inputs(1, (4,)).requires_grad_()
    assert not perturb(x, SIGMA, seed=1, samples=[0, 1]).requires_grad


# The operator itself

INDEX = torch.int64
OPERATOR_ERRORS = {
    "x of doubles": (
        TypeError,
        r"^x must have dtype .*, got torch.float64",
        {"x": torch.zeros(2, 3, 4, dtype=torch.float64)},
    ),
    "x of rank 1": (ValueError, r"^x must have shape .*, got \[3\]", {"x": torch.zeros(3)}),
    "x empty": (ValueError, r"^x must have shape .*, got \[2, 0, 4\]", {"x": torch.zeros(2, 0, 4)}),
    "x strided": (ValueError, r"^x must be contiguous in .*, got strides ", {"x": torch.zeros(2, 4, 3).transpose(1, 2)}),
    "rows of int32": (TypeError, r"^rows must have dtype .*, got torch.int32", {"rows": torch.zeros(2, dtype=torch.int32)}),
    "rows too few": (ValueError, r"^rows must have shape \[2\], got \[1\]", {"rows": torch.zeros(1, dtype=INDEX)}),
    "rows of rank 2": (ValueError, r"^rows must have shape .*, got \[2, 1\]", {"rows": torch.zeros(2, 1, dtype=INDEX)}),
    "rows strided": (
        ValueError,
        r"^rows must be contiguous in .*, got strides ",
        {"rows": torch.zeros(4, dtype=INDEX)[::2]},
    ),
    "rows too large": (ValueError, r"^rows must lie in .*, got values from 0 to 2", {"rows": torch.tensor([0, 2])}),
    "rows elsewhere": (
        ValueError,
        r"^rows must be on .*, got one on 'meta'",
        {"rows": torch.zeros(2, dtype=INDEX, device="meta")},
    ),
    "samples of rank 0": (ValueError, r"^samples must have shape .*, got \[\]", {"samples": torch.tensor(1)}),
    "samples strided": (
        ValueError,
        r"^samples must be contiguous in .*, got strides ",
        {"samples": torch.zeros(4, dtype=INDEX)[::2]},
    ),
    "samples negative": (
        ValueError,
        r"^samples must lie in .*, got values from -1 to 0",
        {"samples": torch.tensor([0, -1])},
    ),
    "input_ids too few": (
        ValueError,
        r"^input_ids must have shape .*, got \[1\]",
        {"input_ids": torch.zeros(1, dtype=INDEX)},
    ),
    "input_ids too large": (
        ValueError,
        r"^input_ids must lie in .*, got values from 0 to 4294967296",
        {"input_ids": torch.tensor([0, 2**32])},
    ),
    "draw": (ValueError, r"^draw must be one of 'gaussian'.*, got 'normal'", {"draw": "normal"}),
    "sigma zero": (ValueError, r"^sigma must be .*, got 0.0", {"noise_scalars": [0.0]}),
    "sigma NaN": (ValueError, r"^sigma must be .*, got nan", {"noise_scalars": [math.nan]}),
    "sigma beyond float32": (ValueError, r"^sigma must be .*, got 1e\+39", {"noise_scalars": [1e39]}),
    "two scalars": (ValueError, r"^the parameters of the draw 'gaussian' must be .*sigma", {"noise_scalars": [1.0, 2.0]}),
    "two tensors": (ValueError, r"^the parameters .* or none\), got .* 2 tensors", {"noise_tensors": [torch.ones(3)] * 2}),
    "a tensor of another length": (ValueError, r"^noise_tensors\[0\] must .*", {"noise_tensors": [torch.ones(3)]}),
    "stream": (ValueError, r"^stream must be one of 0, 1, 2, 3, got 4", {"stream": 4}),
    "stream negative": (ValueError, r"^stream must be .*, got -1", {"stream": -1}),
    "scale too short": (
        ValueError,
        r"^scale must have shape \[3\], got \[2\]",
        {"scale": torch.ones(2), "shift": torch.ones(3)},
    ),
    "shift too long": (
        ValueError,
        r"^shift must have shape .*, got \[4\]",
        {"scale": torch.ones(3), "shift": torch.ones(4)},
    ),
    "scale of doubles": (
        TypeError,
        r"^scale must have dtype .*, got torch.float64",
        {"scale": torch.ones(3, dtype=torch.float64), "shift": torch.ones(3)},
    ),
    "shift strided": (
        ValueError,
        r"^shift must be contiguous in .*, got strides ",
        {"scale": torch.ones(3), "shift": torch.ones(6)[::2]},
    ),
    "scale without shift": (TypeError, r"^scale and shift must both be .*, got tensor.* and None", {"scale": torch.ones(3)}),
    "clamp of three": (ValueError, r"^clamp must be .*, got \(0.0, 1.0, 2.0\)", {"clamp": [0.0, 1.0, 2.0]}),
    "clamp reversed": (ValueError, r"^clamp must be .*, got \(1.0, 0.0\)", {"clamp": [1.0, 0.0]}),
    "clamp NaN": (ValueError, r"^clamp must be .*, got \(0.0, nan\)", {"clamp": [0.0, math.nan]}),
    "channels_last": (ValueError, r"^channels_last must be False unless .*, got True and 2 axes", {"channels_last": True}),
    "out too small": (ValueError, r"^out must have shape \[2, 3, 4\], got \[1, 3, 4\]", {"out": torch.zeros(1, 3, 4)}),
    "out of integers": (
        TypeError,
        r"^out must have dtype .*, got torch.int32",
        {"out": torch.zeros(2, 3, 4, dtype=torch.int32)},
    ),
    "out strided": (
        ValueError,
        r"^out must be contiguous in .*, got strides ",
        {"out": torch.zeros(2, 4, 3).transpose(1, 2)},
    ),
    "out elsewhere": (ValueError, r"^out must be on .*, got one on 'meta'", {"out": torch.zeros(2, 3, 4, device="meta")}),
    "out requires grad": (
        ValueError,
        r"^out must be .* autograd does not follow, got one ",
        {"out": torch.zeros(2, 3, 4, requires_grad=True)},
    ),
    "backend": (ValueError, r"^backend must be one of 'auto', .*, got 'fast'", {"backend": "fast"}),
}


def call_operator(**changes):
    index = torch.tensor([1, 0])
    arguments = {
        "x": inputs(2, (3, 4)),
        "rows": index,
        "input_ids": index + 3,
        "samples": index + 7,
        "draw": "gaussian",
        "noise_scalars": [0.3],
        "noise_tensors": [],
        "seed": -1,
    }
    arguments |= {"stream": 1, "scale": None, "shift": None, "clamp": None, "channels_last": False, "backend": "cpu"}
    arguments |= {"out": torch.zeros(2, 3, 4)}
    arguments |= changes
    torch.ops.rsfast.perturb(**arguments)
    return arguments["out"]


@pytest.mark.parametrize("case", OPERATOR_ERRORS)
def test_the_operator_checks_a_call_itself(case):
    """What would make a kernel read or write out of bounds is an error, by whatever way it is called."""
    error, message, changes = OPERATOR_ERRORS[case]
    with pytest.raises(error, match=message):
        call_operator(**changes)


def test_the_operator_refuses_what_shares_memory():
    memory = room(48)
    for argument, view in (("x", memory[10:34].view(2, 3, 4)), ("rows", memory[20:24].view(torch.int64))):
        with pytest.raises(ValueError, match=rf"^out must have memory of its own, got some that {argument} has"):
            call_operator(out=memory[:24].view(2, 3, 4), **{argument: view})


def test_the_operator_without_changes_is_perturb():
    keywords = {"rows": [1, 0], "input_ids": [4, 3], "samples": [8, 7], "seed": 2**64 - 1}
    assert_same_bits(call_operator(), perturb(inputs(2, (3, 4)), SIGMA, **keywords))


# One rounding


def to_float32(value):
    """The float32 nearest to a Fraction, ties to even, as a Fraction; normal range only."""
    if value == 0:
        return Fraction(0)
    exponent = value.numerator.bit_length() if value > 0 else (-value.numerator).bit_length()
    exponent -= value.denominator.bit_length() + 24
    while abs(value) / Fraction(2) ** exponent >= 2**24:
        exponent += 1
    while abs(value) / Fraction(2) ** exponent < 2**23:
        exponent -= 1
    return round(value / Fraction(2) ** exponent) * Fraction(2) ** exponent  # round() is to even


def test_fma_exactly(isa):
    """y = fma(sigma, z, x), then fma(y, scale, shift), each the float32 nearest to the exact rational."""
    x = inputs(1, (300,)) * 10
    z = perturb(torch.zeros(1, 300), Gaussian(1.0), seed=12, samples=[34])
    sigma, scale, shift = (float(np.float32(value)) for value in (0.1, 4.3668, -2.1179))
    found = perturb(x, Gaussian(sigma), seed=12, samples=[34])
    normalised = perturb(x, Gaussian(sigma), seed=12, samples=[34], scale=scale, shift=shift)
    for i in range(300):
        y = to_float32(Fraction(sigma) * Fraction(z[0, i].item()) + Fraction(x[0, i].item()))
        assert Fraction(found[0, i].item()) == y
        assert Fraction(normalised[0, i].item()) == to_float32(y * Fraction(scale) + Fraction(shift))


def test_clamp_bounds_are_float32(backend):
    """What exceeds a bound becomes the float32 nearest to it, which is infinite for a bound beyond float32."""
    low, high = 0.1, 0.7  # float32 has neither: the nearest are above and below them
    low32, high32 = np.float32(low), np.float32(high)
    assert float(low32) > low
    assert float(high32) < high
    x = torch.tensor([[-50.0, low, 0.1 - 1e-9, 0.4, 0.7 + 1e-8, high, 50.0]])
    noise = Gaussian(2.0**-60)  # sigma z + x is x
    for dtype in (torch.float32, torch.float64):
        found = perturb(x, noise, seed=1, samples=[0], clamp=(low, high), dtype=dtype, backend=backend)
        assert found.tolist() == [[float(v) for v in np.clip(x[0].numpy(), low32, high32)]]
    scale, shift = float(np.float32(3.1e7)), float(np.float32(-2.9e6))
    found = perturb(x, noise, seed=1, samples=[0], clamp=(low, high), scale=scale, shift=shift, backend=backend)
    exact = [
        to_float32(Fraction(float(v)) * Fraction(scale) + Fraction(shift)) for v in np.clip(x[0].numpy(), low32, high32)
    ]
    assert [Fraction(v) for v in found[0].tolist()] == exact
    found = perturb(x, noise, seed=1, samples=[0], clamp=(-1e300, high), backend=backend)
    assert_same_bits(found, perturb(x, noise, seed=1, samples=[0], clamp=(-math.inf, high), backend=backend))


def test_fma_next_to_a_tie(backend):
    """sigma z is half a unit of x, but for its last bits: a product or a sum rounded first, be it to float64, goes wrong."""
    cases, close = {"cpu": 800, "reference": 200}[backend], 0
    generator = random.Random(5)
    for sample in range(cases):
        z = perturb(torch.zeros(1, 1), Gaussian(1.0), seed=77, samples=[sample]).item()
        sigma = float(np.float32(0.5 / abs(z)))  # sigma z is 1/2 within 2^-24 of itself
        x = float(generator.randrange(2**23, 2**24))  # its unit is 1
        exact = Fraction(sigma) * Fraction(z) + Fraction(x)
        close += 0 < abs(abs(Fraction(sigma) * Fraction(z)) - Fraction(1, 2)) < Fraction(1, 2**30)
        found = perturb(torch.tensor([[x]]), Gaussian(sigma), seed=77, samples=[sample], backend=backend)
        assert Fraction(found.item()) == to_float32(exact)
    assert close > cases / 100  # cases where float64 cannot hold the sum


# Errors


def call(**changes):
    keywords = {"x": torch.zeros(2, 3, 4, 5), "noise": SIGMA, "seed": 0, "samples": [0, 1], **changes}
    return perturb(**keywords)


META = torch.device("meta")
ERRORS = {
    "x is no tensor": (TypeError, r"^x must be .*float32.*, got a list", {"x": [0.0]}),
    "x of bytes": (
        TypeError,
        r"^x must have dtype float32, got torch.uint8; .*float\(\) / 255",
        {"x": torch.zeros(2, 3, dtype=torch.uint8)},
    ),
    "x of doubles": (
        TypeError,
        r"^x must have dtype float32, got torch.float64; ",
        {"x": torch.zeros(2, 3, dtype=torch.float64)},
    ),
    "x of rank 1": (ValueError, r"^x must have shape .*, got \[3\]", {"x": torch.zeros(3)}),
    "no input": (ValueError, r"^x must have shape .*, got \[0, 3\]", {"x": torch.zeros(0, 3)}),
    "no element": (ValueError, r"^x must have shape .*, got \[2, 0\]", {"x": torch.zeros(2, 0)}),
    "x too large": (
        ValueError,
        r"^x must have at most 2\^34 elements .*, got 17179869185",
        {"x": torch.zeros(1).expand(1, 2**34 + 1)},
    ),
    "noise": (TypeError, r"^noise must be one of Gaussian.*, got 0.5", {"noise": 0.5}),
    "seed negative": (ValueError, r"^seed must be in .*2\^64\), got -1", {"seed": -1}),
    "seed 2^64": (ValueError, r"^seed must be .*, got 18446744073709551616", {"seed": 2**64}),
    "seed None": (TypeError, r"^seed must be an int, got None", {"seed": None}),
    "seed bool": (TypeError, r"^seed must be an int, got True", {"seed": True}),
    "seed float": (TypeError, r"^seed must be an int, got 1.0", {"seed": 1.0}),
    "samples negative": (ValueError, r"^samples must lie in .*, got values from -1 to 0", {"samples": [0, -1]}),
    "samples 2^56": (
        ValueError,
        r"^samples must lie in .*, got values from 0 to 72057594037927936",
        {"samples": [0, 2**56]},
    ),
    "samples range to 2^56": (ValueError, r"^samples must lie in .*, got range", {"samples": range(2**56 - 1, 2**56 + 1)}),
    "samples beyond int64": (TypeError, r"^samples must be int64 ", {"samples": [0, 2**70]}),
    "samples a number": (
        TypeError,
        r"^samples must be int64 \[B\], got 3; pass a list, a range or a tensor",
        {"samples": 3},
    ),
    "samples None": (TypeError, r"^samples must be .*, got None", {"samples": None}),
    "samples of int32": (
        TypeError,
        r"^samples must have dtype .*, got torch.int32",
        {"samples": torch.zeros(2, dtype=torch.int32)},
    ),
    "samples of rank 2": (ValueError, r"^samples must have shape .*, got \[2, 1\]", {"samples": [[0], [1]]}),
    "rows None": (
        ValueError,
        r"^rows must name the input of each of 3 samples, got None with 2 inputs",
        {"samples": range(3)},
    ),
    "rows too large": (ValueError, r"^rows must lie in .*, got values from 0 to 2", {"rows": [0, 2]}),
    "rows negative": (ValueError, r"^rows must lie in .*, got values from -1 to 1", {"rows": [-1, 1]}),
    "rows too few": (ValueError, r"^rows must have shape .*\[2\], got \[1\]", {"rows": [0]}),
    "rows of floats": (TypeError, r"^rows must have dtype .*, got torch.float32", {"rows": torch.zeros(2)}),
    "input_ids 2^32": (ValueError, r"^input_ids must lie in .*, got values from 0 to 4294967296", {"input_ids": [0, 2**32]}),
    "input_ids negative": (ValueError, r"^input_ids must lie in .*, got values from -3 to 0", {"input_ids": [0, -3]}),
    "input_ids too many": (ValueError, r"^input_ids must have shape .*\[2\], got \[3\]", {"input_ids": [0, 1, 2]}),
    "stream": (ValueError, r"^stream must be .*'estimation', .*, got 'test'", {"stream": "test"}),
    "stream a number": (ValueError, r"^stream must be .*, got 1", {"stream": 1}),
    "scale too long": (ValueError, r"^scale must .*\[3\].*, got \[4\]", {"scale": [1.0] * 4}),
    "scale of one": (ValueError, r"^scale must .*\[3\].*, got \[1\]", {"scale": [1.0]}),
    "scale a word": (TypeError, r"^scale must be .*, got 'a'", {"scale": "a"}),
    "scale NaN": (ValueError, r"^scale must be finite, got .*", {"scale": [1.0, math.nan, 1.0]}),
    "shift too short": (ValueError, r"^shift must .*\[3\].*, got \[2\]", {"shift": torch.zeros(2)}),
    "shift infinite": (ValueError, r"^shift must be finite, got inf", {"shift": math.inf}),
    "clamp reversed": (ValueError, r"^clamp must be .*low <= high, got \(1.0, 0.0\)", {"clamp": (1.0, 0.0)}),
    "clamp NaN": (ValueError, r"^clamp must be .*, got \(nan, 1.0\)", {"clamp": (math.nan, 1.0)}),
    "clamp above NaN": (ValueError, r"^clamp must be .*, got \(0.0, nan\)", {"clamp": (0.0, math.nan)}),
    "clamp a number": (TypeError, r"^clamp must be .*, got 1.0", {"clamp": 1.0}),
    "clamp of three": (TypeError, r"^clamp must be .*, got \(0, 1, 2\)", {"clamp": (0, 1, 2)}),
    "dtype": (
        TypeError,
        r"^dtype must be .*torch.float64, or a name: 'float32', .*, got torch.int32",
        {"dtype": torch.int32},
    ),
    "dtype complex": (TypeError, r"^dtype must be .*, got torch.complex64", {"dtype": torch.complex64}),
    "dtype a word": (ValueError, r"^dtype must be .* 'bfloat16', 'float64', got 'double'$", {"dtype": "double"}),
    "dtype of NumPy": (TypeError, r"^dtype must be .*, got <class 'numpy.float32'>", {"dtype": np.float32}),
    "channels_last of rank 2": (
        ValueError,
        r"^channels_last must be False unless .*, got True and 2 axes",
        {"x": torch.zeros(2, 3, 4), "channels_last": True},
    ),
    "channels_last of rank 5": (
        ValueError,
        r"^channels_last must be False unless .*, got True and 5 axes",
        {"x": torch.zeros(2, 1, 1, 1, 1, 1), "channels_last": True},
    ),
    "out of a wrong shape": (ValueError, r"^out must have shape .*\[2, 3, 4, 5\], got .*", {"out": torch.zeros(2, 3, 20)}),
    "out of a wrong dtype": (
        ValueError,
        r"^out must have dtype torch.float32, as dtype is, got torch.float16",
        {"out": torch.zeros(2, 3, 4, 5, dtype=torch.float16), "dtype": torch.float32},
    ),
    "out of integers": (
        TypeError,
        r"^dtype must be .*, got torch.int64",
        {"out": torch.zeros(2, 3, 4, 5, dtype=torch.int64)},
    ),
    "out strided": (ValueError, r"^out must be contiguous in .*, got strides ", {"out": torch.zeros(2, 3, 4, 10)[..., ::2]}),
    "out broadcast": (
        ValueError,
        r"^out must be contiguous in .*, got strides ",
        {"out": torch.zeros(1, 3, 4, 5).expand(2, 3, 4, 5)},
    ),
    "out channels_last": (
        ValueError,
        r"^out must be contiguous in .*, got strides ",
        {"out": torch.zeros(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)},
    ),
    "out not channels_last": (
        ValueError,
        r"^out must be contiguous in .*channels_last, got strides ",
        {"out": torch.zeros(2, 3, 4, 5), "channels_last": True},
    ),
    "out elsewhere": (ValueError, r"^out must be on .*, got one on 'meta'", {"out": torch.zeros(2, 3, 4, 5, device=META)}),
    "backend unknown": (ValueError, r"^backend must be one of 'auto', .*'cpu'.*, got 'fast'", {"backend": "fast"}),
    "backend None": (ValueError, r"^backend must be one of 'auto', .*, got None", {"backend": None}),
    "no kernel for the device": (
        ValueError,
        r"^backend must be .* on 'meta', got 'auto', and no kernel can \(cpu: .*; cuda: .*; triton: .* on a GPU, got .*\)",
        {"x": torch.zeros(2, 3, device=META)},
    ),
    "cpu elsewhere": (
        ValueError,
        r"^backend must be one that can run on 'meta', got 'cpu': its tensors must be on the CPU",
        {"x": torch.zeros(2, 3, device=META), "backend": "cpu"},
    ),
    "samples elsewhere": (
        ValueError,
        r"^samples must be on .*, got one on 'meta'",
        {"samples": torch.zeros(2, dtype=torch.int64, device=META)},
    ),
    "rows elsewhere": (
        ValueError,
        r"^rows must be on .*, got one on 'meta'",
        {"rows": torch.zeros(2, dtype=torch.int64, device=META)},
    ),
    "input_ids elsewhere": (
        ValueError,
        r"^input_ids must be on .*, got one on 'meta'",
        {"input_ids": torch.zeros(2, dtype=torch.int64, device=META)},
    ),
    "scale elsewhere": (TypeError, r"^scale must be a number .*, got tensor", {"scale": torch.ones(3, device=META)}),
}


OVERLAPPED = inputs(2, (3, 4))
MORE_ERRORS = {
    "samples of fractions": (TypeError, r"^samples ", {"samples": [0, 1.5]}),
    "rows of fractions": (TypeError, r"^rows ", {"rows": [0, 0.5]}),
    "input_ids of fractions": (TypeError, r"^input_ids ", {"input_ids": np.array([0.0, 1.5])}),
    "samples range beyond int64": (ValueError, r"^samples ", {"samples": range(2**63, 2**63 + 2)}),
    "samples range far beyond": (ValueError, r"^samples ", {"samples": range(2**70, 2**70 + 2)}),
    "out no tensor": (TypeError, r"^out must be a tensor, got 'x'", {"out": "x"}),
    "out in x": (ValueError, r"^out ", {"x": OVERLAPPED, "out": OVERLAPPED, "rows": [1, 0]}),
    "x sparse": ((TypeError, ValueError), r"^x ", {"x": torch.zeros(2, 3).to_sparse()}),
}


@pytest.mark.parametrize("case", MORE_ERRORS)
def test_more_errors(case):
    error, message, changes = MORE_ERRORS[case]
    with pytest.raises(error, match=message):
        call(**changes)


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case):
    """Each names the argument first, says what it was, and leaves `out` alone."""
    error, message, changes = ERRORS[case]
    with pytest.raises(error, match=message):
        call(**changes)
    if {"out", "x", "samples", "dtype"}.isdisjoint(changes):
        out = poison((2, 3, 4, 5))
        with pytest.raises(error, match=message):
            call(**changes, out=out)
        assert out.isnan().all()


def test_a_call_without_changes_is_right():
    """So that every error above is of what it changes."""
    assert call().shape == (2, 3, 4, 5)


def test_check_stream_knows_the_four():
    for stream in ("selection", "estimation", "training", "user"):
        assert ops.check_stream(stream) == stream
        call(stream=stream)
