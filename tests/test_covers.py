"""What a perturbation measures in each noise's norm, exactly or rounded up; and perturbations that are refused."""

import itertools
import re
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import torch

import rsfast
from rsfast import AnisotropicGaussian, CorrelatedGaussian, Gaussian, HaarSubspaces, Laplace, Mask, Uniform

RNG = np.random.default_rng(1)
GAUSSIAN = Gaussian(0.5)


def plane(batch):
    return torch.stack([-batch.flatten(1).sum(1), batch.flatten(1).sum(1)], dim=1)


def certified(noise, x):
    (found,) = rsfast.certify(plane, x, noise, num_classes=2, n=1000, seed=1)
    assert not found.abstained
    return found


# Sizes


@pytest.mark.parametrize("shape", [(3, 5, 7), (2, 4, 4), (1, 1, 1), (3, 3, 2, 5)])
@pytest.mark.parametrize("patch", [0, 1, 2, 3])
def test_a_mask_counts_the_parts_that_changed(shape, patch):
    for chance in (0.0, 0.05, 0.5, 1.0):
        delta = RNG.normal(size=shape) * (RNG.random(shape) < chance)
        parts = {
            (place if not patch else tuple(along // patch for along in place[1:]))
            for place in itertools.product(*map(range, shape))
            if delta[place] != 0
        }
        assert Mask(0.1, patch=patch).size(delta) == len(parts)


def test_the_smallest_change_counts():
    assert Mask(0.1).size([5e-324, -0.0, 0.0]) == 1


@pytest.mark.parametrize("scale", [1e-310, 1e-30, 1.0, 1e300])
def test_an_ellipsoid_is_measured_exactly_and_rounded_up(scale):
    sigmas = RNG.uniform(0.01, 3, size=(3, 4, 2))
    noise, delta = AnisotropicGaussian(sigmas), RNG.normal(size=(3, 4, 2)) * scale
    applied = noise.applied.astype(np.float64)
    exact = sum((Fraction(d) / Fraction(s)) ** 2 for d, s in zip(delta.flat, applied.flat, strict=True))
    found = Fraction(noise.size(delta))
    assert exact <= found**2
    if scale > 1e-300:
        assert found**2 <= exact * (1 + Fraction(1, 2**47))
    channels = AnisotropicGaussian(sigmas[:, 0, 0])
    assert channels.size(delta) == AnisotropicGaussian(np.broadcast_to(sigmas[:, :1, :1], (3, 4, 2))).size(delta)
    assert noise.size(np.zeros((3, 4, 2))) == 0
    assert AnisotropicGaussian([1e-30]).size([1e300]) == np.inf
    assert AnisotropicGaussian([1e38]).size([5e-324]) > 0


def mahalanobis(spectrum, delta):
    """Return the norm by a sum over all pairs of elements and frequencies in 40 digits, of spectra [C, n], of even n."""
    total = mpmath.mpf(0)
    with mpmath.workdps(40):
        for values, channel in zip(spectrum, delta, strict=True):
            n = len(channel)
            for k in range(n):
                terms = [mpmath.mpf(each) * mpmath.expjpi(mpmath.mpf(-2 * k * j) / n) for j, each in enumerate(channel)]
                total += abs(mpmath.fsum(terms)) ** 2 / n / mpmath.mpf(values[min(k, n - k)])
        return mpmath.sqrt(total)


@pytest.mark.parametrize("n", [1, 2, 7, 12, 13])
@pytest.mark.parametrize("scale", [1e-300, 1.0, 1e300])
def test_a_spectrum_is_measured_closely_and_rounded_up(n, scale):
    spectrum = 2.0 ** RNG.uniform(-19, 0, size=(3, n // 2 + 1))
    spectrum[0, 0] = 1
    delta, noise = RNG.normal(size=(3, n)), CorrelatedGaussian(spectrum)
    strongest = np.cos(2 * np.pi * np.arange(n) * int(spectrum[1].argmax()) / n)  # of which rounding has the largest share
    for each in (delta, delta * [[1], [0], [0]], strongest * [[0.0], [1.0], [0.0]]):
        exact, found = mahalanobis(spectrum, each * scale), noise.size(each * scale)
        assert exact <= found <= exact * (1 + mpmath.mpf(2) ** -28)


@pytest.mark.parametrize("shape", [(2, 4, 6), (3, 5, 3), (1, 3, 2, 5), (8,)])
def test_the_norm_of_images_is_that_of_the_covariance(shape):
    """Shaped by a filter with the gains, white noise of norm 1 has the norm 1; and a constant spectrum is white noise."""
    noise, axes = CorrelatedGaussian.low_pass(shape, 0.2, 0.5, floor=0.125), tuple(range(len(shape) > 1, len(shape)))
    white, lengths = RNG.normal(size=shape), [shape[axis] for axis in axes]
    gains = np.sqrt(noise.of_channels(shape))[0 if len(shape) == 1 else slice(None)]
    delta = np.fft.irfftn(np.fft.rfftn(white, axes=axes) * gains, s=lengths, axes=axes)
    assert noise.size(delta) == pytest.approx(np.linalg.norm(white), rel=1e-10)
    constant = CorrelatedGaussian(np.full(gains.shape[-len(axes) :], 0.25))
    assert constant.size(delta) == pytest.approx(2 * np.linalg.norm(delta), rel=1e-10)
    assert constant.size(delta) >= 2 * np.linalg.norm(delta)


def test_where_an_eigenvalue_is_zero_only_unchanged_channels_are_covered():
    spectrum = np.array([[1.0, 0.5, 0.25], [1.0, 0.0, 0.25]])
    noise = CorrelatedGaussian(spectrum)
    assert noise.size(np.zeros((2, 4))) == 0
    assert noise.size([[0.0, 0, 0, 0], [0.5, 0.5, 0.5, 0.5]]) == np.inf
    assert noise.size([[0.5, 0.5, 0.5, 0.5], [0.0, 0, 0, 0]]) == pytest.approx(1)


@pytest.mark.parametrize(("norm", "power"), [(Laplace(0.5), 1), (Gaussian(0.5), 2)], ids=["l1", "l2"])
def test_sums_are_rounded_up_and_do_not_overflow(norm, power):
    for scale in (1e-300, 1.0, 1e307):
        delta = RNG.normal(size=7) * scale
        exact = sum(abs(Fraction(each)) ** power for each in delta)
        assert exact <= Fraction(norm.size(delta)) ** power <= exact * (1 + Fraction(1, 2**47))
    assert norm.size([1e308] * 9) == np.inf


# Certificates


@pytest.mark.parametrize(
    "noise",
    [Mask(0.1), Mask(0.1, patch=2), AnisotropicGaussian(np.full((1, 4, 4), 0.5)), CorrelatedGaussian(np.full((4, 3), 0.25))],
    ids=lambda noise: f"{noise.name}",
)
def test_certificates_cover_what_is_no_larger_than_the_radius(noise):
    found = certified(noise, torch.full((1, 1, 4, 4), 2.0))
    assert found.radius > 0
    assert found.covers(np.zeros((1, 4, 4)))
    if noise.norm == "l0":
        parts = found.noise.size(np.ones((1, 4, 4)))
        few = np.zeros((1, 4, 4))
        few[0, 0, 0] = -9
        assert found.covers(few)
        assert found.covers(np.ones((1, 4, 4))) == (parts <= found.radius)
    else:
        length = found.radius * 0.5 / 4
        assert found.covers(np.full((1, 4, 4), length * 0.999))
        assert not found.covers(np.full((1, 4, 4), length))


def test_an_abstention_checks_its_arguments_and_covers_nothing():
    (found,) = rsfast.certify(plane, torch.zeros(1, 3), GAUSSIAN, num_classes=2, n=100, seed=1)
    assert found.abstained
    assert not found.covers(np.zeros(3))
    with pytest.raises(ValueError, match=r"^delta must hold finite numbers, got inf at place \(1,\)$"):
        found.covers([0.0, np.inf, 0.0])


# Arguments


def test_tensors_of_floats_are_taken_as_they_are():
    values = torch.tensor([0.5, 0.25, -1.0], requires_grad=True)
    expected = GAUSSIAN.size([0.5, 0.25, -1.0])
    for delta in (values, values.bfloat16(), values.half(), values.double().detach(), values.detach().numpy()):
        assert GAUSSIAN.size(delta) == expected


UNITS = "delta must hold floating-point numbers in the units of the input, got "
KINDS = "delta must be an array of floating-point numbers"


@pytest.mark.parametrize(
    ("delta", "error", "message"),
    [
        (0.2, ValueError, "delta must have the shape of the input, got shape []"),
        (torch.tensor(0.2), ValueError, "delta must have the shape of the input, got shape []"),
        ([], ValueError, "delta must have the shape of the input, got shape [0]"),
        (np.zeros((3, 0)), ValueError, "delta must have the shape of the input, got shape [3, 0]"),
        ("abc", TypeError, f"{KINDS} of at most 64 bits, got <U3"),
        (1j, TypeError, f"{KINDS} of at most 64 bits, got complex128"),
        (torch.ones(3, dtype=torch.complex64).conj(), TypeError, KINDS),
        ([None], TypeError, f"{KINDS} of at most 64 bits, got object"),
        (None, TypeError, f"{KINDS} of at most 64 bits, got object"),
        ([[0.5], [0.5, 0.5]], TypeError, f"{KINDS}: "),
        (np.zeros(3, bool), TypeError, f"{KINDS} of at most 64 bits, got bool"),
        (np.zeros(3, np.uint8), TypeError, f"{UNITS}uint8; images of 8 bits have the units of [0, 1], so divide the "),
        (torch.zeros(3, dtype=torch.uint8), TypeError, f"{UNITS}uint8; "),
        ([1, 2, 3], TypeError, f"{UNITS}int64; "),
        (np.full((3, 2, 2), np.nan), ValueError, "delta must hold finite numbers, got nan at place (0, 0, 0)"),
        (torch.tensor([0.0, -torch.inf]), ValueError, "delta must hold finite numbers, got -inf at place (1,)"),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "noise", [GAUSSIAN, Mask(0.1), Uniform(0.5), AnisotropicGaussian([1.0])], ids=lambda noise: noise.name
)
def test_what_is_no_perturbation_is_refused(noise, delta, error, message):
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        noise.size(delta)


@pytest.mark.parametrize(
    ("noise", "shape"),
    [
        (Mask(0.1, patch=2), (4, 4)),
        (AnisotropicGaussian(np.ones((3, 5, 7))), (1, 1, 7)),
        (AnisotropicGaussian(np.ones(3)), (5,)),
        (CorrelatedGaussian(np.ones((5, 4))), (3, 5, 5)),
        (CorrelatedGaussian(np.ones((5, 4))), (7,)),
        (HaarSubspaces(0.5, 2, 105), (7,)),
    ],
    ids=str,
)
def test_shapes_that_the_noise_does_not_take_are_refused(noise, shape):
    message = rf"^delta must have the shape of an input that the noise takes, got shape {re.escape(str(list(shape)))}: "
    with pytest.raises(ValueError, match=message):
        noise.size(np.zeros(shape))
    for norm in (noise.norm, *noise.conversions):
        with pytest.raises(ValueError, match=r" must (have|be) "):
            noise.radius_in(1.0, norm, shape)
