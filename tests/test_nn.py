"""rsfast.nn: the noise of ops.perturb, the gradient of x, and training that resumes."""

import copy
import doctest

import pytest
import torch

import rsfast
from rsfast import Gaussian, ops
from rsfast.nn import GaussianNoise


def test_noise_is_that_of_perturb_one_sample_a_row():
    layer, x = GaussianNoise(0.5, seed=7), torch.rand(5, 3, 4, 4)
    first, second = layer(x), layer(x[:2])
    options = {"seed": 7, "stream": "training"}
    ids = torch.zeros(5, dtype=torch.int64)
    assert torch.equal(first, ops.perturb(x, Gaussian(0.5), samples=range(5), input_ids=ids, **options))
    assert torch.equal(second, ops.perturb(x[:2], Gaussian(0.5), samples=range(5, 7), input_ids=ids[:2], **options))
    assert not torch.equal(first[:2], second)
    assert int(layer.count) == 7


def test_eval_mode_is_the_identity():
    layer, x = GaussianNoise(0.5, seed=7).eval(), torch.rand(5, 3)
    assert layer(x) is x
    assert int(layer.count) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_gradient_is_that_of_x(dtype):
    x = torch.rand(4, 6, dtype=dtype, requires_grad=True)
    y = GaussianNoise(0.5, seed=1)(x)
    assert (y.dtype, y.requires_grad) == (dtype, True)
    weight = torch.rand(4, 6, dtype=dtype)
    (y * weight).sum().backward()
    assert torch.equal(x.grad, weight)


def test_memory_format_is_kept():
    x = torch.rand(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    y, z = (GaussianNoise(0.5, seed=1)(each) for each in (x, x.contiguous()))
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert z.is_contiguous()
    assert torch.equal(y, z)


def test_training_resumes_with_the_same_bits():
    whole, x = GaussianNoise(0.5, seed=1), torch.rand(3, 2)
    whole(x)
    resumed = GaussianNoise(0.5, seed=1)
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    assert torch.equal(whole(x), resumed(x))


def test_autocast_and_compile():
    network = torch.nn.Sequential(GaussianNoise(0.25, seed=3), torch.nn.Linear(6, 4))
    x = torch.rand(8, 6)
    with torch.autocast("cpu", torch.bfloat16):
        assert network(x).dtype == torch.bfloat16
    network[0].count.zero_()
    expected = [network(x) for _ in range(2)]
    network[0].count.zero_()
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    found = [compiled(x) for _ in range(2)]
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)
    found[0].sum().backward()
    assert network[1].weight.grad.abs().sum() > 0


def test_ranks_draw_noise_of_their_own(monkeypatch):
    x, found = torch.zeros(2, 8), []
    for rank in range(2):
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        found.append(GaussianNoise(1.0, seed=3)(x))
    assert not torch.isclose(found[0], found[1]).any()


def test_replicas_of_data_parallel_draw_noise_of_their_own(monkeypatch):
    """As torch.nn.DataParallel makes replicas in each step: the first shares our buffers, the others get copies."""
    layer = GaussianNoise(1.0, seed=3)
    assert torch.equal(torch.nn.DataParallel(layer)(torch.zeros(2, 8)), GaussianNoise(1.0, seed=3)(torch.zeros(2, 8)))
    found = []
    for _ in range(2):
        for gpu, chunk in enumerate(torch.zeros(5, 8).chunk(2)):  # 3 rows and 2
            replica = layer._replicate_for_data_parallel()
            replica.count = layer.count if gpu == 0 else layer.count.clone()
            monkeypatch.setattr("rsfast.nn._source", lambda device, gpu=gpu: gpu)
            found.append(replica(chunk))
    rows = torch.cat(found)
    assert len({row.tolist()[0] for row in rows}) == 10
    assert int(layer.count) == 2 + 2 * 3


def test_seeds():
    x = torch.zeros(2, 8)
    assert not torch.equal(GaussianNoise(1.0)(x), GaussianNoise(1.0)(x))
    assert repr(GaussianNoise(0.5, seed=3)) == "GaussianNoise(sigma=0.5, seed=3)"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: GaussianNoise(-1.0), ValueError, "sigma is -1.0"),
        (lambda: GaussianNoise(0.5, seed=-1), ValueError, "seed is -1; it must be in"),
        (lambda: GaussianNoise(0.5)(torch.zeros(2, 3, dtype=torch.int64)), TypeError, "x has dtype torch.int64; it must be"),
        (lambda: GaussianNoise(0.5)(torch.zeros(2, 3, dtype=torch.float64)), TypeError, "x has dtype torch.float64"),
        (lambda: GaussianNoise(0.5)(torch.zeros(3)), ValueError, r"x has shape \[3\]; it must be \[I, \*shape\]"),
    ],
)
def test_wrong_uses(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_examples():
    assert doctest.testmod(rsfast.nn).failed == 0
