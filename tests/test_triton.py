"""The Triton backend: the bits and the integers of the reference, and kernels that compile as they should without a GPU."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import test_accumulate as accumulating
import test_perturb as perturbing
import torch
from conftest import assert_same_bits, made_once, poison
from test_grid_gaussian import tied
from test_marks import check_full, check_many_wrong_rows, check_wrong_classes, check_wrong_rows
from test_words import hostile_words

from rsfast.heads import ClippedLogits, Softmax, Sparsemax, Votes
from rsfast.noise import STREAMS, CorrelatedGaussian, Gaussian, Mask
from rsfast.ops import BACKENDS, accumulate, accumulator, perturb, perturber, words
from rsfast.ops.registry import Backend
from rsfast.ops.tally import Tally

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

import triton
from triton.backends.compiler import GPUTarget
from triton_interpreter import interpret

from rsfast.ops import triton_accumulate, triton_kernels, triton_noise, triton_perturb

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:overflow encountered"),  # by NumPy, in the interpreter
]
ROOT = Path(__file__).resolve().parent.parent
INTERPRETED = not torch.cuda.is_available()
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")


@pytest.fixture(autouse=True)
def _kernels_run(monkeypatch):
    """On the GPU if there is one, and else in the interpreter."""
    if INTERPRETED:
        interpret(monkeypatch)
    monkeypatch.setitem(BACKENDS, "triton", Backend("triton", lambda: triton_kernels, devices=(DEVICE.type,)))


# perturb


def check_perturb(x, noise=perturbing.SIGMA, **keywords):
    """Fail unless the kernel gives what the reference gives, and leaves x alone. Returns that."""
    expected = perturb(x, noise, **keywords, backend="reference")
    rank, last = x.ndim, keywords.get("channels_last", False)
    layout = perturbing.memory_format((0,) * (rank - 1), last)
    out = poison(expected.shape, expected.dtype, layout).to(DEVICE)
    on_device = x.to(DEVICE)
    assert perturb(on_device, noise, **keywords, out=out, backend="triton") is out
    assert_same_bits(out.cpu(), expected)
    assert_same_bits(on_device.cpu(), x)
    return expected


@pytest.mark.parametrize("dtype", perturbing.TYPES, ids=str)
def test_perturb_is_the_reference(dtype):
    """Every shape and layout in one of the types; three rows, as each is a program for itself."""
    for shape, channels_last in perturbing.LAYOUTS[perturbing.TYPES.index(dtype) :: len(perturbing.TYPES)]:
        keywords = perturbing.arguments(shape, "all", dtype, channels_last)
        check_perturb(**keywords | {"samples": [3, 2**40, 2**32 - 1], "rows": [2, 0, 1]})


def test_low_words_decide_ties():
    assert_same_bits(tied("triton", DEVICE), tied("reference"))


@pytest.mark.parametrize("transform", perturbing.TRANSFORMS)
def test_transforms(transform):
    """Where a tile holds one channel and where it holds many, and a channel that begins within a block of four."""
    for shape, channels_last in (((5, 3), False), ((3, 16, 32), True), ((2, 17, 31), False), ((2, 17, 31), True)):
        keywords = perturbing.arguments(shape, transform, torch.float32, channels_last)
        check_perturb(**keywords | {"samples": [3, 2**40], "rows": [2, 0]})


def test_noise_with_a_spectrum():
    """The kernel draws the white noise; on a GPU another FFT shapes it."""
    noise, keywords = CorrelatedGaussian(np.arange(1.0, 10.0).reshape(1, 9)), {"seed": 1, "samples": range(5), "scale": 2.0}
    x = perturbing.inputs(1, (60, 1, 17))  # white noise is made 2^16 elements at a time, and a program takes a row of it
    found = perturb(x.to(DEVICE), noise, **keywords, backend="triton")
    torch.testing.assert_close(found.cpu(), perturb(x, noise, **keywords), rtol=3e-7, atol=1e-6)


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1, 2**32, 2**63, 2**64 - 1])
def test_extreme_counters(seed):
    x = perturbing.inputs(3, (9,))
    indices = {"samples": [0, 2**32 - 1, 2**32, 2**56 - 1], "rows": [0, 1, 2, 2], "input_ids": [0, 2**31, 2**32 - 1]}
    found = [check_perturb(x, seed=seed, stream=stream, **indices) for stream in STREAMS]
    assert len(torch.cat(found).unique()) > 100


@pytest.mark.parametrize("clamp", [None, (-1.0, 1.0), (-math.inf, 2.0), (0.0, math.inf)])
@pytest.mark.parametrize("dtype", perturbing.TYPES, ids=str)
def test_values_that_are_not_ordinary(dtype, clamp):
    """NaN, infinity, zeros, subnormals and what overflows, beside ordinary values."""
    hostile = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-45, -1e-40, 2.0**-126, 3.4e38, -3.4e38, 65519.9, 65520.0, 1e5]
    x = perturbing.inputs(1, (2, 30))
    x[0, 0, : len(hostile)] = torch.tensor(hostile)
    keywords = {"seed": 1, "samples": range(3), "clamp": clamp, "dtype": dtype}
    check_perturb(x, **keywords)
    check_perturb(x, **keywords, scale=[2.0, 3e38], shift=[0.5, -1.0])
    check_perturb(x, Gaussian(2.0**-126), **keywords)
    check_perturb(x * 2.0**-126, Gaussian(2.0**-126), **keywords)
    check_perturb(x * 0, Gaussian({torch.float16: 2.0**-24}.get(dtype, 2.0**-126)), **keywords)
    check_perturb(x, Gaussian(3e38), **keywords)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_rounding_at_every_boundary(dtype):
    """The midpoints between neighbours of the type, of any exponent, and the float32 values beside them."""
    bits = torch.arange(0x7C00 if dtype == torch.float16 else 0x7F80, dtype=torch.int16)[37 << 7 :: 13]
    low, high = bits.view(dtype).double(), (bits + 1).view(dtype).double()
    middle = ((low + high) / 2).float()
    middle = middle[middle.isfinite()]
    beside = [torch.nextafter(middle, torch.full_like(middle, to)) for to in (0.0, math.inf)]
    points = torch.cat([middle, *beside])
    x = torch.cat([points, -points])[None]
    found = check_perturb(x, Gaussian(2.0**-126), seed=0, samples=[0], dtype=dtype)
    assert_same_bits(found, x.to(dtype))


@pytest.mark.parametrize("channels_last", [False, True])
def test_more_programs_than_a_grid_holds(channels_last, monkeypatch):
    """Channels beyond 65535 are left to further launches, and tiles to the programs there are; here those beyond 2."""
    monkeypatch.setattr(triton_perturb, "MOST", 2)
    for shape in ((5, 3, 700), (3, 50, 45)):
        x = perturbing.inputs(1, shape)
        check_perturb(x, seed=5, samples=[8], scale=[1.0 + c for c in range(shape[0])], channels_last=channels_last)


def test_perturb_with_indices_out_of_range():
    """A row that cannot be is NaN; the others do not notice."""
    rows, samples = torch.tensor([1, 2, -1, 2**62, 0, 0, 0]), torch.tensor([4, 4, 4, 4, 2**56, -1, 5])
    indices = {"rows": rows.to(DEVICE), "samples": samples.to(DEVICE)}
    for noise, shape, channels_last in ((perturbing.SIGMA, (3, 40), False), (Mask(0.5, fill=0.25), (3, 2, 4), True)):
        x = perturbing.inputs(2, shape)
        expected = perturb(x, noise, seed=3, rows=[1], samples=[4], input_ids=[0, 1], channels_last=channels_last)
        for input_id in (0, -1, 2**32):  # of input 0
            input_ids = torch.tensor([input_id, 1], device=DEVICE)
            keywords = {"seed": 3, "input_ids": input_ids, "channels_last": channels_last, "backend": "triton"}
            found = perturb(x.to(DEVICE), noise, **indices, **keywords).cpu()
            assert_same_bits(found[:1], expected)
            assert found[1:6].isnan().all()
            assert found[6].isnan().all() == (input_id != 0)


def test_a_program_of_several_tiles(monkeypatch):
    """Each tile has its own blocks, and the last program of a channel may have fewer tiles."""
    monkeypatch.setattr(triton_perturb, "FILL", 1)
    monkeypatch.setattr(triton_perturb, "MOST_TILES", 2)
    for shape, channels_last in (((2500,), False), ((2, 50, 44), True), ((5, 17, 63), True)):
        scale = [1.0 + c for c in range(shape[0])] if channels_last else None
        keywords = {"samples": [8], "scale": scale, "channels_last": channels_last}
        check_perturb(perturbing.inputs(1, shape), seed=5, dtype=torch.bfloat16, **keywords)


@pytest.mark.skipif(not INTERPRETED, reason="the other GPU has the other root")
def test_the_root_for_amd(monkeypatch):
    """sqrt_rn has the bits of the sequence that NVIDIA's GPUs are given."""
    monkeypatch.setattr(triton_noise, "NVIDIA", False)
    check_perturb(perturbing.inputs(1, (3000,)), seed=5, samples=[8])


# noise of words


@pytest.mark.parametrize("draw", words.DRAWS)
def test_noise_of_words(draw):
    """Blocks of hostile words, of which one tile is not full."""
    given = hostile_words(draw).view(-1, 4)[::13].flatten()
    found = poison(given.shape, torch.float32).to(DEVICE)
    triton_kernels.noise_of_words(draw, given.to(DEVICE), found)
    assert_same_bits(found.cpu(), words.noise_of_words(draw, given, backend="reference"))


# accumulate


def check_accumulate(logits, rows, *, heads=accumulating.HEADS, slots=accumulating.SLOTS, tracked=None, times=1):
    """Fail unless the kernel makes the integers of the reference. Returns those."""
    expected = Tally(slots, logits.shape[1], heads, tracked_classes=tracked)
    found = Tally(slots, logits.shape[1], heads, tracked_classes=tracked, device=DEVICE)
    on_device = logits if INTERPRETED else logits.to(DEVICE)
    for _ in range(times):
        accumulate(logits, expected, rows=rows, backend="reference")
        accumulate(on_device, found, rows=rows.to(DEVICE), backend="triton")
    accumulating.assert_same(found.to("cpu"), expected)
    return expected


FEW = (Votes(), *accumulating.HEADS[1::3])  # of every kind: what is tested with these does not depend on temperatures
SIZES = [(2, 300), (3, 1), (10, 129), (17, 15), (100, 40), (1000, 5), (2048, 1), (2049, 2), (5000, 2)]


@pytest.mark.parametrize(("classes", "batch"), SIZES)
def test_accumulate_is_the_reference(classes, batch):
    """Votes and all heads, of rows whose slots are in no order, and in one slot; twice, to add to what is there."""
    logits = accumulating.hostile_logits(classes, batch)
    check_accumulate(logits, accumulating.some_rows(batch), times=2)
    check_accumulate(logits, torch.full((batch,), 2))


@pytest.mark.parametrize("dtype", accumulating.TYPES, ids=str)
def test_logits_of_any_type(dtype):
    for classes, batch in ((10, 150), (1000, 3), (3000, 2)):
        logits = accumulating.hostile_logits(classes, batch, dtype, seed=1)
        check_accumulate(logits, accumulating.some_rows(batch), heads=accumulating.HEADS[3:10:3])


def test_logits_of_any_strides():
    heads = (Votes(), Softmax(0.5), Sparsemax(2.0), ClippedLogits(-1.0, 1.0))
    for classes, batch in ((17, 70), (2100, 3)):
        logits, rows = accumulating.hostile_logits(classes, batch), accumulating.some_rows(batch)
        wide = torch.full((2 * batch, 2 * classes + 7), math.nan)
        wide[::2, 7::2] = logits
        row, column = torch.randn(classes), torch.randn(batch, 1)
        for view in (logits.t().contiguous().t(), wide[::2, 7::2], torch.cat([logits, logits])[batch:]):
            check_accumulate(view, rows, heads=heads)
        check_accumulate(row.expand(batch, classes), rows, heads=heads)
        check_accumulate(column.expand(batch, classes), rows, heads=heads)


def test_votes_alone():
    for classes, batch in ((2, 40), (1000, 9), (2500, 3)):
        check_accumulate(accumulating.hostile_logits(classes, batch), accumulating.some_rows(batch), heads=(Votes(),))


@pytest.mark.parametrize(
    ("classes", "batch", "count"), [(2, 130, 1), (10, 129, 2), (1000, 5, 3), (2048, 2, 8), (2100, 9, 3)]
)
def test_histograms(classes, batch, count):
    """Of rows whose slots are in no order, and in one slot; twice."""
    logits, tracked = accumulating.hostile_logits(classes, batch), accumulating.some_classes(classes, count, heads=FEW)
    check_accumulate(logits, accumulating.some_rows(batch), heads=FEW, tracked=tracked, times=2)
    check_accumulate(logits, torch.full((batch,), 2), heads=FEW, tracked=tracked)


def test_bins_at_every_edge():
    logits, heads = accumulating.edge_logits(), (ClippedLogits(0.0, 1.0),)
    for wide in (logits, torch.nn.functional.pad(logits, (0, 2100))[::7]):
        found = check_accumulate(
            wide, torch.zeros(len(wide), dtype=torch.int64), heads=heads, slots=1, tracked=torch.tensor([[[0, 1, 0]]])
        )
        assert (found.bin_counts > 0).any(2).sum() > 50


def test_a_slot_a_row():
    for classes in (10, 2100):
        logits = accumulating.hostile_logits(classes, 12, seed=2)
        heads = (Softmax(1.0), Sparsemax(1.0))
        check_accumulate(logits, torch.randperm(12, generator=accumulating.generator(0)), heads=heads, slots=12)


def test_extreme_logits():
    """Differences that overflow or are subnormal, ties of zeros, and float64 beyond float32."""
    rows = [[3e38, -3e38, 3e38], [-3e38, 3e38, 0.0], [-3.4e38] * 3, [-0.0, 0.0, -1.0], [1e-45, 0.0, 3e-45], [0.0, 1e39, 0.0]]
    rows += [[2.0**128 - 2.0**104, 0.0, 0.0], [2.0**128 - 2.0**103, 0.0, 0.0], [-1e300, -7.0, -math.inf]]
    logits = torch.tensor(rows, dtype=torch.float64)
    heads = (Softmax(1.0), Softmax(1e-38), Sparsemax(1e-38), Sparsemax(1.0), ClippedLogits(-3e38, 3e37))
    for dtype in accumulating.TYPES:
        check_accumulate(logits.to(dtype), torch.arange(9), heads=heads, slots=9)
    check_accumulate(torch.tensor(rows[:5]).repeat(1, 700), torch.arange(5), heads=heads, slots=5)


@pytest.mark.parametrize("dtype", accumulating.TYPES, ids=str)
def test_masked_classes(dtype):
    """As very low logits, whether a row is held or read in chunks; and rows of nothing else, or with NaN or +inf besides."""
    for classes, batch, share in accumulating.MASKS:
        masked, low = accumulating.masked_logits(classes, batch, dtype, share)
        rows, tracked = accumulating.some_rows(batch), accumulating.some_classes(classes, 2, heads=FEW)
        expected = check_accumulate(masked, rows, heads=FEW, tracked=tracked)
        low_ones = accumulating.fill(low, rows, heads=FEW, tracked=tracked, backend="reference")
        accumulating.assert_same(expected, low_ones)
    for classes in (3, 2100):
        rows = torch.full((4, classes), -math.inf, dtype=dtype)
        rows[1, 1], rows[2, classes - 1], rows[3, 0] = math.nan, math.inf, 5.0
        tracked = accumulating.some_classes(classes, 2, heads=FEW)
        found = check_accumulate(rows, torch.arange(4), heads=FEW, tracked=tracked)
        assert found.counts[:, [0, -1]].tolist() == [[0, 1], [0, 1], [0, 1], [1, 0]]


def test_a_million_classes(monkeypatch):
    """K = 2^20, the largest: sums of all-equal and of random rows do not overflow. In large chunks, for the interpreter."""
    if INTERPRETED:
        monkeypatch.setattr(triton_accumulate, "_CHUNK", 1 << 17)
    draw = torch.randn(1 << 20, generator=accumulating.generator(3))
    heads = (Softmax(1.0), Sparsemax(10.0), ClippedLogits(-1.0, 1.0))
    found = check_accumulate(torch.stack([torch.zeros(1 << 20), draw]), torch.tensor([1, 0]), heads=heads, slots=2)
    assert (found.sums[1, :2] == accumulating.ONE >> 20).all()


def test_heads_shared_out(monkeypatch):
    """One program for all heads, a few programs, one each: the same."""
    logits, rows = accumulating.hostile_logits(10, 20), accumulating.some_rows(20)
    for programs in (1, 5, 1000):
        monkeypatch.setattr(triton_accumulate, "_FILL", programs)
        check_accumulate(logits, rows)


@pytest.mark.parametrize("check", [check_wrong_rows, check_many_wrong_rows, check_full, check_wrong_classes])
def test_what_is_out_of_range_voids_the_tally(check):
    check("triton", DEVICE)


# Compilation, which needs no GPU


def test_batches_of_a_run_share_their_kernels(monkeypatch):
    """Whatever their size, and wherever the slices of an array begin that they are given, nothing is compiled anew."""
    monkeypatch.undo()  # the kernels, not the interpreter's
    monkeypatch.setitem(BACKENDS, "triton", Backend("triton", lambda: triton_kernels, devices=("cpu",)))
    names = {"device": lambda: "none", "stream": lambda device: 0, "target": lambda: GPUTarget("cuda", 90, 32)}
    driver = SimpleNamespace(**{f"get_current_{name}": value for name, value in names.items()})
    monkeypatch.setattr("triton.runtime.jit.driver", SimpleNamespace(active=driver))
    found = set()  # what would be compiled; nothing is, nor launched
    hook = lambda *, key, fn, **_: found.add((fn.name, key)) or True  # noqa: E731
    monkeypatch.setattr(triton.knobs.runtime, "jit_cache_hook", hook)
    for shape, classes in (((3, 8, 8), 1000), ((5, 8, 8), 3000)):  # each with a kernel of perturb and one of accumulate
        keywords = {"seed": 1, "channels_last": True, "backend": "triton"}
        run = perturber(torch.zeros(2, *shape), Gaussian(1.0), input_ids=[0, 1], **keywords)
        add = accumulator(Tally(2, classes, (Softmax(1.0),)), backend="triton")
        for size, start in ((1, 0), (16, 0), (17, 0), (17, 1), (17, 16)):
            places = torch.zeros(3, size, dtype=torch.int64)[:, start:]
            out = torch.zeros(size, *shape).contiguous(memory_format=torch.channels_last)[start:]
            run(out, places, "selection" if start else "estimation")
            add(torch.zeros(size, classes)[start:], places)
    assert len({name for name, _ in found}) == len(found) == 4


COMPILE = """
import json, re, sys
from functools import partial
from types import SimpleNamespace
import torch, triton
from triton.backends.compiler import GPUTarget
from benchmarks.launches import triton_launches
from rsfast.noise import DRAWS, GridGaussian, NoiseParameters
from rsfast.ops import triton_accumulate, triton_kernels, triton_noise, triton_perturb, triton_words

TABLES = {"grid_gaussian": [torch.from_numpy(each) for each in GridGaussian(0.5).parameters((1,)).tensors]}
index = torch.zeros(4, dtype=torch.int64)
for target, operation, dtype, shape, full, channels_last in json.loads(sys.argv[1]):
    triton_noise.NVIDIA = triton.language.constexpr(target[0] == "cuda")
    triton_perturb.WARPS = triton_perturb.THREADS // target[2]
    dtype, x = getattr(torch, dtype), torch.zeros(4, *shape)
    if operation.startswith("perturb"):
        channels = torch.ones(shape[0]) if full else None
        module, run = triton_perturb, partial(triton_kernels.perturb, SimpleNamespace(
            x=x, rows=index, input_ids=index, samples=index, seed=0, stream=1, scale=channels, shift=channels,
            noise=NoiseParameters(
                draw := operation.partition(" ")[2] or "gaussian", (0.5,) * len(DRAWS[draw].scalars), TABLES.get(draw, ())
            ),
            clamp=(0.0, 1.0) if full else None, channels_last=channels_last, out=x.to(dtype),
        ))
    elif operation.startswith("words"):
        module, run = triton_words, partial(triton_kernels.noise_of_words, operation.partition(" ")[2], index.int(), x)
    else:
        module, run = triton_accumulate, partial(triton_kernels.accumulate, SimpleNamespace(
            logits=x.to(dtype), rows=index, parameters=torch.zeros(3, 4), n=index, counts=index, sums=index, squares=index,
            tracked_classes=torch.zeros(4, 3, full or 0, dtype=torch.int64), bin_counts=index, bin_sums=index,
        ))
    *_, launch = triton_launches(module, GPUTarget(*target), run)
    metadata, text = launch.compiled.metadata, launch.compiled.asm["ptx" if target[0] == "cuda" else "amdgcn"]
    words = ["fma.rn.f32", "st.global.v4.b32", ".local", ".ftz", "cvt.rn.bf16x2.f32", "cvt.rn.f16x2.f32", "sqrt.rn.f32"]
    words += ["rsqrt.approx.ftz.f32", "st.shared", "v_sqrt_f32_e32", "v_rsq_f32_e32", "v_cvt_pk_bf16_f32", "ScratchSize: 0"]
    words += [".amdhsa_float_denorm_mode_32 3", ".amdhsa_float_round_mode_32 0", "global_store_dwordx4"]
    words = {word: len(re.findall(re.escape(word) + r"\\b", text)) for word in words}
    print(json.dumps({"fusion": metadata.enable_fp_fusion, "warps": metadata.num_warps, **words}))
"""

SM90, SM80, GFX942, GFX950 = ("cuda", 90, 32), ("cuda", 80, 32), ("hip", "gfx942", 64), ("hip", "gfx950", 64)
IMAGE = (3, 224, 224)
# Target, operation, type, shape; of perturb whether with all transforms, of accumulate how many classes are tracked; layout.
VARIANTS = [
    (SM90, "perturb", "float32", IMAGE, False, False),
    *((SM90, "perturb", dtype, IMAGE, True, False) for dtype in ("float32", "float16", "bfloat16")),
    *((SM90, "perturb", dtype, IMAGE, True, True) for dtype in ("float32", "bfloat16")),
    (SM90, "perturb", "float32", (2, 17, 31), True, True),
    *((SM90, "perturb", dtype, (3, 5, 7), True, False) for dtype in ("float16", "float64")),
    *((target, "perturb laplace", "bfloat16", IMAGE, True, False) for target in (SM90, GFX942)),
    *(
        (target, f"perturb {draw}", "bfloat16", IMAGE, True, False)
        for draw in ("uniform", "grid_gaussian", "splitting", "mask")
        for target in (SM90, GFX942)
    ),
    *((SM90, "accumulate", dtype, (10,), None, None) for dtype in ("float32", "float64")),
    *((SM90, "accumulate", dtype, (classes,), None, None) for dtype, classes in (("bfloat16", 1000), ("float16", 5000))),
    *((SM90, "accumulate", "float32", (classes,), tracked, None) for classes, tracked in ((10, 2), (5000, 1))),
    *((target, "perturb", "bfloat16", IMAGE, True, True) for target in (SM80, GFX942, GFX950)),
    (SM90, "words gaussian", "float32", (1,), None, None),
    *((target, "accumulate", "float32", (classes,), None, None) for target in (SM80, GFX942) for classes in (10, 5000)),
    (GFX950, "accumulate", "float32", (5000,), None, None),
]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """What came of each variant, compiled in one process without the interpreter."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", COMPILE, json.dumps(VARIANTS)]

    def compile_all(folder):
        cached = environment | {"TRITON_CACHE_DIR": str(folder / "cache")}
        found = subprocess.run(command, cwd=ROOT, env=cached, capture_output=True, text=True)
        assert found.returncode == 0, found.stderr[-4000:]
        (folder / "facts").write_text(found.stdout)

    facts = made_once(tmp_path_factory, "triton", compile_all) / "facts"
    return [json.loads(line) for line in facts.read_text().splitlines()]


def test_every_variant_compiles(compiled):
    """For NVIDIA's Ampere and Hopper and AMD's MI300 and MI350, without contraction."""
    assert len(compiled) == len(VARIANTS)
    assert not any(facts["fusion"] for facts in compiled)


def test_ptx(compiled):
    """No local memory, nothing flushed to zero but what a root begins with, and every fma one that the source asks for."""
    for (target, operation, dtype, shape, full, channels_last), facts in zip(VARIANTS, compiled, strict=True):
        if target[0] != "cuda":
            continue
        roots = facts["rsqrt.approx.ftz.f32"]
        assert facts[".local"] == facts["sqrt.rn.f32"] == 0
        assert facts[".ftz"] == roots
        lanes = 32 * facts["warps"]
        if not operation.startswith("accumulate"):
            draw = operation.partition(" ")[2] or "gaussian"
            blocks = triton_perturb.BLOCKS // lanes
            wide = channels_last and shape == IMAGE  # all channels, with the words of a thread in the order of the output
            blocks *= 3 if wide else 1
            # A block has two pairs, each of 10 fma for the logarithm, 2 for the root, 4 for the sine and 4 for the cosine;
            # and four elements. Of Laplace noise each element has its own logarithm, and no root. On a grid, two fma make a
            # quotient; splitting noise has three edges besides, of five fma, since the first is that of the cell 0.
            drawn = {"gaussian": 2 * 20, "laplace": 4 * 9, "grid_gaussian": 4 * 2, "splitting": 4 * 7}.get(draw, 0)
            added = 4 if operation.startswith("perturb") and draw in ("gaussian", "laplace", "uniform") else 0
            assert facts["fma.rn.f32"] == blocks * (drawn + added + (4 if full else 0))
            assert roots == (2 * blocks if draw == "gaussian" else 0)
            if shape == IMAGE:  # 16 bytes a store, halves converted two by two, and nothing exchanged between threads
                assert facts["st.global.v4.b32"] == blocks * (1 if dtype == "float32" else 0.5)
                pairs = facts["cvt.rn.f16x2.f32"] + facts["cvt.rn.bf16x2.f32"]
                assert pairs == (0 if dtype == "float32" else 2 * blocks)
                assert draw == "grid_gaussian" or facts["st.shared"] == 0
        else:
            classes = shape[0]
            held = triton_accumulate._TILE
            held = 2 * triton_accumulate._CHUNK if classes > triton_accumulate._TILE else held  # once to sum, once to score
            scored = held // lanes + (
                1 if full and classes > triton_accumulate._TILE else 0
            )  # the tracked ones a second time
            assert facts["fma.rn.f32"] == 8 * scored


def test_amdgcn(compiled):
    """Nothing flushed to zero or left to scratch memory, rounding to nearest, and from Triton 3.9 on no approximate root."""
    old = tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9)  # takes a reciprocal root and steps of Newton's
    for (target, operation, *_), facts in zip(VARIANTS, compiled, strict=True):
        if target[0] == "hip":
            assert facts[".amdhsa_float_denorm_mode_32 3"] == facts[".amdhsa_float_round_mode_32 0"] == 1
            assert facts["ScratchSize: 0"] == 1
            assert facts["v_rsq_f32_e32"] == 0 or old
            assert (facts["v_sqrt_f32_e32"] + facts["v_rsq_f32_e32"] > 0) == (operation == "perturb")
