"""Sampler, through certify, certify_each and predict: what packing may not change, what it wastes, and how it ends."""

import gc
import random
import subprocess
import sys
import weakref
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import first_elements, follow, readers
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import rsfast
from rsfast.engine.plan import Certification, StoppingRule
from rsfast.engine.sampler import Pacing
from rsfast.engine.sampling import Sampling
from rsfast.heads import Softmax, Sparsemax, Votes
from rsfast.noise import Gaussian
from rsfast.stats.certificate import ABSTAIN, Execution
from rsfast.stats.prediction import predictions
from rsfast.stats.rules import CertificationSpec

NOISE = Gaussian(0.5)
N0, N = 20, 300
COUNT = 10
HEADS = {"votes": Votes(), "both": [Votes(), Sparsemax(0.5)]}
GOALS = {"n": {}, "radius": {"radius": 0.25}, "rtol": {"rtol": 0.5}}


def spread(count, size=6):
    """Inputs whose first element is larger than the others by 0 to 1.2."""
    x = torch.zeros(count, 1, size)
    x[:, 0, 0] = torch.linspace(0, 1.2, count)[torch.randperm(count, generator=torch.Generator().manual_seed(4))]
    return x


X = spread(COUNT)


class Counting(nn.Module):
    """It counts the rows and batches that it saw, and fails at one batch if told to."""

    def __init__(self, fail_at=None):
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.sizes, self.fail_at = [], fail_at

    def forward(self, batch):
        if len(self.sizes) == self.fail_at:
            raise RuntimeError("out of luck")
        self.sizes.append(len(batch))
        return self.dropout(first_elements(batch))


def certify(model=first_elements, inputs=X, **options):
    return rsfast.certify(model, inputs, NOISE, **{"num_classes": 4, "n0": N0, "n": N, "seed": 5} | options)


def certify_each(model=first_elements, inputs=X, **options):
    return rsfast.certify_each(model, inputs, NOISE, **{"num_classes": 4, "n0": N0, "n": N, "seed": 5} | options)


@pytest.fixture
def lag(monkeypatch):
    """A function that sets how many batches are launched before Tallies are looked at, as on a GPU."""
    return lambda batches: monkeypatch.setattr(Sampling, "pacing", replace(Sampling.pacing, lag=batches))


# What changes nothing


def plan(head, stopping):
    heads = HEADS[head] if head == "both" else [HEADS[head]]
    specs = [CertificationSpec(NOISE, 0.001 / len(heads), each, early=bool(GOALS[stopping])) for each in heads]
    return Certification(specs, StoppingRule(**GOALS[stopping]), n0=N0, n=N, seed=5, backend="cpu")


@cache
def plainly(head, stopping):
    """The certificates by piece after piece of all inputs that are left, each drawn by `sample`."""
    the = plan(head, stopping)

    def draw(which, samples, stream, tracked):
        options = {
            "start": samples.start,
            "stream": stream,
            "heads": the.heads,
            "tracked_classes": tracked,
            "input_ids": which,
        }
        return rsfast.sample(first_elements, X[which], NOISE, num_classes=4, n=len(samples), seed=5, **options)

    found = follow(draw, the, list(range(COUNT)))
    return found if head == "both" else [certificate for [certificate] in found]


@pytest.mark.parametrize("stopping", GOALS)
@pytest.mark.parametrize("head", HEADS)
def test_the_plain_certificates_differ(head, stopping):
    """So what is compared with them is not trivial."""
    found = [each[0] if isinstance(each, list) else each for each in plainly(head, stopping)]
    assert len({certificate.radius for certificate in found}) > 3
    assert len({certificate.prediction for certificate in found}) > 1
    assert (len({certificate.n for certificate in found}) > 2) == (stopping != "n")


@pytest.mark.slow
@pytest.mark.parametrize("stopping", GOALS)
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("batch_size", [7, 1000])
@pytest.mark.parametrize("launched", [0, 1, 3])
def test_batches_do_not_show(lag, head, stopping, batch_size, launched):
    lag(launched)
    assert certify(head=HEADS[head], batch_size=batch_size, **GOALS[stopping]) == plainly(head, stopping)


@pytest.mark.slow
@pytest.mark.parametrize("stopping", GOALS)
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("launched", [0, 3])
@pytest.mark.parametrize("change", [{"memory": 1}, {"seconds": -1.0}], ids=["slots", "analyses"])
def test_slots_and_the_time_of_analyses_do_not_show(monkeypatch, lag, head, stopping, launched, change):
    """Two inputs in flight; and an analysis after every batch."""
    monkeypatch.setattr(Sampling, "pacing", Pacing(**change))
    lag(launched)
    assert certify(head=HEADS[head], batch_size=50, **GOALS[stopping]) == plainly(head, stopping)


@pytest.mark.parametrize("stopping", GOALS)
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.usefixtures("unprobed")
def test_padding_does_not_show(head, stopping):
    model = Counting()
    sampling = Sampling(model, X, NOISE, 4, seed=5, batch_size=50)
    with sampling.bar(0, "") as bar:
        found = [each.result for each in sampling.sampler(plan(head, stopping), bar, pad=True)]
    assert (found if head == "both" else [each for [each] in found]) == plainly(head, stopping)
    assert set(model.sizes) == {50}


@pytest.mark.usefixtures("unprobed")
@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("known", [False, True])
def test_a_compiled_model_gets_batches_of_one_size(monkeypatch, compile, known):
    """Where the samples fill one; a smaller last one would be compiled for. The certificates do not show it."""
    monkeypatch.setattr(torch, "compile", lambda model, backend: model)
    model, samples = Counting(), COUNT * (N0 + N)
    found = certify(model, X if known else iter(X), batch_size=60, compile=compile)
    assert [(each.prediction, each.radius) for each in found] == [tuple(each) for each in plainly("votes", "n")]
    assert model.sizes == [60] * (samples // 60) + [60 if compile else samples % 60]
    model.sizes.clear()
    certify(model, X, batch_size=samples + 1, compile=compile)
    assert model.sizes == [samples]


SOURCES = {
    "list": lambda: list(X),
    "generator": lambda: (row for row in X),
    "pairs": lambda: zip(X, range(COUNT), strict=True),
    "dataset": lambda: TensorDataset(X, torch.arange(COUNT)),
    "loader": lambda: DataLoader(TensorDataset(X, torch.arange(COUNT)), batch_size=5),
}


@pytest.mark.parametrize(("head", "stopping"), [("votes", "n"), ("both", "radius")])
@pytest.mark.parametrize("source", SOURCES)
def test_how_inputs_come_does_not_show(source, head, stopping):
    options = {"head": HEADS[head], "batch_size": 64, **GOALS[stopping]}
    assert certify(inputs=SOURCES[source](), **options) == plainly(head, stopping)
    assert list(certify_each(inputs=SOURCES[source](), **options)) == plainly(head, stopping)


@pytest.mark.parametrize("launched", [0, 1, 3])
@pytest.mark.parametrize("batch_size", [7, 1000])
def test_predictions(lag, launched, batch_size):
    lag(launched)
    tally = rsfast.sample(first_elements, X, NOISE, num_classes=4, n=100, seed=5)
    options = {"num_classes": 4, "n": 100, "alpha": 0.01, "seed": 5, "batch_size": batch_size}
    found = rsfast.predict(first_elements, iter(X), NOISE, **options)
    assert found == predictions(tally, 0.01)
    assert set(found) == {0, ABSTAIN}


# What is wasted


@pytest.mark.parametrize("launched", [0, 1])
@pytest.mark.parametrize(
    ("head", "count", "n", "batch_size"),
    [(Votes(), 200, 100_000, 1024), (Votes(), 200, 100_000, 4096), (Softmax(0.1), 100, 10_000, 256)],
)
def test_rows_are_useful(lag, launched, head, count, n, batch_size):
    """At least 98 % of the rows that the model sees are counted in a certificate, where inputs are decided early."""
    lag(launched)
    model = Counting().eval()
    found = certify(model, spread(count), head=head, n0=100, n=n, radius=0.4, batch_size=batch_size)
    useful = sum(certificate.n0 + certificate.n for certificate in found)
    assert len({certificate.n for certificate in found}) > 10
    assert 0.98 * sum(model.sizes) <= useful <= sum(model.sizes)


@pytest.mark.parametrize("launched", [0, 1])
@pytest.mark.usefixtures("unprobed")
def test_where_all_n_are_drawn_no_row_is_wasted(lag, launched):
    lag(launched)
    model = Counting()
    certify(model, batch_size=60)
    assert model.sizes == [60] * 53 + [20]
    assert sum(model.sizes) == COUNT * (N0 + N)


@pytest.mark.parametrize("head", [Votes(), Softmax(0.1)], ids=["votes", "scores"])
@pytest.mark.usefixtures("unprobed")
def test_samples_beyond_the_look_that_decided_do_not_count(lag, head):
    """One input alone: while a look is taken, its batches are filled with samples that may turn out not to be used."""
    found, seen = [], []
    for launched, batch_size in ((0, 1), (0, 100), (1, 100), (3, 100)):
        lag(launched)
        model = Counting()
        found += certify(model, X[X[:, 0, 0].argmax()][None], head=head, n=10_000, radius=0.5, batch_size=batch_size)
        seen.append(sum(model.sizes))
    assert found == [found[0]] * 4
    used = found[0].n0 + found[0].n
    assert used == seen[0]
    assert found[0].n < 10_000
    assert used < seen[2] < seen[3]


# How certificates come


def test_certificates_come_as_soon_as_they_are_due():
    """Of a source that does not end, in order, and no more inputs are held than fill the places and 64 read ahead."""
    read = []

    def source():
        while True:
            read.append(len(read))
            yield X[len(read) % COUNT]

    found = certify_each(inputs=source(), n0=10, n=50, batch_size=60)
    for number in range(300):
        assert next(found).input_id == number
        assert len(read) <= number + 100
    found.close()
    assert not readers()


@pytest.mark.parametrize("leave", ["break", "close", "forget", "raise"])
def test_leaving_early(monkeypatch, leave):
    monkeypatch.setattr(Sampling, "pacing", Pacing(seconds=-1.0))
    model, seen = Counting().train(), []
    if leave == "break":
        for certificate in certify_each(model, iter(X), batch_size=64):
            seen.append(certificate)
            break
    else:
        found = certify_each(model, iter(X), batch_size=64)
        seen.append(next(found))
        if leave == "close":
            found.close()
        elif leave == "raise":
            with pytest.raises(KeyError):
                found.throw(KeyError)
        del found
    assert seen == plainly("votes", "n")[:1]
    assert sum(model.sizes) < COUNT * (N0 + N)
    assert model.training
    assert model.dropout.training
    assert not readers()


def test_nothing_is_read_or_run_before_it_is_asked_for():
    model = Counting()
    found = certify_each(model, iter(X))
    assert model.sizes == []
    del found
    assert not readers()


def test_between_two_certificates_the_model_is_the_callers(monkeypatch):
    """While it runs it is in eval mode and without autograd; what the caller sets meanwhile is kept."""
    monkeypatch.setattr(Sampling, "pacing", Pacing(seconds=-1.0))
    model, seen = Counting().train(), []
    model.register_forward_pre_hook(
        lambda *_: seen.append((model.training, model.dropout.training, torch.is_grad_enabled()))
    )
    found, batches = [], []
    for certificate in certify_each(model, iter(X), batch_size=64):
        assert (model.training, model.dropout.training) == (len(found) % 2 == 0, True)
        assert torch.is_grad_enabled()
        found.append(certificate)
        batches.append(len(seen))
        model.training = len(found) % 2 == 0
    assert found == plainly("votes", "n")
    assert len(set(batches)) == COUNT
    assert set(seen) == {(False, False, False)}


@pytest.mark.parametrize("launched", [0, 1, 3])
@pytest.mark.parametrize("stopping", GOALS)
def test_an_error_of_the_source_comes_in_its_turn(lag, launched, stopping):
    """After the certificates of all inputs before it."""
    lag(launched)

    def source():
        yield from X[:7]
        raise OSError("the disk is gone")

    found, each = [], certify_each(inputs=source(), batch_size=64, **GOALS[stopping])
    with pytest.raises(OSError, match="the disk is gone"):
        found.extend(each)
    assert found == plainly("votes", stopping)[:7]
    with pytest.raises(OSError, match="the disk is gone"):
        certify(inputs=source(), batch_size=64, **GOALS[stopping])


@pytest.mark.parametrize("launched", [0, 1, 3])
@pytest.mark.parametrize("fail_at", [0, 9, 31])
@pytest.mark.usefixtures("unprobed")
def test_an_error_of_the_model_comes_after_what_was_finished(lag, launched, fail_at):
    """Every input whose samples were in the batches before it has its certificate."""
    lag(launched)
    model, found = Counting(fail_at).train(), []
    with pytest.raises(RuntimeError, match="out of luck"):
        found.extend(certify_each(model, iter(X), batch_size=100))
    assert model.sizes == [100] * fail_at
    assert found == plainly("votes", "n")[: 100 * fail_at // (N0 + N)]
    assert model.training
    assert not readers()


def test_an_error_of_an_evaluation_comes_at_once(monkeypatch):
    """A second evaluation would count the newest samples twice, in what it returns and in what an error says."""
    plainly("votes", "radius")  # whose evaluations do not count
    evaluate, evaluations = Certification.evaluate, []

    def failing(self, selection, ranges, input_ids):
        evaluations.append(input_ids)
        if len(evaluations) == 9:
            raise MemoryError
        return evaluate(self, selection, ranges, input_ids)

    monkeypatch.setattr(Certification, "evaluate", failing)
    found, each = [], certify_each(batch_size=50, radius=0.25)
    with pytest.raises(MemoryError):
        found.extend(each)
    assert found == plainly("votes", "radius")[: len(found)]
    assert len(found) in range(1, COUNT)
    assert len(evaluations) == 9


def test_an_error_keeps_no_memory():
    """What the model and the sampler had allocated goes with it, at once, so that the caller may try again."""
    held = []

    def model(batch):
        values = batch * 2
        held.append(weakref.ref(values))
        raise RuntimeError("out of luck")

    gc.disable()
    try:
        with pytest.raises(RuntimeError, match="out of luck"):
            certify(model)
        assert [reference() for reference in held] == [None]
    finally:
        gc.enable()


@pytest.mark.parametrize("stopping", GOALS)
@pytest.mark.parametrize("head", HEADS)
def test_memory_that_runs_out_does_not_show(head, stopping):
    """In batches of more than 20 rows always, in others one time of three."""
    rng = random.Random(6)

    def model(batch):
        if len(batch) > 20 or (len(batch) > 1 and rng.random() < 1 / 3):
            raise MemoryError
        return first_elements(batch)

    with pytest.warns(UserWarning, match="memory ran out on a batch of 90; going on with smaller ones") as said:
        assert certify(model, head=HEADS[head], batch_size=90, **GOALS[stopping]) == plainly(head, stopping)
    assert sum("memory ran out" in str(warning.message) for warning in said) == 1


MEMORY = """
import os, torch, rsfast
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
torch.set_num_threads(1)
inputs = (torch.full((3, 32, 32), 0.5) for _ in range(10_000))
options = {"num_classes": 4, "n0": 4, "n": 12, "alpha": 0.1, "batch_size": 256, "seed": 1}
sizes = []
for found in rsfast.certify_each(lambda x: x[:, 0, 0, :4], inputs, rsfast.Gaussian(1.0), **options):
    sizes.append(resident())
assert len(sizes) == 10_000
print(max(sizes[1000:]) - max(sizes[:1000]))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_memory_does_not_grow_with_the_inputs():
    """10^4 inputs take at most 6 MB more than 10^3, in a fresh process. Inputs kept would add 110 MB."""
    found = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert int(found.stdout) < 6e6


def test_slots_are_bounded_by_memory(monkeypatch):
    """Pixels and Tallies of inputs in flight take the bytes that there are for them, however large the batches."""
    monkeypatch.setattr(Sampling, "pacing", Pacing(memory=1 << 20))
    x, made = torch.zeros(1, 100_00), []
    for inputs, size in ((x.expand(100, -1), 1024), (iter(x.expand(100, -1)), 16), (iter(x.expand(3, -1)), 1)):
        sampling = Sampling(first_elements, inputs, NOISE, 4, seed=5, batch_size=size)
        specs = [CertificationSpec(NOISE, 0.1)]
        with sampling.inputs, sampling.bar(0, "") as bar:
            made.append(sampling.sampler(sampling.certification(specs, StoppingRule(), 1, 10), bar))
            assert len(list(made[-1])) in (100, 3)
    slots = [each.slots for each in made]
    assert (1 << 20) // 41_000 <= slots[0] <= (1 << 20) // 40_000
    assert slots[1:] == [4, 2]


# How it treats the model


@pytest.mark.parametrize(
    ("error", "message", "wrong"),
    [
        (ZeroDivisionError, "division by zero", lambda x: 1 / 0),
        (TypeError, r"^model must return the logits, .*, got a tuple", lambda x: (first_elements(x), None)),
        (TypeError, r"^model must return the logits, .*, got a NoneType; ", lambda x: None),
        (ValueError, r"^model must return shape \[64, K\] for a batch of 64, got \[64\]", lambda x: x.flatten(1)[:, 0]),
        (
            ValueError,
            r"^num_classes must be 3, the logits that model returns a row, got 4",
            lambda x: first_elements(x)[:, :3],
        ),
        (TypeError, r"^model must return floating-point logits, got torch.int64", lambda x: first_elements(x).long()),
    ],
)
@pytest.mark.parametrize("good", [0, 15])
@pytest.mark.usefixtures("unprobed")
def test_a_model_that_fails(error, message, wrong, good):
    """At once or after some batches: the same error, after the inputs that were finished."""
    calls, found = [], []

    def model(batch):
        calls.append(len(batch))
        return wrong(batch) if len(calls) > good else first_elements(batch)

    with pytest.raises(error, match=message):
        found.extend(certify_each(model, batch_size=64))
    assert len(calls) == good + 1
    assert found == plainly("votes", "n")[: good * 64 // (N0 + N)]


@pytest.mark.parametrize("training", [False, True])
def test_the_mode_of_the_model(training):
    model = Counting().train(training)
    model.dropout.train(not training)
    assert certify(model) == plainly("votes", "n")
    assert (model.training, model.dropout.training) == (training, not training)


def test_hooks_are_called_once_a_batch():
    model, calls = Counting(), []
    model.register_forward_hook(lambda module, arguments, output: calls.append(len(output)))
    model.dropout.register_forward_pre_hook(lambda module, arguments: calls.append("dropout"))
    assert certify(model, batch_size=500) == plainly("votes", "n")
    assert calls == [each for size in model.sizes for each in ("dropout", size)]


def test_a_hook_may_change_the_logits():
    model = Counting()
    model.register_forward_hook(lambda module, arguments, output: output.flip(1))
    assert {certificate.prediction for certificate in certify(model)} == {3, ABSTAIN}


def test_an_object_with_logits():
    assert certify(lambda batch: SimpleNamespace(logits=first_elements(batch))) == plainly("votes", "n")


def test_logits_that_are_nan_are_votes_for_nobody():
    """They count as samples, so that the bound is of what is left."""

    def model(batch):
        logits = first_elements(batch)
        return torch.where(logits[:, 1:2] > 0.5, torch.nan, logits)

    x = X[X[:, 0, 0] > 0.6]
    for clean, found in zip(*(certify(each, x, rule="one_vs_rest") for each in (first_elements, model)), strict=True):
        assert clean.prediction == 0
        assert found.n == clean.n
        assert found.counts[0] < clean.counts[0]
        assert found.p_lower < clean.p_lower


@pytest.mark.parametrize(
    "execution",
    [
        Execution(),
        Execution(dtype="bfloat16"),
        Execution(autocast="bfloat16"),
        Execution(dtype="float16", channels_last=True, autocast="float16"),
    ],
)
def test_how_the_model_ran_is_recorded(execution):
    def model(batch):
        seen.add((batch.dtype, batch.is_contiguous(memory_format=torch.channels_last), product(batch).dtype))
        return first_elements(batch)

    def product(batch):
        return torch.nn.functional.linear(batch.flatten(1).float(), torch.ones(4, 12))

    seen = set()
    options = {
        "dtype": getattr(torch, execution.dtype),
        "channels_last": execution.channels_last,
        "autocast": execution.autocast and getattr(torch, execution.autocast),
    }
    found = certify(model, torch.zeros(3, 3, 2, 2), n0=1, n=10, alpha=0.1, **options)
    assert [certificate.execution for certificate in found] == [execution] * 3
    assert seen == {(options["dtype"], execution.channels_last, options["autocast"] or torch.float32)}


def test_the_autocast_around_the_call_is_recorded():
    """It is that of the call of certify_each; what surrounds the iteration does not matter."""
    with torch.autocast("cpu", torch.bfloat16):
        inside = certify_each(lambda batch: batch.flatten(1) @ torch.eye(6, 4))
    outside = certify_each(lambda batch: batch.flatten(1) @ torch.eye(6, 4))
    with torch.autocast("cpu", torch.bfloat16):
        outside = list(outside)
    assert {certificate.execution.autocast for certificate in inside} == {"bfloat16"}
    assert outside == plainly("votes", "n")


def test_a_compiled_model_gives_the_eager_certificates():
    """Of votes, which rounding does not change here."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 4))
    with torch.no_grad():
        model[1].weight.copy_(torch.eye(4, 6))
        model[1].bias.zero_()
    found = certify(model, batch_size=310, compile=True)
    assert {certificate.execution for certificate in found} == {Execution(compile=True)}
    expected = [certificate.to_dict() | {"execution": None} for certificate in plainly("votes", "n")]
    assert [certificate.to_dict() | {"execution": None} for certificate in found] == expected


# Wrong uses


@pytest.mark.parametrize("function", [certify, certify_each])
@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (ValueError, r"^autocast must be None or .* a name: 'bfloat16', 'float16', got 'bf16'", {"autocast": "bf16"}),
        (TypeError, r"^autocast must be None or one of torch.bfloat16, .*, got torch.float32", {"autocast": torch.float32}),
        (TypeError, r"^autocast must be None or one of torch.bfloat16, .*, got True", {"autocast": True}),
        (TypeError, "^compile must be a bool, got 'yes'", {"compile": "yes"}),
        (ValueError, "^cuda_graph must be False where inputs is on 'cpu', got True", {"cuda_graph": True}),
        (TypeError, "^channels_last must be a bool, got 1", {"channels_last": 1, "inputs": torch.zeros(1, 3, 2, 2)}),
        (ValueError, "^shard must be one of 'inputs', 'samples', None, got 'rows'", {"shard": "rows"}),
        (ValueError, "^shard must be None without a process group, got 'inputs'; ", {"shard": "inputs"}),
        (ValueError, "^shard must be None without a process group, got 'samples'; ", {"shard": "samples"}),
        (ValueError, "^n must be from 1 to 8589934591, got 0", {"n": 0}),
        (TypeError, "^head must be one of Votes, .*, got 'votes'", {"head": "votes"}),
        (ValueError, "^inputs must hold at least one input, got none", {"inputs": []}),
        (ValueError, r"^inputs\[0\] must be finite, got NaN or infinity", {"inputs": [torch.tensor([torch.nan])]}),
        (ValueError, r"^rtol must be None where radius is given, got 0.5 and 0.5", {"radius": 0.5, "rtol": 0.5}),
    ],
)
def test_wrong_uses_are_told_at_the_call(function, error, message, options):
    """Before anything is sampled, and by certify_each before it is iterated."""
    calls = []
    with pytest.raises(error, match=message):
        function(calls.append, **options)
    assert calls == []


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("^keyword arguments must be among .*, got sedd$", lambda: certify_each(sedd=1)),
        (r"^keyword arguments must be among scale, .*, input_ids, got shard$", lambda: sample(shard="inputs")),
        (r"^keyword arguments must be among .*, got stream$", lambda: certify_each(stream="user")),
    ],
)
def test_arguments_that_there_are_not(message, call):
    with pytest.raises(TypeError, match=message):
        call()


def sample(**options):
    return rsfast.sample(first_elements, X, NOISE, num_classes=4, n=10, seed=5, **options)


@pytest.mark.parametrize("head", [rsfast.Votes(), rsfast.Softmax(0.5), rsfast.ClippedLogits(-1.0, 1.0)], ids=repr)
def test_a_model_that_masks_classes_is_certified(head, recwarn):
    """Logits of -inf leave certificates as a very low logit does, and warn of nothing."""

    def model(unused):
        def logits(batch):
            rest = torch.full((len(batch), 3), unused)
            return torch.cat([rest[:, :1], batch[:, :1] * 4 - 1, -batch[:, :1], rest[:, 1:]], dim=1)

        return logits

    keywords = {"num_classes": 5, "n": 200, "seed": 3, "head": head}
    x = torch.rand(4, 2, generator=torch.Generator().manual_seed(0))
    found, expected = (rsfast.certify(model(low), x, NOISE, **keywords) for low in (-torch.inf, -1e30))
    assert found == expected
    assert {certificate.prediction for certificate in found} & {1, 2}
    assert not [warning for warning in recwarn if "model returned" in str(warning.message)]


def test_a_model_that_returns_nan_is_told_of_once():
    def model(batch):
        logits = torch.stack([batch[:, 0], -batch[:, 0]], dim=1)
        return torch.where(batch[:, :1] > 0.5, torch.nan, logits)

    message = r"model returned NaN, or a largest logit that is not finite, in \d+ of the samples of input 0; such"
    with pytest.warns(UserWarning, match=message) as told:
        certificates = rsfast.certify(model, torch.full((3, 1), 0.5), rsfast.Gaussian(0.25), num_classes=2, n=200, seed=1)
    assert len(told) == 1
    assert all(sum(certificate.counts) < certificate.n == 200 for certificate in certificates)
