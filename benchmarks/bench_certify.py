"""certify end to end against the 2019 loop and against the model's bare forward on as many rows, and its memory."""

from __future__ import annotations

import time
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median

import pytest
import torch

import rsfast
from benchmarks.cases import SIGMA, STRIDES, cifar_network
from benchmarks.conftest import Seconds, alternate, in_fresh_process, record
from benchmarks.networks import cifar_resnet
from rsfast.loop2019 import Loop2019

N, BATCH = 10_000, 500
BATCH_2019 = 1000  # the default of Cohen et al.'s certify.py
USED = {"conv net": (cifar_network, N), "ResNet-20": (partial(cifar_resnet, 3), 2000)}  # and n
THREADS = sorted({1, torch.get_num_threads()})


def as_a_user_gets_it(contender: str, network: str, calls: int) -> tuple[float, int, float]:
    """Return the seconds that one image takes in this process, the median after a first call, with its class and radius.

    The process is to be a fresh one: sampling with rsfast changes how a process allocates memory, and the 2019 loop is to
    run without that.
    """
    make, n = USED[network]
    torch.manual_seed(0)
    model, x = make(), torch.full((3, 32, 32), 0.75)

    def certify() -> tuple[int, float]:
        prediction, radius = rsfast.certify(model, x[None], rsfast.Gaussian(SIGMA), num_classes=10, n0=100, n=n, seed=1)[0]
        return prediction, radius

    smooth = rsfast.Smooth(model, 10, SIGMA, seed=1) if contender == "Smooth" else Loop2019(model, 10, SIGMA)
    run = certify if contender == "certify" else partial(smooth.certify, x, 100, n, 0.001, BATCH_2019)
    seconds = []
    for _ in range(calls):
        began = time.perf_counter()
        prediction, radius = run()
        seconds.append(time.perf_counter() - began)
    return median(seconds[1:] or seconds), prediction, radius


def against_loop(rounds: int, contender: str, network: str) -> Seconds:
    """Return the seconds an image in fresh processes that take turns; a single round is a check, in this process."""
    found: dict[str, list[tuple[float, int, float]]] = {"ours": [], "theirs": []}
    for _ in range(rounds):
        for name, column in found.items():
            who = contender if name == "ours" else "Loop2019"
            image = (
                as_a_user_gets_it(who, network, 1) if rounds == 1 else in_fresh_process(as_a_user_gets_it, who, network, 6)
            )
            column.append(image)
    _, predictions, radii = zip(*(image for column in found.values() for image in column), strict=True)
    assert len(set(predictions)) == 1
    assert max(radii) - min(radii) < 0.15 * SIGMA  # 0.02 from sample to sample, and what the rules differ by
    return {name: [seconds for seconds, _, _ in column] for name, column in found.items()}


def against_forward(rounds: int, network: str, threads: int) -> Seconds:
    torch.set_num_threads(threads)
    model, x = cifar_network(stride=STRIDES[network]), torch.rand(1, 3, 32, 32)
    batch = torch.rand(BATCH, 3, 32, 32)

    def ours() -> None:
        [found] = rsfast.certify(model, x, rsfast.Gaussian(SIGMA), num_classes=10, n0=BATCH, n=N, seed=1, batch_size=BATCH)
        assert (found.n0, found.n) == (BATCH, N)

    def theirs() -> None:
        with torch.no_grad():
            for _ in range(N // BATCH + 1):
                model(batch)

    return alternate(ours, theirs, rounds)


def many_against_forward(turns: int) -> Seconds:
    """Return the seconds of one round, all turns: of 20 inputs each at n = 1,000, and of as many rows of the model."""
    model, n0, n, turn = cifar_network(), 100, 1000, 20
    images, batch = torch.rand(turns * turn, 3, 32, 32), torch.rand(BATCH, 3, 32, 32)
    found = rsfast.certify_each(model, images, rsfast.Gaussian(SIGMA), num_classes=10, n0=n0, n=n, seed=1, batch_size=BATCH)

    def ours() -> None:
        assert [certificate.n for certificate in islice(found, turn)] == [n] * turn

    def theirs() -> None:
        with torch.no_grad():
            for _ in range(turn * (n0 + n) // BATCH):
                model(batch)

    return {name: [sum(seconds)] for name, seconds in alternate(ours, theirs, turns, warm_up={}).items()}


def peak() -> float:
    """Return the peak of this process's memory, in MiB; getrusage's would be that of its parent, if higher."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


def peaks() -> list[float]:
    """Return the peak of memory, in MiB, after n = 10^5 and then after n = 10^7."""
    x, found = torch.rand(1, 16), []
    for n in (10**5, 10**7):
        rsfast.sample(lambda batch: batch[:, :10], x, rsfast.Gaussian(SIGMA), num_classes=10, n=n, seed=1)
        found.append(peak())
    return found


def peaks_over_inputs() -> list[float]:
    """Return the peak of memory, in MiB, after 10^4 inputs and then after 10^5."""
    found = []
    for count in (10**4, 10**5):
        inputs = (torch.full((16,), i / count) for i in range(count))
        certificates = rsfast.certify_each(
            lambda batch: batch[:, :10], inputs, rsfast.Gaussian(SIGMA), num_classes=10, n0=10, n=100, seed=1
        )
        assert sum(1 for _ in certificates) == count
        found.append(peak())
    return found


@pytest.mark.parametrize(
    ("contender", "network"), [("certify", "conv net"), ("Smooth", "conv net"), ("certify", "ResNet-20")]
)
def test_certify_loop(compare, contender, network):
    call, (_, n) = "certify" if contender == "certify" else "Smooth.certify, batch 1,000", USED[network]
    what, against = f"speed of {call}, {network}, n = {n:,}", "the 2019 loop, batch 1,000, in its own process"
    compare(
        against_loop, contender, network, rounds=5, what=what, against=against, target=1, detail="{:.2f} s an image".format
    )


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("network", list(STRIDES))
def test_certify_forward(compare, network, threads):
    what = f"time of certify, {network}, n = {N:,}, {threads} thread{'s' * (threads > 1)}"
    target = 1.08 if network == "small conv net" else 1.01 if threads == 1 else 1.03
    row = {"against": "the model's bare forward", "target": target, "at_most": True}
    compare(
        against_forward,
        network,
        threads,
        what=what,
        detail=lambda seconds: f"{seconds:.2f} s an image, {seconds / (N + BATCH) * 1e6:.0f} us a sample",
        **row,
    )


def test_certify_many_forward(compare):
    what, row = "time of certify, 1,000 inputs, n = 1,000", {"target": 1.05, "at_most": True}
    detail = "{:.1f} s, 1.1 M samples".format
    compare(many_against_forward, rounds=50, what=what, against="the model's bare forward", detail=detail, **row)


def test_memory_is_flat():
    before, after = in_fresh_process(peaks)
    detail = f"peak {after:.0f} MiB after n = 10^7, {before:.0f} MiB after n = 10^5"
    record("memory of sample, n = 10^7", "n = 10^5", after / before, 1.01, detail, at_most=True)
    before, after = in_fresh_process(peaks_over_inputs)
    detail = f"peak {after:.0f} MiB after 10^5 inputs, {before:.0f} MiB after 10^4"
    record("memory of certify_each, 10^5 inputs", "10^4 inputs", after / before, 1.01, detail, at_most=True)
