"""certify end to end against the model's bare forward on the same batches, against the 2019 loop, and its memory."""

from __future__ import annotations

import resource

import torch

import rsfast
from benchmarks.cases import SIGMA, cifar_network
from benchmarks.conftest import alternate, in_fresh_process, record
from rsfast.demo import Loop2019

N, BATCH = 10_000, 500

# glibc otherwise hands memory back to the system between layers, and both sides spend most of their time on page faults.
KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": "268435456", "MALLOC_MMAP_THRESHOLD_": "268435456"}


def against_forward() -> tuple[float, float]:
    """Return the ratio of times theirs / ours, and ours in seconds."""
    model, x = cifar_network(), torch.rand(1, 3, 32, 32)
    batch = torch.rand(BATCH, 3, 32, 32)

    def ours():
        rsfast.certify(model, x, rsfast.Gaussian(SIGMA), num_classes=10, n0=BATCH, n=N, seed=1, batch_size=BATCH)

    def theirs():
        with torch.inference_mode():
            for _ in range(N // BATCH + 1):
                model(batch)

    return alternate(ours, theirs)


def against_loop() -> tuple[float, float]:
    """Return the ratio of times theirs / ours, and ours in seconds."""
    model, x = cifar_network(), torch.rand(3, 32, 32)
    ours, theirs = rsfast.Smooth(model, 10, SIGMA, seed=1), Loop2019(model, 10, SIGMA)
    arguments = (x, BATCH, N, 0.001, BATCH)
    return alternate(lambda: ours.certify(*arguments), lambda: theirs.certify(*arguments), rounds=7)


def peaks() -> list[float]:
    """Return the peak of memory, in MiB, after n = 10^5 and then after n = 10^7."""
    x, found = torch.rand(1, 16), []
    for n in (10**5, 10**7):
        rsfast.sample(lambda batch: batch[:, :10], x, rsfast.Gaussian(SIGMA), num_classes=10, n=n, seed=1)
        found.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    return found


def test_certify_forward():
    ratio, seconds = in_fresh_process(against_forward, **KEEP_MEMORY)
    detail = f"{seconds:.2f} s an image, 2.8 M multiply-adds a sample"
    record(f"time of certify, n = {N:,}", "the model's bare forward", 1 / ratio, 1.05, detail, at_most=True)


def test_certify_loop():
    ratio, seconds = in_fresh_process(against_loop, **KEEP_MEMORY)
    record(f"speed of Smooth.certify, n = {N:,}", "the 2019 loop", ratio, 1, f"{seconds:.2f} s an image")


def test_memory_is_flat():
    before, after = in_fresh_process(peaks)
    detail = f"peak {after:.0f} MiB after n = 10^7, {before:.0f} MiB after n = 10^5"
    record("memory of sample, n = 10^7", "n = 10^5", after / before, 1.01, detail, at_most=True)
