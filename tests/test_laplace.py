"""Laplace noise: what only it has (the rest is in test_l1_noises.py); and what any noise must satisfy to be registered."""

import numpy as np
import pytest
from scipy import stats

from rsfast import noise
from rsfast.noise import DRAWS, NOISES, Laplace
from rsfast.ops import _cpu


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


# Every noise


def test_the_registry_is_what_the_kernels_have():
    assert set(_cpu.draws()) == set(DRAWS) == {cls.draw.name for cls in NOISES.values()}


@pytest.mark.parametrize("cls", NOISES.values(), ids=NOISES)
def test_every_noise(cls):
    """Written and read, its parameters checked, its block taken by the kernels."""
    one = cls(**dict.fromkeys(cls.constraints, 0.25))
    assert noise.from_dict(one.to_dict()) == one
    assert one.norm in ("l1", "l2")
    one.parameters((3, 4, 4)).check()
    assert one.largest_input == 0.25 * 2**23
    for name, constraint in cls.constraints.items():
        for value in (0, -1.0, float("nan"), float("inf"), 1e-39, 10**400):
            with pytest.raises(ValueError, match=rf"^{name} must be {constraint.words}, got {value!r}$"):
                cls(**{name: value})
        for value in ("1", None, True):
            with pytest.raises(TypeError, match=rf"^{name} must be a number, got {value!r}$"):
                cls(**{name: value})


def test_an_unknown_noise_is_told_of_those_that_are_known():
    with pytest.raises(ValueError, match=rf"^noise must be one of {', '.join(map(repr, NOISES))}, got 'Cauchy'$"):
        noise.from_dict({"name": "Cauchy", "b": 1.0})
