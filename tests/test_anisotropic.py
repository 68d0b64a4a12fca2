"""Gaussian noise with a sigma for each element or channel: its bits, its radii, and attacks on its certificates."""

import itertools
import re

import mpmath as mp
import numpy as np
import pytest
import torch
from conftest import assert_same_bits
from scipy import stats
from scipy.special import ndtr, ndtri

import rsfast
from rsfast import AnisotropicGaussian, Gaussian
from rsfast.noise import POTENTIAL_ERROR
from rsfast.ops import perturb

SIGMAS = np.array([0.25, 0.1, 0.7, 1.3, 0.1001])
SHAPES = [(5,), (3, 4), (2, 3, 5), (3, 9, 11), (2, 2, 3, 3)]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def of_elements(shape):
    return np.random.default_rng(1).uniform(0.01, 2, shape)


def white(x, **keywords):
    return perturb(torch.zeros_like(x), Gaussian(1.0), **keywords).double()


# Bits


@pytest.mark.parametrize("shape", SHAPES)
def test_one_rounding_of_the_formula(shape, isa):
    """y is x + sigma z of the float32 sigma, in exact arithmetic, rounded once to 24 bits."""
    x, sigmas = torch.rand(2, *shape), of_elements(shape)
    keywords = {"seed": 3, "samples": [0, 2**40], "rows": [1, 0]}
    found, z = perturb(x, AnisotropicGaussian(sigmas), **keywords), white(x, **keywords)
    applied = np.broadcast_to(sigmas.astype(np.float32), z.shape)
    for y, x_i, z_i, sigma in zip(found.flatten(), x[[1, 0]].flatten(), z.flatten(), applied.ravel(), strict=True):
        with mp.workprec(200):
            exact = mp.mpf(x_i.item()) + mp.mpf(z_i.item()) * mp.mpf(float(sigma))
        with mp.workprec(24):
            assert y.item() == +exact


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_sigma_for_each_channel_is_that_of_all_its_elements(shape, backend):
    by_channel = of_elements(shape[:1])
    by_element = np.broadcast_to(by_channel.reshape(-1, *[1] * (len(shape) - 1)), shape)
    x = torch.rand(1, *shape)
    found = [
        perturb(x, AnisotropicGaussian(sigmas), seed=1, samples=range(3), backend=backend)
        for sigmas in (by_channel, by_element)
    ]
    assert_same_bits(*found)


def test_equal_sigmas_are_gaussian_noise():
    """To the bit; so are the votes, and the radius is in standard deviations."""
    x, model = torch.full((2, 3), 0.2), lambda batch: torch.stack([-batch[:, 0], batch[:, 0]], 1)
    one, other = (
        rsfast.certify(model, x, noise, num_classes=2, n=1000, seed=1)
        for noise in (Gaussian(0.3), AnisotropicGaussian([0.3] * 3))
    )
    for a, b in zip(one, other, strict=True):
        assert (a.counts, a.p_lower, a.norm, b.norm) == (b.counts, b.p_lower, "l2", "mahalanobis")
        assert b.radius_in("l2") == pytest.approx(a.radius, rel=1e-12)
        assert b.radius_in("volume") == pytest.approx(a.radius, rel=1e-9)


def test_distribution():
    """Kolmogorov-Smirnov of the noise of each element over its sigma, 2^18 samples: false failure below 5e-6, fixed seed."""
    z = perturb(torch.zeros(1, 5), AnisotropicGaussian(SIGMAS), seed=2024, samples=range(1 << 18)).double().numpy()
    for values, sigma in zip(z.T, SIGMAS, strict=True):
        assert stats.kstest(values, stats.norm(scale=sigma).cdf).pvalue > 1e-6


# Radii


def test_potential():
    scores = [1e-12, 1e-9, 0.1, 0.5, 0.7, 0.99, 1 - 1e-12]
    noise = AnisotropicGaussian(SIGMAS)
    with mp.workdps(60):
        for p, found in zip(scores, noise.potential(scores), strict=True):
            exact = mp.sqrt(2) * mp.erfinv(2 * mp.mpf(p) - 1)
            assert abs(found - exact) <= POTENTIAL_ERROR * abs(exact)
    assert np.array_equal(
        noise.potential([0, 1, np.nan, -0.1, 2]), [-np.inf, np.inf, np.nan, np.nan, np.nan], equal_nan=True
    )
    with pytest.raises(ValueError, match=r"^lipschitz must be None with AnisotropicGaussian noise"):
        noise.potential(0.9, lipschitz=1.0)


@pytest.mark.parametrize(
    "noise", [AnisotropicGaussian(SIGMAS), AnisotropicGaussian([1e-30, 1e30]), AnisotropicGaussian([1.2e-38] * 3)]
)
def test_radii_are_rounded_down(noise):
    """Never above the formula in 60 digits, nor more than 2e-12 below it."""
    shape = (*noise.applied.shape, 7)
    with mp.workdps(60):
        sigmas = [mp.mpf(float(sigma)) for sigma in noise.applied for _ in range(7)]
        exact = {"l1": min(sigmas), "l2": min(sigmas), "linf": 1 / mp.sqrt(sum(s**-2 for s in sigmas))}
        exact["volume"] = mp.exp(sum(map(mp.log, sigmas)) / len(sigmas))
        for norm, factor in exact.items():
            for radius in (0.3, 1.0, 2.326, 1e-9):
                found = mp.mpf(noise.radius_in(radius, norm, shape))
                assert (1 - mp.mpf("2e-12")) * factor * radius <= found <= factor * radius
    assert noise.radius_in(0.3, "mahalanobis") == 0.3
    assert noise.radius_in(0.0, "linf", shape) == 0.0


def mahalanobis(delta, sigmas):
    return np.linalg.norm(np.asarray(delta) / np.float32(sigmas).astype(np.float64), axis=-1)


def test_balls_lie_within_the_ellipsoid_and_touch_it():
    """Vertices for l1 and linf; the axis of the smallest sigma, and random directions, for l2."""
    noise, rng = AnisotropicGaussian(SIGMAS), np.random.default_rng(2)
    radii = {norm: noise.radius_in(1.5, norm, (5,)) for norm in ("l1", "l2", "linf")}
    corners = np.array(list(itertools.product([-1, 1], repeat=5)))
    directions = rng.normal(size=(10_000, 5))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    for norm, points in (("l1", np.eye(5)), ("l2", np.vstack([directions, np.eye(5)])), ("linf", corners)):
        lengths = mahalanobis(radii[norm] * points, SIGMAS)
        assert 1.5 * (1 - 1e-9) <= lengths.max() <= 1.5 * (1 + 1e-15)


def test_the_volume_is_that_of_the_ellipsoid():
    """The shares of points of a box within each of the two are equal: z-score below 5, false failure 6e-7."""
    sigmas = np.array([0.5, 1.0, 0.8])
    radius = AnisotropicGaussian(sigmas).radius_in(1.0, "volume")
    points = np.random.default_rng(3).uniform(-1, 1, (1 << 19, 3))
    difference = (mahalanobis(points, sigmas) <= 1) * 1.0 - (np.linalg.norm(points, axis=1) <= radius)
    assert abs(difference.mean()) < 5 * difference.std() / len(points) ** 0.5
    assert (difference != 0).mean() > 0.05


# Attacks: classifiers whose smoothed score has a closed form, and shifts of the certified length


def test_no_shift_beats_a_half_space():
    """Its score at x + delta is Phi(rho - w'delta / |sigma w|); the worst delta of length rho ends at 1/2, none beyond."""
    rng, noise, sigmas = np.random.default_rng(4), AnisotropicGaussian(SIGMAS), np.float32(SIGMAS).astype(np.float64)
    for _ in range(200):
        w, p = rng.normal(size=5) * 10 ** rng.uniform(-2, 2, 5), rng.uniform(0.51, 0.999)
        rho, deviation = float(noise.potential(p)), np.linalg.norm(sigmas * w)
        shifts = rng.normal(size=(500, 5))
        shifts *= rho / mahalanobis(shifts, SIGMAS)[:, None]
        worst = -rho * sigmas**2 * w / deviation
        assert mahalanobis(worst, SIGMAS) == pytest.approx(rho, rel=1e-12)
        scores = ndtr(ndtri(p) + np.vstack([shifts, worst]) @ w / deviation)
        assert scores.min() >= 0.5 - 1e-12
        assert scores[-1] <= 0.5 + 1e-12
        assert ndtr(ndtri(p) + 1.001 * worst @ w / deviation) < 0.5


def test_no_shift_moves_a_ball_faster():
    """The score of a ball in x / sigma, or of what is outside, is a noncentral chi-square's: it is 1-Lipschitz under Q."""
    rng, noise, sigmas = np.random.default_rng(5), AnisotropicGaussian(SIGMAS), np.float32(SIGMAS).astype(np.float64)
    fastest = 0.0
    for _ in range(200):
        centre, radius = rng.normal(size=5), rng.uniform(1, 4)
        shifts = rng.normal(size=(100, 5)) * sigmas * rng.uniform(0.01, 1)
        scores = stats.ncx2.cdf(radius**2, 5, ((np.vstack([np.zeros(5), shifts]) / sigmas - centre) ** 2).sum(1))
        moved = np.abs(noise.potential(scores[1:]) - noise.potential(scores[0]))
        fastest = max(fastest, float((moved / mahalanobis(shifts, SIGMAS)).max()))
    assert 0.5 < fastest <= 1 + 1e-6


def test_a_certificate_holds_against_the_worst_shift():
    """A half-space sampled: the score at x + delta, |delta / sigma| the certified radius, is above 1/2 (alpha = 0.001)."""
    w, x = torch.tensor([1.0, -2.0, 0.5, 0.1, 3.0]), torch.tensor([[0.3, 0.1, 0.4, 1.0, 0.2]])
    model = lambda batch: torch.stack([torch.zeros(len(batch)), batch @ w], 1)  # noqa: E731
    (found,) = rsfast.certify(model, x, AnisotropicGaussian(SIGMAS), num_classes=2, n=20_000, seed=1)
    sigmas, normal = np.float32(SIGMAS).astype(np.float64), w.double().numpy()
    worst = -found.radius * sigmas**2 * normal / np.linalg.norm(sigmas * normal)
    truth = (x[0].double().numpy() @ normal) / np.linalg.norm(sigmas * normal)
    assert normal @ (x[0].double().numpy() + worst) > 0
    assert 0.95 * truth <= found.radius <= truth


# Smoothed functions


def test_derivatives_of_a_smoothed_quadratic():
    """Of sum a_i x_i^2: gradient 2 a x, curvature 2 sum a, bias sum a sigma^2, each within 5.5 standard errors: 5e-7."""
    a, x, sigmas = (
        torch.tensor([1.0, -2.0, 0.5, 3.0, 1.0]),
        torch.linspace(-1, 1, 5),
        torch.tensor([0.5, 0.7, 1.5, 1.0, 0.6]),
    )
    g = rsfast.smoothed(lambda x: (a * x**2).sum(1), AnisotropicGaussian(sigmas), 1 << 16, seed=3)
    value, gradient, curvature = g.value(x), g.gradient(x), g.curvature(x)
    exact = (a * x**2).sum().double() + (a * sigmas**2).sum()
    assert abs(value.mean - exact) < 5.5 * value.standard_error
    assert bool(((gradient.mean - 2 * a * x).abs() < 5.5 * gradient.standard_error).all())
    assert abs(curvature.mean - 2 * a.sum()) < 5.5 * curvature.standard_error
    assert curvature.standard_error < 0.5


# Values and errors


def test_the_same_sigmas_are_the_same_noise():
    noise = AnisotropicGaussian(torch.tensor([0.5, 0.25]))
    assert noise == AnisotropicGaussian([0.5, 0.25]) != AnisotropicGaussian([0.5, 0.125])
    assert noise != AnisotropicGaussian([[0.5, 0.25]])
    assert len({noise, AnisotropicGaussian((0.5, 0.25))}) == 1
    assert repr(noise) == "AnisotropicGaussian(sigmas=0.25 to 0.5 of shape [2])"
    assert (noise.settings, noise.scale) == ("sigmas = 0.25 to 0.5 of shape [2]", 0.25)


@pytest.mark.parametrize(
    ("sigmas", "message"),
    [
        ([], "sigmas must be an array of 1 or more axes that is not empty, got shape [0]"),
        (
            0.5,
            "sigmas must be an array, with a sigma of each element or channel, got 0.5; "
            "for the same sigma everywhere use Gaussian(0.5)",
        ),
        ([0.5, 0], "sigmas must hold numbers that are positive, finite and a normal float32, got 0.0"),
        ([0.5, -1], "sigmas must hold numbers that are positive, finite and a normal float32, got -1.0"),
        ([[np.nan]], "sigmas must hold numbers that are positive, finite and a normal float32, got nan"),
        ([np.inf], "sigmas must hold numbers that are positive, finite and a normal float32, got inf"),
        (["a"], "sigmas must be an array of real numbers, got one of <U1"),
    ],
)
def test_wrong_sigmas(sigmas, message):
    with pytest.raises((TypeError, ValueError), match=f"^{re.escape(message)}$"):
        AnisotropicGaussian(sigmas)


@pytest.mark.parametrize("shape", [(2,), (4, 4), (3, 4, 1), (4,)])
def test_sigmas_that_do_not_fit_are_refused_before_any_work(shape):
    def model(batch):
        raise AssertionError("called")

    message = (
        f"sigmas must have shape [3, 4, 4], one of each element of the inputs, or [3], one of each channel, "
        f"got shape {list(shape)}"
    )
    noise, x = AnisotropicGaussian(np.ones(shape)), torch.zeros(2, 3, 4, 4)
    for call in (rsfast.certify, rsfast.predict):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            call(model, x, noise, num_classes=2, n=10, alpha=0.01)
    with pytest.raises(ValueError, match=rf"^delta must have .*, got shape \[3, 4, 4\]: {re.escape(message)}$"):
        noise.size(np.zeros((3, 4, 4)))
    for norm in ("mahalanobis", "l2", "linf", "volume"):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            noise.radius_in(1.0, norm, (3, 4, 4))


def test_norms_that_there_are_not():
    noise = AnisotropicGaussian([1.0, 2.0])
    with pytest.raises(ValueError, match=r"^norm must be 'mahalanobis', 'l1', .* or 'volume' with .* noise, got 'l0'$"):
        noise.radius_in(1.0, "l0")
    with pytest.raises(
        ValueError, match=r"^shape must be the shape of an input, as the linf radius depends on it, got None; "
    ):
        noise.radius_in(1.0, "linf")


def test_inputs_too_large_for_the_smallest_sigma():
    with pytest.raises(
        ValueError, match=r"must hold values of at most 838861, got 1e\+06; .* sigmas = 0.1 to 2 of shape \[2\]"
    ):
        rsfast.predict(
            torch.nn.Identity(), torch.full((1, 2), 1e6), AnisotropicGaussian([2.0, 0.1]), num_classes=2, n=10, alpha=0.1
        )
