"""What the statistics cost, and what they save: on the demo's network and test images."""

from __future__ import annotations

import time
from functools import cache

import torch
from scipy.stats import norm

import rsfast
from benchmarks.conftest import in_fresh_process, record
from rsfast import demo
from rsfast.engine import plan as looks

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


def share_of_bounds(head: rsfast.heads.Head) -> tuple[float, float]:
    """Return which part of certify's time passes from Tallies to Certificates, and that time in ms an image."""
    trained()
    spent, prove = 0.0, looks.prove

    def timed(*arguments: object, **options: object) -> object:
        nonlocal spent
        began = time.perf_counter()
        result = prove(*arguments, **options)
        spent += time.perf_counter() - began
        return result

    looks.prove = timed
    certify(head=head, n=100)  # warm
    spent, began = 0.0, time.perf_counter()
    found = certify(head=head, n=N)
    share = spent / (time.perf_counter() - began)
    assert len(found) == 200
    assert sum(certificate.radius > 0.25 for certificate in found) > 150
    return share, spent / len(found) * 1e3


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


def test_share_of_bounds():
    for name, head in (("votes, Clopper-Pearson", rsfast.Votes()), ("softmax, betting", rsfast.Softmax(0.5))):
        share, each = in_fresh_process(share_of_bounds, head)
        what = f"time in bounds, {name}, n = {N:,}"
        record(what, "certify on the demo", share, 0.05, f"{each:.2f} ms an image", at_most=True)


def test_samples_to_decide():
    used, rows, certified, all_certified, seconds, of_all = in_fresh_process(deciding)
    what, against = "demo decided at radius 0.5", "n = 100,000 fixed"
    detail = f"{used:,.0f} samples an image, {certified} of 200 certified, {all_certified} with all samples"
    record(f"samples, {what}", against, (demo.CAP + demo.N0) / used, 20, detail)
    record(f"time, {what}", against, of_all / seconds, 10, f"{seconds * 1e3:.1f} ms an image, {of_all * 1e3:.0f} ms for all")
    record(f"rows of the model, {what}", "samples that count", used / rows, 0.98, f"{rows:,.0f} rows an image")
