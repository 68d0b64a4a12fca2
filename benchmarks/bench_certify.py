"""certify end to end against the 2019 loop and against the model's bare forward on as many rows, and its memory."""

from __future__ import annotations

import time
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median

import torch

import rsfast
from benchmarks.cases import SIGMA, cifar_network
from benchmarks.conftest import alternate, in_fresh_process, record
from rsfast.demo import Loop2019

N, BATCH = 10_000, 500
BATCH_2019 = 1000  # the default of Cohen et al.'s certify.py
CONTENDERS = ("certify", "Smooth", "Loop2019")


def as_a_user_gets_it(contender: str) -> tuple[float, int, float]:
    """Return the seconds that one image takes in this process, the median of five, with the class and radius of the last.

    The process is to be a fresh one: sampling with rsfast changes how a process allocates memory, and the 2019 loop is to
    run without that.
    """
    model, x = cifar_network(), torch.full((3, 32, 32), 0.75)

    def certify() -> tuple[int, float]:
        prediction, radius = rsfast.certify(model, x[None], rsfast.Gaussian(SIGMA), num_classes=10, n0=100, n=N, seed=1)[0]
        return prediction, radius

    smooth = rsfast.Smooth(model, 10, SIGMA, seed=1) if contender == "Smooth" else Loop2019(model, 10, SIGMA)
    run = certify if contender == "certify" else partial(smooth.certify, x, 100, N, 0.001, BATCH_2019)
    run()
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        prediction, radius = run()
        seconds.append(time.perf_counter() - began)
    return median(seconds), prediction, radius


def against_loop(rounds: int = 5) -> dict[str, float]:
    """Return the seconds an image of each contender: the median over fresh processes, which take turns."""
    found = {contender: [] for contender in CONTENDERS}
    for _ in range(rounds):
        for contender, column in found.items():
            column.append(in_fresh_process(as_a_user_gets_it, contender))
    _, predictions, radii = zip(*(each for column in found.values() for each in column), strict=True)
    assert len(set(predictions)) == 1
    assert max(radii) - min(radii) < 0.15 * SIGMA  # 0.02 from sample to sample, and what the rules differ by
    return {contender: median(seconds for seconds, _, _ in column) for contender, column in found.items()}


def against_forward() -> tuple[float, float]:
    """Return the ratio of times theirs / ours, and ours in seconds."""
    model, x = cifar_network(), torch.rand(1, 3, 32, 32)
    batch = torch.rand(BATCH, 3, 32, 32)

    def ours():
        rsfast.certify(model, x, rsfast.Gaussian(SIGMA), num_classes=10, n0=BATCH, n=N, seed=1, batch_size=BATCH)

    def theirs():
        with torch.no_grad():
            for _ in range(N // BATCH + 1):
                model(batch)

    return alternate(ours, theirs)


def many_against_forward() -> tuple[float, float]:
    """Return the ratio of times ours / theirs for 1,000 inputs at n = 1,000, in turns of 20 inputs, and ours in seconds."""
    model, inputs, n, turn = cifar_network(), 1000, 1000, 20
    images, batch = torch.rand(inputs, 3, 32, 32), torch.rand(BATCH, 3, 32, 32)
    found = rsfast.certify_each(model, images, rsfast.Gaussian(SIGMA), num_classes=10, n0=100, n=n, seed=1, batch_size=BATCH)
    ours = theirs = 0.0
    for _ in range(0, inputs, turn):
        began = time.perf_counter()
        certificates = list(islice(found, turn))
        between = time.perf_counter()
        with torch.no_grad():
            for _ in range(turn * (100 + n) // BATCH):
                model(batch)
        ours, theirs = ours + between - began, theirs + time.perf_counter() - between
        assert [certificate.n for certificate in certificates] == [n] * turn
    return ours / theirs, ours


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


def test_certify_loop():
    seconds = against_loop()
    for contender, name in (("certify", "certify"), ("Smooth", "Smooth.certify, batch 1,000")):
        ratio, detail = seconds["Loop2019"] / seconds[contender], f"{seconds[contender]:.2f} s an image"
        record(f"speed of {name}, n = {N:,}", "the 2019 loop, batch 1,000, in its own process", ratio, 1, detail)


def test_certify_forward():
    ratio, seconds = in_fresh_process(against_forward)
    detail = f"{seconds:.2f} s an image, 2.8 M multiply-adds a sample"
    record(f"time of certify, n = {N:,}", "the model's bare forward", 1 / ratio, 1.05, detail, at_most=True)


def test_certify_many_forward():
    ratio, seconds = in_fresh_process(many_against_forward)
    what, detail = "time of certify, 1,000 inputs, n = 1,000", f"{seconds:.1f} s, 1.1 M samples"
    record(what, "the model's bare forward", ratio, 1.05, detail, at_most=True)


def test_memory_is_flat():
    before, after = in_fresh_process(peaks)
    detail = f"peak {after:.0f} MiB after n = 10^7, {before:.0f} MiB after n = 10^5"
    record("memory of sample, n = 10^7", "n = 10^5", after / before, 1.01, detail, at_most=True)
    before, after = in_fresh_process(peaks_over_inputs)
    detail = f"peak {after:.0f} MiB after 10^5 inputs, {before:.0f} MiB after 10^4"
    record("memory of certify_each, 10^5 inputs", "10^4 inputs", after / before, 1.01, detail, at_most=True)
