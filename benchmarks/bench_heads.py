"""certify with the 205 heads of LVM-RS's grid, which share their samples, against the model's bare forward."""

from __future__ import annotations

import pytest
import torch

import rsfast
from benchmarks.cases import GRID, NOISE, STRIDES, cifar_network
from benchmarks.conftest import Seconds, alternate

N, BATCH = 10_000, 500
N_OF_A_CHECK = 1000  # of a single round, which is not recorded
ALPHA = 2.0**-20  # of each head
FEW = (0, 1, 40, 204)  # heads that are checked alone
TARGETS = {("conv net", 10): 1.3, ("conv net", 1000): 2.0, ("small conv net", 10): 2.2, ("small conv net", 1000): 12}


def against_forward(rounds: int, network: str, classes: int, bound: str) -> Seconds:
    torch.set_num_threads(1)
    count = N if rounds > 1 else N_OF_A_CHECK
    model = cifar_network(classes, STRIDES[network])
    x = torch.rand((1, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    batch = torch.rand(BATCH, 3, 32, 32)

    def certify(heads: tuple[rsfast.heads.Head, ...]) -> list[rsfast.Certificate]:
        options = {"n0": BATCH, "n": count, "alpha": len(heads) * ALPHA, "bound": bound, "seed": 1, "batch_size": BATCH}
        [found] = rsfast.certify(model, x, NOISE, num_classes=classes, head=heads, **options)
        return found

    def theirs() -> None:
        with torch.no_grad():
            for _ in range(count // BATCH + 1):
                model(batch)

    few = certify(tuple(GRID[head] for head in FEW))
    assert few == [certify(GRID)[head] for head in FEW]
    return alternate(lambda: certify(GRID), theirs, rounds)


@pytest.mark.parametrize("bound", ["auto", "empirical_bernstein"])
@pytest.mark.parametrize(("network", "classes"), list(TARGETS))
def test_heads_forward(compare, network, classes, bound):
    compare(
        against_forward,
        network,
        classes,
        bound,
        rounds=5,
        what=f"time of certify, {len(GRID)} heads, {bound}, K = {classes}, {network}, 1 thread",
        against="the model's bare forward",
        target=TARGETS[network, classes],
        at_most=True,
        detail=lambda seconds: f"{seconds:.2f} s an image, n = {N:,}",
    )
