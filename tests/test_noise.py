"""rsfast.noise: the potential against 60-digit arithmetic, its limits, and that no Lipschitz score beats it."""

import json
import re
from pathlib import Path

import mpmath as mp
import numpy as np
import pytest
from scipy.special import ndtr, ndtri

from rsfast import noise
from rsfast.lipschitz import published_bridging_radius
from rsfast.noise import POTENTIAL_ERROR, Gaussian

VECTORS = json.loads((Path(__file__).parent / "vectors" / "lipschitz_potential.json").read_text())
PRODUCTS = [1e-3, 0.03, 0.4, 0.499, 0.5, 0.501, 1.0, 7.0, 1e2, 1e4]  # L sigma; 1/2 is where the tail's formula changes
SCORES = np.concatenate([10.0 ** np.arange(-12, 0), np.linspace(0.15, 0.85, 57), 1 - 10.0 ** np.arange(-12, 0)[::-1]])


def test_uniforms_are_words_rounded_up(monkeypatch):
    """(word + 1) / 2^32 exactly, for the words of stream 4 and for the least and the greatest: never 0, and 1 at last."""
    for seed, input_id in ((0, 0), (1, 2**32 - 1), (2**64 - 1, 7)):
        words = noise.philox((0, 0, input_id, 4 << 24), seed)
        assert noise.uniforms(seed, input_id) == ((words[0] + 1) / 2**32, (words[1] + 1) / 2**32)
    monkeypatch.setattr(noise.streams, "philox", lambda counter, seed: (0, 2**32 - 1, 0, 0))
    assert noise.uniforms(0, 0) == (2.0**-32, 1.0)


@pytest.fixture(autouse=True)
def _precision():
    with mp.workdps(60):
        yield


def exact(p, lipschitz, sigma, start):
    """The potential: Newton's method on the log of the smaller tail, from near the root."""
    a, q = 1 / (2 * mp.mpf(lipschitz) * sigma), min(mp.mpf(p), 1 - mp.mpf(p))
    t = abs(mp.mpf(start)) / sigma
    for _ in range(6):
        near, far = t - a, t + a
        with mp.workdps(120):
            tail = (mp.npdf(near) - near * mp.ncdf(-near) - mp.npdf(far) + far * mp.ncdf(-far)) / (2 * a)
            density = (mp.ncdf(-near) - mp.ncdf(-far)) / (2 * a)
        t += tail / density * mp.log(tail / q)
    return mp.sign(mp.mpf(p) - 0.5) * t * sigma


def test_the_oracle():
    """It agrees with the vectors, which are bisections of the distribution function."""
    for row in VECTORS:
        p, lipschitz, sigma, radius = (mp.mpf(row[key]) for key in ("p", "lipschitz", "sigma", "radius"))
        if p != 0.5:
            assert abs(exact(p, lipschitz, sigma, radius * 1.1) - radius) < mp.mpf("1e-17") * abs(radius)


@pytest.mark.parametrize("row", VECTORS, ids=lambda row: f"{row['p']}-{row['lipschitz']}-{row['sigma']}")
def test_vectors(row):
    """Their p and L are decimal, so that their neighbours' rounding moves the result too."""
    potential = float(Gaussian(float(row["sigma"])).potential(float(row["p"]), lipschitz=float(row["lipschitz"])))
    assert abs(potential - mp.mpf(row["radius"])) <= 2e-15 * abs(potential) + 1e-60


def test_relative_error():
    """At random points: anywhere, in either tail down to 1e-300, and next to 1/2, where the potential is next to 0."""
    rng = np.random.default_rng(11)
    for i in range(1000):
        exponent = rng.uniform(-12, -0.31) if i % 8 else rng.uniform(-300, -12)
        p = [rng.uniform(), 10**exponent, 1 - 10 ** rng.uniform(-12, -0.31), 0.5 + 10 ** rng.uniform(-15, -0.31)][i % 4]
        product, sigma = 10 ** rng.uniform(-3, 4), float(np.float32(10 ** rng.uniform(-3, 3)))
        potential = float(Gaussian(sigma).potential(p, lipschitz=product / sigma))
        truth = exact(p, product / sigma, sigma, potential)
        assert abs(potential / truth - 1) <= POTENTIAL_ERROR, (p, product, sigma)


@pytest.mark.parametrize("product", [1e-6, 1e-5, *PRODUCTS, 1e6, 1e8])
@pytest.mark.parametrize("p", [5e-324, 1e-300, 1e-12, 0.2499999, 0.25, 0.2500001, np.nextafter(0.5, 0), np.nextafter(1, 0)])
def test_relative_error_at_extremes(p, product):
    potential = float(Gaussian(1.0).potential(p, lipschitz=product))
    with mp.workdps(400 if p < 1e-12 else 60):
        assert abs(potential / exact(p, product, 1, potential) - 1) <= POTENTIAL_ERROR


def test_relative_error_without_a_lipschitz_constant():
    for p in SCORES:
        start = float(ndtri(p))
        if start:
            truth = exact(p, 1e40, 1, start)
            assert abs(float(Gaussian(1.0).potential(p)) / truth - 1) <= POTENTIAL_ERROR


@pytest.mark.parametrize("sigma", [0.1, 0.25, 3.0])
def test_sigma_is_taken_in_float32(sigma):
    applied = float(np.float32(sigma))
    for lipschitz in (None, 2.0):
        np.testing.assert_array_equal(
            Gaussian(sigma).potential(SCORES, lipschitz), Gaussian(applied).potential(SCORES, lipschitz)
        )


def test_limits():
    """sigma Phi^-1(p) as L grows, (p - 1/2) / L as L sigma falls; it approaches both from above."""
    noise = Gaussian(0.25)
    for lipschitz in (1e9, 1e30, 1e300):
        np.testing.assert_allclose(noise.potential(SCORES, lipschitz), noise.potential(SCORES), rtol=POTENTIAL_ERROR)
    p = np.linspace(0.01, 0.99, 99)
    for sigma in (1e-3, 4e-6):
        np.testing.assert_allclose(Gaussian(sigma).potential(p, 0.5), (p - 0.5) / 0.5, rtol=POTENTIAL_ERROR)
    upper = SCORES[SCORES > 0.5]
    for product in PRODUCTS:
        potential = Gaussian(0.25).potential(upper, product / 0.25)
        assert np.all(potential >= Gaussian(0.25).potential(upper))
        assert np.all(potential >= (upper - 0.5) / (product / 0.25) * (1 - POTENTIAL_ERROR))


def test_a_tiny_lipschitz_constant_is_raised():
    """No radius above 500,000 sigma and what the noise adds: safe, since a larger constant is one too."""
    noise = Gaussian(0.5)
    for lipschitz in (1e-7, 1e-300, 5e-324):
        np.testing.assert_array_equal(noise.potential(SCORES, lipschitz), noise.potential(SCORES, 2e-6))


@pytest.mark.parametrize("lipschitz", [None, *PRODUCTS])
def test_ends_and_what_is_no_probability(lipschitz):
    potential = Gaussian(1.0).potential([0.0, 0.5, 1.0, np.nan, -0.1, 1.1], lipschitz)
    np.testing.assert_array_equal(potential, [-np.inf, 0.0, np.inf, np.nan, np.nan, np.nan])


@pytest.mark.parametrize("product", PRODUCTS)
def test_odd_and_increasing(product):
    """Odd to the last bit; increasing in p, where p rises by more than the error; decreasing in L."""
    noise = Gaussian(1.0)
    q = 1 - SCORES[SCORES >= 0.5]  # exact
    np.testing.assert_array_equal(noise.potential(1 - q, product), -noise.potential(q, product))
    assert np.all(np.diff(noise.potential(np.sort(SCORES), product)) >= 0)
    steps = np.geomspace(1e-12, 0.5, 20_001)
    assert np.all(np.diff(noise.potential(steps, product)) > 0)
    assert np.all(np.diff(noise.potential(0.25 + 1e-12 * np.arange(-500, 500), product)) > 0)
    upper = SCORES[SCORES > 0.5]
    assert np.all(noise.potential(upper, product * 1.01) <= noise.potential(upper, product))


def test_no_score_depends_on_the_others():
    """Shapes, and the same bits alone and in a batch."""
    noise = Gaussian(0.5)
    for lipschitz in (0.01, 1.0, 3.0, 100.0):
        batch = noise.potential(SCORES, lipschitz)
        assert batch.tolist() == [float(noise.potential(p, lipschitz)) for p in SCORES]
    assert noise.potential(0.9, 1.0).shape == ()
    assert noise.potential(np.full((2, 3), 0.9), 1.0).shape == (2, 3)
    assert noise.potential(np.empty((0, 3)), 1.0).shape == (0, 3)
    assert noise.potential(0.9, 1.0).dtype == np.float64


def test_never_below_the_published_radius():
    """Nor above it by less than rounding: the published one divides by the slope at the centre, the steepest of the way."""
    p = SCORES[SCORES >= 0.5]
    for product in np.geomspace(1e-3, 1e2, 26):
        potential = Gaussian(0.25).potential(p, product / 0.25)
        published = published_bridging_radius(0.25, product / 0.25, p)
        assert np.all(potential >= published * (1 - 1e-11))
    assert Gaussian(1.0).potential(0.999, 0.1) > 1.75 * published_bridging_radius(1.0, 0.1, 0.999)


def smoothed(knots, values, sigma, x):
    """E h(x + sigma z) and its derivative in x, for h linear between knots and constant outside: exact, piece by piece."""
    mean, slope = np.full(x.shape, values[0]), np.zeros(x.shape)
    for left, right, low, high in zip(knots[:-1], knots[1:], values[:-1], values[1:], strict=True):
        u, v = (x - left) / sigma, (x - right) / sigma
        rise = (high - low) / (right - left)
        integrated = [t * ndtr(t) + np.exp(-t * t / 2) / np.sqrt(2 * np.pi) for t in (u, v)]
        mean += rise * sigma * (integrated[0] - integrated[1])
        slope += rise * (ndtr(u) - ndtr(v))
    return mean, slope


def derivative(p, slope, lipschitz, sigma):
    """d/dx Q(p(x)), with Q' taken from Q's values: central differences, good to 1e-8 here."""
    noise, step = Gaussian(sigma), 1e-5 * p * (1 - p)
    return slope * (noise.potential(p + step, lipschitz) - noise.potential(p - step, lipschitz)) / (2 * step)


def test_smoothing_by_quadrature():
    """`smoothed` against Gauss-Hermite quadrature of a function with kinks, good to 1e-3."""
    knots, values = np.array([-1.0, 0.2, 0.7, 2.0]), np.array([0.1, 0.9, 0.6, 0.8])
    nodes, weights = np.polynomial.hermite_e.hermegauss(180)
    x = np.linspace(-3, 3, 13)
    mean, slope = smoothed(knots, values, 0.5, x)
    h = np.interp(x[:, None] + 0.5 * nodes, knots, values)
    np.testing.assert_allclose(mean, h @ weights / weights.sum(), atol=1e-3)
    np.testing.assert_allclose(slope, (h * nodes) @ weights / weights.sum() / 0.5, atol=1e-2)


def test_no_lipschitz_score_moves_faster():
    """Random L-Lipschitz functions into [0, 1] of one variable: piecewise linear, steep everywhere or not."""
    rng = np.random.default_rng(23)
    fastest = 0.0
    for _ in range(400):
        lipschitz, sigma = 10 ** rng.uniform(-1, 1.5), 1.0
        count = int(rng.integers(2, 12))
        gaps = rng.exponential(size=count) * 10 ** rng.uniform(-1, 0.5) / min(lipschitz, 1.0)
        knots = np.concatenate([[0], np.cumsum(gaps)]) - gaps.sum() / 2
        rises = gaps * lipschitz * (rng.choice([-1, 1, 1], size=count) if rng.uniform() < 0.5 else rng.uniform(-1, 1, count))
        values = [rng.uniform()]
        for rise in rises:
            values.append(min(max(values[-1] + rise, 0.0), 1.0))
        x = np.linspace(knots[0] - 3, knots[-1] + 3, 101)
        p, slope = smoothed(knots, np.array(values), sigma, x)
        keep = (p > 1e-6) & (p < 1 - 1e-6)
        fastest = max(fastest, float(np.abs(derivative(p[keep], slope[keep], lipschitz, sigma)).max(initial=0)))
    assert 0.95 < fastest <= 1 + 1e-6


@pytest.mark.parametrize("lipschitz", [0.05, 0.5, 3.0, 40.0])
def test_a_ramp_attains_it(lipschitz):
    knots = np.array([-0.5, 0.5]) / lipschitz
    reach = 0.5 / lipschitz + 2.5
    p, slope = smoothed(knots, np.array([0.0, 1.0]), 1.0, np.linspace(-reach, reach, 201))
    np.testing.assert_allclose(derivative(p, slope, lipschitz, 1.0), 1, rtol=2e-6)
    np.testing.assert_allclose(Gaussian(1.0).potential(p, lipschitz), np.linspace(-reach, reach, 201), atol=1e-9)


@pytest.mark.parametrize("value", [0, 0.0, -1.0, float("nan"), float("inf"), -float("inf")])
def test_lipschitz_out_of_range(value):
    with pytest.raises(ValueError, match=re.escape(f"lipschitz must be positive and finite, got {value!r}")):
        Gaussian(1.0).potential(0.9, lipschitz=value)


@pytest.mark.parametrize("value", [True, "1", [1.0], 1j])
def test_lipschitz_is_a_number(value):
    with pytest.raises(TypeError, match=re.escape(f"lipschitz must be a number, got {value!r}")):
        Gaussian(1.0).potential(0.9, lipschitz=value)
