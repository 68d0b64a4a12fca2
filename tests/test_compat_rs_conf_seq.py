"""rsfast.compat.rs_conf_seq beside a plain loop with RS_conf_seq's Certifier: the same script.

The label's probability is 0.1 or more from the target, so that a decision is wrong with chance 0.001 at most, and one at the
cap with less than 1e-9: of the 24 decisions that are compared any is wrong with chance 0.024. Seeds are fixed.
"""

import sys
from functools import partial
from types import SimpleNamespace

import literal_rs_conf_seq
import numpy as np
import pytest
import torch
from peer_loops import assert_same_votes, run
from scipy.stats import norm
from torch import nn

from rsfast.compat.rs_conf_seq import Certifier
from rsfast.sequences import beta_binomial_sequence_lower, fine_analysis_ends

SIGMA = 0.5
P = (0.95, 0.9, 0.6, 0.3, 0.05, 0.92)

SCRIPT = """
from core import Certifier
c = Certifier(lambd, noise)
ret = c.certify(model, dataset, skip=2, bs=100, alpha=0.001, n=20000, targetp=0.8)
cnt = len(ret)
mean_samples = sum([ret[i][1] for i in ret]) / cnt
decisions = [ret[i][0] for i in ret]
"""


def model():
    """Class 0 where the only element is above 0."""
    linear = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.0], [-1.0]]))
    return linear


def dataset(noise="gaussian", copies=2):
    """Inputs whose label has the probabilities P; every second is skipped."""
    quantile = norm.ppf if noise == "gaussian" else lambda p: 2 * p - 1
    return [(torch.tensor([(1 - 2 * y) * SIGMA * quantile(p)], dtype=torch.float32), y) for p in P for y in (0, 1)[:copies]]


@pytest.mark.parametrize("noise", ["gaussian", "uniform"])
def test_the_same_script(noise):
    torch.manual_seed(1)
    names = {"lambd": SIGMA, "noise": noise, "model": model(), "dataset": dataset(noise)}
    theirs, mine = (run(SCRIPT, "core", module, **names) for module in ("literal_rs_conf_seq", "rsfast.compat.rs_conf_seq"))
    assert mine["decisions"] == theirs["decisions"] == [1, 1, 0, 0, 0, 1]
    assert mine["ret"].keys() == theirs["ret"].keys() == {0, 2, 4, 6, 8, 10}
    assert {type(each) for pair in mine["ret"].values() for each in pair} == {int}


def test_other_calls():
    """`certify_ub` and `certify_adaptive` ask the same question; `certify_vanilla` counts."""
    certifier, data = Certifier(SIGMA, "gaussian", seed=2), dataset()
    found = certifier.certify(model(), data, bs=64, skip=3)
    assert certifier.certify_ub(model(), data, bs=100, skip=3) == found
    assert certifier.certify_adaptive(model(), data, skip=3) == list(found.values())
    script = "from core import Certifier\nret = Certifier(0.5, 'gaussian').certify_vanilla(model, data, 300, skip=1, n=5000)"
    torch.manual_seed(3)
    theirs, mine = (
        run(script, "core", module, model=model(), data=data)["ret"]
        for module in ("literal_rs_conf_seq", "rsfast.compat.rs_conf_seq")
    )
    assert [n for _, n in mine] == [n for _, n in theirs] == [4800] * 12
    assert {(type(a), a.shape) for a, _ in mine} == {(torch.Tensor, ())}
    assert_same_votes([a.item() for a, _ in mine], [a.item() for a, _ in theirs], 4800)


def test_samples():
    """About as many as the original takes, whose chance of a wrong decision is twice as large; seeds are fixed."""
    data = [(torch.tensor([SIGMA * norm.ppf(0.88)], dtype=torch.float32), 0)] * 100
    torch.manual_seed(4)
    theirs, mine = (
        np.array(list(certifier.certify(model(), data, bs=500, n=20_000, skip=1).values()))
        for certifier in (literal_rs_conf_seq.Certifier(SIGMA, "gaussian"), Certifier(SIGMA, "gaussian", seed=4))
    )
    assert bool((theirs[:, 0] == 1).all())
    assert bool((mine[:, 0] == 1).all())
    assert mine[:, 1].mean() < 1.2 * theirs[:, 1].mean()


def test_undecided():
    """Where the probability is the target, and the samples are few."""
    data = [(torch.tensor([SIGMA * norm.ppf(0.8)], dtype=torch.float32), 0)]
    assert Certifier(SIGMA, "gaussian", seed=1).certify(model(), data, n=50, skip=1) == {0: (-1, 50)}


@pytest.mark.parametrize("targetp", [0.7, 0.9])
def test_decisions_are_right(targetp):
    """At the target itself both decisions are wrong: of 300 inputs 5 % at most in expectation, 15; 35 have chance 3e-6."""
    data = [(torch.tensor([SIGMA * norm.ppf(targetp)], dtype=torch.float32), 0)] * 300
    found = Certifier(SIGMA, "gaussian", seed=4).certify(model(), data, bs=5000, n=2000, alpha=0.05, skip=1, targetp=targetp)
    assert sum(decision >= 0 for decision, _ in found.values()) < 35
    assert len({n for _, n in found.values()}) > 1


def test_the_bound_at_the_decision():
    """A decision is what the sequence's bound of the label's votes says, and it was not said at the look before."""
    data, certifier = dataset()[2:3], Certifier(SIGMA, "gaussian", seed=5)
    for index, (decision, n) in certifier.certify(model(), data, skip=1).items():
        (votes, _) = certifier.certify_vanilla(model(), data, bs=n, n=n, skip=1)[index]
        ends, lower = fine_analysis_ends(100_000), partial(beta_binomial_sequence_lower, alpha=0.001, a=6.4, b=1.6)
        assert decision == 1
        assert lower(votes.item(), n) > 0.8
        earlier = ends[ends.index(n) - 1]
        ((before, _),) = certifier.certify_vanilla(model(), data, bs=earlier, n=earlier, skip=1)
        assert lower(before.item(), earlier) <= 0.8


def test_names_of_datasets(monkeypatch):
    """A name goes to get_dataset of the script's own module."""
    own = SimpleNamespace(get_dataset=lambda name, split: {("toy", "test"): dataset()}[name, split])
    monkeypatch.setitem(sys.modules, "datasets", own)
    certifier = Certifier(SIGMA, "gaussian", seed=2)
    assert certifier.certify(model(), "toy", skip=4) == certifier.certify(model(), dataset(), skip=4)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match="dataset must be a Dataset of items"):
        certifier.certify(model(), "toy")


def test_many_inputs():
    """More than are sampled side by side; ids are places in the dataset, so neighbours change nothing."""
    data = [(torch.tensor([value], dtype=torch.float32), 0) for value in np.linspace(0.6, 1.0, 300)]
    certifier = Certifier(SIGMA, "gaussian", seed=6)
    found, some = certifier.certify(model(), data, bs=4096, skip=1), certifier.certify(model(), data, bs=64, skip=37)
    assert len(found) == 300
    assert some == {index: found[index] for index in range(0, 300, 37)}


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: Certifier(SIGMA, "laplace"), ValueError, "noise must be one of 'gaussian', 'uniform'"),
        (lambda: Certifier(0, "gaussian"), ValueError, "sigma must be a finite number above 0"),
        (lambda: Certifier(SIGMA, "gaussian").certify(model(), dataset(), targetp=1.0), ValueError, "targetp must be"),
        (lambda: Certifier(SIGMA, "gaussian").certify(model(), dataset(), alpha=0), ValueError, "alpha must be"),
        (lambda: Certifier(SIGMA, "gaussian").certify(model(), dataset(), skip=0), ValueError, "skip must be"),
        (lambda: Certifier(SIGMA, "gaussian").certify(model(), dataset(), n=0), ValueError, "n must be"),
        (lambda: Certifier(SIGMA, "gaussian").certify("model", dataset()), TypeError, "model must be callable"),
        (
            lambda: Certifier(SIGMA, "gaussian").certify(model(), [(torch.zeros(1), 2)], skip=1),
            ValueError,
            "from 0 to 1, got 2",
        ),
        (lambda: Certifier(SIGMA, "gaussian").certify_vanilla(model(), dataset(), bs=100, n=50), ValueError, "at least bs"),
    ],
)
def test_wrong_uses(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
