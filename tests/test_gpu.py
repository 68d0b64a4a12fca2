"""The GPU backends on a GPU: the CPU's bits, the caller's stream, no waiting, graphs, and loops that end in the same Tally.

Without a GPU all of it is skipped: tests/test_grid.py and tests/test_triton.py then run the kernels' code on the CPU.
"""

import pytest
import torch
from conftest import assert_same_bits
from test_accumulate import HEADS, SIZES, SLOTS, TYPES, assert_same, edge_logits, hostile_logits, some_classes, some_rows
from test_accumulate import expected as expected_tally
from test_marks import check_full, check_many_wrong_rows, check_run, check_wrong_classes, check_wrong_rows
from test_perturb import LAYOUTS, TRANSFORMS, arguments, inputs, poisoned
from test_perturb import TYPES as OUTPUT_TYPES
from test_perturb import expected as expected_batch
from test_words import hostile_words

import rsfast
from rsfast import CorrelatedGaussian, Gaussian, Softmax, Tally, Votes, ops
from rsfast.ops import BACKENDS, words

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
GPU = torch.device("cuda", 0)
NOISE = Gaussian(0.25)
OTHER_NOISES = [name for name, (noise, *_) in TRANSFORMS.items() if not isinstance(noise, Gaussian)]


@pytest.fixture(params=["cuda", "triton"])
def backend(request):
    if reason := BACKENDS[request.param].unavailable_reason(GPU):
        pytest.skip(reason)
    return request.param


def moved(keywords):
    """The same with x on the GPU; lists of indices follow of themselves."""
    return keywords | {"x": keywords["x"].to(GPU)}


# The same bits


@pytest.mark.parametrize("dtype", OUTPUT_TYPES, ids=str)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_perturb_is_the_reference(transform, dtype, backend):
    every = backend == "cuda" or transform == "all"  # Triton compiles for each combination
    for shape, channels_last in LAYOUTS if every else LAYOUTS[5::9]:
        out = poisoned((8, *shape), dtype, channels_last).to(GPU)
        ops.perturb(**moved(arguments(shape, transform, dtype, channels_last)), out=out, backend=backend)
        assert_same_bits(out.cpu(), expected_batch(shape, transform, dtype))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", OUTPUT_TYPES, ids=str)
@pytest.mark.parametrize("shape", [(3, 32, 32), (3, 224, 224), (130, 9, 9), (64, 56, 56)], ids=str)
def test_perturb_of_whole_batches_is_the_cpu(shape, dtype, channels_last, backend):
    x, rows = inputs(5, shape), torch.arange(64) * 7 % 5
    options = {"seed": 2**64 - 3, "samples": range(2**40, 2**40 + 64), "dtype": dtype, "channels_last": channels_last}
    wanted = ops.perturb(x, NOISE, rows=rows, backend="cpu", **options)
    found = ops.perturb(x.to(GPU), NOISE, rows=rows.to(GPU), backend=backend, **options)
    assert found.stride() == wanted.stride()
    assert_same_bits(found.cpu(), wanted)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("transform", OTHER_NOISES)
def test_other_noises_of_images_are_the_cpu(transform, channels_last, backend):
    """Into rows that begin at multiples of 16 bytes, and one element past."""
    for shape, dtype in (((3, 32, 32), torch.float32), ((3, 224, 224), torch.bfloat16)):
        keywords = arguments(shape, transform, dtype, channels_last)
        wanted = ops.perturb(**keywords, backend="cpu")
        assert_same_bits(ops.perturb(**moved(keywords), backend=backend).cpu(), wanted)
        memory = torch.full((1 + wanted.numel(),), torch.nan, dtype=dtype, device=GPU)
        out = memory[1:].as_strided(wanted.shape, wanted.stride())
        assert_same_bits(ops.perturb(**moved(keywords), out=out, backend=backend).cpu(), wanted)
        assert memory[0].isnan()


def test_tensors_that_begin_anywhere(backend):
    x, shape = inputs(1, (3, 8, 8)), (4, 3, 8, 8)
    wanted = ops.perturb(x, NOISE, seed=1, samples=range(4), dtype=torch.bfloat16)
    shifted = torch.zeros(193, device=GPU)[1:].view(x.shape).copy_(x)
    out = torch.zeros(4 * 192 + 1, device=GPU, dtype=torch.bfloat16)[1:].view(shape)
    ops.perturb(shifted, NOISE, seed=1, samples=range(4), out=out, backend=backend)
    assert_same_bits(out.cpu(), wanted)


def test_more_rows_than_a_grid_is_high(backend):
    x = inputs(1, (5,))
    wanted = ops.perturb(x, NOISE, seed=1, samples=range(200_000))
    assert_same_bits(ops.perturb(x.to(GPU), NOISE, seed=1, samples=range(200_000), backend=backend).cpu(), wanted)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_accumulate_is_the_reference(dtype, backend):
    for classes, batch in SIZES:
        tally = Tally(SLOTS, classes, HEADS, device=GPU)
        logits = hostile_logits(classes, batch, dtype).to(GPU)
        ops.accumulate(logits, tally, rows=some_rows(batch).to(GPU), backend=backend)
        assert_same(tally.to("cpu"), expected_tally(classes, batch, dtype))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_histograms_are_the_reference(count, backend):
    for classes, batch in SIZES:
        tracked, logits, rows = some_classes(classes, count), hostile_logits(classes, batch), some_rows(batch)
        tallies = [Tally(SLOTS, classes, HEADS, tracked_classes=tracked, device=device) for device in ("cpu", GPU)]
        ops.accumulate(logits, tallies[0], rows=rows, backend="cpu")
        ops.accumulate(logits.to(GPU), tallies[1], rows=rows.to(GPU), backend=backend)
        assert_same(tallies[1].to("cpu"), tallies[0])


def test_bins_at_every_edge(backend):
    logits, heads = edge_logits(), (rsfast.ClippedLogits(0.0, 1.0),)
    tallies = [Tally(1, 2, heads, tracked_classes=[[[0]]], device=device) for device in ("cpu", GPU)]
    ops.accumulate(logits, tallies[0], backend="reference")
    ops.accumulate(logits.to(GPU), tallies[1], backend=backend)
    assert_same(tallies[1].to("cpu"), tallies[0])


@pytest.mark.parametrize("classes", [10, 1000, 70_000])
def test_a_large_batch_of_one_input(classes, backend):
    """Many blocks add to the same counters; 70,000 logits are more than a block's shared memory."""
    heads = (Votes(), Softmax(1.0), rsfast.Sparsemax(1.0))
    logits = torch.randn(20_000 if classes == 10 else 100, classes, generator=torch.Generator().manual_seed(1)) * 3
    tallies = [Tally(1, classes, heads, tracked_classes=[[[0, 1]] * 2], device=device) for device in ("cpu", GPU)]
    ops.accumulate(logits, tallies[0])
    for _ in range(2):
        ops.accumulate(logits.to(GPU), tallies[1], backend=backend)
    assert_same(tallies[1].to("cpu"), tallies[0] + tallies[0])


@pytest.mark.parametrize("classes", [3, 257])
def test_strides_and_slots_in_any_order(classes, backend):
    logits, rows = hostile_logits(classes, 70), some_rows(70)
    for view in (
        lambda t: t.t().contiguous().t(),
        lambda t: torch.stack([t, t], 2)[:, :, 1],
        lambda t: t[:1].expand(70, -1),
    ):
        tallies = [Tally(SLOTS, classes, HEADS, device=device) for device in ("cpu", GPU)]
        ops.accumulate(view(logits), tallies[0], rows=rows, backend="reference")
        ops.accumulate(view(logits.to(GPU)), tallies[1], rows=rows.to(GPU), backend=backend)
        assert_same(tallies[1].to("cpu"), tallies[0])


# Given words


@pytest.mark.parametrize("draw", words.DRAWS)
def test_hostile_words(draw, backend):
    given = hostile_words(draw)
    found = words.noise_of_words(draw, given.to(GPU), backend=backend)
    assert_same_bits(found.cpu(), words.noise_of_words(draw, given, backend="reference"))


@pytest.mark.parametrize("draw", words.DRAWS)
def test_any_number_of_blocks_of_words(draw, backend):
    """Of which the last few are less than a program has; nothing is written past the end."""
    for count in (0, 4, 12, 68, 1028, 300_004):
        given = torch.randint(-(2**31), 2**31, (count,), dtype=torch.int32, generator=torch.Generator().manual_seed(count))
        room = torch.full((count + 4,), torch.nan, device=GPU)
        words.noise_of_words(draw, given.to(GPU), out=room[:count], backend=backend)
        assert_same_bits(room[:count].cpu(), words.noise_of_words(draw, given, backend="cpu"))
        assert room[count:].isnan().all()


@pytest.mark.parametrize("name", words.SWEEPS)
def test_all_words(name, backend):
    """All 2^32, by their checksum."""
    assert words.sweep(name, backend=backend, device=GPU) == words.SWEEPS[name].checksum


# The device, its streams and graphs


def a_call(backend):
    """A function that makes a batch and adds it to a tally, on the GPU, and the tally."""
    x, samples = inputs(2, (3, 8, 8)).to(GPU), torch.arange(16, device=GPU)
    rows, tally = samples % 2, Tally(2, 10, (Votes(), Softmax(1.0)), tracked_classes=[[[3, 4]], [[5, 5]]], device=GPU)
    ids, out = torch.arange(2, device=GPU), torch.empty(16, 3, 8, 8, device=GPU)
    scale, shift = torch.ones(3, device=GPU), torch.zeros(3, device=GPU)

    def call():
        ops.perturb(
            x, NOISE, seed=1, samples=samples, rows=rows, input_ids=ids, scale=scale, shift=shift, out=out, backend=backend
        )
        ops.accumulate(out.flatten(1)[:, :10], tally, rows=rows, backend=backend)

    return call, tally


def test_nothing_waits_for_the_device(backend):
    call, tally = a_call(backend)
    call()  # Triton compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert tally.n.tolist() == [16, 16]


def test_a_graph_replays(backend):
    call, tally = a_call(backend)
    call()
    torch.cuda.synchronize()
    once, graph = tally.to("cpu"), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    for _ in range(3):
        graph.replay()
    assert_same(tally.to("cpu"), once + once + once + once)


def test_the_current_stream(backend):
    """Work queued on another stream comes after what that stream was given before."""
    x = torch.zeros(1, 1000, device=GPU)
    expected = ops.perturb(torch.ones(1, 1000), NOISE, seed=1, samples=range(8))
    ops.perturb(x, NOISE, seed=1, samples=range(8), backend=backend)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        x.fill_(1)
        found = ops.perturb(x, NOISE, seed=1, samples=range(8), backend=backend)
    stream.synchronize()
    assert_same_bits(found.cpu(), expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_the_second_device(backend):
    x = inputs(1, (7,))
    found = ops.perturb(x.to("cuda:1"), NOISE, seed=1, samples=range(3), backend=backend)
    assert torch.cuda.current_device() == 0
    assert_same_bits(found.cpu(), ops.perturb(x, NOISE, seed=1, samples=range(3)))


# Indices out of range: the process goes on to use the GPU


WRONG = [("rows", 2), ("rows", -1), ("samples", 2**56), ("samples", -1), ("input_ids", 2**32), ("input_ids", -1)]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("name", "value"), WRONG)
def test_an_index_out_of_range_makes_a_row_of_nan(name, value, channels_last, backend):
    x, right = inputs(2, (3, 8, 8)), {"rows": [0, 1, 0], "samples": [4, 5, 6], "input_ids": [0, 1]}
    options = {"seed": 3, "scale": 2.0, "clamp": (0.0, 1.0), "channels_last": channels_last}
    indices = {key: torch.tensor(values) for key, values in right.items()}
    indices[name][1] = value
    indices = {key: tensor.to(GPU) for key, tensor in indices.items()}
    found = ops.perturb(x.to(GPU), NOISE, **indices, **options, backend=backend).cpu()
    wanted = ops.perturb(x, NOISE, **right, **options)
    assert found[1].isnan().all()
    assert_same_bits(found[::2], wanted[::2])


@pytest.mark.parametrize("check", [check_wrong_rows, check_many_wrong_rows, check_full, check_wrong_classes])
def test_what_is_out_of_range_voids_the_tally(check, backend):
    check(backend, GPU)


def test_a_run_with_a_void_tally_ends_and_goes_on(tmp_path, monkeypatch):
    check_run(6, tmp_path, monkeypatch, GPU)


# Through the rest of rsfast


def test_auto_is_a_kernel_and_is_recorded():
    name = ops.backend_for("auto", GPU)
    assert name == ("triton" if BACKENDS["cuda"].unavailable_reason(GPU) else "cuda")
    (certificate,) = rsfast.certify(
        lambda x: x.flatten(1)[:, :3], inputs(1, (3, 4)).to(GPU), NOISE, num_classes=3, n=100, seed=1
    )
    assert certificate.backend == name


def test_sampling_on_a_gpu_is_sampling_on_a_cpu(backend):
    """A model without arithmetic: Tallies agree to the last integer."""
    options = {"num_classes": 10, "n": 1000, "heads": HEADS, "seed": 3, "scale": [2.0, 1.0, 4.0], "shift": 0.5}
    wanted = rsfast.sample(lambda x: x.flatten(1)[:, ::20], x := inputs(3, (3, 8, 8)), NOISE, **options)
    found = rsfast.sample(lambda x: x.flatten(1)[:, ::20], x.to(GPU), NOISE, backend=backend, **options)
    assert_same(found.to("cpu"), wanted)


def test_one_graph(backend):
    tallies = [Tally(1, 10, (Votes(), Softmax(1.0)), device=GPU) for _ in range(2)]

    def step(x, samples, tally):
        batch = ops.perturb(x * 2, NOISE, seed=1, samples=samples, dtype=torch.bfloat16, channels_last=True, backend=backend)
        ops.accumulate(batch.float().flatten(1)[:, :10], tally, backend=backend)
        return batch

    x, samples = inputs(1, (3, 8, 8)).to(GPU), torch.arange(6, device=GPU)
    torch.compiler.reset()
    found, wanted = torch.compile(step, fullgraph=True)(x, samples, tallies[0]), step(x, samples, tallies[1])
    assert_same_bits(found.cpu(), wanted.cpu())
    assert_same(tallies[0].to("cpu"), tallies[1].to("cpu"))


def test_opcheck(backend):
    x, samples, out = inputs(2, (3, 8, 8)).to(GPU), torch.arange(4, device=GPU), torch.empty(4, 3, 8, 8, device=GPU)
    indices = samples % 2, torch.arange(2, device=GPU), samples
    noise = "gaussian", [0.5], []
    torch.library.opcheck(
        torch.ops.rsfast.perturb.default, (x, *indices, *noise, 1, 1, None, None, None, False, backend, out)
    )
    tally = Tally(2, 10, (Votes(), Softmax(1.0)), tracked_classes=[[[3, 4]], [[5, 5]]], device=GPU)
    results = tally.n, tally.counts, tally.sums, tally.squares, tally.tracked_classes, tally.bin_counts, tally.bin_sums
    torch.library.opcheck(
        torch.ops.rsfast.accumulate.default, (out.flatten(1)[:, :10], samples % 2, tally.parameters, backend, *results)
    )


def test_noise_with_a_spectrum(backend):
    """As on the CPU but for the FFT's rounding: a bit, in few elements. Batch and order do not change a bit."""
    x, noise = inputs(2, (3, 31, 32)), CorrelatedGaussian.low_pass((3, 31, 32), 0.2, 0.5)
    keywords = {"seed": 5, "scale": [2.0, 3.0, 4.0], "shift": 0.5, "clamp": (0.0, 1.0), "backend": backend}
    samples, rows = torch.arange(100, device=GPU), torch.arange(100, device=GPU) % 2
    whole = ops.perturb(x.to(GPU), noise, samples=samples, rows=rows, **keywords)
    wanted = ops.perturb(x, noise, samples=samples.cpu(), rows=rows.cpu(), **keywords | {"backend": "cpu"})
    torch.testing.assert_close(whole.cpu(), wanted, rtol=3e-7, atol=1e-6)
    assert (whole.cpu() != wanted).double().mean() < 1e-4
    order = torch.randperm(100, generator=torch.Generator().manual_seed(1)).to(GPU)
    assert_same_bits(ops.perturb(x.to(GPU), noise, samples=samples[order], rows=rows[order], **keywords), whole[order])
    for size in (1, 7, 64):
        parts = [slice(first, first + size) for first in range(0, 100, size)]
        found = [ops.perturb(x.to(GPU), noise, samples=samples[part], rows=rows[part], **keywords) for part in parts]
        assert_same_bits(torch.cat(found), whole)
