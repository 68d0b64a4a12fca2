"""Base classifiers whose smoothed scores and robust radius are known in closed form, one for each noise; their checks."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy import stats

import rsfast
from rsfast.noise import (
    AnisotropicGaussian,
    CorrelatedGaussian,
    Gaussian,
    GridGaussian,
    HaarSubspaces,
    Laplace,
    Mask,
    Noise,
    Splitting,
    SubspaceGaussian,
    SubspaceSmoothing,
    Uniform,
)


class Case(NamedTuple):
    """A noise; a base classifier of two classes, of which 1 is right; inputs, from numbers u in (0, 1); their true radii."""

    noise: Noise
    model: Callable[[torch.Tensor], torch.Tensor]
    input_of: Callable[[np.ndarray], np.ndarray]  # u [I] to float32 inputs [I, *shape]
    radius_of: Callable[[np.ndarray], np.ndarray]  # float32 inputs to the norm's radius in which class 1 stays ahead


def right_of_zero(batch):
    """Class 1 where the first element is above 0. Its l1 and l2 radius at x is the first element, if that is positive."""
    return torch.stack([-batch[:, 0], batch[:, 0]], dim=1)


def along_the_first_axis(far):
    """Inputs of three elements; the first is u times `far`."""
    return lambda u: np.stack([u * far, np.full_like(u, 0.3), np.full_like(u, -0.7)], axis=1).astype(np.float32)


def right_of_half(batch):
    """Class 1 where the first element is above 1/2. Splitting noise of lam = 1/2 puts it there with probability x."""
    return right_of_zero(batch - 0.5)


def from_half(u):
    """Inputs of three elements in [0, 1]; the first goes from 1/2 to 1."""
    return np.stack([0.5 + u / 2, np.full_like(u, 0.3), np.full_like(u, 0.7)], axis=1).astype(np.float32)


def on_the_grid(input_of):
    """The nearest inputs that 8-bit images may be."""
    return lambda u: (np.round(255 * input_of(u)) / 255).astype(np.float32)


def first_element(x):
    return x[:, 0].astype(np.float64)


SPECTRUM = np.array([1.0, 0.3, 0.02, 0.1, 0.05]) / 16  # of noise on 8 elements
NORMAL = np.array([0.5, 0.9, -0.2, 0.1, 0.0, 0.3, -0.6, 0.4], dtype=np.float32)


def beyond_a_plane(batch):
    """Class 1 where NORMAL'x is above 0. Its Mahalanobis radius at x is NORMAL'x over the noise's deviation along NORMAL."""
    height = (batch * torch.from_numpy(NORMAL)).sum(1)
    return torch.stack([-height, height], dim=1)


def deviations(x):
    """NORMAL'x over ``sqrt(NORMAL' S NORMAL)``, S the matrix whose columns are the first one, shifted."""
    column = np.fft.irfft(SPECTRUM, 8)
    covariance = np.stack([np.roll(column, k) for k in range(8)], axis=1)
    normal = NORMAL.astype(np.float64)
    return x.astype(np.float64) @ normal / np.sqrt(normal @ covariance @ normal)


def along_the_normal(u):
    return (np.outer(u, 0.28 * NORMAL) + 0.01 * np.roll(NORMAL, 3)).astype(np.float32)


def nothing_negative(batch):
    """Class 1 where something is seen that is not 0, and nothing negative is."""
    right = (batch.amin(1) >= 0) & (batch.amax(1) > 0)
    return torch.stack([~right, right], dim=1).float()


def some_positive(u):
    """Inputs of 40 elements: from 8 on are 1, the others 0."""
    return (np.arange(40) < 8 + np.floor(32 * u)[:, None]).astype(np.float32)


def changes_of(keep):
    """Return the l0 radii of `nothing_negative`: the largest r with ``b^r - b^m > 1/2``, where b = 1 - keep.

    That is the score where r of m positive elements are made negative; the certificate's bound is attained.
    """

    def radii(x):
        b, m = 1 - keep, x.sum(axis=1, dtype=np.float64)[:, None]
        return (b ** np.arange(1, 41) - b**m > 0.5).sum(axis=1).astype(np.float64)

    return radii


W = np.array([[0.6, 0.8, 0.0], [0.0, 0.0, 1.0]])


def along_w(u):
    """Inputs that the projection W sees in its first direction by 0.75 u; 0.3 of the second, and -0.7 of its kernel."""
    return (np.outer(0.75 * u, W[0]) + 0.3 * W[1] - 0.7 * np.array([0.8, -0.6, 0.0])).astype(np.float32)


def right_of_w(batch):
    """Class 1 where the first direction of W is above 0. How far it may move at x is W x, if that is positive."""
    height = (batch * torch.tensor(W[0], dtype=torch.float32)).sum(1)
    return torch.stack([-height, height], dim=1)


def signs(u):
    """Inputs of 41 elements 1 or -1; a share (1 + u) / 2 of them is 1."""
    return np.where((np.arange(41) + 0.5) / 41 < (1 + u[:, None]) / 2, 1, -1).astype(np.float32)


def positive(batch):
    """Class 1 where the sum is positive: of what a projection on one axis leaves, where that element is."""
    return torch.stack([-batch.sum(1), batch.sum(1)], dim=1)


CASES = {
    "AnisotropicGaussian": Case(
        AnisotropicGaussian([0.25, 0.05, 2.0]), right_of_zero, along_the_first_axis(0.75), lambda x: first_element(x) / 0.25
    ),
    "CorrelatedGaussian": Case(CorrelatedGaussian(SPECTRUM), beyond_a_plane, along_the_normal, deviations),
    "Gaussian": Case(Gaussian(0.25), right_of_zero, along_the_first_axis(0.75), first_element),
    "HaarSubspaces": Case(
        HaarSubspaces(0.25, k=3, d=4),
        right_of_zero,
        lambda u: np.pad(0.5 * u[:, None], ((0, 0), (0, 3))).astype(np.float32),
        first_element,
    ),
    "Laplace": Case(Laplace(0.25), right_of_zero, along_the_first_axis(1.5), first_element),
    "Mask": Case(Mask(0.1), nothing_negative, some_positive, changes_of(Mask(0.1).chance)),
    "Splitting": Case(Splitting(0.5), right_of_half, from_half, lambda x: first_element(x) - 0.5),
    # Of 255 evaluations at j / 255, j are right of 1/2: more than half from j = 128 on.
    "deterministic Splitting": Case(
        Splitting(0.5, deterministic=True),
        right_of_half,
        on_the_grid(from_half),
        lambda x: (np.round(255 * first_element(x)) - 128) / 255,
    ),
    "SubspaceGaussian": Case(SubspaceGaussian(W, 0.25), right_of_w, along_w, lambda x: x.astype(np.float64) @ W[0]),
    "SubspaceSmoothing": Case(
        SubspaceSmoothing(np.eye(41)[:, None]), positive, signs, lambda x: np.maximum((x.sum(axis=1) - 1) // 2, 0)
    ),
    "Uniform": Case(Uniform(0.5), right_of_zero, along_the_first_axis(0.5), first_element),
    # u + round(s z) is above 0 where u + s z is above 1/2.
    "GridGaussian": Case(
        GridGaussian(0.25), right_of_zero, on_the_grid(along_the_first_axis(0.75)), lambda x: first_element(x) - 0.5 / 255
    ),
}


def never_beyond(case, inputs=20_000, n=250, alpha=0.05):
    """Check that no more certificates exceed the truth than a share alpha of them may: false failure 1e-6, fixed seeds."""
    x = case.input_of(np.random.default_rng(11).uniform(0.02, 0.98, inputs))
    how = {"n0": 20, "n": n, "alpha": alpha} if case.noise.evaluations is None else {}
    found = rsfast.certify(case.model, torch.from_numpy(x), case.noise, num_classes=2, **how, seed=5)
    radii = np.array([each.radius for each in found])
    wrong = (radii > case.radius_of(x)) | np.array([each.prediction == 0 for each in found])
    assert (radii > 0).mean() > 0.3  # or it would be no test
    assert wrong.sum() <= stats.binom.isf(1e-6, inputs, alpha)


def near(case, share=0.05, at=(0.3, 0.5, 0.7)):
    """Check that n = 100,000 samples certify at least 1 - share of the truth, and no more than it, at alpha = 0.001."""
    x = case.input_of(np.array(at))
    how = {"n": 100_000} if case.noise.evaluations is None else {}
    found = rsfast.certify(case.model, torch.from_numpy(x), case.noise, num_classes=2, **how, seed=4)
    for certificate, truth in zip(found, case.radius_of(x), strict=True):
        assert certificate.prediction == 1
        assert (1 - share) * truth <= certificate.radius <= truth
