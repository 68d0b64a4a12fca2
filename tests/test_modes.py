"""rsfast.engine.modes: which modules a model holds, and eval mode for them while it runs, in whatever thread."""

import functools
import threading
import types
import weakref
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import rsfast
from rsfast.engine.modes import evaluating, is_fixed, modules_of

X = torch.rand((3, 6), generator=torch.Generator().manual_seed(0))
GOOD = {"num_classes": 4, "n": 200, "seed": 1}


class Network(nn.Module):
    """Of training mode tell its dropout, by chance, and its batch norm, by what it remembers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.norm, self.drop, self.head = nn.BatchNorm1d(6), nn.Dropout(0.3), nn.Linear(6, 4)
        self.norm.running_mean.uniform_()

    def forward(self, x):
        return self.head(self.drop(self.norm(x)))


def certify(model, x=X, **options):
    return [tuple(found) for found in rsfast.certify(model, x, rsfast.Gaussian(0.25), **GOOD | options)]


def state(model):
    """The modes and the running statistics of all modules."""
    return [module.training for module in model.modules()], {k: v.clone() for k, v in model.state_dict().items()}


def same(one, other):
    return one[0] == other[0] and all(torch.equal(value, other[1][name]) for name, value in one[1].items())


# Where a callable may hide a module

GLOBAL = Network()
NAMED = {"nets": [GLOBAL]}
PACKAGE = types.ModuleType("package")
PACKAGE.part = types.ModuleType("package.part")
PACKAGE.part.network = GLOBAL


def of_a_global(batch):
    return GLOBAL(batch)


def of_a_function(batch):
    return of_a_global(batch)


def of_a_container(batch):
    return NAMED["nets"][0](batch)


def of_a_package(batch):
    return PACKAGE.part.network(batch)


def of_a_function_inside(batch):
    def inside(rows):
        return GLOBAL(rows)

    return inside(batch)


def decorated(function):
    @functools.wraps(function)
    def wrapper(*arguments):
        return function(*arguments)

    return wrapper


class Predictor:
    shared = GLOBAL

    def __init__(self, network):
        self.networks = [network]

    def predict(self, batch):
        return self.networks[0](batch)

    __call__ = predict

    @classmethod
    def of_the_class(cls, batch):
        return cls.shared(batch)

    @staticmethod
    def static(batch):
        return GLOBAL(batch)

    @property
    def never(self):
        raise AssertionError("a property was read")


class Slotted:
    __slots__ = ("empty", "network")

    def __init__(self, network):
        self.network = network

    def __call__(self, batch):
        return self.network(batch)


class Unregistered(nn.Module):
    """Keeps its parts in a list and in a function, where torch does not see them."""

    def __init__(self, network):
        super().__init__()
        self.parts, self.function = [network.norm, network.drop], lambda batch: network.head(batch)

    def forward(self, batch):
        for part in self.parts:
            batch = part(batch)
        return self.function(batch)


def with_attribute(network):
    def function(batch):
        return function.network(batch)

    function.network = network
    return function


def with_hook(network):
    outer = nn.Identity()
    outer.register_forward_hook(lambda module, arguments, output: network(output))
    return outer


HIDDEN = {
    "lambda": lambda network: lambda batch: network(batch),
    "tuple in a cell": lambda network: (lambda parts: lambda batch: parts[1]["x"](batch))((0, OrderedDict(x=network))),
    "global": lambda network: of_a_global,
    "global of a function": lambda network: of_a_function,
    "global container": lambda network: of_a_container,
    "global package": lambda network: of_a_package,
    "global of an inner function": lambda network: of_a_function_inside,
    "default": lambda network: lambda batch, network=network: network(batch),
    "keyword default": lambda network: lambda batch, *, network=network: network(batch),
    "forward": lambda network: network.forward,
    "method": lambda network: Predictor(network).predict,
    "class method": lambda network: Predictor.of_the_class,
    "static method": lambda network: Predictor.static,
    "object": Predictor,
    "slots": Slotted,
    "partial": lambda network: functools.partial(functools.partial(lambda net, batch: net(batch), network)),
    "keyword of a partial": lambda network: functools.partial(lambda batch, net: net(batch), net=network),
    "decorated": lambda network: decorated(decorated(lambda batch: network(batch))),
    "torch's decorator": lambda network: torch.no_grad()(lambda batch: network(batch)),
    "cache": lambda network: functools.lru_cache(None)(lambda batch: network(batch)),
    "function in a function": lambda network: (lambda inner: lambda batch: inner(batch))(lambda batch: network(batch)),
    "attribute of a function": with_attribute,
    "list in a module": Unregistered,
    "hook": with_hook,
    "compiled function": lambda network: torch.compile(lambda batch: network(batch), backend="eager"),
    "compiled module": lambda network: torch.compile(network, backend="eager"),
}


@pytest.mark.parametrize("way", HIDDEN)
def test_a_hidden_module_runs_in_eval_mode(way):
    """The certificates of the module itself, whatever the batch size; its modes and statistics stay as they were."""
    network = GLOBAL if "global" in way or way in ("class method", "static method") else Network()
    expected = certify(network)
    network.train()
    network.drop.training = False
    before, model = state(network), HIDDEN[way](network)
    assert certify(model) == certify(model, batch_size=7) == expected
    assert same(state(network), before)
    with evaluating(modules_of(model)):
        assert not any(module.training for module in network.modules())
    assert same(state(network), before)


def test_each_module_is_found_once():
    network = Network()
    pair = nn.ModuleList([network, network])
    assert modules_of([network.norm, pair, network]) == [network.norm, pair, network, network.drop, network.head]
    assert modules_of(lambda batch: batch) == modules_of(print) == modules_of(torch.relu) == []


def test_the_search_ends():
    """In circles, and in much else that a callable may hold; a module has as many parts as it likes."""
    circle = []
    circle += [circle, {"again": circle}]
    assert modules_of(circle) == []
    near = [Network(), [[object()] for _ in range(100_000)], [[[nn.ReLU()]]]]
    assert modules_of(near) == list(near[0].modules())
    many = nn.ModuleList(nn.Identity() for _ in range(20_000))
    assert len(modules_of(many)) == 20_001


# Modes that cannot be set


class Outer(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.drop, self.inner = nn.Dropout(0.5), inner

    def forward(self, batch):
        return self.inner(self.drop(batch))


def exported(network, rows=None):
    shapes = {0: torch.export.Dim("rows", min=1, max=4096)} if rows is None else None
    return torch.export.export(network.eval(), (torch.rand(rows or 4, 6),), dynamic_shapes=(shapes,))


def loaded(network, tmp_path):
    torch.export.save(exported(network), tmp_path / "network.pt2")
    return torch.export.load(tmp_path / "network.pt2").module()


FIXED = {
    "exported": lambda network, _: exported(network).module(),
    "loaded": loaded,
    "frozen": lambda network, _: torch.jit.freeze(torch.jit.script(network.eval())),
    "optimised": lambda network, _: torch.jit.optimize_for_inference(torch.jit.script(network.eval())),
}
SET = {
    "scripted": lambda network, _: torch.jit.script(network),
    "traced": lambda network, _: torch.jit.trace(network.eval(), X),
    "compiled": lambda network, _: torch.compile(network, backend="eager"),
}


@pytest.mark.parametrize("nested", ["", "module", "function"])
@pytest.mark.parametrize("kind", FIXED | SET)
def test_programs(tmp_path, kind, nested):
    """The certificates of the module that they were made of; that a mode could not be set is recorded."""
    network = Network()
    expected = certify(network)
    inner = (FIXED | SET)[kind](network, tmp_path)
    model = {"": inner, "module": Outer(inner), "function": lambda batch: inner(batch)}[nested]
    modules = modules_of(model)
    modes = [getattr(module, "training", None) for module in modules]
    if nested == "module":
        assert modes[0]
    [*found] = rsfast.certify(model, X, rsfast.Gaussian(0.25), **GOOD)
    torch.testing.assert_close([tuple(each) for each in found], expected)
    assert {each.execution.mode_fixed for each in found} == {kind in FIXED}
    assert [getattr(module, "training", None) for module in modules] == modes
    assert any(map(is_fixed, modules)) == (kind in FIXED)


def test_a_program_of_one_batch_size():
    """It gets full batches; where the size is another, what it raises says which."""
    model = exported(Network(), 4).module()
    expected = certify(Network(), n0=6, n=50)
    torch.testing.assert_close(certify(model, n0=6, n=50, batch_size=4), expected)
    for batch_size in (8, "auto"):
        with pytest.raises(Exception) as raised:  # noqa: PT011  AssertionError in some versions of torch, else RuntimeError
            certify(model, batch_size=batch_size)
        assert " rows, of at most batch_size" in "".join(raised.value.__notes__)


# Threads


def in_threads(function, count=8):
    """What `function` returns in each of so many threads that start together."""
    barrier = threading.Barrier(count)

    def run(number):
        barrier.wait()
        return function(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


def test_threads_with_one_model():
    """The certificates of one thread; and no batch moves the running statistics."""
    network = Network()
    expected = [certify(network, X + k) for k in range(8)]
    network.train()
    network.head.training = False
    before = state(network)
    for _ in range(5):
        assert in_threads(lambda k: certify(network, X + k, batch_size=16)) == expected
        assert same(state(network), before)


def test_threads_with_models_that_share_a_part():
    shared = Network()
    models = [nn.Sequential(nn.Dropout(0.5), shared) for _ in range(8)]
    expected = [certify(model, X + k) for k, model in enumerate(models)]
    for model in models:
        model.train()
    before = [state(model) for model in models]
    for _ in range(5):
        assert in_threads(lambda k: certify(models[k], X + k, batch_size=16)) == expected
        assert all(same(state(model), each) for model, each in zip(models, before, strict=True))


def test_a_module_stays_in_eval_mode_until_the_last_has_left():
    """The first to enter leaves first; what it alone used is put back at once, and the rest by the other."""
    network = Network().train()
    network.drop.training = False
    norm, entered, left = network.norm, threading.Event(), threading.Event()

    def second():
        with evaluating([norm]):
            entered.set()
            assert left.wait(10)
            assert not norm.training

    with ThreadPoolExecutor() as pool:
        with evaluating(modules_of(network)):
            running = pool.submit(second)
            assert entered.wait(10)
        assert [module.training for module in network.modules()] == [True, False, False, True]
        left.set()
        running.result()
    assert [module.training for module in network.modules()] == [True, True, False, True]


def test_threads_that_take_turns():
    """Between two certificates of certify_each the model is the caller's, unless another thread samples."""
    network = Network().train()
    expected = certify(network)
    before = state(network)

    def run(_):
        found = []
        for each in rsfast.certify_each(network, iter(X), rsfast.Gaussian(0.25), batch_size=16, **GOOD):
            found.append(tuple(each))
        return found

    assert in_threads(run) == [expected] * 8
    assert same(state(network), before)


# Gradients


class Keeping(nn.Module):
    """Makes a table at its first call, as many do for positions."""

    def __init__(self):
        super().__init__()
        self.first, self.last, self.table = nn.Linear(6, 8), nn.Linear(8, 4), None

    def forward(self, batch):
        hidden = self.first(batch)
        if self.table is None:
            self.table = torch.linspace(0, 1, 8).exp()
        return self.last(hidden * self.table)


@pytest.mark.parametrize("inference", [False, True])
def test_what_a_model_keeps_can_be_trained_with(inference):
    model = Keeping()
    with torch.inference_mode(inference):
        found = certify(model)
    assert not model.table.is_inference()
    assert not model.table.requires_grad
    model(X).sum().backward()
    assert model.first.weight.grad.abs().sum() > 0
    assert certify(model) == found


def descend(network, batch):
    """A step down the gradient of the largest logit, as purification and guidance take."""
    with torch.enable_grad():
        rows = batch.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(network(rows).amax(1).sum(), rows)
    return network(batch - 0.1 * gradient)


@pytest.mark.parametrize("inference", [False, True])
def test_gradients_inside_of_a_model(inference):
    """Taken in eval mode and without a trace: the same as of the step taken beforehand, in float64."""
    network, exact = Network(), Network().double().eval()
    weight = exact.head.weight / (exact.norm.running_var + exact.norm.eps).sqrt()

    def beforehand(batch):
        largest = exact(batch.double()).argmax(1)
        return exact(batch.double() - 0.1 * weight[largest])

    with torch.inference_mode(inference):
        found = certify(lambda batch: descend(network, batch), X.clone())
    assert [each[0] for each in found] == [each[0] for each in certify(beforehand)]
    assert [each[1] for each in found] == pytest.approx([each[1] for each in certify(beforehand)], abs=0.02)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_logits_with_a_graph_count_and_none_is_kept():
    """A model that returns them as a training step would: they go with their batch, and what they were made of."""
    network, made = Network(), []

    def model(batch):
        assert sum(each() is not None for each in made) <= 1
        with torch.enable_grad():
            logits = network(batch) * 1
        assert logits.requires_grad
        made.append(weakref.ref(logits))
        return logits

    assert certify(model, batch_size=16) == certify(network, batch_size=16)
    assert len(made) > 40
    assert all(each() is None for each in made)


def test_the_caller_may_change_between_inference_mode_and_none():
    """Whatever a run keeps between two certificates is an ordinary tensor."""
    found = rsfast.certify_each(Network(), X, rsfast.Gaussian(0.25), batch_size=16, **GOOD)
    with torch.inference_mode():
        certificates = [next(found)]
    certificates.append(next(found))
    with torch.inference_mode():
        certificates.extend(found)
        tally = rsfast.sample(Network(), X.clone(), rsfast.Gaussian(0.25), num_classes=4, n=200, seed=1)
    assert [tuple(each) for each in certificates] == certify(Network())
    assert tally == rsfast.sample(Network(), X, rsfast.Gaussian(0.25), num_classes=4, n=200, seed=1)
