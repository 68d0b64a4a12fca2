"""certify end to end against the model's bare forward on the same batches, against the 2019 loop, and its memory."""

from __future__ import annotations

import resource

import torch

import rsfast
from benchmarks.cases import SIGMA, cifar_network
from benchmarks.conftest import record
from rsfast.demo import Loop2019

N, BATCH = 10_000, 500


def test_certify_forward(paired, benchmark):
    model, x = cifar_network(), torch.rand(1, 3, 32, 32)
    batch = torch.rand(BATCH, 3, 32, 32)

    def ours():
        rsfast.certify(model, x, rsfast.Gaussian(SIGMA), num_classes=10, n0=BATCH, n=N, seed=1, batch_size=BATCH)

    def theirs():
        with torch.inference_mode():
            for _ in range(N // BATCH + 1):
                model(batch)

    ratio = 1 / paired(ours, theirs, rounds=9)
    detail = f"{benchmark.stats.stats.median:.2f} s an image, 2.8 M multiply-adds a sample; share of the time, at most"
    record(f"certify, n = {N:,}", "the model's bare forward", ratio, 1.05, detail)


def test_certify_loop(paired, benchmark):
    model, x = cifar_network(), torch.rand(3, 32, 32)
    ours, theirs = rsfast.Smooth(model, 10, SIGMA, seed=1), Loop2019(model, 10, SIGMA)
    ratio = paired(
        lambda: ours.certify(x, BATCH, N, 0.001, BATCH), lambda: theirs.certify(x, BATCH, N, 0.001, BATCH), rounds=5
    )
    record(f"Smooth.certify, n = {N:,}", "the 2019 loop", ratio, 1, f"{benchmark.stats.stats.median:.2f} s an image")


def test_memory_is_flat(benchmark):
    x = torch.rand(1, 16)

    def model(batch):
        return batch[:, :10]

    def draw(n):
        rsfast.sample(model, x, rsfast.Gaussian(SIGMA), num_classes=10, n=n, seed=1)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    before = draw(10**5)
    after = benchmark.pedantic(draw, args=(10**7,), rounds=1)
    detail = f"peak {after:.0f} MiB after n = 10^7, {before:.0f} MiB after n = 10^5"
    record("memory of sample, n = 10^7", "n = 10^5", after / before, 1, detail)
