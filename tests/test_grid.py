"""The CUDA kernels' own code, compiled for the host: equal to the reference, whatever the order of threads and blocks."""

import ctypes
import functools
import itertools
import random
import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import assert_same_bits, made_once
from test_accumulate import (
    HEADS,
    MASKS,
    TYPES,
    assert_same,
    edge_scores,
    expected_masked,
    fill,
    hostile_logits,
    masked_logits,
    some_classes,
    some_rows,
)
from test_accumulate import expected as expected_tally
from test_grid_gaussian import tied
from test_marks import check_full, check_many_wrong_rows, check_wrong_classes, check_wrong_rows
from test_perturb import LAYOUTS, TRANSFORMS, arguments, inputs, poisoned
from test_perturb import TYPES as OUTPUT_TYPES
from test_perturb import expected as expected_batch
from test_words import hostile_words

from benchmarks.gpu_device import find_tool
from benchmarks.launches import cuobjdump
from benchmarks.sass import parse
from rsfast import Gaussian, Mask, Softmax, Sparsemax, Votes, noise, ops, sequences
from rsfast.ops import _cpu, arithmetic, jobs, words
from rsfast.ops.calls import Perturbation
from rsfast.ops.registry import Backend

ROOT = Path(__file__).resolve().parent.parent
DRAWS = jobs.check_extension(_cpu)
ONE_SIGMA = Gaussian(1.0).parameters((1,))
NVCC = shutil.which("nvcc")
H200 = {"multiprocessors": 132, "most_shared": 227 << 10}


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    """tests/grid.cpp, compiled as the CPU's kernels are: no contraction. More optimisation takes longer than the tests."""
    compiler = shlex.split(sysconfig.get_config_var("CXX"))
    flags = ["-std=c++17", "-O1", "-ffp-contract=off", "-Wall", "-Wno-unused-function", "-fPIC", "-shared"]

    def build(folder):
        subprocess.run([*compiler, *flags, ROOT / "tests" / "grid.cpp", "-o", folder / "grid.so"], check=True)

    library = ctypes.CDLL(str(made_once(tmp_path_factory, "grid", build) / "grid.so"))
    library.run_perturb.restype = library.run_accumulate.restype = ctypes.c_char_p
    library.divided.restype = ctypes.c_uint64
    library.different_logarithms.restype = library.wrong_roots.restype = ctypes.c_int64
    return library


@pytest.fixture(params=["forwards", "backwards"])
def grid(library, monkeypatch, request):
    """backend="cpu" runs the CUDA kernels on the host. `grid.device` is the GPU that they are laid out for."""
    backwards, device = request.param == "backwards", dict(H200)

    def check(message):
        assert message is None, message

    def perturb(job):
        struct = jobs.perturb_job(job, job.scale, job.shift, DRAWS)
        check(library.run_perturb(ctypes.byref(struct), backwards, ctypes.c_int64(0)))

    def accumulate(job):
        limits = device["multiprocessors"], ctypes.c_int64(device["most_shared"])
        check(library.run_accumulate(ctypes.byref(jobs.accumulate_job(job)), *limits, backwards))

    module = SimpleNamespace(perturb=perturb, accumulate=accumulate, device=device)
    monkeypatch.setitem(ops.BACKENDS, "cpu", Backend("cpu", lambda: module))  # whose operators do not look at values
    return module


# perturb


@pytest.mark.parametrize("dtype", OUTPUT_TYPES, ids=str)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_perturb_is_the_reference(transform, dtype, grid):
    for shape, channels_last in LAYOUTS:
        out = poisoned((8, *shape), dtype, channels_last)
        ops.perturb(**arguments(shape, transform, dtype, channels_last), out=out, backend="cpu")
        assert_same_bits(out, expected_batch(shape, transform, dtype))


# Rows of several pieces; channels last of several tiles of positions, of channels (more than 64), of both; with rows that
# begin at multiples of 16 bytes and with rows that do not.
LARGE = ((3, 64, 72), (3, 65, 71), (1, 100, 100), (4096,), (9001,), (64, 17, 8), (128, 12, 9), (130, 9, 9), (72, 30, 30))


@pytest.mark.parametrize("dtype", OUTPUT_TYPES, ids=str)
@pytest.mark.parametrize("shape", LARGE, ids=str)
def test_perturb_of_large_inputs(shape, dtype, grid):
    for channels_last in (False, True) if len(shape) == 3 else (False,):
        keywords = arguments(shape, "all", dtype, channels_last) | {"samples": [5, 2**40], "rows": [2, 0]}
        out = poisoned((2, *shape), dtype, channels_last)
        ops.perturb(**keywords, out=out, backend="cpu")
        assert_same_bits(out, ops.perturb(**keywords, backend="reference"))


@pytest.mark.parametrize("dtype", OUTPUT_TYPES, ids=str)
def test_tensors_that_begin_anywhere(dtype, grid):
    """x and out one element past a multiple of 16 bytes."""
    shape = (3, 8, 8)
    keywords = arguments(shape, "all", dtype)
    x = torch.zeros(3 * 192 + 1)[1:].view(3, *shape).copy_(keywords["x"])
    out = poisoned((8 * 192 + 1,), dtype)[1:].view(8, *shape)
    assert x.data_ptr() % 16
    assert out.data_ptr() % 16
    wanted = expected_batch(shape, "all", dtype)
    for source, target in ((x, poisoned((8, *shape), dtype)), (keywords["x"], out), (x, out)):
        ops.perturb(**keywords | {"x": source}, out=target, backend="cpu")
        assert_same_bits(target, wanted)


KERNEL_LAYOUTS = ("contiguous", "channels_last", "three_channels")  # as csrc/cuda/perturb.h numbers them
KERNEL_OPTIONS = ("none", "scale", "clamp", "scale_and_clamp", "any")


def layout(library, shape, channels_last, dtype, scale=None, clamp=None, parameters=ONE_SIGMA):
    x, names = torch.zeros(1, *shape), "pieces threads shared aligned layout options positions position_tiles channel_tiles"
    memory = torch.channels_last if channels_last else torch.contiguous_format
    out = torch.zeros(1, *shape, dtype=dtype).contiguous(memory_format=memory)
    zero = torch.zeros(1, dtype=torch.int64)
    channels = None if scale is None else torch.ones(shape[0])
    job = Perturbation(x, zero, zero, zero, parameters, 0, 0, channels, channels, clamp, channels_last, out)
    values = (ctypes.c_int64 * 9)()
    library.perturb_grid(ctypes.byref(jobs.perturb_job(job, channels, channels, DRAWS)), values)
    found = SimpleNamespace(**dict(zip(names.split(), values, strict=True)))
    found.layout, found.options = KERNEL_LAYOUTS[found.layout], KERNEL_OPTIONS[found.options]
    return found


def test_the_usual_images_take_wide_stores_and_idle_no_thread(library):
    """CIFAR and ImageNet: aligned, and a row's pieces have just the threads that it needs."""
    for dtype in (torch.bfloat16, torch.float32):
        for shape, pieces, threads in (((3, 32, 32), 1, 96), ((3, 224, 224), 21, 224)):
            found = layout(library, shape, False, dtype)
            assert (found.layout, found.options, found.aligned, found.shared) == ("contiguous", "none", 1, 0)
            assert (found.pieces, found.threads) == (pieces, threads)
            assert pieces * threads * 32 == 3 * shape[1] * shape[2]
            found = layout(library, shape, True, dtype)
            assert (found.layout, found.options, found.aligned, found.shared) == ("three_channels", "none", 1, 0)
            assert found.pieces * found.threads * 48 == 3 * shape[1] * shape[2]
        found = layout(library, (4, 224, 224), True, dtype)
        assert (found.layout, found.options, found.aligned, found.channel_tiles) == ("channels_last", "any", 1, 1)
        assert found.shared == 4 * found.positions * dtype.itemsize <= 16384
        assert found.positions * (found.position_tiles - 1) < 224 * 224 <= found.positions * found.position_tiles


@pytest.mark.parametrize("channels_last", [False, True])
def test_kernels_are_compiled_for_the_usual_options(library, channels_last):
    for scale, clamp, options in (
        (None, None, "none"),
        (1, None, "scale"),
        (None, (0, 1), "clamp"),
        (1, (0, 1), "scale_and_clamp"),
    ):
        for dtype in OUTPUT_TYPES[:3]:
            assert layout(library, (3, 8, 8), channels_last, dtype, scale, clamp).options == options
    any_of = functools.partial(layout, library, channels_last=channels_last, dtype=torch.bfloat16)
    assert any_of((3, 8, 8), parameters=Mask(0.3, 0.25).parameters((3, 8, 8))).options == "any"
    assert any_of((3, 8, 8), parameters=ONE_SIGMA._replace(tensors=(torch.ones(192),))).options == "any"
    assert any_of((6, 6, 6), scale=1).options == "any"  # 16 bytes hold two channels' elements
    assert any_of((3, 7, 7)).options == "any"
    assert layout(library, (3, 8, 8), channels_last, torch.float64).options == "any"


@pytest.mark.parametrize("dtype", OUTPUT_TYPES, ids=str)
@pytest.mark.parametrize("elements", [2**34, 2**34 - 8, 2**34 - 3, 2**34 - 5000])
def test_the_end_of_the_largest_row(library, elements, dtype):
    """The last block of 2^34 elements and of a few less. Only what it may touch is memory: a wrapped index is a fault."""
    room = 4 * 8192  # twice as much as is used
    x, out = torch.zeros(room), poisoned((room,), dtype)
    index, samples = torch.tensor([0]), torch.tensor([9])
    job = Perturbation(x[None, :1], index, index, samples, ONE_SIGMA, 5, 1, None, None, None, False, out[None, :1])
    struct = jobs.perturb_job(job, None, None, DRAWS)
    before = (elements - room // 2) // 32 * 32  # elements of the row that are not there
    struct.x, struct.out = x.data_ptr() - 4 * before, out.data_ptr() - dtype.itemsize * before
    struct.elements = elements
    values = (ctypes.c_int64 * 9)()
    library.perturb_grid(ctypes.byref(struct), values)
    pieces, threads = values[0], values[1]
    assert library.run_perturb(ctypes.byref(struct), 0, ctypes.c_int64(pieces - 1)) is None
    first = (pieces - 1) * threads * 32
    assert before < first < elements
    block = torch.arange(first // 4, (elements + 3) // 4)
    words = noise.philox((block, *(torch.full_like(block, word) for word in (9, 0, 1 << 24))), 5)
    pairs = *arithmetic.box_muller(words[0], words[1]), *arithmetic.box_muller(words[2], words[3])
    expected = torch.stack(pairs, dim=1).flatten()[: elements - first].to(dtype)
    assert_same_bits(out[first - before : elements - before], expected)
    assert out[: first - before].isnan().all()
    assert out[elements - before :].isnan().all()


def test_one_channel_and_one_position_are_contiguous(library):
    assert layout(library, (1, 9, 9), True, torch.float32).layout == "contiguous"
    assert layout(library, (9, 1, 1), True, torch.float32).layout == "contiguous"
    assert layout(library, (9, 1, 2), True, torch.float32).layout == "channels_last"


def test_division_by_multiplication(library):
    draw = random.Random(5)
    divisors = [1, 2, 3, 5, 7, 64, 1000, 50176, 2**31 - 1, 2**31, 2**31 + 1, 2**32 - 1, 2**32, 2**34]
    divisors += [draw.getrandbits(draw.randint(2, 32)) | 1 for _ in range(200)]
    for by in divisors:
        numbers = [0, 1, by - 1, by, by + 1, 7 * by - 1, 7 * by, 2**32 - 1, 2**32, 2**34, draw.getrandbits(32)]
        for n in numbers:
            assert library.divided(ctypes.c_uint64(n), ctypes.c_int64(by)) == n // by, (n, by)


# The arithmetic of a GPU


@pytest.mark.parametrize("words", [(0, 2**32, 65537), pytest.param((0, 2**32, 1), marks=pytest.mark.noise)], ids=str)
def test_the_logarithm_is_reduced_as_it_is_defined(library, words):
    """In fewer steps, of every word, for the Gaussian and for Laplace's draw."""
    assert library.different_logarithms(*map(ctypes.c_int64, words)) == 0


# Of all roots of floats in [1, 4), to which a factor 4^k brings every other exactly, those whose four operations depend on
# which reciprocal within 2^-22.9 the GPU finds.
DOUBTFUL_ROOTS = {float.fromhex("0x1.f82294p+0"), float.fromhex("0x1.dd26e4p+1")}


@pytest.mark.parametrize("step", [101, pytest.param(1, marks=pytest.mark.noise)])
def test_roots_are_correctly_rounded_whatever_the_reciprocal(library, step):
    """PTX promises rsqrt.approx.ftz.f32 to within 2^-22.9. Of two values one reciprocal would give a neighbour of the root.
    `test_the_root_is_that_of_cuda` is for those."""
    wrong = (ctypes.c_float * 8)()
    found = library.wrong_roots(step, wrong)
    assert set(wrong[:found]) == (DOUBTFUL_ROOTS if step == 1 else set())


def root_steps(functions, name):
    """The first five floating-point operations of a kernel: name, signs, operands. What one of them made is its number."""
    (function,) = (each for each in functions if name in each.name)
    made, steps = {}, []
    for each in [each for each in function.instructions if each.name.startswith(("MUFU", "FMUL", "FFMA"))][:5]:
        to, *operands = each.operands
        signs = [operand.startswith("-") for operand in operands]
        values = [made.get(operand.lstrip("-"), operand.lstrip("-")) for operand in operands]
        steps.append([each.name.replace(".FTZ", ""), signs, values])
        made[to] = len(steps)
    return steps


@pytest.mark.skipif(not (NVCC and find_tool("cuobjdump")), reason="needs nvcc and cuobjdump")
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
def test_the_root_is_that_of_cuda(tmp_path, architecture):
    """CUDA promises that __fsqrt_rn is correctly rounded. After its check of the range nvcc makes the same operations of it,
    on the same reciprocal. On normal numbers .FTZ changes nothing."""
    source, binary = tmp_path / "root.cu", tmp_path / "root.cubin"
    source.write_text(
        '#include "lanes.h"\n'
        "__global__ void ours(float* x) { *x = rsfast::root(*x); }\n"
        "__global__ void cudas(float* x) { *x = __fsqrt_rn(*x); }\n"
    )
    flags = ["-std=c++17", "-O3", "-fmad=false", f"-arch={architecture}", f"-I{ROOT / 'csrc'}"]
    subprocess.run([NVCC, *flags, "-cubin", str(source), "-o", str(binary)], check=True)
    functions = parse(cuobjdump("-sass", str(binary)))
    ours, cudas = (root_steps(functions, name) for name in ("ours", "cudas"))
    assert [operation for operation, *_ in ours] == ["MUFU.RSQ", "FMUL", "FMUL", "FFMA", "FFMA"]
    assert ours == cudas


def test_low_words_decide_ties(grid):
    assert_same_bits(tied("cpu"), tied("reference"))


WRONG = {  # and which of two rows it spoils
    "rows": ({"rows": [0, 3]}, 1),
    "rows far away": ({"rows": [0, 2**40]}, 1),  # to read there would be a fault
    "negative rows": ({"rows": [-(2**40), 1]}, 0),
    "samples": ({"samples": [2**56, 1]}, 0),
    "negative samples": ({"samples": [0, -1]}, 1),
    "input_ids": ({"input_ids": [0, 2**32, 2]}, 1),
    "negative input_ids": ({"input_ids": [-1, 1, 2]}, 0),
}


@pytest.mark.parametrize(("change", "spoiled"), WRONG.values(), ids=WRONG)
def test_a_row_whose_index_is_out_of_range_is_nan(change, spoiled, grid):
    """On a GPU the host does not look. The other row is what it was."""
    right = {"seed": 0, "samples": [0, 1], "rows": [0, 1], "input_ids": [0, 1, 2]}
    wrong = right | {name: torch.tensor(values) for name, values in change.items()}
    kinds = ((Gaussian(1.0), torch.bfloat16), (Mask(0.5), torch.float32), (Gaussian(1.0), torch.float64))
    for shape, channels_last, (kind, dtype) in itertools.product(((3, 8, 8), (5, 9, 7)), (False, True), kinds):
        x, out = inputs(3, shape), torch.zeros_like(poisoned((2, *shape), dtype, channels_last))
        expected = ops.perturb(x, kind, **right, dtype=dtype, channels_last=channels_last, backend="reference")
        expected[spoiled] = torch.nan
        ops.perturb(x, kind, **wrong, channels_last=channels_last, out=out, backend="cpu")
        assert_same_bits(out, expected)


# accumulate


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize(("classes", "batch"), [(2, 300), (3, 17), (10, 1), (10, 300), (17, 16), (100, 300), (1000, 17)])
def test_accumulate_is_the_reference(classes, batch, dtype, grid):
    found = fill(hostile_logits(classes, batch, dtype), some_rows(batch))
    assert_same(found, expected_tally(classes, batch, dtype))


@pytest.mark.parametrize(("limit", "multiprocessors"), [(227 << 10, 1), (227 << 10, 132), (48 << 10, 132)])
@pytest.mark.parametrize(("classes", "batch"), [(2000, 5), (5000, 3), (20_000, 2)])
def test_accumulate_of_many_classes(classes, batch, limit, multiprocessors, grid):
    """A block a row, with the logits in shared memory and without; all heads in a block and a few."""
    grid.device.update(most_shared=limit, multiprocessors=multiprocessors)
    logits, rows = hostile_logits(classes, batch), torch.arange(batch) % 2
    heads = (Votes(), Softmax(1.0), Softmax(1000.0), Sparsemax(0.1), Sparsemax(1000.0), HEADS[-1])
    assert_same(fill(logits, rows, heads=heads), fill(logits, rows, heads=heads, backend="reference"))


def test_runs_of_slots_in_any_order(grid):
    logits = hostile_logits(10, 300)
    for rows in (
        torch.zeros(300, dtype=torch.int64),
        torch.arange(300) % 4,
        torch.arange(300) // 75,
        some_rows(300).sort()[0],
    ):
        assert_same(fill(logits, rows), fill(logits, rows, backend="reference"))


def test_strides_and_votes_alone(grid):
    logits = hostile_logits(17, 40)
    for view in (logits.t().contiguous().t(), torch.stack([logits, logits], 2)[:, :, 1], logits[:1].expand(40, 17)):
        assert_same(fill(view, some_rows(40)), fill(view, some_rows(40), backend="reference"))
        only = {"heads": (Votes(),)}
        assert_same(fill(view, some_rows(40), **only), fill(view, some_rows(40), **only, backend="reference"))


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize(
    ("classes", "batch", "count"), [(2, 300, 1), (10, 300, 2), (17, 16, 3), (100, 300, 8), (1000, 17, 2)]
)
def test_histograms_are_the_reference(classes, batch, count, dtype, grid):
    logits, tracked = hostile_logits(classes, batch, dtype), some_classes(classes, count)
    for rows, slot in ((some_rows(batch), None), (torch.full((batch,), 2), 2)):
        assert_same(fill(logits, rows, tracked=tracked), expected_tally(classes, batch, dtype, count, slot))


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_masked_classes(dtype, grid):
    for classes, batch, share in (*MASKS, (20_000, 2, 0.5)):
        masked, _ = masked_logits(classes, batch, dtype, share)
        found = fill(masked, some_rows(batch), tracked=some_classes(classes, 2))
        assert_same(found, expected_masked(classes, batch, dtype, share))


@pytest.mark.parametrize("limit", [227 << 10, 48 << 10])
def test_histograms_of_many_classes(limit, grid):
    grid.device.update(most_shared=limit)
    logits, tracked = hostile_logits(20_000, 5), some_classes(20_000, 2)
    found = fill(logits, some_rows(5), tracked=tracked)
    assert_same(found, fill(logits, some_rows(5), tracked=tracked, backend="reference"))


def test_the_bin_of_a_score(library):
    """What the native kernels share is `sequences.bin_of`."""
    assert library.bins() == sequences.BINS
    scores = edge_scores()
    assert [library.bin_of(int(q)) for q in scores] == sequences.bin_of(scores).tolist()


@pytest.mark.parametrize("check", [check_wrong_rows, check_many_wrong_rows, check_full, check_wrong_classes])
@pytest.mark.usefixtures("grid")
def test_what_is_out_of_range_voids_the_tally(check):
    """On a GPU the host does not look."""
    check("cpu")


# words


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("draw", words.DRAWS)
def test_noise_of_words_is_the_reference(draw, backwards, library):
    given = hostile_words(draw)
    for count in (4, 1024, 1028, len(given)):
        out = torch.full((count + 4,), torch.nan)
        addresses = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (given, out)]
        library.run_noise_of_words(DRAWS[draw], addresses[0], ctypes.c_int64(count), addresses[1], backwards)
        assert_same_bits(out[:count], words.noise_of_words(draw, given[:count], backend="reference"))
        assert out[count:].isnan().all()
