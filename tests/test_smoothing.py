"""rsfast.smoothed: value, gradient and curvature of E f(x + noise) against closed forms, and the samples behind them.

Where a test compares an estimate with the truth, it allows 5.5 standard errors. A normal variable is beyond with chance
4e-8, and no test compares more than 25: a false failure of one has chance 1e-6. Estimates are of 2^14 pairs or more.
"""

import math
import re
from dataclasses import dataclass

import mpmath as mp
import numpy as np
import pytest
import torch
from torch import nn

import rsfast
from rsfast import Gaussian, Laplace, Splitting, smoothed
from rsfast.noise import DRAWS, NOISES
from rsfast.noise.base import POSITIVE, Noise
from rsfast.ops import perturb

WITHIN = 5.5


@dataclass(frozen=True)
class Uneven(Noise):
    """A noise without a score, as those of others are; it draws as Gaussian does, so that its value is known."""

    sigma: float

    constraints = {"sigma": POSITIVE}  # noqa: RUF012
    norm = "l2"
    draw = DRAWS["gaussian"]


def assert_near(estimate, exact, least=0.0):
    """The estimate is within 5.5 of its standard errors of what is exact, and these errors are at least `least`."""
    exact = torch.as_tensor(exact, dtype=torch.float64)
    assert estimate.mean.dtype == estimate.standard_error.dtype == torch.float64
    assert estimate.mean.shape == estimate.standard_error.shape == exact.shape
    assert bool((estimate.standard_error >= least).all())
    assert bool(((estimate.mean - exact).abs() <= WITHIN * estimate.standard_error + 1e-12).all()), (estimate, exact)


def point(dim):
    return torch.linspace(-0.7, 0.9, dim)


def quadratic(dim):
    """f(x) = x'Ax / 2 + b'x: A, b and f."""
    generator = torch.Generator().manual_seed(dim)
    a, b = torch.randn(dim, dim, generator=generator), torch.randn(dim, generator=generator)
    a = (a + a.T) / 2
    return a.double(), b.double(), lambda x: (x @ a * x).sum(1) / 2 + x @ b


@pytest.mark.parametrize("dim", [1, 2, 5, 20])
def test_a_quadratic(dim):
    """g - f is sigma^2 / 2 tr A exactly, the gradient f's, and the curvature tr A."""
    a, b, f = quadratic(dim)
    x, sigma = point(dim), 0.7
    g = smoothed(f, Gaussian(sigma), 1 << 14, seed=dim)
    at_x = x.double() @ a @ x.double() / 2 + b @ x.double()
    assert_near(g.value(x), at_x + sigma**2 / 2 * a.trace())
    assert_near(g.gradient(x), a @ x.double() + b)
    assert_near(g.curvature(x), a.trace())


@pytest.mark.parametrize("dim", [1, 3, 20])
def test_a_sine(dim):
    """sin(w'x + 1) keeps its form, times exp(-sigma^2 |w|^2 / 2) under Gaussian noise: smoothing is low-pass."""
    w, x, sigma = torch.linspace(1.5, -2.0, dim) / math.sqrt(dim), point(dim), 0.4
    g = smoothed(lambda x: torch.sin(x @ w + 1), Gaussian(sigma), 1 << 15, seed=7)
    phase, factor = float(w.double() @ x.double() + 1), math.exp(-(sigma**2) * float(w.double() @ w.double()) / 2)
    assert_near(g.value(x), factor * math.sin(phase))
    assert_near(g.gradient(x), factor * math.cos(phase) * w.double())
    assert_near(g.curvature(x), -factor * math.sin(phase) * float(w.double() @ w.double()))


@pytest.mark.parametrize("dim", [1, 3, 20])
def test_a_sine_under_laplace_noise(dim):
    """The characteristic function of Laplace noise is the product of 1 / (1 + b^2 w_i^2)."""
    w, x, b = torch.linspace(1.5, -2.0, dim) / math.sqrt(dim), point(dim), 0.3
    g = smoothed(lambda x: torch.sin(x @ w + 1), Laplace(b), 1 << 15, seed=8)
    phase, factor = float(w.double() @ x.double() + 1), float((1 / (1 + b**2 * w.double() ** 2)).prod())
    assert_near(g.value(x), factor * math.sin(phase))
    assert_near(g.gradient(x), factor * math.cos(phase) * w.double())


@pytest.mark.parametrize("at", [-1.0, 0.0, 0.3, 1.2])
@pytest.mark.parametrize("dim", [1, 4])
def test_a_step(at, dim):
    """The heat equation's answer, Phi(x / sigma), where f has no gradient; of a bool, too."""
    x, sigma, u = torch.full((dim,), at), 0.5, at / 0.5
    g = smoothed(lambda x: x[:, 0] > 0, Gaussian(sigma), 1 << 16, seed=9)
    density = math.exp(-u * u / 2) / math.sqrt(2 * math.pi)
    slope = torch.zeros(dim)
    slope[0] = density / sigma
    assert_near(g.value(x), float(mp.ncdf(u)), least=0.0 if at == 0 else 1e-5)  # at 0 a pair is one point above, one below
    assert_near(g.gradient(x), slope)
    assert_near(g.curvature(x), -u * density / sigma**2)


def test_a_step_under_laplace_noise():
    """Its distribution function and density."""
    x, b = torch.tensor([0.4]), 0.5
    g = smoothed(lambda x: x[:, 0] > 0, Laplace(b), 1 << 16, seed=10)
    tail = math.exp(-0.4 / b) / 2
    assert_near(g.value(x), 1 - tail)
    assert_near(g.gradient(x), torch.tensor([tail / b]))


@pytest.mark.parametrize(("f", "second"), [("x^2", 2.0), ("x^4", 12 * 0.9**2), ("softplus", 0.20550030734226)])
def test_the_bias_is_half_the_curvature(f, second):
    """g(x) - f(x) ~ sigma^2 / 2 f''(x): x^2 exactly, else up to sigma^4 / 8 times the fourth derivative of f near x.

    That is at most 24 for x^4, and 1/8 for softplus.
    """
    x, sigma = torch.tensor([0.9]), 0.1
    function = {"x^2": lambda x: x[:, 0] ** 2, "x^4": lambda x: x[:, 0] ** 4, "softplus": lambda x: nn.Softplus()(x[:, 0])}[
        f
    ]
    exact = {"x^2": 0.9**2, "x^4": 0.9**4, "softplus": math.log1p(math.exp(0.9))}[f]
    g = smoothed(function, Gaussian(sigma), 1 << 17, seed=11)
    rest = sigma**4 / 8 * {"x^2": 0, "x^4": 24, "softplus": 0.125}[f]
    value, curvature = g.value(x), g.curvature(x)
    assert abs(value.mean - exact - sigma**2 / 2 * second) <= rest + WITHIN * value.standard_error + 1e-7
    errors = value.standard_error + sigma**2 / 2 * curvature.standard_error
    assert abs(value.mean - exact - sigma**2 / 2 * curvature.mean) <= rest + WITHIN * errors + 1e-7
    assert errors < sigma**2 / 2 * second / 20  # the check sees the curvature


@pytest.mark.parametrize("what", ["value", "gradient", "curvature"])
def test_standard_errors(what):
    """Of 500 estimates the spread is the standard error that they report.

    The ratio errs by 1 / sqrt(1000) if estimates are normal, and we allow 6 of these: false failure below 1e-8.
    """
    g = smoothed(lambda x: torch.sin(3 * x).sum(1), Gaussian(0.6), 256, seed=12)
    found = [getattr(g, what)(point(2)) for _ in range(500)]
    spread = torch.stack([each.mean for each in found]).std(dim=0)
    reported = torch.stack([each.standard_error for each in found]).square().mean(dim=0).sqrt()
    assert bool(((spread / reported - 1).abs() < 6 / math.sqrt(1000)).all())


def test_pairs_take_noise_away():
    """A linear f leaves none in the value, an even f none in the gradient, and a constant none in either derivative."""
    x = torch.tensor([0.5, -0.25])

    def make(f):
        return smoothed(f, Gaussian(0.25), 1000, seed=1)

    assert make(lambda z: z @ torch.tensor([1.0, 2.0])).value(x).standard_error < 1e-7  # 0.018 without pairs
    assert make(lambda z: (z - x).square().sum(1)).gradient(x).standard_error.max() < 1e-7
    constant = make(lambda z: torch.full((len(z),), 1e9 + 0.1, dtype=torch.float64))
    for estimate in (constant.gradient(x), constant.curvature(x)):
        assert not estimate.mean.any()
        assert not estimate.standard_error.any()


def test_the_variance_is_stable():
    """At values near 1e8 it is that of NumPy's longest floats: a sum of squares would have lost it."""
    x, seen = torch.zeros(3), []

    def f(batch):
        seen.append(batch[:, 0].double())
        return 1e8 + seen[-1]

    estimate = smoothed(f, Uneven(1.0), 1000, seed=3).value(x)
    pairs = (np.longdouble(1e8) + torch.cat(seen).numpy().astype(np.longdouble)).reshape(-1, 2).mean(axis=1)
    assert float(estimate.standard_error) == pytest.approx(float(pairs.std(ddof=1) / np.sqrt(np.longdouble(1000))), rel=1e-6)


def test_blocks_are_merged():
    """An x so large that a block holds two pairs: mean and standard error are those of all pairs at once."""
    x = torch.zeros(1 << 17)
    mean, standard_error = smoothed(lambda z: z[:, 0].double() + 5 * (z[:, 1] > 0), Gaussian(1.0), 33, seed=3).gradient(x)
    z = perturb(x[None], Gaussian(1.0), seed=3, samples=range(33), stream="user").double()
    products = (z[:, :1] + 2.5 * z[:, 1:2].sign()) * z
    torch.testing.assert_close(mean, products.mean(0), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(standard_error, products.std(0) / 33**0.5, rtol=1e-12, atol=0)


# torch.autograd


@pytest.mark.parametrize("noise", [Gaussian(0.5), Laplace(0.4)])
def test_the_gradient_of_autograd_is_the_estimate(noise):
    _, _, f = quadratic(5)
    x = point(5).requires_grad_()
    g, same = (smoothed(f, noise, 1000, seed=3) for _ in range(2))
    result = g(x)
    assert (result.shape, result.dtype) == ((), torch.float32)
    (3 * result).backward()
    value, gradient = same.value_and_gradient(x)
    assert torch.equal(result.detach(), value.mean.float())
    assert torch.equal(x.grad, 3 * gradient.mean.float())


def test_autograd_against_the_exact_gradient():
    """Through what comes before and after, as a loss; a leaf of two axes."""
    a, b, f = quadratic(6)
    weight = point(6).reshape(2, 3).requires_grad_()
    g = smoothed(lambda x: f(x.flatten(1)), Gaussian(0.5), 1 << 14, seed=5)
    errors = g.gradient(2 * weight.detach()).standard_error
    torch.exp(g(2 * weight) / 10).backward()
    with torch.no_grad():
        flat = 2 * weight.flatten().double()
        exact = (a @ flat + b) * 2 / 10 * math.exp(float(flat @ a @ flat / 2 + b @ flat + a.trace() / 8) / 10)
        scale = float(exact[0] / (a @ flat + b)[0])  # by which errors of g's gradient arrive; exp's own error is small
    assert bool(
        ((weight.grad.double() - exact.reshape(2, 3)).abs() <= WITHIN * scale * errors + 0.01 * exact.abs().max()).all()
    )


def test_what_needs_no_gradient_gets_none():
    g = smoothed(lambda x: x.sum(1), Gaussian(0.5), 10, seed=1)
    assert not g(torch.zeros(3)).requires_grad
    with torch.no_grad():
        assert not g(torch.zeros(3, requires_grad=True)).requires_grad


def test_there_is_no_second_derivative():
    x = torch.zeros(3, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"^create_graph must be False .*, got True; .*g.curvature"):
        torch.autograd.grad(smoothed(lambda x: x.square().sum(1), Gaussian(0.5), 10)(x), x, create_graph=True)


def test_a_module_runs_in_eval_mode_without_autograd():
    net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1), nn.Flatten(0))
    x = torch.zeros(4, requires_grad=True)
    value, again = (smoothed(net, Gaussian(0.1), 20, seed=1)(x) for _ in range(2))
    assert torch.equal(value, again)  # no dropout
    value.backward()
    assert x.grad.abs().sum() > 0
    assert net.training
    assert all(parameter.grad is None for parameter in net.parameters())


# Samples


def recorded(noise, x, n, **options):
    seen = []

    def f(batch):
        seen.append(batch.clone())
        return batch.flatten(1).sum(1)

    return smoothed(f, noise, n, **options), seen


@pytest.mark.parametrize("noise", [Gaussian(0.5), Laplace(0.5)])
def test_samples_are_those_of_perturb_in_pairs(noise):
    x = torch.linspace(-3, 4, 12).reshape(3, 2, 2)
    g, seen = recorded(noise, x, 5, seed=9, batch_size=3)
    g.value(x)
    assert [len(batch) for batch in seen] == [3, 3, 3, 1]
    points, options = torch.cat(seen), {"seed": 9, "samples": range(5), "stream": "user"}
    assert torch.equal(points[0::2], perturb(x[None], noise, **options))
    assert torch.equal(points[1::2], -perturb(-x[None], noise, **options))
    torch.testing.assert_close(points[0::2] + points[1::2], (2 * x).expand(5, 3, 2, 2))


def test_samples_of_a_noise_without_a_score_are_independent():
    x = point(4)
    g, seen = recorded(Uneven(0.5), x, 5, seed=9)
    g.value(x)
    assert torch.equal(torch.cat(seen), perturb(x[None], Uneven(0.5), seed=9, samples=range(10), stream="user"))
    assert g.count == 10
    assert_near(smoothed(lambda x: x.square().sum(1), Uneven(0.5), 1 << 14, seed=2).value(x), float(x.square().sum()) + 1.0)


METHODS = ("value", "gradient", "curvature")


@pytest.mark.parametrize("noise", [Gaussian(0.5), Laplace(0.5)])
@pytest.mark.parametrize("n", [2, 100, 257])
def test_the_batch_size_does_not_show(noise, n):
    """f computes each row the same in whatever batch it stands; then all bits are the same."""
    x, methods = point(6), METHODS if noise == Gaussian(0.5) else METHODS[:2]
    found = []
    for batch_size in (None, 1, 2, 7, 64, 10_000):
        g = smoothed(lambda x: (x**3)[:, 0] + x[:, 5].abs(), noise, n, seed=3, batch_size=batch_size)
        found.append(torch.cat([torch.stack(getattr(g, method)(x)).flatten() for method in methods]))
    assert all(torch.equal(found[0], other) for other in found)


def test_fresh_samples():
    """The default: each call goes on where the last one ended, and one that fails takes none."""
    x = point(3)
    g, seen = recorded(Gaussian(0.5), x, 4, seed=1)
    for number, call in enumerate([g, g.value, g.gradient, g.value_and_gradient]):
        assert g.count == 4 * number
        call(x)
    expected = perturb(x[None], Gaussian(0.5), seed=1, samples=range(16), stream="user")
    assert torch.equal(torch.cat(seen)[0::2], expected)
    g.count = 4
    seen.clear()
    g.curvature(x)
    assert torch.equal(torch.cat(seen)[1::2], expected[4:8])  # after x itself
    g.f = lambda batch: batch
    with pytest.raises(ValueError, match="f must return one number"):
        g.value(x)
    assert g.count == 8


def test_common_random_numbers():
    """One function: the same bits at each call, and differences between neighbours without noise."""
    x, y = point(3), point(3) + 1e-2
    common, fresh = (
        smoothed(lambda x: torch.sin(x).sum(1), Gaussian(0.5), 100, seed=1, common_random_numbers=each)
        for each in (True, False)
    )
    first = common.value_and_gradient(x)
    assert all(map(torch.equal, first[0], common.value(x)))
    assert all(map(torch.equal, first[1], common.gradient(x)))
    assert not torch.equal(fresh.value(x).mean, fresh.value(x).mean)
    exact = math.exp(-(0.5**2) / 2) * float((torch.sin(y.double()) - torch.sin(x.double())).sum())
    assert abs(float(common.value(y).mean - common.value(x).mean) - exact) < 0.1 * abs(exact)


def test_seeds():
    x = point(3)
    one, other = (smoothed(lambda x: torch.sin(x).sum(1), Gaussian(0.5), 10) for _ in range(2))
    assert not torch.equal(one.value(x).mean, other.value(x).mean)
    again = smoothed(lambda x: torch.sin(x).sum(1), Gaussian(0.5), 10, seed=one.seed)
    one.count = 0
    assert torch.equal(one.value(x).mean, again.value(x).mean)


# Wrong uses


def total(x):
    return x.sum(1)


def make(f=total, noise=Gaussian(0.5), n=10, **options):  # noqa: B008
    return smoothed(f, noise, n, **options)


ZEROS = torch.zeros(3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: make(f=3), TypeError, "^f must be callable on a batch, got 3"),
        (lambda: make(f=nn.Flatten), TypeError, "^f must be an instance"),
        (lambda: make(noise=0.5), TypeError, "^noise must be one of .*, got 0.5"),
        (
            lambda: make(noise=Splitting(0.5, deterministic=True)),
            ValueError,
            r"^noise must be random, got Splitting\(.*; average f over its 255 evaluations",
        ),
        (
            lambda: make(noise=Splitting(0.5))(ZEROS - 0.5),
            ValueError,
            r"^x must hold values in \[0, 1\] .*, got -0.5 at \[0\]",
        ),
        (lambda: setattr(make(), "count", "a"), TypeError, "^count must be an int, got 'a'"),
        (lambda: setattr(make(), "count", -1), ValueError, r"^count must be from 0 to 2\^56, got -1"),
        (lambda: make(n=1), ValueError, "^n must be at least 2, .*, got 1"),
        (lambda: make(n=2.0), TypeError, "^n must be an int, got 2.0"),
        (lambda: make(seed=-1), ValueError, "^seed must be .*, got -1"),
        (lambda: make(batch_size=0), ValueError, "^batch_size must be .*, got 0"),
        (lambda: make(common_random_numbers=1), TypeError, "^common_random_numbers must be True or False, got 1"),
        (lambda: make()(ZEROS.double()), TypeError, r"^x must have dtype float32, got torch.float64; call x.float\(\)"),
        (lambda: make()(ZEROS.double().requires_grad_()), TypeError, "^x must have dtype float32, got torch.float64"),
        (lambda: make()([0.0, 1.0]), TypeError, r"^x must be a dense float32 tensor \[\*shape\], got a list"),
        (lambda: make()(torch.tensor(0.5)), ValueError, r"^x must have shape \[\*shape\] with .*, got \[\]"),
        (lambda: make()(torch.tensor([0.0, torch.nan])), ValueError, "^x must be finite, got NaN"),
        (lambda: make()(torch.tensor([1e9])), ValueError, "^x must hold values of at most 4.1943e.06, got 1e.09"),
        (
            lambda: make(f=lambda x: x)(ZEROS),
            ValueError,
            r"^f must return one number a row, shape \[20\] here, got \[20, 3\]",
        ),
        (lambda: make(f=lambda x: x[:, :1])(ZEROS), ValueError, r"got \[20, 1\]; add .squeeze\(1\)"),
        (lambda: make(f=lambda x: x.sum())(ZEROS), ValueError, r"^f must return one number a row, .*, got \[\]"),
        (lambda: make(f=lambda x: 1.0)(ZEROS), TypeError, "^f must return a tensor .*, got a float"),
        (lambda: make(f=lambda x: x[:, 0] * 1j)(ZEROS), TypeError, "^f must return real numbers, got torch.complex64"),
        (lambda: make(f=lambda x: x[:, 0].log())(ZEROS), ValueError, "^f must return finite numbers, got nan"),
    ],
)
def test_wrong_uses(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("method", ["gradient", "value_and_gradient", "curvature", "__call__"])
def test_a_noise_without_a_score_is_named(method):
    """Before f is called."""
    g = smoothed(pytest.fail, Uneven(0.5), 10)
    with pytest.raises(
        TypeError, match=r"^noise must be .* for a .*, got Uneven\(sigma=0.5\); none is implemented for Uneven"
    ):
        getattr(g, method)(torch.zeros(3, requires_grad=True))


def test_the_noises_with_a_gradient_are_listed():
    having = [name for name, kind in NOISES.items() if "score" in vars(kind)]
    with pytest.raises(TypeError) as caught:
        smoothed(pytest.fail, Uneven(0.5), 10).gradient(ZEROS)
    listed = str(caught.value).removeprefix("noise must be ").partition(" for a gradient")[0]
    assert re.split(", | or ", listed) == sorted(having) == ["AnisotropicGaussian", "Gaussian", "Laplace"]


def test_laplace_noise_has_no_curvature():
    with pytest.raises(
        TypeError, match=r"^noise must be AnisotropicGaussian or Gaussian for a curvature, got Laplace\(b=0.5\)"
    ):
        smoothed(pytest.fail, Laplace(0.5), 10).curvature(torch.zeros(3))


@pytest.mark.parametrize("noise", [Gaussian(0.3), Laplace(0.3)])
def test_scores_are_those_of_the_density(noise):
    """Against differences of the log density."""
    z = torch.tensor([[0.1, -0.5], [1.2, 0.4]], dtype=torch.float64)
    log_density = {"Gaussian": lambda z: -(z**2) / (2 * 0.3**2), "Laplace": lambda z: -z.abs() / 0.3}[noise.name]
    expected = -(log_density(z + 1e-6) - log_density(z - 1e-6)) / 2e-6
    torch.testing.assert_close(noise.score(z), expected, rtol=1e-6, atol=0)
    if noise.name == "Gaussian":
        torch.testing.assert_close(noise.laplacian(z), (expected**2 - 1 / 0.3**2).sum(1), rtol=1e-6, atol=0)


def test_exported():
    assert rsfast.smoothed is smoothed
