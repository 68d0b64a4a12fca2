"""Defects of published certification code, each with the test that finds it.

Maximising over heads on one sample without a union bound: test_api.py, test_several_heads_share_alpha. A two-sided alpha in
a one-sided bound: test_bounds.py, against vectors. n = 0, and logits that are NaN: test_certificate.py, test_api.py. A
printed radius that was rounded up: test_results.py. One sample for class and bound: test_rules.py, the enumeration, and
test_certificate.py. The others are here.
"""

import numpy as np
import pytest
import torch

from rsfast import Gaussian, Softmax, bounds, certify, sample


def drifting(x):
    """Logits whose mean depends on the noise of the first element: batches differ."""
    return torch.stack([3 * x[:, 0], -x[:, 0]], dim=1)


@pytest.mark.usefixtures("unprobed")
def test_the_variance_is_that_of_one_sample_whatever_the_batches():
    """Within-batch variances, averaged, would depend on the batches, and be NaN for a last batch of one row."""
    x, head = torch.full((1, 4), 0.3), Softmax(1.0)
    options = {"num_classes": 2, "n": 101, "seed": 3, "head": head, "bound": "empirical_bernstein"}
    whole, *others = (certify(drifting, x, Gaussian(0.5), batch_size=size, **options)[0] for size in (101, 100, 10, 2, 1))
    assert others == [whole] * 4
    scores = []

    def listening(batch):
        logits = drifting(batch)
        scores.append(torch.softmax(logits.double(), dim=1)[:, 0])
        return logits

    sample(listening, x, Gaussian(0.5), num_classes=2, n=101, seed=3, batch_size=10)
    found = torch.cat(scores).numpy()
    expected = bounds.empirical_bernstein_lower(found.mean(), np.var(found, ddof=1), 101, 0.001)
    assert whole.p_lower == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.usefixtures("unprobed")
def test_a_batch_that_fails_is_not_left_out_of_the_count():
    """It raises; and the trials of a bound are the rows that were counted, not those that were planned."""
    calls = []

    def failing(x):
        calls.append(len(x))
        if len(calls) == 3:
            raise RuntimeError("out of memory")
        return drifting(x)

    with pytest.raises(RuntimeError, match="out of memory"):
        certify(failing, torch.full((1, 4), 0.3), Gaussian(0.5), num_classes=2, n0=10, n=100, seed=3, batch_size=10)
    tally = sample(drifting, torch.full((1, 4), 0.3), Gaussian(0.5), num_classes=2, n=100, seed=3)
    assert int(tally.n) == int(tally.counts.sum()) == 100
