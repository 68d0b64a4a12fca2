"""A radius in another norm: its ball lies within the certified one, and touches it; other norms are refused."""

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import numpy as np
import pytest
import torch

import rsfast
from rsfast import Gaussian, Laplace
from rsfast.noise import NORMS, norms
from rsfast.noise.base import Noise

SHAPES = [(1,), (2,), (3,), (3, 5), (3, 7, 7)]
RADII = [0.0, 5e-324, 2.2e-308, 0.1, 0.3, 1 / 3, 1.0, 7.3, 1e300]


@dataclass(frozen=True)
class InNorm(Noise):
    """No noise: only its norm counts here."""

    norm: str
    constraints: ClassVar = {}


def power_of_norm(vector, norm):
    """Return a vector's norm, exactly, and the power that the number is of it."""
    sizes = [abs(Fraction(float(value))) for value in vector]
    return {"l1": (sum(sizes), 1), "l2": (sum(size**2 for size in sizes), 2), "linf": (max(sizes), 1)}[norm]


def shifts(d):
    """Directions at random, one element, equal elements, all signs; the last two are where l_p balls touch."""
    rng = np.random.default_rng(d)
    yield from rng.normal(size=(5, d))
    yield from rng.laplace(size=(5, d)) ** 3
    yield from np.eye(d)[[0, -1]]
    yield from rng.choice([-1.0, 1.0], size=(3, d))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("radius", RADII)
@pytest.mark.parametrize("norm", ["l1", "l2", "linf"])
def test_no_shift_in_the_other_ball_leaves_the_certified_one(norm, radius, shape):
    """In exact arithmetic, for a shift v of the converted radius in the other norm; and some v has the certified radius."""
    noise = InNorm(norm)
    for other in ("l1", "l2", "linf"):
        found, closest = Fraction(noise.radius_in(radius, other, shape)), 0.0
        for shift in shifts(int(np.prod(shape))):
            (size, power), (size_in_other, other_power) = power_of_norm(shift, norm), power_of_norm(shift, other)
            size, size_in_other = size ** (2 // power), size_in_other ** (2 // other_power)  # squares
            assert found**2 * size <= Fraction(radius) ** 2 * size_in_other
            closest = max(closest, float(size / size_in_other))
        if radius >= 0.1:  # and some shift touches: the largest ball is found
            assert float(found) == pytest.approx(radius / closest**0.5, rel=4e-16)


def test_the_same_norm_returns_the_radius():
    for radius in RADII:
        for norm in NORMS:
            assert InNorm(norm).radius_in(radius, norm) == radius


def test_a_certificate_and_an_abstention():
    model = lambda x: torch.stack([-x[:, 0], x[:, 0]], dim=1)  # noqa: E731
    found = rsfast.certify(model, torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 0]]), Laplace(0.5), num_classes=2, n=1000, seed=1)
    assert not found[0].abstained
    assert found[0].radius_in("l1") == found[0].radius
    assert found[0].radius_in("l2", (2, 2)) == found[0].radius / 2
    assert found[0].radius_in("linf", torch.Size([4])) == found[0].radius / 4
    assert found[1].abstained
    assert found[1].radius_in("linf", [4]) == 0


@pytest.mark.parametrize(
    ("noise", "norm", "message"),
    [
        (Gaussian(1.0), "l0", r"^norm must be 'l2', 'l1' or 'linf' with Gaussian noise, got 'l0'$"),
        (Gaussian(1.0), "l3", r"^norm must be 'l2', 'l1' or 'linf' with Gaussian noise, got 'l3'$"),
        (Laplace(1.0), ["l2"], r"^norm must be 'l1', 'l2' or 'linf' with Laplace noise, got \['l2'\]$"),
        (InNorm("l0"), "l2", r"^norm must be 'l0' with InNorm noise, got 'l2'$"),
        (InNorm("mahalanobis"), "l2", r"^norm must be 'mahalanobis' with InNorm noise, got 'l2'$"),
        (
            Gaussian(1.0),
            "linf",
            r"^shape must be the shape of an input, as the linf radius depends on it, got None; give it as in ",
        ),
    ],
    ids=str,
)
def test_other_norms_are_refused(noise, norm, message):
    with pytest.raises(ValueError, match=message):
        noise.radius_in(1.0, norm)


@pytest.mark.parametrize(
    ("radius", "shape", "error", "message"),
    [
        (-1.0, (3,), ValueError, "radius must be a finite number at least 0, got -1.0"),
        (float("inf"), (3,), ValueError, "radius must be a finite number at least 0, got inf"),
        ("1", (3,), TypeError, "radius must be a number, got '1'"),
        (1.0, 3, TypeError, "shape must be a sequence of ints, the shape of an input, got 3"),
        (1.0, "33", TypeError, "shape must be a sequence of ints, the shape of an input, got '33'"),
        (1.0, (3, 0), ValueError, r"shape must hold positive ints, got \(3, 0\)"),
        (1.0, (3.0,), TypeError, "shape must be an int, got 3.0"),
    ],
    ids=str,
)
def test_errors(radius, shape, error, message):
    with pytest.raises(error, match=f"^{message}$"):
        Gaussian(1.0).radius_in(radius, "linf", shape)


def test_factors_and_products_are_rounded_down():
    for d in range(1, 200):
        for norm, step in (("l2", 1), ("l1", 2)):
            factor = norms.conversions(norm)["linf"]((d,))
            assert 1 - 2.0**-50 < Fraction(factor) ** 2 * d**step <= 1
            for radius in (0.1, 0.3, 1e-320):
                assert Fraction(norms.scaled_down(radius, factor)) <= Fraction(radius) * Fraction(factor)
