"""accumulate with the 204 soft heads of LVM-RS's grid against the same in torch, one map at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.cases import GRID, torch_accumulate
from benchmarks.conftest import Seconds, alternate
from rsfast import Tally, ops

ROWS = {10: 1000, 1000: 256}  # of logits, by the number of classes


def against_torch(rounds: int, classes: int) -> Seconds:
    torch.manual_seed(0)
    logits = torch.randn(ROWS[classes], classes) * 3
    tally = Tally(1, classes, GRID)
    ops.accumulate(logits, tally)
    votes, sums, squares = torch_accumulate(logits)
    np.testing.assert_array_equal(tally.counts[0, :-1].numpy(), votes)
    np.testing.assert_allclose(tally.sums[0].numpy() / 2**30, sums, atol=2e-4 * len(logits) ** 0.5, rtol=1e-4)
    np.testing.assert_allclose(tally.squares[0].numpy() / 2**30, squares, atol=2e-4 * len(logits) ** 0.5, rtol=1e-4)
    return alternate(lambda: ops.accumulate(logits, tally), lambda: torch_accumulate(logits), rounds)


@pytest.mark.parametrize("classes", list(ROWS))
def test_accumulate_torch(compare, classes):
    compare(
        against_torch,
        classes,
        rounds=5,
        what=f"accumulate, 204 soft heads, K = {classes}",
        against="torch, one map at a time",
        target=20 if classes == 10 else 30,
        detail=lambda seconds: f"{seconds / ROWS[classes] * 1e6:.1f} us a row of {classes}",
    )
