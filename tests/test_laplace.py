"""Laplace noise: what only it has; the rest is in test_l1_noises.py."""

import numpy as np
from scipy import stats

from rsfast.noise import Laplace


def test_no_score_moves_faster_and_a_half_line_attains_it():
    """Indicators of unions of intervals, whose smoothed score and its derivative are sums of cdfs and densities."""
    rng, x = np.random.default_rng(3), np.linspace(-3, 3, 201)
    fastest = 0.0
    for _ in range(300):
        ends = np.sort(rng.normal(size=2 * rng.integers(1, 5))).reshape(-1, 2)
        if rng.uniform() < 0.5:
            ends[-1, 1] = np.inf
        p = sum(stats.laplace.cdf(right - x) - stats.laplace.cdf(left - x) for left, right in ends)
        slope = np.abs(sum(stats.laplace.pdf(left - x) - stats.laplace.pdf(right - x) for left, right in ends))
        fastest = max(fastest, float((slope / np.minimum(p, 1 - p)).max()))  # Q'(p) is 1 / min(p, 1 - p)
    assert fastest <= 1 + 1e-9
    np.testing.assert_allclose(Laplace(0.7).potential(stats.laplace.cdf(x / 0.7)), x, atol=1e-12)
