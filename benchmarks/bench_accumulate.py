"""accumulate with the 204 soft heads of LVM-RS's grid against the same in torch, one map at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.cases import GRID, torch_accumulate
from benchmarks.conftest import alternate, record
from rsfast import Tally, ops


@pytest.mark.parametrize(("classes", "target"), [(10, 20), (1000, 30)])
def test_accumulate_torch(classes, target):
    torch.manual_seed(0)
    logits = torch.randn(1000 if classes == 10 else 256, classes) * 3
    tally = Tally(1, classes, GRID)
    ops.accumulate(logits, tally)
    votes, sums, squares = torch_accumulate(logits)
    np.testing.assert_array_equal(tally.counts[0, :-1].numpy(), votes)
    np.testing.assert_allclose(tally.sums[0].numpy() / 2**30, sums, atol=2e-4 * len(logits) ** 0.5, rtol=1e-4)
    np.testing.assert_allclose(tally.squares[0].numpy() / 2**30, squares, atol=2e-4 * len(logits) ** 0.5, rtol=1e-4)

    ratio, seconds = alternate(lambda: ops.accumulate(logits, tally), lambda: torch_accumulate(logits), rounds=5)
    detail = f"{seconds / len(logits) * 1e6:.1f} us a row of {classes}"
    record(f"accumulate, 204 soft heads, K = {classes}", "torch, one map at a time", ratio, target, detail)
