"""What the statistics cost, and what they save: on the demo's network and test images."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache, partial
from statistics import median
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, norm

import rsfast
from benchmarks.conftest import Seconds, alternate, in_fresh_process, record
from rsfast import demo
from rsfast.engine import sampling
from rsfast.engine.timing import StageTimer

N = 10_000


@cache
def trained() -> tuple[torch.nn.Module, torch.Tensor]:
    """Return the demo's network and its first 200 test images."""
    train_x, train_y, test_x, _ = demo.digits()
    return demo.train(train_x, train_y, seed=2026), test_x[:200]


def certify(**options: object) -> list[rsfast.Certificate]:
    model, x = trained()
    options = {"num_classes": 10, "seed": 2026, "batch_size": 1000} | options
    return rsfast.certify(model, x, rsfast.Gaussian(demo.SIGMA), **options)


def timed(run: Callable[[], list[rsfast.Certificate]]) -> tuple[list[rsfast.Certificate], float, float]:
    """Return what a call of certify returns, its seconds, and those of them from Tallies to Certificates.

    These are what a run's log shows as "bounds": interim analyses and their bookkeeping, limits and rules.
    """
    timers: list[StageTimer] = []

    def make(*arguments: Any) -> StageTimer:
        timers.append(StageTimer(*arguments))
        return timers[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "StageTimer", make)
        began = time.perf_counter()
        found = run()
        seconds = time.perf_counter() - began
    [timer] = timers
    return found, seconds, timer.seconds()["bounds"]


def share_of_bounds(head: rsfast.heads.Head) -> tuple[float, float]:
    """Return which part of certify's time passes from Tallies to Certificates, and that time in ms an image."""
    trained()
    certify(head=head, n=100)  # warm
    found, seconds, bounds = timed(partial(certify, head=head, n=N))
    assert len(found) == 200
    assert sum(certificate.radius > 0.25 for certificate in found) > 150
    return bounds / seconds, bounds / len(found) * 1e3


def share_to_decide(head: rsfast.heads.Head) -> tuple[float, float]:
    """Return the same for a run that decides radius 0.5."""
    trained()
    decide = partial(certify, head=head, radius=demo.DECIDED, batch_size="auto")
    decide(n=1000)  # warm
    found, seconds, bounds = timed(partial(decide, n=demo.CAP))
    decided = sum(certificate.radius >= demo.DECIDED for certificate in found)
    assert 100 < decided < 200
    assert sum(certificate.n < demo.CAP for certificate in found) > 150
    return bounds / seconds, bounds / len(found) * 1e3


def estimate(certificate: rsfast.Certificate) -> float:
    """Return the radius that the votes would have as probabilities."""
    leader, rival = (norm.ppf(votes / certificate.n) for votes in certificate.counts)
    return demo.SIGMA * float(leader if certificate.rule == "one_vs_rest" else (leader - rival) / 2)


def deciding() -> tuple[float, float, int, int, float, float]:
    """Return what it takes to decide radius 0.5 for 200 images.

    Samples an image, selection included, of 100,100; rows that the model saw an image; how many images have the radius, here
    and with all samples; and seconds an image, here and with all samples.
    """
    model, x = trained()
    rows = 0

    def counted(batch: torch.Tensor) -> torch.Tensor:
        nonlocal rows
        rows += len(batch)
        return model(batch)

    options = {"num_classes": 10, "seed": 2026, "n": demo.CAP}
    noise, began = rsfast.Gaussian(demo.SIGMA), time.perf_counter()
    with torch.no_grad():
        found = rsfast.certify(counted, x, noise, radius=demo.DECIDED, **options)
    between = time.perf_counter()
    fixed = certify(n=demo.CAP)
    ended = time.perf_counter()
    decisions = [[certificate.radius >= demo.DECIDED for certificate in run] for run in (found, fixed)]
    for ours, theirs, certificate in zip(*decisions, fixed, strict=True):
        # Where they differ, the radius is as near as what all samples leave open.
        assert ours == theirs or abs(certificate.radius - demo.DECIDED) <= estimate(certificate) - certificate.radius
    used = sum(certificate.n0 + certificate.n for certificate in found) / len(found)
    certified, all_certified = map(sum, decisions)
    return used, rows / len(x), certified, all_certified, (between - began) / len(x), (ended - between) / len(x)


HEADS = {"votes": rsfast.Votes(), "softmax": rsfast.Softmax(0.5)}


def test_share_of_bounds():
    for name, head in HEADS.items():
        share, each = in_fresh_process(share_of_bounds, head)
        what = f"time in bounds, {name}, n = {N:,}"
        record(what, "certify on the demo", share, 0.05, f"{each:.2f} ms an image", at_most=True)


def test_share_to_decide():
    for name, target in (("votes", 0.05), ("softmax", 0.1)):
        share, each = in_fresh_process(share_to_decide, HEADS[name])
        what = f"time in bounds, {name}, decided at radius 0.5"
        record(what, "certify on the demo", share, target, f"{each:.2f} ms an image", at_most=True)


def test_samples_to_decide():
    used, rows, certified, all_certified, seconds, of_all = in_fresh_process(deciding)
    what, against = "demo decided at radius 0.5", "n = 100,000 fixed"
    detail = f"{used:,.0f} samples an image, {certified} of 200 certified, {all_certified} with all samples"
    record(f"samples, {what}", "4,000 an image", used / 4000, 1, detail, at_most=True)
    record(f"time, {what}", against, of_all / seconds, 10, f"{seconds * 1e3:.1f} ms an image, {of_all * 1e3:.0f} ms for all")
    record(f"rows of the model, {what}", "samples that count", used / rows, 0.98, f"{rows:,.0f} rows an image")


def against_binomtest(rounds: int) -> Seconds:
    """Return the seconds of the tests of 1,000 inputs, in one Tally and one by one."""
    generator, n, alpha = np.random.default_rng(0), 1000, 0.001
    tally = rsfast.Tally(1000, 10)
    votes = np.stack([generator.multinomial(n, (p, 0.9 - p, *[0.0125] * 8)) for p in generator.uniform(0.45, 0.6, 1000)])
    tally.counts[:, :10], tally.n[:] = torch.from_numpy(votes), n

    def theirs() -> list[int]:
        tops = np.sort(votes, axis=1)[:, -2:].tolist()
        tests = (binomtest(most, most + second, 0.5).pvalue <= alpha for second, most in tops)
        return np.where(list(tests), votes.argmax(axis=1), rsfast.ABSTAIN).tolist()

    ours = partial(rsfast.predictions, tally, alpha)
    assert ours() == theirs()
    assert 100 < ours().count(rsfast.ABSTAIN) < 900
    return alternate(ours, theirs, rounds)


def test_predict_binomtest():
    seconds = in_fresh_process(against_binomtest, 15)
    ours, theirs = (median(seconds[side]) * 1e3 for side in ("ours", "theirs"))  # us an input
    detail = f"{ours:.2f} us an input, in a Tally of 1,000; scipy.stats.binomtest {theirs:.0f} us"
    record("predict, the test of an input", "2 us", ours / 2, 1, detail, at_most=True)
