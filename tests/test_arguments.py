"""Integers of any library are taken wherever a public function takes an int, and nothing else is."""

import numpy as np
import pytest
import torch
from torch import nn

import rsfast
from rsfast import Gaussian, Provenance, Smooth, Tally
from rsfast._check import as_int

KINDS = [np.int8, np.int64, np.uint16, torch.tensor]
X = torch.rand(3, 4, generator=torch.Generator().manual_seed(0))

CELL = nn.GRUCell(4, 2)
COUNTS = np.eye(1, rsfast.sequences.BINS, 100, dtype=np.int64)


class Number:
    """Of a library that nobody knows."""

    def __init__(self, value):
        self.value = value

    def __index__(self):
        return self.value


def model(x):
    return x[:, :3]


@pytest.mark.parametrize("kind", [*KINDS, np.array, Number, lambda value: torch.tensor(value, dtype=torch.uint8)])
def test_integers_are_taken(kind):
    found = as_int("n", kind(7))
    assert (found, type(found)) == (7, int)


@pytest.mark.parametrize(
    "value",
    [
        *(True, np.bool_(True), torch.tensor(True), np.array(True)),
        *(7.0, np.float32(7), torch.tensor(7.0), np.timedelta64(7, "s")),
        *("7", None, [7], np.array([7]), torch.tensor([7])),
    ],
    ids=repr,
)
def test_nothing_else_is_taken(value):
    with pytest.raises(TypeError, match=r"^n must be an int.*, got .*$"):
        as_int("n", value)


CALLS = {
    "certify": lambda i: rsfast.certify(
        model,
        X,
        Gaussian(0.5),
        num_classes=i(3),
        n0=i(20),
        n=i(100),
        seed=i(5),
        batch_size=i(50),
        input_ids=[*map(i, (3, 1, 2))],
    ),
    "certify_each": lambda i: list(
        rsfast.certify_each(model, X, Gaussian(0.5), num_classes=i(3), n0=i(20), n=i(100), seed=i(5), radius=0.1)
    ),
    "predict": lambda i: rsfast.predict(
        model, X, Gaussian(0.5), num_classes=i(3), n=i(100), alpha=0.001, seed=i(5), batch_size=i(50)
    ),
    "sample": lambda i: rsfast.sample(
        model, X, Gaussian(0.5), num_classes=i(3), n=i(100), start=i(7), seed=i(5), batch_size=i(50)
    ).counts.tolist(),
    "tune_head": lambda i: rsfast.tune_head(
        model, X, [*map(i, (0, 1, 2))], Gaussian(0.5), [rsfast.Softmax(0.5)], num_classes=i(3), n0=i(20), n=i(100), seed=i(5)
    ),
    "Smooth": lambda i: Smooth(model, i(3), 0.5, seed=i(5)).certify(X[0], i(20), i(100), 0.001, i(50)),
    "Smooth.predict": lambda i: Smooth(model, i(3), 0.5, seed=i(5)).predict(X[0], i(100), 0.001, i(50)),
    "Tally": lambda i: Tally(i(2), i(3)).counts.tolist(),
    "Provenance": lambda i: Provenance(Gaussian(0.5), i(5), "user", range(3), [i(4), i(5)]),
    "perturb": lambda i: rsfast.ops.perturb(X, Gaussian(0.5), seed=i(5), samples=[i(3), i(4), i(5)]).tolist(),
    "GaussianNoise": lambda i: rsfast.nn.GaussianNoise(0.5, seed=i(5))(X).tolist(),
    "NoisyStateCell": lambda i: rsfast.nn.NoisyStateCell(CELL, 0.5, seed=i(5))(X).tolist(),
    "SmoothedCritic": lambda i: rsfast.nn.SmoothedCritic(nn.Flatten(), 0.5, i(3), seed=i(5))(X).tolist(),
    "smoothed": lambda i: rsfast.smoothed(lambda x: x[:, 0], Gaussian(0.5), i(9), seed=i(5), batch_size=i(4))(X[0]).item(),
    "lipschitz_bound": lambda i: rsfast.lipschitz_bound(nn.Sequential(nn.Flatten(), nn.ReLU()).eval(), [i(3), i(4)]),
    "analysis_ends": lambda i: rsfast.sequences.analysis_ends(i(100)),
    "range_ends": lambda i: rsfast.sequences.range_ends(i(100)),
    "betting_sequence_lower": lambda i: rsfast.sequences.betting_sequence_lower(COUNTS, 0.1, i(64)).tolist(),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_public_function_takes_them(call, kind):
    assert CALLS[call](kind) == CALLS[call](int)


@pytest.mark.parametrize("call", [call for call in CALLS if call not in ("lipschitz_bound",)])
def test_no_public_function_takes_a_bool(call):
    with pytest.raises((TypeError, ValueError), match=r"True|bool"):
        CALLS[call](lambda value: True)


@pytest.mark.parametrize("value", [True, np.bool_(True)])
@pytest.mark.parametrize("name", ["num_classes", "n", "n0", "seed", "batch_size"])
def test_a_bool_is_named(name, value):
    options = {"num_classes": 3, "n": 100, "seed": 1, name: value}
    with pytest.raises(TypeError, match=rf"^{name} must be an int.*, got .*True.*"):
        rsfast.certify(model, X, Gaussian(0.5), **options)
