"""LVM-RS's loop: the best of 409 radii there; one certificate here."""

import numpy as np
import pytest
import torch
from peer_loops import EVEN, NEAR, ChannelMeans, assert_alike, bernstein, both, count, lower, upper
from scipy import stats

from rsfast import Gaussian, Softmax, Sparsemax, Votes, certify, ops
from rsfast.compat.lvm_rs import FACTORS, HEADS, Smooth

CERTIFY = r"""
from core_lvmrs import Smooth

smoothed_classifier = Smooth(model, 3, sigma, t)
for (x, label) in dataset:
    prediction, radius = smoothed_classifier.certify_ours(x, N0, N, alpha, batch_size)
    answers.append((prediction, radius))
"""
MODULE = "rsfast.compat.lvm_rs"


def denoising(batch, t):
    """A model that draws its noise itself, in the units of 2 x - 1 as theirs."""
    return ((2 * batch - 1 + t * torch.randn_like(batch)) / 2).mean((2, 3))


def sparsemax(logits):
    ordered = logits.sort(dim=1, descending=True).values
    total = ordered.cumsum(1) - 1
    place = torch.arange(1, logits.shape[1] + 1)
    support = (place * ordered > total).sum(1, keepdim=True)
    return (logits - total.gather(1, support - 1) / support).clamp(min=0)


class Theirs:
    """The original's steps: every map of every batch, variances averaged over batches, and the largest of 409 radii."""

    def __init__(self, base_classifier, num_classes, sigma, t, **ours):
        self.base_classifier, self.num_classes, self.sigma, self.t = base_classifier, num_classes, sigma, t

    def certify_ours(self, x, n0, n, alpha, batch_size):
        batches = [self.base_classifier(x.repeat((size, 1, 1, 1)), self.t) for size in sizes(n, batch_size)]
        return self.largest(batches, n, alpha)

    def largest(self, batches, n, alpha):
        votes = sum(count(logits.argmax(1).numpy(), self.num_classes) for logits in batches)
        share = alpha / self.num_classes
        low, high = ([limit(k, n, share) for k in votes] for limit in (lower, upper))
        radii, labels = [self.radius(max(low), np.sort(high)[-2])], [int(np.argmax(low))]
        for layer in (sparsemax, lambda logits: logits.softmax(1)):
            for factor in FACTORS:
                scores = [layer(logits * torch.tensor(factor)) for logits in batches]
                mean = sum(score.sum(0).numpy() for score in scores) / n
                variance = sum(score.var(0).numpy() * len(score) for score in scores) / n
                width = bernstein(variance, n, share)
                first, second = (mean - width).max(), np.sort(mean + width)[-2]
                if first > 0:
                    margin = (first - second) * self.sigma * np.sqrt(np.pi / 2)
                    radii += [self.radius(first, second), margin]
                    labels += [int((mean - width).argmax())] * 2
        best = int(np.nanargmax(radii))
        return (-1, 0.0) if radii[best] < 0 else (labels[best], radii[best])

    def radius(self, first, second):
        return self.sigma * (stats.norm.ppf(first) - stats.norm.ppf(second)) / 2


def sizes(n, batch_size):
    return [min(batch_size, n - start) for start in range(0, n, batch_size)]


def loop_of(monkeypatch, loop, images, **change):
    given = {"model": denoising, "sigma": 0.25, "t": 0.5, "N0": 50, "N": 1000, "alpha": 0.001, "batch_size": 500} | change
    theirs, ours = both(monkeypatch, loop, "core_lvmrs", MODULE, {"Smooth": Theirs}, dataset=images, **given)
    return theirs["answers"], ours["answers"]


def test_the_grid():
    assert len(HEADS) == len(set(HEADS)) == 205
    assert len(FACTORS) == 102
    assert HEADS[0] == Votes()


def test_legacy_loop(monkeypatch):
    """`assert_alike` errs with 1e-6."""
    loop = CERTIFY.replace("sigma, t)", "sigma, t, legacy=True)")
    with pytest.warns(UserWarning, match="legacy=True returns the largest of many radii .* no certificate") as caught:
        theirs, ours = loop_of(monkeypatch, loop, [(NEAR, 0)] * 14 + [(EVEN, 0)])
    assert len(caught) == 1
    assert {label for label, _ in theirs[:14]} == {label for label, _ in ours[:14]} == {0}
    assert_alike([radius for _, radius in ours[:14]], [radius for _, radius in theirs[:14]])
    assert theirs[14:] == ours[14:] == [(-1, 0.0)]
    assert {(type(label), type(radius)) for label, radius in ours} == {(int, float)}


@pytest.mark.filterwarnings("ignore:legacy=True")
@pytest.mark.parametrize("x", [NEAR, NEAR.flip(0) * 3])
def test_legacy_is_their_number_of_the_same_noise(x):
    """But for the variance: theirs leaves out what the means of batches differ by, a part of 1/500 or so."""
    n, alpha = 2000, 0.001
    found = Smooth(ChannelMeans(), 3, 0.25, None, legacy=True, seed=5).certify_ours(x, 50, n, alpha, 500)
    noisy = ops.perturb(x[None], Gaussian(0.25), seed=5, samples=range(n), stream="estimation")
    label, radius = Theirs(None, 3, 0.25, None).largest(list(ChannelMeans()(noisy).split(500)), n, alpha)
    assert found == (label, pytest.approx(radius, rel=1e-3))
    assert Smooth(ChannelMeans(), 3, 0.25, legacy=True, seed=5).predict_ours(x, n, alpha, 500) == label


def test_default_loop(monkeypatch):
    """No radius is larger than the distance to where two classes are even, whatever the map; each with probability 0.999."""
    theirs, ours = loop_of(monkeypatch, CERTIFY, [(NEAR, 0)] * 8 + [(EVEN, 0)])
    assert {label for label, _ in ours[:8]} == {label for label, _ in theirs[:8]} == {0}
    assert {(type(label), type(radius)) for label, radius in ours} == {(int, float)}
    assert theirs[8:] == ours[8:] == [(-1, 0.0)]
    distance = float((NEAR[0] - NEAR[1]).double().norm()) / 2**0.5
    assert all(0 < radius <= distance for _, radius in ours[:8])


@pytest.mark.filterwarnings("error")
def test_one_certificate_of_the_chosen_head():
    """It is that of `certify` with one of the heads; which one is for the selection sample to say."""
    heads = (Votes(), Softmax(0.1), Sparsemax(0.5), Softmax(100.0))
    smooth = Smooth(ChannelMeans(), 3, 0.25, None, heads=heads, seed=5)
    options = {"num_classes": 3, "n0": 100, "n": 2000, "seed": 5}
    for call in range(3):
        found = smooth.certify_ours(NEAR, 100, 2000, 0.001, 500)
        certificates = [
            certify(ChannelMeans(), NEAR[None], Gaussian(0.25), head=head, input_ids=[call], **options)[0] for head in heads
        ]
        assert found in [tuple(each) for each in certificates]
        assert found[1] > 0.9 * max(each.radius for each in certificates)
    [alone] = certify(ChannelMeans(), NEAR[None], Gaussian(0.25), head=heads[1], input_ids=[0], **options)
    assert Smooth(ChannelMeans(), 3, 0.25, heads=heads[1:2], seed=5).certify_ours(NEAR, 100, 2000, 0.001, 500) == tuple(
        alone
    )


def test_predict_ours():
    smooth = Smooth(ChannelMeans(), 3, 0.25, None, seed=5)
    assert [smooth.predict_ours(x, 300, 1e-6, 100) for x in (NEAR, EVEN)] == [0, -1]


def test_warns_and_refuses():
    with pytest.warns(UserWarning, match=r"n is 5: .* every input abstains") as caught:
        Smooth(ChannelMeans(), 3, 0.25, seed=5).certify_ours(NEAR, 10, 5, 0.001, 50)
    assert {each.filename for each in caught} == {__file__}
    with pytest.raises(ValueError, match="heads must hold at least one head"):
        Smooth(ChannelMeans(), 3, 0.25, heads=())
    with pytest.raises(ValueError, match=r"base_classifier must draw noise of its own"):
        Smooth(lambda batch, t: batch.mean((2, 3)), 3, 0.25, 1).certify_ours(NEAR, 10, 50, 0.1, 50)
