"""The loop of diffusion denoised smoothing, whose model draws its noise itself."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peer_loops import EVEN, NEAR, assert_alike, both
from torch import nn

from rsfast import Gaussian, Laplace, certify
from rsfast.compat.denoised import Smooth
from rsfast.loop2019 import Loop2019

CERTIFY = r"""
from core import Smooth

target_sigma = sigma * 2
real_sigma = 0
t = 0
while real_sigma < target_sigma:
    t += 1
    a = model.diffusion.sqrt_alphas_cumprod[t]
    b = model.diffusion.sqrt_one_minus_alphas_cumprod[t]
    real_sigma = b / a

smoothed_classifier = Smooth(model, 3, sigma, t)
for (x, label) in dataset:
    prediction, radius = smoothed_classifier.certify(x, N0, N, alpha, batch_size)
    answers.append((prediction, radius))
"""


class Diffusion(nn.Module):
    """A model as the original's: noise after 2 x - 1, by a schedule; what denoises here is the mean of each channel."""

    def __init__(self, steps=200):
        super().__init__()
        alphas = np.cos(np.linspace(0, 1.5, steps)) ** 2
        self.diffusion = SimpleNamespace(
            sqrt_alphas_cumprod=np.sqrt(alphas), sqrt_one_minus_alphas_cumprod=np.sqrt(1 - alphas)
        )
        self.dropout = nn.Dropout()  # which eval mode switches off

    def forward(self, x, t):
        signal, noise = self.diffusion.sqrt_alphas_cumprod[t], self.diffusion.sqrt_one_minus_alphas_cumprod[t]
        return self.classify(signal * (2 * x - 1) + noise * torch.randn_like(x), t)

    def classify(self, x_t, t):
        return self.dropout((x_t / self.diffusion.sqrt_alphas_cumprod[t]).mean((2, 3)))

    def noisy(self, batch, t):
        return self.classify(self.diffusion.sqrt_alphas_cumprod[t] * (2 * batch - 1), t)


class Theirs(Loop2019):
    def __init__(self, base_classifier, num_classes, sigma, t):
        super().__init__(lambda batch: base_classifier(batch, t), num_classes, sigma)
        base_classifier.eval()

    def sample_noise(self, x, num, batch_size):
        sigma, self.sigma = self.sigma, 0.0  # the model adds the noise
        try:
            return super().sample_noise(x, num, batch_size)
        finally:
            self.sigma = sigma


def step(model, sigma):
    """The time that the loop finds."""
    ratio = model.diffusion.sqrt_one_minus_alphas_cumprod / model.diffusion.sqrt_alphas_cumprod
    return int(np.argmax(ratio >= 2 * sigma))


def test_certify_loop(monkeypatch):
    """A class that is not even comes out with a chance below 1e-6; `assert_alike` errs with 1e-6."""
    given = {"model": Diffusion(), "sigma": 0.25, "N0": 30, "N": 300, "alpha": 0.001, "batch_size": 128}
    dataset = [(NEAR, 0)] * 60 + [(EVEN, 0)] * 4
    theirs, ours = both(monkeypatch, CERTIFY, "core", "rsfast.compat.denoised", {"Smooth": Theirs}, dataset=dataset, **given)
    assert ours["t"] == theirs["t"] == step(given["model"], 0.25)
    theirs, ours = theirs["answers"], ours["answers"]
    assert {label for label, _ in ours[:60]} == {label for label, _ in theirs[:60]} == {0}
    assert_alike([radius for _, radius in ours[:60]], [radius for _, radius in theirs[:60]])
    assert ours[60:] == theirs[60:] == [(-1, 0.0)] * 4
    assert {(type(label), type(radius)) for label, radius in ours} == {(int, float)}


@pytest.mark.filterwarnings("error")  # that the model is random is meant so
def test_its_noise_is_torchs():
    """The same generator gives the same answers; `predict` abstains where no class is ahead."""
    model, found = Diffusion(), []
    for _ in range(2):
        torch.manual_seed(1)
        smooth = Smooth(model, 3, 0.25, step(model, 0.25))
        found.append((smooth.certify(NEAR, 30, 300, 0.001, 100), smooth.predict(NEAR, 300, 1e-6, 100)))
        assert smooth.predict(EVEN, 300, 1e-6, 100) == -1
    assert found[0] == found[1]
    assert found[0][1] == 0


def test_each_row_is_the_image_itself():
    """Without the noise that rsfast would add, and in the batches that were asked for."""
    seen = []

    def model(batch, t):
        seen.append((batch.clone(), t))
        batch += torch.randn_like(batch)  # in place, as it may do with the original's copies
        return batch.mean((2, 3))

    Smooth(model, 3, 0.25, "now").certify(NEAR, 10, 50, 0.1, 25)
    assert {t for _, t in seen} == {"now"}
    assert [len(batch) for batch, _ in seen[1:]] == [10, 25, 25]
    assert all(torch.equal(row, NEAR) for batch, _ in seen for row in batch)


def test_noisy_images_take_the_noise_stream():
    """The model gets them in the units of x, and the answers are those of certify."""
    model = Diffusion()
    t = step(model, 0.25)
    smooth = Smooth(model, 3, 0.25, t, noisy=model.noisy, seed=4)
    for call in range(2):
        options = {"num_classes": 3, "n0": 30, "n": 300, "rule": "one_vs_rest", "seed": 4, "input_ids": [call]}
        [found] = certify(lambda batch: model.noisy(batch, t), NEAR[None], Gaussian(0.25), batch_size=64, **options)
        assert smooth.certify(NEAR, 30, 300, 0.001, 64) == tuple(found)


def test_without_a_time_it_is_cohens():
    smooth = Smooth(lambda batch: batch.mean((2, 3)), 3, 0.25, None, seed=4)
    [found] = certify(
        smooth.base_classifier, NEAR[None], Gaussian(0.25), num_classes=3, n0=30, n=300, rule="one_vs_rest", seed=4
    )
    assert smooth.certify(NEAR, 30, 300, 0.001, 64) == tuple(found)


def quiet(batch, t):
    return batch.mean((2, 3))


def shared(batch, t):
    return (batch + torch.randn(batch.shape[1:])).mean((2, 3))


@pytest.mark.parametrize("model", [quiet, shared])
def test_a_model_without_noise_of_each_row_is_refused(model):
    """Its votes would all agree, and certify anything."""
    with pytest.raises(ValueError, match=r"^base_classifier must draw noise of its own for each row .* two copies of x"):
        Smooth(model, 3, 0.25, 1).certify(NEAR, 10, 50, 0.1, 25)


def test_sigma_in_the_units_of_the_model_is_refused():
    """Those of 2 x - 1: radii would be twice as large as what is proved."""
    model = Diffusion()
    with pytest.raises(ValueError, match=r"sigma must be at most 0\.2.*, the model's noise at t = .* got 0\.5"):
        Smooth(model, 3, 0.5, step(model, 0.25)).certify(NEAR, 10, 50, 0.1, 25)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"seed": 3}, ValueError, "seed must be None where the model draws the noise, got 3; call torch.manual_seed"),
        ({"sigma": Laplace(0.25)}, ValueError, "sigma must be a number where the model draws the noise, got Laplace"),
        ({"scale": 2.0}, ValueError, "scale must be None where the model draws the noise, got 2.0"),
        ({"clamp": (0.0, 1.0)}, ValueError, "clamp must be None where the model draws the noise"),
        ({"noisy": 3}, TypeError, "noisy must be callable on a batch, got 3"),
    ],
)
def test_errors(change, error, message):
    given = {"base_classifier": shared, "num_classes": 3, "sigma": 0.25, "t": 1} | change
    with pytest.raises(error, match=message):
        Smooth(**given).certify(NEAR, 10, 50, 0.1, 25)
