"""Two processes with one thread each against one with one thread, by inputs and by samples."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from statistics import median
from unittest import mock

import torch
from torch import distributed
from torch.multiprocessing import spawn

import rsfast
from benchmarks.bench_certify import KEEP_MEMORY
from benchmarks.cases import SIGMA, cifar_network
from benchmarks.conftest import record

RANKS, BATCH, ROUNDS = 2, 500, 7
WORK = {"inputs": (16, 2000), "samples": (1, 32_000)}  # inputs, n


def alternate(rank: int, folder: str) -> None:
    """Time one process and two in turn, while what is left of them waits; the first writes its seconds."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    model, images = cifar_network(), torch.rand((16, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    found = {}
    for shard, (inputs, n) in WORK.items():
        options = {"num_classes": 10, "n0": BATCH, "n": n, "seed": 1, "batch_size": BATCH}
        x, noise = images[:inputs], rsfast.Gaussian(SIGMA)
        pairs, alone = [], []
        for _ in range(ROUNDS + 1):  # the first to warm up
            distributed.barrier()
            began = time.perf_counter()
            if rank == 0:
                alone = rsfast.certify(model, x, noise, **options)
            distributed.barrier()
            between = time.perf_counter()
            together = rsfast.certify(model, x, noise, shard=shard, **options)
            distributed.barrier()
            pairs.append((between - began, time.perf_counter() - between))
            assert rank > 0 or together == alone
        one, two = (median(column) for column in zip(*pairs[1:], strict=True))
        found[shard] = one, two
    if rank == 0:
        torch.save(found, f"{folder}/found.pt")


def seconds() -> dict[str, tuple[float, float]]:
    """Return, by what is divided, the seconds of one process and of two."""
    with tempfile.TemporaryDirectory() as folder:
        with mock.patch.dict(os.environ, KEEP_MEMORY):
            spawn(alternate, (folder,), nprocs=RANKS)
        found: dict[str, tuple[float, float]] = torch.load(Path(folder, "found.pt"))
    return found


def test_ranks():
    for shard, (one, two) in seconds().items():
        inputs, n = WORK[shard]
        what, detail = f"certify over {RANKS} ranks by {shard}", f"{two:.2f} s for {inputs} inputs, n = {n:,}"
        record(what, f"1 rank, {RANKS} times its speed", one / two / RANKS, 0.95 if shard == "inputs" else 0.9, detail)
