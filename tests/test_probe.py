"""engine.probe: which models are told that a row's logits do not depend on that row only, and which are left in peace."""

import gc
import re
import sys
import warnings
import weakref

import pytest
import torch
from conftest import notes
from torch import nn
from torch.nn import functional

import rsfast
from benchmarks.networks import bottleneck, cifar_resnet110, convolution
from rsfast.engine import probe

X = torch.rand((2, 3, 8, 8), generator=torch.Generator().manual_seed(0))
RANDOM, MIXES = "^model is random in eval mode", "^model depends on the rest of the batch"


def linear():
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, 5))


def small_resnet():
    torch.manual_seed(3)
    blocks = [convolution(3, 16, 3), nn.ReLU(), *(bottleneck(64 if k else 16, 16, 1) for k in range(8))]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 5))


def sample(model, x=X, **options):
    options = {"num_classes": 5, "n": 4, "seed": 1} | options
    return rsfast.sample(model, x, rsfast.Gaussian(0.25), **options)


def said(model, **options):
    """The warnings about a model."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sample(model, **options)
    return [str(each.message) for each in caught]


def behind(function):
    """`function` of the logits of a network."""
    network = linear().eval()
    return lambda batch: function(network(batch))


def before(function):
    """A network behind `function`."""
    network = linear().eval()
    return lambda batch: network(function(batch))


def quantised(rows):
    scale = rows.abs().max() / 127
    return (rows / scale).round() * scale


class Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.network, self.calls = linear(), 0

    def forward(self, batch):
        self.calls += 1
        return self.network(batch) * (1 + 0.01 * self.calls)


def in_training_mode(*arguments):
    """A module that a function makes, so that nobody else can put it into eval mode."""

    def model(batch):
        torch.manual_seed(7)
        return nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.BatchNorm1d(16), nn.Linear(16, 5))(batch)

    return model


NOISE = rsfast.nn.GaussianNoise(0.1, seed=1)
WRONG = {
    "dropout": (RANDOM, lambda: behind(lambda logits: functional.dropout(logits, 0.5, training=True))),
    "rare dropout": (RANDOM, lambda: before(lambda batch: functional.dropout(batch, 0.05, training=True))),
    "noise": (RANDOM, lambda: behind(lambda logits: logits + 0.01 * torch.randn_like(logits))),
    "noise layer": (RANDOM, lambda: before(lambda batch: NOISE.train()(batch))),
    "counter": (RANDOM, Counter),
    "batch norm": (MIXES, in_training_mode),
    "standardised": (MIXES, lambda: behind(lambda logits: (logits - logits.mean(0)) / logits.std(0))),
    "centred": (MIXES, lambda: behind(lambda logits: logits - logits.mean())),
    "softmax over rows": (MIXES, lambda: behind(lambda logits: logits.softmax(0))),
    "quantised": (MIXES, lambda: before(quantised)),
    "by place": (MIXES, lambda: behind(lambda logits: logits + torch.arange(len(logits))[:, None])),
    "NaN": (MIXES, lambda: behind(lambda logits: torch.where(torch.arange(len(logits))[:, None] == 1, torch.nan, logits))),
    "offset": (MIXES, lambda: behind(lambda logits: 1000 + logits - logits.mean(0))),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("options", [{}, {"dtype": torch.bfloat16}, {"autocast": torch.bfloat16}], ids=str)
def test_a_model_that_is_no_function_of_a_row(case, options):
    """One warning that names the cause, and no second one."""
    expected, make = WRONG[case]
    network = make()
    model = network if isinstance(network, nn.Module) else lambda batch: network(batch.float())
    if options and case in ("noise", "noise layer", "quantised", "counter", "offset", "centred", "rare dropout"):
        pytest.skip("a difference that rounding to bfloat16 may make")
    [text] = said(model, **options)
    assert re.match(expected, text)
    assert said(model, **options) == []


RIGHT = {
    "linear": linear,
    "bias of a million": lambda: behind(lambda logits: logits + 1e6),
    "masked classes": lambda: behind(lambda logits: logits.masked_fill(torch.arange(5) == 2, -torch.inf)),
    "NaN": lambda: behind(lambda logits: logits * torch.nan),
    "zeros": lambda: behind(lambda logits: logits * 0),
    "softmax": lambda: behind(lambda logits: logits.softmax(1)),
    "resnet": small_resnet,
    "in place": lambda: before(lambda batch: batch.mul_(2)),
}


@pytest.mark.parametrize("case", RIGHT)
@pytest.mark.parametrize("options", [{}, {"dtype": torch.bfloat16}, {"autocast": torch.bfloat16}], ids=str)
def test_a_model_that_is_a_function_of_a_row(case, options):
    network = RIGHT[case]()
    model = lambda batch: network(batch.float())  # noqa: E731
    assert [text for text in said(model, **options) if "NaN" not in text] == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", [small_resnet, cifar_resnet110])
def test_deep_networks_of_half_precision(make, dtype):
    torch.manual_seed(1)
    model = make(5) if make is cifar_resnet110 else make()
    x = torch.rand(2, 3, 32, 32)
    assert said(model.to(dtype), x=x, dtype=dtype, channels_last=True) == []


def test_rows_that_differ_by_rounding():
    """In bfloat16 logits may be off by a percent, in float32 not."""

    def model(batch):
        sign = 1 - 2 * (torch.arange(len(batch), device=batch.device) % 2)[:, None]
        return network(batch.float()) * (1 + 0.005 * sign)

    network = linear().eval()
    assert said(model, dtype=torch.bfloat16) == []
    [text] = said(model)
    assert re.match(MIXES, text)


def test_it_costs_six_rows_once():
    """For each way to run the model; and what it remembers goes with the model."""
    rows = []
    model, network = (lambda batch: rows.append(len(batch)) or network(batch)), linear().eval()
    for _ in range(3):
        sample(model, batch_size=8)
    assert rows == [3, 3, 8, 8, 8]
    assert model in probe._done
    sample(model, batch_size=8, autocast=torch.bfloat16)
    sample(model, X[:1], batch_size=4, n=6)
    sample(behind(lambda logits: rows.append(len(logits)) or logits), X[:1], n=5)  # the probe would take more
    assert rows == [3, 3, 8, 8, 8, 3, 3, 8, 4, 2, 5]
    reference = weakref.ref(model)
    del model
    gc.collect()
    assert reference() is None


class Slotted:
    __slots__ = ("rows",)

    def __call__(self, batch):
        self.rows.append(len(batch))
        return batch.flatten(1)[:, :5]


def test_what_cannot_be_remembered_is_probed_each_time():
    model = Slotted()
    model.rows = []
    for _ in range(2):
        sample(model, batch_size=8)
    assert model.rows == [3, 3, 8] * 2


@pytest.mark.parametrize("nested", [False, True])
def test_nothing_is_compiled_for_it(nested):
    """Nor are compiled parts of a model compiled for a batch of three."""
    torch._dynamo.reset()
    sizes = []

    def backend(graph, inputs):
        sizes.append(next(each.shape[0] for each in inputs if isinstance(each, torch.Tensor) and each.shape[0] != 5))
        return graph

    network = nn.Linear(192, 5)
    compiled = torch.compile(network, backend=backend)
    model = nn.Sequential(nn.Flatten(), compiled) if nested else lambda batch: compiled(batch.flatten(1))
    sample(model, batch_size=8)
    assert sizes == [8]


def test_a_model_of_one_batch_size_is_probed_at_that():
    """Of one row only whether it is random can be seen."""
    network = linear().eval()

    def only(size, function):
        def model(batch):
            if len(batch) != size:
                raise RuntimeError(f"a batch of {len(batch)}")
            return function(network(batch))

        return model

    for size in (1, 2, 8):
        assert said(only(size, lambda logits: logits), batch_size=size) == []
        [text] = said(only(size, lambda logits: logits + torch.rand(5)), batch_size=size)
        assert re.match(RANDOM, text)
    for size in (2, 8):
        [text] = said(only(size, lambda logits: logits - logits.mean()), batch_size=size)
        assert re.match(MIXES, text)


def test_memory_that_runs_out_there_is_left_to_the_run():
    network = linear().eval()

    def model(batch):
        if len(batch) > 2:
            raise MemoryError
        return network(batch)

    with pytest.warns(UserWarning, match="memory ran out on a batch of 8"):
        assert sample(model) == sample(network)


# What a model raises at its first batch


@pytest.mark.parametrize("call", ["sample", "certify", "certify_each", "predict", "iterable"])
@pytest.mark.parametrize("batch_size", [100, "auto"])
def test_one_image_without_a_batch_axis(call, batch_size):
    """The model's own error, with the shapes that tell why."""
    torch.manual_seed(5)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(2304, 5))
    image = torch.rand(1, 26, 26)
    options = {"num_classes": 5, "n": 100, "seed": 1, "batch_size": batch_size}
    options |= {"alpha": 0.1} if call == "predict" else {}
    function = rsfast.certify if call == "iterable" else getattr(rsfast, call)
    inputs = iter(image) if call == "iterable" else image
    with pytest.raises(RuntimeError) as raised:
        list(function(model, inputs, rsfast.Gaussian(0.25), **options))
    text = notes(raised.value)
    assert "a batch [3, 26, 26] of torch.float32 on 'cpu'" in text or "a batch [100, 26, 26]" in text
    assert ("inputs that are each [26, 26]" if call == "iterable" else "inputs of shape [1, 26, 26]") in text


@pytest.mark.parametrize("error", [IndexError("a"), ValueError("b"), TypeError("c"), AssertionError("d"), KeyError("e")])
def test_errors_keep_their_type_and_gain_the_shape(error):
    def model(batch):
        raise error

    with pytest.raises(type(error)) as raised:
        sample(model)
    assert raised.value is error
    assert "inputs of shape [2, 3, 8, 8]" in notes(error)


def test_an_error_of_a_later_batch_names_its_size():
    network = linear().eval()

    def model(batch):
        return network(batch.reshape(len(batch) if len(batch) == 3 else 4, 3, 8, 8))

    with pytest.raises(RuntimeError) as raised:
        sample(model, n=13, batch_size=4)
    assert "a batch [2, 3, 8, 8] of torch.float32 on 'cpu': 2 rows" in notes(raised.value) or sys.version_info < (3, 11)
