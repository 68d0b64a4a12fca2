"""Two processes with one thread each against one: whether certify, by inputs and by samples, gains what the forward does."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import distributed
from torch.multiprocessing import spawn

import rsfast
from benchmarks.cases import SIGMA, cifar_network
from benchmarks.conftest import record

RANKS, BATCH, ROUNDS = 2, 500, 7
WORK = {"inputs": (16, 2000), "samples": (1, 32_000)}  # inputs and n


def alternate(rank: int, folder: str) -> None:
    """Time one process, while the other waits, and two, in turn; the first writes the seconds of each kind of work."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    model, images = cifar_network(), torch.rand((16, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    batch = torch.rand(BATCH, 3, 32, 32)

    def forward(shard: str | None) -> None:
        with torch.no_grad():
            for _ in range(16 * 2500 // BATCH // (1 if shard is None else RANKS)):
                model(batch)

    def certify(inputs: int, n: int, shard: str | None) -> Any:
        options = {"num_classes": 10, "n0": BATCH, "n": n, "seed": 1, "batch_size": BATCH, "shard": shard}
        return rsfast.certify(model, images[:inputs], rsfast.Gaussian(SIGMA), **options)

    def pair(work: Callable[[str | None], Any], shard: str) -> tuple[float, float]:
        distributed.barrier()
        began = time.perf_counter()
        alone = work(None) if rank == 0 else None
        distributed.barrier()
        between = time.perf_counter()
        together = work(shard)
        distributed.barrier()
        assert rank > 0 or together == alone
        return between - began, time.perf_counter() - between

    pairs: dict[str, list[tuple[float, float]]] = {"forward": [], **{shard: [] for shard in WORK}}
    for _ in range(ROUNDS + 1):
        pairs["forward"].append(pair(forward, "inputs"))
        for shard, (inputs, n) in WORK.items():
            pairs[shard].append(pair(lambda by, inputs=inputs, n=n: certify(inputs, n, by), shard))
    if rank == 0:  # but for the first round, which warms up
        torch.save(
            {what: [median(c) for c in zip(*each[1:], strict=True)] for what, each in pairs.items()}, f"{folder}/found"
        )
    distributed.destroy_process_group()


def seconds() -> dict[str, tuple[float, float]]:
    """Return the seconds of one process and of two: of the bare forward, and of certify by what is divided."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(alternate, (folder,), nprocs=RANKS)
        found: dict[str, tuple[float, float]] = torch.load(Path(folder, "found"))
    return found


def test_ranks():
    speedup = {what: one / two for what, (one, two) in seconds().items()}
    for shard, (inputs, n) in WORK.items():
        detail = f"{inputs} input{'s' * (inputs > 1)}, n = {n:,}: {speedup[shard]:.3g} times the speed of one rank"
        what, against = f"speed-up of certify over {RANKS} ranks by {shard}", "that of the model's bare forward"
        ratio = speedup[shard] / speedup["forward"]
        record(what, against, ratio, 0.99, f"{detail}, the forward {speedup['forward']:.3g}")
