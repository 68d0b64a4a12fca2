"""The batch loop, through rsfast.sample: what it computes, what does not change it, and how it treats the model."""

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import first_elements
from torch import nn

import rsfast
from rsfast.heads import ClippedLogits, Softmax, Sparsemax, Votes
from rsfast.noise import Gaussian
from rsfast.ops import accumulate, perturb
from rsfast.ops.tally import Tally

NOISE = Gaussian(0.5)
HEADS = (Votes(), Softmax(0.5), Sparsemax(0.5), ClippedLogits(-1.0, 2.0))


def images(count=3, shape=(3, 5, 6), seed=0):
    return torch.rand((count, *shape), generator=torch.Generator().manual_seed(seed))


def convolutional():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(4 * 3 * 4, 4)
    ).eval()


def linear():
    torch.manual_seed(2)
    return nn.Sequential(nn.Flatten(), nn.Linear(90, 4))


def sample(model=first_elements, inputs=None, **changes):
    keywords = {"noise": NOISE, "num_classes": 4, "n": 37, "seed": 5, "heads": HEADS, **changes}
    return rsfast.sample(model, images() if inputs is None else inputs, **keywords)


# What it computes


def test_votes_against_a_plain_loop():
    """One sample at a time, through the reference backend and argmax."""
    x = images()
    tally = sample(inputs=x, start=7, stream="user", heads=(Votes(),), input_ids=[5, 0, 9])
    votes = torch.zeros(3, 5, dtype=torch.int64)
    for i, input_id in enumerate([5, 0, 9]):
        for k in range(7, 44):
            noisy = perturb(
                x[i : i + 1], NOISE, seed=5, samples=[k], input_ids=[input_id], stream="user", backend="reference"
            )
            votes[i, int(first_elements(noisy).argmax())] += 1
    assert torch.equal(tally.counts, votes)
    assert tally.n.tolist() == [37] * 3
    assert (votes > 0).sum() > 6


@pytest.mark.parametrize("make", [convolutional, linear])
def test_a_network_against_the_two_ops(make):
    """The same batches through perturb, the network and accumulate."""
    x, model = images(2), make()
    tally = sample(model, x, n=30, batch_size=16)
    expected = Tally(2, 4, HEADS)
    with torch.inference_mode():
        model.eval()
        for begin in range(0, 60, 16):
            places = torch.arange(begin, min(begin + 16, 60))
            noisy = perturb(x, NOISE, seed=5, samples=places % 30, rows=places // 30)
            accumulate(model(noisy), expected, rows=places // 30)
    assert tally == expected
    assert tally.counts.sum() == 60


@pytest.mark.parametrize("make", [convolutional, linear])
@pytest.mark.parametrize("batch_size", [1, 7, 64, "auto"])
def test_a_network_at_any_batch_size(make, batch_size):
    """Matrix products of another shape may differ in the last bits, not more: scores agree to 1e-5 a sample."""
    x, model = images(), make()
    expected = sample(model, x, batch_size=16)
    found = sample(model, x, batch_size=batch_size)
    assert torch.equal(found.n, expected.n)
    assert (found.sums - expected.sums).abs().max() <= 37 * 2**30 * 1e-5
    assert (found.counts - expected.counts).abs().sum() <= 2


def test_preparation_reaches_the_model():
    """scale, shift, clamp, dtype and channels_last are ops.perturb's."""
    seen = []

    def model(batch):
        seen.append(batch.clone())
        return first_elements(batch)

    keywords = {"scale": [2.0, 3.0, 4.0], "shift": 0.5, "clamp": (0.0, 1.0), "dtype": torch.bfloat16, "channels_last": True}
    sample(model, images(1), n=8, batch_size=8, **keywords)
    expected = perturb(images(1), NOISE, seed=5, samples=range(8), **keywords)
    assert torch.equal(seen[-1], expected)
    assert seen[-1].dtype == torch.bfloat16
    assert seen[-1].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.usefixtures("unprobed")
def test_batches_are_full():
    """Rows of several inputs share a batch; only the last is smaller, and none is run twice."""
    sizes = []

    def model(batch):
        sizes.append(len(batch))
        return first_elements(batch)

    sample(model, batch_size=50)
    assert sizes == [50, 50, 11]
    sizes.clear()
    sample(model, batch_size=111)
    assert sizes == [111]


# What changes nothing


@pytest.mark.parametrize("batch_size", [1, 2, 36, 37, 38, 74, 111, 1000, "auto"])
def test_batch_size(batch_size):
    assert sample(batch_size=batch_size) == sample(batch_size=16)


def test_order_of_inputs():
    """With their ids, inputs may come in any order, or alone."""
    x, ids = images(4), [17, 3, 2**32 - 1, 0]
    expected = sample(inputs=x, input_ids=ids)
    order = [2, 0, 3, 1]
    found = sample(inputs=x[order], input_ids=torch.tensor(ids)[order])
    for name in ("n", "counts", "sums", "squares"):
        assert torch.equal(getattr(found, name), getattr(expected, name)[order])
    alone = sample(inputs=x[2:3], input_ids=ids[2:3])
    assert torch.equal(alone.sums[0], expected.sums[2])
    assert not torch.equal(sample(inputs=x).sums, expected.sums)


def test_threads(threads):
    x = images(2, (3, 40, 40))
    expected = sample(inputs=x, n=200, batch_size=128)
    for count in (1, 2, 3, 5):
        threads(count)
        assert sample(inputs=x, n=200, batch_size=128) == expected


def test_shards():
    """Sample ranges, across 2^32 too, add up to the whole."""
    for start in (0, 2**32 - 20, 2**56 - 37):
        whole = sample(start=start)
        for cuts in ((0, 37), (0, 1, 37), (0, 10, 20, 36, 37)):
            parts = [sample(start=start + a, n=b - a) for a, b in pairwise(cuts)]
            assert sum(parts, start=Tally(3, 4, HEADS)) == whole
    assert sample(start=1) != sample()


def test_backends(isa):
    assert sample(backend="cpu") == sample(backend="reference")


def test_seeds_and_streams_differ():
    tallies = [sample(stream=stream, seed=seed) for stream in ("selection", "estimation") for seed in (5, 6)]
    assert all(a != b for i, a in enumerate(tallies) for b in tallies[:i])


def test_inputs_are_left_alone():
    x = images()
    before = x.clone()
    sample(inputs=x.requires_grad_())
    assert torch.equal(x, before)
    assert x.grad is None


# How it treats the model


class Recording(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Dropout(0.5), nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5))
        self.fail = False
        self.modes = set()

    def forward(self, batch):
        self.modes.add((*(module.training for module in self.modules()), torch.is_grad_enabled()))
        if self.fail:
            raise RuntimeError("out of luck")
        return self.right(self.left(first_elements(batch)))


@pytest.mark.parametrize("fail", [False, True])
def test_modes_are_restored(fail):
    """Eval mode and no gradients meanwhile; afterwards each submodule is as it was, also when the model raised."""
    model = Recording()
    model.eval()
    model.right.training = model.right[1].training = True
    before = [module.training for module in model.modules()]
    assert before == [False, False, True, False, True]
    running = model.right[0].running_mean.clone()
    model.fail = fail
    if fail:
        with pytest.raises(RuntimeError, match="out of luck"):
            sample(model)
    else:
        sample(model)
    assert model.modes == {(*[False] * 5, False)}
    assert [module.training for module in model.modules()] == before
    assert torch.is_grad_enabled()
    assert torch.equal(model.right[0].running_mean, running)


@pytest.mark.parametrize("training", [False, True])
def test_modes_of_the_whole_are_restored(training):
    model = convolutional().train(training)
    sample(model)
    assert {module.training for module in model.modules()} == {training}


@pytest.mark.parametrize(
    ("error", "message", "model"),
    [
        (TypeError, r"^model must return the logits, .*, got a tuple", lambda x: (first_elements(x), None)),
        (TypeError, r"^model must return the logits, .*, got a dict; ", lambda x: {"logits": first_elements(x)}),
        (TypeError, r"^model must return the logits, .*, got a ndarray; ", lambda x: first_elements(x).numpy()),
        (TypeError, r"^model must return the logits, .*, got a NoneType; ", lambda x: None),
        (ValueError, r"^model must return shape \[16, K\] for a batch of 16, got \[16\]", lambda x: x.flatten(1)[:, 0]),
        (ValueError, r"^model must return shape .*, got \[16, 2, 2\]", lambda x: first_elements(x).view(-1, 2, 2)),
        (
            ValueError,
            r"^model must return shape \[16, K\] for a batch of 16, got \[15, 4\]",
            lambda x: first_elements(x)[1:],
        ),
        (ValueError, r"^model must return shape .*, got \[4, 16\]", lambda x: first_elements(x).t()),
        (ValueError, r"^num_classes must be 5, the logits that model returns a row, got 4", lambda x: x.flatten(1)[:, :5]),
        (ValueError, r"^num_classes must be 3, the logits that model returns a row, got 4", lambda x: x.flatten(1)[:, :3]),
        (TypeError, r"^model must return floating-point logits, got torch.int64", lambda x: first_elements(x).long()),
        (TypeError, r"^model must return floating-point logits, got torch.bool", lambda x: first_elements(x) > 0),
        (
            TypeError,
            r"^model must return floating-point logits, got torch.complex64",
            lambda x: first_elements(x).to(torch.complex64),
        ),
    ],
)
def test_what_a_model_must_return(error, message, model):
    with pytest.raises(error, match=message):
        sample(model, batch_size=16)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_logits_of_other_dtypes(dtype):
    expected = Tally(3, 4, HEADS)
    for i in range(3):
        noisy = perturb(images()[i : i + 1], NOISE, seed=5, samples=range(37), input_ids=[i])
        accumulate(first_elements(noisy).to(dtype), expected, rows=[i] * 37)
    assert sample(lambda x: first_elements(x).to(dtype)) == expected


def test_rows_without_a_vote():
    """A model that returns NaN for some rows loses them to the last count, and is heard."""

    def model(batch):
        logits = first_elements(batch).clone()
        logits[logits[:, 0] > 0.5] = torch.nan
        return logits

    tally = sample(model)
    assert (tally.n == 37).all()
    assert (tally.counts.sum(1) == 37).all()
    assert (tally.counts[:, -1] > 0).all()
    assert (tally.counts[:, -1] < 37).all()


# Arguments of sample


@pytest.mark.parametrize(
    ("error", "message", "changes"),
    [
        (TypeError, r"^model must be callable on a batch, got None", {"model": None}),
        (TypeError, r"^inputs must be .*float32.*, got a ndarray", {"inputs": np.zeros((1, 4), dtype=np.float32)}),
        (
            TypeError,
            r"^inputs must have dtype float32, got torch.float64; ",
            {"inputs": torch.zeros(1, 4, dtype=torch.float64)},
        ),
        (ValueError, r"^inputs must have shape .*, got \[4\]", {"inputs": torch.zeros(4)}),
        (
            ValueError,
            r"^inputs\[1\] must be finite, got NaN or infinity",
            {"inputs": torch.tensor([[0.0] * 4, [0, 0, torch.nan, 0]])},
        ),
        (ValueError, r"^inputs\[0\] must be finite, got NaN or infinity", {"inputs": torch.full((1, 4), torch.inf)}),
        (TypeError, r"^noise must be one of Gaussian.*, got 0.5", {"noise": 0.5}),
        (TypeError, r"^n must be an int.*, got 1.0", {"n": 1.0}),
        (ValueError, r"^n must be from 1 to 8589934591, got 0", {"n": 0}),
        (ValueError, r"^n must be from 1 to 8589934591, got 8589934592", {"n": 2**33}),
        (ValueError, r"^start must be an int from 0 to 2\^56 - n, got -1", {"start": -1}),
        (ValueError, r"^start must be an int from 0 to 2\^56 - n, got 0.0", {"start": 0.0}),
        (ValueError, r"^start must be an int from 0 to 2\^56 - n, got 72057594037927900", {"start": 2**56 - 36}),
        (TypeError, r"^seed must be an int, got None", {"seed": None}),
        (ValueError, r"^seed must be .*, got 18446744073709551616", {"seed": 2**64}),
        (ValueError, r"^stream must be one of .*, got 'test'", {"stream": "test"}),
        (ValueError, r"^num_classes must be from 2 to 1048576, got 1", {"num_classes": 1}),
        (TypeError, r"^num_classes must be an int, got 4.0", {"num_classes": 4.0}),
        (TypeError, r"^each of heads must be one of Votes, .*, got 'votes'", {"heads": ["votes"]}),
        (ValueError, r"^heads must hold at least one head, .*, got \(\)", {"heads": ()}),
        (ValueError, r"^batch_size must be from 1 to 8589934591, got 0", {"batch_size": 0}),
        (ValueError, r"^batch_size must be an int or 'auto', got 'large'", {"batch_size": "large"}),
        (TypeError, r"^batch_size must be an int or 'auto', got 1.5", {"batch_size": 1.5}),
        (TypeError, r"^batch_size must be an int, got array", {"batch_size": np.array([1, 2])}),
        (ValueError, r"^input_ids must have shape \[3\], got \[2\]", {"input_ids": [0, 1]}),
        (ValueError, r"^input_ids must lie in .*, got values from 0 to 4294967296", {"input_ids": [0, 1, 2**32]}),
        (ValueError, r"^scale must .*, got \[2\]", {"scale": [1.0, 2.0]}),
        (ValueError, r"^clamp must be .*, got \(1, 0\)", {"clamp": (1, 0)}),
        (TypeError, r"^dtype must be one of .*, got torch.int32", {"dtype": torch.int32}),
        (ValueError, r"^backend must be one of 'auto', .*, got 'fast'", {"backend": "fast"}),
        (
            ValueError,
            r"^channels_last must be False unless .*, got True and 1 axes",
            {"inputs": torch.zeros(1, 4), "channels_last": True},
        ),
    ],
)
def test_errors_come_before_the_model_runs(error, message, changes):
    calls = []
    with pytest.raises(error, match=message):
        sample(**{"model": calls.append, **changes})
    assert calls == []


# Memory


GROWTH = """
import os, torch, rsfast
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
sizes = []
def model(batch):
    if len(batch) > 3:  # not of the probe
        sizes.append(resident())
    return batch[:, :4]
heads = (rsfast.Votes(), rsfast.Softmax(1.0))
for n in (100_000, 1_000_000):
    tally = rsfast.sample(
        model, torch.zeros(1, 16), rsfast.Gaussian(1.0), num_classes=4, n=n, heads=heads, seed=1, batch_size=4096
    )
    assert tally.n.tolist() == [n]
assert len(sizes) == 25 + 245
print(max(sizes[25:]) - max(sizes[:25]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_memory_does_not_grow_with_n():
    """10^6 samples take at most 6 MB more than 10^5, in a fresh process. Logits kept would add 14 MB, noise 58 MB."""
    found = subprocess.run([sys.executable, "-c", GROWTH], capture_output=True, text=True, check=True)
    assert int(found.stdout) < 6e6
