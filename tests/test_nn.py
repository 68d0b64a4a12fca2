"""rsfast.nn: the noise of ops.perturb, the gradient of x, and training that resumes."""

import copy
import pickle
from contextlib import contextmanager, nullcontext
from multiprocessing.context import set_spawning_popen

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset

import rsfast
from rsfast import Gaussian, ops
from rsfast.nn import GaussianNoise, Mask, NoisyStateCell, SmoothedCritic


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


# Activation checkpointing: gradients are those of plain training, bit for bit, and so are the noise's place and torch's.


def network():
    torch.manual_seed(5)
    return nn.Sequential(
        nn.Sequential(GaussianNoise(0.5, seed=1), nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.3)),
        nn.Sequential(nn.Linear(8, 8), GaussianNoise(1.0, seed=2), nn.Tanh(), GaussianNoise(0.5, seed=2), nn.Sigmoid()),
    )


def train(net, run, order=(0, 1, 2), steps=2):
    """Three batches of other sizes a step; backward passes in this order, or each at once. Return all that this changes."""
    torch.manual_seed(6)
    for _ in range(steps):
        losses = []
        for size in (4, 2, 5):
            losses.append(run(torch.rand(size, 6, requires_grad=True)).pow(2).sum())
            if order is None:
                losses[-1].backward()
        for place in order or ():
            losses[place].backward()
        with torch.no_grad():
            for weight in net.parameters():
                weight -= 0.1 * weight.grad
    return [*(weight.grad for weight in net.parameters()), *net.state_dict().values(), torch.get_rng_state()]


def nested(net, reentrant):
    def both(x):
        return checkpoint(net[1], checkpoint(net[0], x, use_reentrant=reentrant), use_reentrant=reentrant)

    return lambda x: checkpoint(both, x, use_reentrant=reentrant)


CHECKPOINTS = {
    "all": lambda net, reentrant: lambda x: checkpoint(net, x, use_reentrant=reentrant),
    "first": lambda net, reentrant: lambda x: net[1](checkpoint(net[0], x, use_reentrant=reentrant)),
    "last": lambda net, reentrant: lambda x: checkpoint(net[1], net[0](x), use_reentrant=reentrant),
    "nested": nested,
}


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # of an inner checkpoint within an outer one
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("what", CHECKPOINTS)
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_a_checkpoint_repeats_the_noise(reentrant, what, order):
    net, plain = network(), network()
    expected = train(plain, plain, order)
    found = train(net, CHECKPOINTS[what](net, reentrant), order)
    assert [int(count) for name, count in net.state_dict().items() if name.endswith("count")] == [22] * 3
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["compiled network", "compiled network, reentrant", "compiled checkpoint"])
def test_a_compiled_checkpoint_repeats_the_noise(what):
    nets = [network(), network()]
    for net in nets:
        net[0][3] = nn.Identity()
    order = None if what == "compiled checkpoint" else (1, 0, 2)
    expected = train(nets[0], nets[0], order)
    if what == "compiled checkpoint":

        def run(x):
            return checkpoint(nets[1], x, use_reentrant=False)

        run = torch.compile(run, backend="aot_eager", dynamic=True, fullgraph=True)
    else:
        compiled = torch.compile(nets[1], backend="aot_eager", dynamic=True, fullgraph=True)

        def run(x):
            return checkpoint(compiled, x, use_reentrant=what.endswith("reentrant"))

    for ours, theirs in zip(train(nets[1], run, order), expected, strict=True):
        assert torch.equal(ours, theirs)


def test_a_backward_pass_may_run_twice():
    net = network()
    y = checkpoint(net, torch.rand(4, 6), use_reentrant=False).sum()
    first, second = (torch.autograd.grad(y, list(net.parameters()), retain_graph=True) for _ in range(2))
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("reentrant", [True, False])
def test_noise_that_cannot_be_repeated_is_refused(reentrant, monkeypatch):
    """Rather than other noise, whose gradients would be wrong."""
    net = network()

    def run(**options):
        return checkpoint(net, torch.ones(4, 6, requires_grad=True), use_reentrant=reentrant, **options).sum()

    unknown = "cannot tell which forward it repeats"
    with pytest.raises(RuntimeError, match=unknown):
        run(preserve_rng_state=False).backward()
    for _ in range(2):
        torch.manual_seed(1)  # anew before each forward
        y = run()
        y.backward()
    torch.manual_seed(2)
    first = run()
    torch.manual_seed(2)
    second = run()
    for y in (first, second):
        with pytest.raises(RuntimeError, match=unknown):
            y.backward()
    monkeypatch.setattr(rsfast.nn, "_KEPT", 6)  # two of net's forwards
    older, old, new = run(), run(), run()
    old.backward()
    new.backward()
    with pytest.raises(RuntimeError, match=unknown):
        older.backward()
    assert len(rsfast.nn._starts) <= 6


def test_a_forward_that_fails_takes_no_noise():
    layer = GaussianNoise(0.5, seed=1)
    with pytest.raises(ValueError, match="x must have shape"):
        layer(torch.zeros(3))
    assert int(layer.count) == 0


# In the workers of a DataLoader each worker and epoch has noise of its own, which repeats with torch's seed.


class Noisy(Dataset):
    def __init__(self, layer, rows=1):
        self.layer, self.rows = layer, rows

    def __len__(self):
        return 8

    def __getitem__(self, place):
        return self.layer(torch.zeros(self.rows, 4))


def epochs(layer, seed, count=2, **options):
    torch.manual_seed(seed)
    loader = DataLoader(Noisy(layer), batch_size=2, num_workers=2, **options)
    return torch.cat([batch.reshape(-1, 4) for _ in range(count) for batch in loader])


def different(*noises):
    rows = torch.cat(noises)
    return len(torch.unique(rows, dim=0)) == len(rows)


@pytest.mark.parametrize("options", [{}, {"persistent_workers": True}])
def test_workers_draw_noise_of_their_own(options, monkeypatch):
    layer = GaussianNoise(1.0, seed=7)
    found = epochs(layer, 3, **options)
    assert torch.equal(epochs(copy.deepcopy(layer), 3, **options), found)
    assert int(layer.count) == 0
    here, of_another = layer(torch.zeros(8, 4)), epochs(GaussianNoise(1.0, seed=8), 3, **options)
    monkeypatch.setenv("RANK", "1")
    of_another_rank = epochs(GaussianNoise(1.0, seed=7), 3, multiprocessing_context="fork", **options)  # no older server
    assert different(found, here, of_another, of_another_rank)


@pytest.mark.slow
def test_workers_that_are_spawned():
    """They share buffers of the main process, and draw what forked ones do."""
    layer = GaussianNoise(1.0, seed=7)
    forked = epochs(layer, 3, count=1, multiprocessing_context="fork")
    assert different(forked)
    for how in ("spawn", "forkserver"):  # the latter is the default from Python 3.14 on
        assert torch.equal(epochs(layer, 3, count=1, multiprocessing_context=how), forked)
    assert int(layer.count) == 0


@contextmanager
def of_rank(rank):
    with pytest.MonkeyPatch.context() as group:
        group.setattr(torch.distributed, "is_initialized", lambda: True)
        group.setattr(torch.distributed, "get_rank", lambda: rank)
        yield


def as_to_a_worker(layer):
    set_spawning_popen(object())
    try:
        return pickle.dumps(layer)
    finally:
        set_spawning_popen(None)


def drawn(layer, rank=None):
    """What workers draw; with a rank, as if they had the process group."""

    def draw(x):
        with nullcontext() if rank is None else of_rank(rank):
            return layer(x)

    return epochs(draw, 3, count=1, multiprocessing_context="fork")


def test_a_layer_takes_its_rank_along(monkeypatch):
    """A worker that is not forked has no process group, and RANK is torchrun's alone; it draws what a forked one does."""
    monkeypatch.delenv("RANK", raising=False)
    layer, found = GaussianNoise(1.0, seed=7), []
    for rank in (0, 1, 3):
        with of_rank(rank):
            sent = as_to_a_worker(layer)
        found.append(drawn(layer, rank))
        assert torch.equal(drawn(pickle.loads(sent)), found[-1])
    assert different(*found)
    monkeypatch.setenv("RANK", "3")  # the seed has the rank, as it always had
    assert torch.equal(drawn(pickle.loads(sent)), drawn(layer))


@pytest.mark.parametrize("of_machine", ["0", "1"])
def test_ranks_of_a_machine_that_has_one_RANK(of_machine, monkeypatch):
    monkeypatch.setenv("RANK", of_machine)
    found = []
    for rank in (0, 1, 3):
        with of_rank(rank):
            sent = as_to_a_worker(GaussianNoise(1.0, seed=7))
        found.append(drawn(pickle.loads(sent)))
    assert different(*found)


def test_a_layer_in_a_file_has_no_rank(monkeypatch):
    """Else every rank that loads what another saved would draw in its workers what that one draws."""
    monkeypatch.delenv("RANK", raising=False)
    layer = GaussianNoise(1.0, seed=7)
    with of_rank(3):
        saved, sent = pickle.dumps(layer), as_to_a_worker(layer)
    assert torch.equal(drawn(pickle.loads(saved)), drawn(layer))
    assert torch.equal(drawn(pickle.loads(sent), 0), drawn(layer))  # the group tells, if there is one


def test_workers_follow_torchs_seed():
    one, two = (epochs(GaussianNoise(1.0, seed=7), seed, count=1) for seed in (3, 4))
    generator = torch.Generator()
    of_loader = [epochs(GaussianNoise(1.0, seed=7), seed, 1, generator=generator.manual_seed(5)) for seed in (3, 4)]
    assert torch.equal(*of_loader)
    assert different(one, two, of_loader[0])
    assert abs(float(torch.cat([one, two]).std()) - 1) < 0.5


# Masks: the base of the layers is tested above, here that masks take it, and what differs


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("patch", [0, 1, 3])
def test_a_mask_is_that_of_perturb(patch, dtype):
    """In every type and memory format, whose bits do not matter; fills that the type must round among them."""
    layer, noise = Mask(0.3, 1 / 3, patch, seed=7), rsfast.Mask(0.3, 1 / 3, patch)
    x = torch.rand(5, 3, 4, 7).to(dtype)
    ids = torch.zeros(5, dtype=torch.int64)
    options = {"seed": 7, "stream": "training", "input_ids": ids, "dtype": dtype}
    for form, start in ((torch.contiguous_format, 0), (torch.channels_last, 5)):
        y = layer(x.contiguous(memory_format=form))
        assert torch.equal(y, ops.perturb(x.float(), noise, samples=range(start, start + 5), **options))
        assert y.is_contiguous(memory_format=form)
        assert y.dtype == dtype
    assert int(layer.count) == 10
    assert layer.eval()(x) is x


@pytest.mark.parametrize("patch", [0, 2])
def test_the_gradient_of_a_mask_passes_through_what_is_kept(patch):
    """Where x itself equals the fill, too; and it can be differentiated again."""
    x = torch.full((4, 3, 5, 6), 2.0, requires_grad=True)
    weight = torch.rand(x.shape) + 1
    y = Mask(0.5, 2.0, patch, seed=3)(x)
    (gradient,) = torch.autograd.grad((y.square() * weight).sum(), x, create_graph=True)
    kept = Mask(0.5, 0.0, patch, seed=3)(torch.ones(x.shape)) == 1
    assert 0 < kept.sum() < kept.numel()
    assert torch.equal(gradient, torch.where(kept, 4 * weight, 0.0))
    (second,) = torch.autograd.grad(gradient.sum(), x)
    assert torch.equal(second, torch.where(kept, 2 * weight, 0.0))


def test_what_is_hidden_does_not_spoil_the_gradient():
    """A select, not a product: NaN and infinity behind the mask reach neither the output nor the gradient."""
    x = torch.full((2, 1000), torch.nan, requires_grad=True)
    y = Mask(0.5, seed=3)(x)
    hidden = y.detach() == 0
    assert 800 < hidden.sum() < 1200
    y.nansum().backward()
    assert bool((x.grad[hidden] == 0).all())


def test_dropout_is_this_noise_without_the_factor():
    """Mask(1 - p)(h) / (1 - p) and nn.Dropout(p)(h): values 0 and h / (1 - p), as often, and gradients alike.

    Shares of 400,000 elements within 5 standard errors of 1 - p, both: false failure below 2e-6; fixed seeds.
    """
    torch.manual_seed(1)
    p, h = 0.3, torch.rand(400, 1000) + 1
    outputs, shares = [], []
    for layer in (nn.Sequential(Mask(1 - p, seed=2)), nn.Dropout(p)):
        x = h.clone().requires_grad_()
        y = layer(x) / (1 - p if isinstance(layer, nn.Sequential) else 1)
        kept = y.detach() != 0
        torch.testing.assert_close(y.detach(), torch.where(kept, h / (1 - p), 0.0))
        y.sum().backward()
        torch.testing.assert_close(x.grad, torch.where(kept, 1 / (1 - p), 0.0))
        outputs.append(y.detach())
        shares.append(float(kept.double().mean()))
    assert max(abs(share - (1 - p)) for share in shares) < 5 * (p * (1 - p) / h.numel()) ** 0.5
    assert not torch.equal(*outputs)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_repeats_the_mask(reentrant):
    def net():
        torch.manual_seed(5)
        return nn.Sequential(nn.Sequential(Mask(0.5, 1.0, seed=1), nn.Linear(6, 8), nn.Tanh()), Mask(0.7, seed=2))

    one, two = net(), net()
    expected = train(one, one)
    found = train(two, lambda x: checkpoint(two, x, use_reentrant=reentrant))
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)
    resumed = net()
    resumed.load_state_dict(two.state_dict())
    x = torch.rand(3, 6)
    assert torch.equal(resumed(x), two(x))


def test_workers_draw_masks_of_their_own():
    layer = Mask(0.5, 1.0, seed=7)
    found = torch.cat([epochs(layer, 3), epochs(layer, 4)])
    assert torch.equal(found[:16], epochs(copy.deepcopy(layer), 3))
    assert int(layer.count) == 0
    rows = DataLoader(Wide(layer), batch_size=2, num_workers=2)
    assert different(torch.cat(list(rows)), layer(torch.zeros(8, 64)))


class Wide(Noisy):
    def __getitem__(self, place):
        return self.layer(torch.zeros(self.rows, 64))[0]


@pytest.mark.slow
@pytest.mark.parametrize("patch", [0, 2])
def test_a_compiled_mask(patch):
    """In one graph; with a patch in two, as NumPy makes the cells."""
    network, x = nn.Sequential(Mask(0.5, 0.5, patch, seed=3), nn.Conv2d(3, 4, 1)), torch.rand(8, 3, 5, 5)
    expected = [network(x) for _ in range(2)]
    network[0].count.zero_()
    compiled = torch.compile(network, backend="aot_eager", fullgraph=not patch)
    found = [compiled(x) for _ in range(2)]
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)
    found[0].sum().backward()
    assert network[1].weight.grad.abs().sum() > 0


# Layers that put noise elsewhere


CELLS = [nn.RNNCell, nn.GRUCell, nn.LSTMCell]


def unroll(cell, steps, state=None):
    """The states h after all steps, [steps, B, hidden_size]."""
    found = []
    for step in steps:
        state = cell(step, state)
        found.append(state[0] if isinstance(state, tuple) else state)
    return torch.stack(found)


@pytest.mark.parametrize("kind", CELLS)
def test_the_state_gets_noise_at_every_step(kind):
    """h + z goes into the cell, of an LSTM c as it is; from the first step on, where h is 0."""
    torch.manual_seed(0)
    inner, noise, steps = kind(3, 5), GaussianNoise(0.5, seed=4), torch.rand(6, 2, 3)
    zeros, expected = torch.zeros(2, 5), []
    state = (zeros, zeros) if kind is nn.LSTMCell else zeros
    for step in steps:
        state = inner(step, (noise(state[0]), state[1]) if kind is nn.LSTMCell else noise(state))
        expected.append(state[0] if kind is nn.LSTMCell else state)
    cell = NoisyStateCell(inner, 0.5, seed=4)
    assert torch.equal(unroll(cell, steps), torch.stack(expected))
    assert int(cell.noise.count) == 12
    assert not torch.equal(unroll(cell, steps), torch.stack(expected))  # fresh noise
    assert torch.equal(unroll(cell.eval(), steps), unroll(inner, steps))


@pytest.mark.parametrize("kind", CELLS)
def test_a_noisy_cell_is_trained_and_resumed(kind):
    torch.manual_seed(0)
    cell, steps = NoisyStateCell(kind(3, 5), 0.5, seed=4), torch.rand(6, 2, 3)
    unroll(cell, steps).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in cell.cell.parameters())
    resumed = NoisyStateCell(kind(3, 5), 0.5, seed=4)
    resumed.load_state_dict(copy.deepcopy(cell.state_dict()))
    assert torch.equal(unroll(cell, steps), unroll(resumed, steps))


def test_noise_on_a_linear_state_is_a_penalty():
    """E |W(h + z) + b|^2 is |W h + b|^2 + sigma^2 tr(W'HW) / 2 with H = 2, and relu is linear where b is large.

    6 standard errors of 40,000 rows: false failure 2e-9. They are less than a tenth of the penalty.
    """
    torch.manual_seed(0)
    inner, sigma = nn.RNNCell(2, 3, nonlinearity="relu"), 0.5
    nn.init.constant_(inner.bias_hh, 20.0)
    nn.init.constant_(inner.bias_ih, 0.0)
    h, x = torch.full((40_000, 3), 0.4), torch.zeros(40_000, 2)
    with torch.no_grad():
        loss = (NoisyStateCell(inner, sigma, seed=3)(x, h) - 20).square().sum(1).double()
        weight = inner.weight_hh.double()
        plain, penalty = (weight @ h[0].double()).square().sum(), sigma**2 * weight.square().sum()
    error = 6 * loss.std() / 200
    assert abs(loss.mean() - plain - penalty) < error
    assert error < penalty / 10


def critic_of(width):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, width))


def test_a_smoothed_critic_is_the_mean_over_noisy_copies():
    inner, x, noise = critic_of(2), torch.rand(3, 4), GaussianNoise(0.5, seed=6)
    critic = SmoothedCritic(inner, 0.5, 7, seed=6)
    copies = noise(x.repeat_interleave(7, dim=0))
    torch.testing.assert_close(critic(x), torch.stack([inner(rows).mean(0) for rows in copies.split(7)]))
    assert int(critic.noise.count) == 21
    assert not torch.equal(critic(x), critic(x))
    assert SmoothedCritic(nn.Flatten(0), 0.5, 7)(torch.rand(3, 1)).shape == (3,)


def test_a_smoothed_critic_smooths_in_both_modes():
    """Its own mode and the critic's follow; GaussianNoise alone would do nothing in eval mode."""
    critic, x = SmoothedCritic(nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 1)), 0.5, 7, seed=6), torch.rand(3, 4)
    critic.eval()
    assert not critic.training
    assert not critic.critic[0].training
    first = critic(x)
    critic.noise.count.zero_()
    assert torch.equal(critic(x), first)
    assert not torch.equal(first, critic.critic(x))
    assert critic.train().critic[0].training


def test_a_smoothed_critic_has_a_gradient_penalty():
    """First and second derivatives flow: x's gradient is the copies' mean, and its penalty trains the critic."""
    inner, x = critic_of(1), torch.rand(3, 4, requires_grad=True)
    critic = SmoothedCritic(inner, 0.5, 7, seed=6)
    (gradient,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    critic.noise.count.zero_()
    copies = critic.noise(x.detach().repeat_interleave(7, dim=0)).requires_grad_()
    (of_copies,) = torch.autograd.grad(inner(copies).sum(), copies)
    torch.testing.assert_close(gradient, of_copies.reshape(3, 7, 4).mean(1))
    (gradient.norm(dim=1) - 1).square().mean().backward()
    assert inner[0].weight.grad.abs().sum() > 0


def test_a_smoothed_critic_has_tame_gradients():
    """Of tanh(50 x) the slope is at most 50, and of its mean over noise of 0.5 less than 1 / (0.5 sqrt(2 pi)) 2 = 1.6.

    Within what 2000 copies err by: slopes lie in [0, 50] and have mean 1.6 at most, so 6 standard errors are 1.2.
    """
    x = torch.linspace(-1, 1, 41)[:, None].requires_grad_()

    class Steep(nn.Module):
        def forward(self, x):
            return torch.tanh(50 * x)

    slopes = [
        torch.autograd.grad(critic(x).sum(), x)[0].abs().max() for critic in (Steep(), SmoothedCritic(Steep(), 0.5, 2000))
    ]
    assert slopes[0] > 49
    assert slopes[1] < 2.8


def test_seeds():
    x = torch.zeros(2, 8)
    assert not torch.equal(GaussianNoise(1.0)(x), GaussianNoise(1.0)(x))
    assert repr(GaussianNoise(0.5, seed=3)) == "GaussianNoise(sigma=0.5, seed=3)"
    assert not torch.equal(Mask(0.5)(x + 1), Mask(0.5)(x + 1))
    assert repr(Mask(0.5, patch=2, seed=3)) == "Mask(keep=0.5, fill=0.0, patch=2, seed=3)"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: GaussianNoise(-1.0), ValueError, "sigma must be .*, got -1.0"),
        (lambda: GaussianNoise(0.5, seed=-1), ValueError, r"seed must be in .*, got -1"),
        (
            lambda: GaussianNoise(0.5)(torch.zeros(2, 3, dtype=torch.int64)),
            TypeError,
            "x must have dtype .*, got torch.int64",
        ),
        (
            lambda: GaussianNoise(0.5)(torch.zeros(2, 3, dtype=torch.float64)),
            TypeError,
            "x must have dtype .*, got torch.float64",
        ),
        (lambda: GaussianNoise(0.5)(torch.zeros(3)), ValueError, r"x must have shape \[I, \*shape\] with .*, got \[3\]"),
        (lambda: Mask(0.0), ValueError, "^keep must be from .*, got 0.0"),
        (lambda: Mask(0.5, seed="1"), TypeError, "^seed must be an int, got '1'"),
        (
            lambda: Mask(0.5, -1.0, 1)(torch.zeros(2, 3)),
            ValueError,
            r"^an input must .*, with patch = 1, got \[3\]; without",
        ),
        (lambda: Mask(0.5)(torch.zeros(2, 3, dtype=torch.float64)), TypeError, "^x must have dtype .*, got torch.float64"),
        (lambda: Mask(0.5)(torch.zeros(3)), ValueError, r"^x must have shape \[B, \*shape\] .*, got \[3\]; one input"),
        (lambda: GaussianNoise(0.5)([0.0]), TypeError, "^x must be a tensor, got a list$"),
        (lambda: Mask(0.5)(np.zeros((2, 3))), TypeError, "^x must be a tensor, got a ndarray$"),
        (lambda: SmoothedCritic(nn.Flatten(), 0.5, 2)([0.0]), TypeError, "^x must be a tensor, got a list$"),
        (
            lambda: SmoothedCritic(nn.Flatten(), 0.5, 2)(torch.zeros(3)),
            ValueError,
            r"^x must have shape \[B, \*shape\] .*, got \[3\]; one input needs its batch axis: x\[None\]$",
        ),
        (lambda: NoisyStateCell(nn.GRUCell(2, 3), 0.5)([[0.0] * 2]), TypeError, "^input must be a tensor, got a list$"),
        (
            lambda: NoisyStateCell(nn.LSTMCell(2, 3), 0.5)(torch.zeros(1, 2), (torch.zeros(1, 3),)),
            ValueError,
            r"^state must be \(h, c\), got a tuple of length 1$",
        ),
        (
            lambda: NoisyStateCell(nn.LSTMCell(2, 3), 0.5)(torch.zeros(1, 2), (torch.zeros(1, 3), [0.0] * 3)),
            TypeError,
            r"^state\[1\] must be a tensor, got a list$",
        ),
        (
            lambda: NoisyStateCell(nn.LSTMCell(2, 3), 0.5)(torch.zeros(1, 2), 5),
            TypeError,
            r"^state must be \(h, c\), got a int$",
        ),
        (lambda: NoisyStateCell(nn.LSTM(2, 3), 0.5), TypeError, r"^cell must be an nn.RNNCell, .*, got LSTM\("),
        (lambda: NoisyStateCell(nn.GRUCell(2, 3), 0), ValueError, "^sigma must be .*, got 0"),
        (lambda: NoisyStateCell(nn.GRUCell(2, 3), 0.5, seed=0.5), TypeError, "^seed must be an int, got 0.5"),
        (lambda: NoisyStateCell(nn.GRUCell(2, 3), 0.5)(torch.zeros(2)), ValueError, r"^input must have shape .*, got \[2\]"),
        (
            lambda: NoisyStateCell(nn.LSTMCell(2, 3), 0.5)(torch.zeros(1, 2), torch.zeros(1, 3)),
            TypeError,
            r"^state must be \(h, c\), got a Tensor",
        ),
        (
            lambda: NoisyStateCell(nn.GRUCell(2, 3), 0.5)(torch.zeros(1, 2), (torch.zeros(1, 3),) * 2),
            TypeError,
            "^state must be a tensor h, got a tuple",
        ),
        (lambda: SmoothedCritic(torch.tanh, 0.5, 2), TypeError, "^critic must be an nn.Module, got .*tanh"),
        (lambda: SmoothedCritic(nn.Flatten(), 0.5, 0), ValueError, "^samples must be from 1 to .*, got 0"),
        (lambda: SmoothedCritic(nn.Flatten(), -0.5, 2), ValueError, "^sigma must be .*, got -0.5"),
        (
            lambda: SmoothedCritic(nn.Flatten(0), 0.5, 2)(torch.zeros(2, 3)),
            ValueError,
            r"^critic must return 4 rows for 4 rows, got shape \[12\]",
        ),
    ],
)
def test_wrong_uses(call, error, message):
    with pytest.raises(error, match=message):
        call()
