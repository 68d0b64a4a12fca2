"""ANCER's loop: a sigma for each element, one object an image."""

import numpy as np
import pytest
import torch
from peer_loops import EVEN, NEAR, ChannelMeans, assert_alike, both, count, lower
from scipy.stats import norm

from rsfast import AnisotropicGaussian, Uniform, certify
from rsfast.compat.ancer import L1Certificate, L2Certificate, Smooth

CERTIFY = r"""
from smooth import L1Certificate, L2Certificate, Smooth
import torch

certificate = L1Certificate(device=device) if norm == "l1" else L2Certificate(1, device=device)
for i in range(len(dataset)):
    (x, label) = dataset[i]
    sigma = sigmas[i]
    proxy_product = torch.prod((sigma**(1/n)).reshape(-1)).item() if sigma.numel() > 1 else sigma.item()
    smoothed_classifier = Smooth(model, num_classes, sigma, certificate)
    prediction, gap = smoothed_classifier.certify(x, N0, N, alpha, batch_sz, device=device)
    radius = sigma.min().item() * gap
    proxy_volume = proxy_product * gap if gap > 0 else 0.0
    answers.append((prediction, gap, radius, proxy_volume))
"""
MODULE = "rsfast.compat.ancer"


class TheirL2:
    norm = "l2"

    def __init__(self, batch_size=None, device=None):
        pass

    def sample(self, batch, sigma):
        return torch.randn_like(batch) * sigma

    def gap(self, p):
        return float(norm.ppf(p))


class TheirL1(TheirL2):
    norm = "l1"

    def sample(self, batch, sigma):
        return 2 * (torch.rand_like(batch) - 0.5) * sigma

    def gap(self, p):
        return 2 * (p - 0.5)


class Theirs:
    def __init__(self, base_classifier, num_classes, sigma, certificate):
        self.base_classifier, self.num_classes, self.sigma = base_classifier, num_classes, sigma
        self.certificate = certificate

    def certify(self, x, n0, n, alpha, batch_size, device):
        label = int(self.sample(x, n0, batch_size).argmax())
        p = lower(self.sample(x, n, batch_size)[label], n, alpha)
        return (label, self.certificate.gap(p)) if p >= 0.5 else (-1, 0.0)

    def sample(self, x, num, batch_size):
        counts = np.zeros(self.num_classes, dtype=int)
        while num:
            batch = x.repeat((min(batch_size, num), 1, 1, 1))
            num -= len(batch)
            noisy = batch + self.certificate.sample(batch, self.sigma)
            counts += count(self.base_classifier(noisy).argmax(1).numpy(), self.num_classes)
        return counts


SIGMA = torch.linspace(0.125, 0.5, 12).view(1, 3, 2, 2)


@pytest.mark.filterwarnings("error")  # one sigma for all images warns of nothing
@pytest.mark.parametrize(
    ("kind", "sigma"),
    [("l2", SIGMA), ("l2", torch.tensor([0.25])), ("l1", torch.tensor([0.5]))],
    ids=["ancer", "fixed", "l1"],
)
def test_certify_loop(monkeypatch, kind, sigma):
    """A class that is not even comes out with a chance below 1e-6; `assert_alike` errs with 1e-6."""
    images = [(NEAR, 0)] * 50 + [(EVEN, 0)] * 4
    given = {
        "model": ChannelMeans(),
        "num_classes": 3,
        "device": "cpu",
        "norm": kind,
        "sigmas": [sigma] * len(images),
        "n": 12,
    }
    given |= {"N0": 30, "N": 300, "alpha": 0.001, "batch_sz": 128}
    theirs = {"Smooth": Theirs, "L1Certificate": TheirL1, "L2Certificate": TheirL2}
    theirs, ours = both(monkeypatch, CERTIFY, "smooth", MODULE, theirs, dataset=images, **given)
    theirs, ours = theirs["answers"], ours["answers"]
    assert {label for label, *_ in ours[:50]} == {label for label, *_ in theirs[:50]} == {0}
    for place in (1, 2, 3):  # the gap, the radius, the proxy
        assert_alike([each[place] for each in ours[:50]], [each[place] for each in theirs[:50]])
    assert ours[50:] == theirs[50:] == [(-1, 0.0, 0.0, 0.0)] * 4
    assert {(type(label), type(gap)) for label, gap, *_ in ours} == {(int, float)}


def test_the_gap_is_the_radius_in_units_of_sigma():
    """Their certificates will do as well as ours: only `norm` is read."""
    options = {"num_classes": 3, "n0": 30, "n": 300, "rule": "one_vs_rest", "seed": 4}
    call = (NEAR, 30, 300, 0.001, 100)
    model = ChannelMeans()
    [found] = certify(model, NEAR[None], AnisotropicGaussian(SIGMA[0]), **options)
    assert Smooth(model, 3, SIGMA, TheirL2(), seed=4).certify(*call) == (0, pytest.approx(found.radius, rel=1e-12))
    volume = torch.prod(SIGMA.double() ** (1 / 12)).item()
    assert found.radius_in("volume") == pytest.approx(volume * found.radius, rel=1e-6)
    assert found.radius_in("l2") == pytest.approx(SIGMA.min().item() * found.radius, rel=1e-6)
    channels = torch.tensor([0.125, 0.25, 0.5])
    [found] = certify(model, NEAR[None], AnisotropicGaussian(channels), **options)
    smooth = Smooth(ChannelMeans(), 3, channels.view(3, 1, 1), L2Certificate(), seed=4)
    assert smooth.certify(*call) == (0, pytest.approx(found.radius, rel=1e-12))
    [found] = certify(model, NEAR[None], Uniform(0.5), **options)
    label, gap = Smooth(ChannelMeans(), 3, [0.5], L1Certificate(), seed=4).certify(*call)
    assert (label, 0.5 * gap) == (0, pytest.approx(found.radius, rel=1e-12))
    assert 0.5 * gap <= found.radius


def test_predict():
    smooth = Smooth(ChannelMeans(), 3, SIGMA, L2Certificate(1, device="cpu"), seed=4)
    assert [smooth.predict(x, 300, 1e-6, 100, device="cpu") for x in (NEAR, EVEN)] == [0, -1]


def test_a_sigma_of_each_image_warns():
    """Once at the second sigma, at the line that made the object; a sigma that comes again does not."""
    model = ChannelMeans()
    Smooth(model, 3, SIGMA, L2Certificate())
    Smooth(model, 3, SIGMA.clone(), L2Certificate())
    with pytest.warns(UserWarning, match=r"^sigma is another one than before for the same base_classifier") as caught:
        Smooth(model, 3, SIGMA / 2, L2Certificate())
    assert [each.filename for each in caught] == [__file__]


@pytest.mark.parametrize(
    ("sigma", "certificate", "error", "message"),
    [
        (SIGMA, L1Certificate(), ValueError, r"sigma must have one element with an L1Certificate, got shape \[1, 3, 2, 2\]"),
        (SIGMA - 0.125, L2Certificate(), ValueError, r"sigmas must hold numbers that are positive"),
        (SIGMA, None, ValueError, r"certificate\.norm must be one of 'l1', 'l2', got None"),
        (SIGMA[:, :, :1], L2Certificate(), ValueError, r"sigmas must have shape \[3, 2, 2\]"),
    ],
)
def test_errors(sigma, certificate, error, message):
    with pytest.raises(error, match=message):
        Smooth(ChannelMeans(), 3, sigma, certificate).certify(NEAR, 10, 50, 0.1, 25)
