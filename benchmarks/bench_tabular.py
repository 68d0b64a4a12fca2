"""certify, Smooth and sample on small inputs and a small model, on one thread, against a plain torch loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import betaincinv, ndtr, ndtri
from torch import nn

import rsfast
from benchmarks.cases import NOISE, SIGMA, torch_votes
from benchmarks.conftest import Seconds, alternate
from rsfast import ops

CLASSES, N0, ALPHA = 3, 100, 0.001
BATCH = 8192  # the plain loop's, and what Smooth is given
WORK = {"one input, n = 100,000": (1, 100_000), "100 inputs, n = 1,000": (100, 1000)}

Answers = list[tuple[int, float]]  # class and radius


def network(features: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(features, 32), nn.ReLU(), nn.Linear(32, CLASSES)).eval()


def clear_inputs(model: nn.Module, features: int, count: int) -> torch.Tensor:
    """Return the inputs of many with the widest margins: neither loop abstains on them."""
    inputs = torch.rand(20 * count, features, generator=torch.Generator().manual_seed(0))
    first, second = model(inputs).topk(2).values.unbind(1)
    return inputs[(first - second).topk(count).indices]


def answer(chosen: int, votes: torch.Tensor) -> tuple[int, float]:
    """Return the class that was chosen and its radius, from one Clopper-Pearson limit."""
    n, count = int(votes.sum()), int(votes[chosen])
    lower = betaincinv(count, n - count + 1, ALPHA)
    return (chosen, SIGMA * float(ndtri(lower))) if lower >= 0.5 else (rsfast.ABSTAIN, 0.0)


def plain_loop(model: nn.Module, inputs: torch.Tensor, n: int) -> Answers:
    votes = partial(torch_votes, model, num_classes=CLASSES, batch=BATCH)
    return [answer(int(votes(x, N0).argmax()), votes(x, n)) for x in inputs]


def plain_samples(model: nn.Module, inputs: torch.Tensor, n: int) -> torch.Tensor:
    return torch.stack([torch_votes(model, x, n, CLASSES, BATCH) for x in inputs])


def certify(model: nn.Module, inputs: torch.Tensor, n: int, **options: Any) -> list[rsfast.Certificate]:
    return rsfast.certify(model, inputs, NOISE, num_classes=CLASSES, n0=N0, n=n, alpha=ALPHA, seed=1, **options)


def smooth_loop(model: nn.Module, inputs: torch.Tensor, n: int) -> Answers:
    smooth = rsfast.Smooth(model, CLASSES, SIGMA, seed=1)
    return [smooth.certify(x, N0, n, ALPHA, BATCH) for x in inputs]


def sample(model: nn.Module, inputs: torch.Tensor, n: int, **options: Any) -> rsfast.Tally:
    return rsfast.sample(model, inputs, NOISE, num_classes=CLASSES, n=n, seed=1, **options)


def sample_answers(model: nn.Module, inputs: torch.Tensor, n: int) -> Answers:
    return [answer(int(votes.argmax()), votes) for votes in sample(model, inputs, n).counts[:, :CLASSES]]


# How ours is called, how theirs is, and how ours answers by the rule of theirs: one against all other classes.
CALLS: dict[str, tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]] = {
    "certify": (certify, plain_loop, partial(certify, rule="one_vs_rest")),
    "Smooth.certify": (smooth_loop, plain_loop, smooth_loop),
    "sample": (sample, plain_samples, sample_answers),
}


def check_bits(model: nn.Module, inputs: torch.Tensor) -> None:
    """Check that sample's Tally has the bits of perturb and accumulate by hand, over three batches of one input."""
    tally, x = rsfast.Tally(1, CLASSES), inputs[:1]
    with torch.no_grad():
        for begin in range(0, 3 * BATCH, BATCH):
            ops.accumulate(model(ops.perturb(x, NOISE, seed=1, samples=range(begin, begin + BATCH))), tally)
    found = sample(model, x, 3 * BATCH, batch_size=BATCH)
    for ours, by_hand in zip(found.tensors().values(), tally.tensors().values(), strict=True):
        assert torch.equal(ours, by_hand)


def check_answers(ours: Sequence[Any], theirs: Answers, n: int) -> None:
    """Check that the classes agree, and that radii differ by what two samples of n differ by: 6 standard deviations."""
    (predictions, radii), (predictions_2, radii_2) = (zip(*map(tuple, each), strict=True) for each in (ours, theirs))
    assert predictions == predictions_2
    assert rsfast.ABSTAIN not in predictions
    limits, others = (ndtr(np.array(each) / SIGMA) for each in (radii, radii_2))
    p = np.minimum(limits, others)
    assert (np.abs(limits - others) <= 6 * np.sqrt(2 * p * (1 - p) / n)).all()


def against_plain_loop(rounds: int, call: str, work: str, features: int) -> Seconds:
    torch.set_num_threads(1)
    torch.manual_seed(1)  # of the plain loop's noise
    count, n = WORK[work]
    model = network(features)
    inputs = clear_inputs(model, features, count)
    check_bits(model, inputs)
    run, run_theirs, answers = CALLS[call]
    check_answers(answers(model, inputs, n), plain_loop(model, inputs, n), n)
    with torch.no_grad():
        return alternate(partial(run, model, inputs, n), partial(run_theirs, model, inputs, n), rounds)


CASES = [(call, work, 10) for call in CALLS for work in WORK] + [("certify", work, d) for work in WORK for d in (2, 64)]


@pytest.mark.parametrize(("call", "work", "features"), CASES)
def test_tabular_loop(compare, call, work, features):
    count, n = WORK[work]
    compare(
        against_plain_loop,
        call,
        work,
        features,
        what=f"time of {call}, {features} features, {work}, 1 thread",
        against="a plain torch loop",
        target=0.8 if (call, count, features) == ("certify", 1, 10) else 1,
        at_most=True,
        detail=lambda seconds: f"{seconds * 1e3:.1f} ms, {seconds / (count * n) * 1e9:.0f} ns a sample",
    )
