"""The torch operators: opcheck passes, and torch.compile of a function that calls them is one graph with the same bits."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import rsfast
from rsfast import ops

NOISE = rsfast.Gaussian(0.25)
HEADS = (rsfast.Votes(), rsfast.Softmax(0.5), rsfast.Sparsemax(2.0))
TRACKED = [[[0, 1], [2, 3]], [[9, 9], [0, 4]]]


def images():
    return torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def step(x, samples, rows, tally, seed):
    batch = ops.perturb(
        x * 1.5, NOISE, seed=seed, samples=samples, rows=rows, scale=[1.0, 2.0, 3.0], clamp=(0.0, 1.0), channels_last=True
    )
    ops.accumulate(batch.flatten(1)[:, :10], tally, rows=rows)
    return batch


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_one_graph_and_the_same_bits(compiler):
    x, samples = images(), torch.arange(6)
    rows, counter = samples % 2, CompileCounterWithBackend(compiler)
    compiled = torch.compile(step, backend=counter, fullgraph=True)
    tallies = [rsfast.Tally(2, 10, HEADS, tracked_classes=TRACKED) for _ in range(2)]
    for seed in (3, 4, 5, 6):
        found, expected = compiled(x, samples, rows, tallies[0], seed), step(x, samples, rows, tallies[1], seed)
        assert torch.equal(found, expected)
        assert found.stride() == expected.stride()
        assert tallies[0] == tallies[1]
        samples = samples + 6
    assert tallies[0].n.tolist() == [12, 12]
    assert counter.frame_count <= 2  # the second takes any seed


def test_ranges_lists_and_options_compile():
    x = images()

    def function(x):
        noisy = ops.perturb(x, NOISE, seed=2**64 - 1, samples=range(5, 9), rows=[0, 1, 1, 0], dtype=torch.bfloat16)
        return noisy, ops.perturb(x, NOISE, seed=1, samples=[7, 9], input_ids=[4, 5], shift=0.5, backend="reference")

    found = torch.compile(function, backend="aot_eager", fullgraph=True)(x)
    for a, b in zip(found, function(x), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("noise", [rsfast.AnisotropicGaussian([0.25, 0.5, 1.0]), rsfast.CorrelatedGaussian(np.ones((8, 5)))])
def test_noise_with_arrays(noise):
    """The graph breaks before its arrays are made; the bits are the same."""
    x, function = images(), lambda x: ops.perturb(x * 2, noise, seed=1, samples=range(2)) * 3
    assert torch.equal(torch.compile(function, backend="aot_eager")(x), function(x))


def test_an_index_out_of_range_is_told_when_the_graph_runs():
    function = torch.compile(lambda x, rows: ops.perturb(x, NOISE, seed=1, samples=range(2), rows=rows), backend="aot_eager")
    with pytest.raises(ValueError, match=r"^rows must lie in \[0, 2\), got values from 0 to 2"):
        function(images(), torch.tensor([0, 2]))


def perturb_arguments(channels_last, transformed):
    samples = torch.arange(4)
    x = images()
    out = torch.empty(4, 3, 8, 8, memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    scale = torch.ones(3) if transformed else None
    clamp = [0.0, 1.0] if transformed else None
    noise = "gaussian", [0.25], []
    return x, samples % 2, torch.arange(2), samples, *noise, -1, 1, scale, scale, clamp, channels_last, "cpu", out


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("transformed", [False, True])
def test_opcheck_of_perturb(channels_last, transformed):
    torch.library.opcheck(torch.ops.rsfast.perturb.default, perturb_arguments(channels_last, transformed))


@pytest.mark.parametrize(("heads", "tracked"), [(HEADS, None), (HEADS, TRACKED), (HEADS[:1], None)])
def test_opcheck_of_accumulate(heads, tracked):
    tally, logits = rsfast.Tally(2, 10, heads, tracked_classes=tracked), images().flatten(1)[:, :10]
    results = tally.n, tally.counts, tally.sums, tally.squares, tally.tracked_classes, tally.bin_counts, tally.bin_sums
    torch.library.opcheck(
        torch.ops.rsfast.accumulate.default, (logits, torch.tensor([0, 1]), tally.parameters, "cpu", *results)
    )


def test_the_operators_are_told_from_ones_that_do_nothing():
    """opcheck compares an operator with its fake self; that it computes anything is another matter."""
    arguments = perturb_arguments(False, True)
    arguments[-1].fill_(torch.nan)
    torch.ops.rsfast.perturb(*arguments)
    assert arguments[-1].isfinite().all()


@pytest.mark.slow
def test_importing_the_operators_loads_no_compiler():
    """torch._dynamo and Triton take a second and 140 MiB; whoever does not compile does without."""
    code = "import sys, rsfast.ops, rsfast.api; print([n for n in ('torch._dynamo', 'triton') if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
