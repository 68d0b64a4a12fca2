"""MACER's loop: votes, softmax scores, or both."""

import numpy as np
import pytest
import torch
from peer_loops import EVEN, NEAR, ChannelMeans, assert_alike, bernstein, both, count, lower
from scipy import stats

from rsfast import Gaussian, certify, ops
from rsfast.compat import cohen
from rsfast.compat.macer import Smooth

CERTIFY = r"""
from rs.core import Smooth

model.eval()
smoothed_net = Smooth(model, num_classes, sigma, device, mode, beta)
for i in range(num_img):
    img, target = dataset[start_img + i * skip]
    img = img.to(device)
    if mode == 'both':
        p_hard, r_hard, p_soft, r_soft = smoothed_net.certify(img, N0, N, alpha, batch)
        correct_hard = int(p_hard == target)
        correct_soft = int(p_soft == target)
        answers.append((p_hard, r_hard, p_soft, r_soft))
    else:
        prediction, radius = smoothed_net.certify(img, N0, N, alpha, batch)
        correct = int(prediction == target)
        answers.append((prediction, radius))
"""
MODULE = "rsfast.compat.macer"


class Theirs:
    """The original's steps: one pass a batch for votes and scores, sums of scores and of squares."""

    def __init__(self, base_classifier, num_classes, sigma, device, mode="hard", beta=1.0, legacy=True):
        self.base_classifier, self.num_classes, self.sigma = base_classifier, num_classes, sigma
        self.device, self.mode, self.beta = device, mode, beta

    def certify(self, x, n0, n, alpha, batch_size):
        hard, soft, _ = self.sample(x, n0, batch_size)
        c_hard, c_soft = int(hard.argmax()), int(soft.argmax())
        hard, soft, squares = self.sample(x, n, batch_size)
        variance = max((squares[c_soft] - soft[c_soft] ** 2 / n) / (n - 1), 0)
        found = []
        for label, limit in (
            (c_hard, lower(hard[c_hard], n, alpha)),
            (c_soft, soft[c_soft] / n - bernstein(variance, n, alpha)),
        ):
            found += [label, self.sigma * stats.norm.ppf(limit)] if limit >= 0.5 else [-1, 0.0]
        return tuple({"hard": found[:2], "soft": found[2:], "both": found}[self.mode])

    def sample(self, x, num, batch_size):
        hard, soft, squares = np.zeros(self.num_classes, dtype=int), *np.zeros((2, self.num_classes))
        while num:
            batch = x.repeat((min(batch_size, num), 1, 1, 1))
            num -= len(batch)
            logits = self.base_classifier(batch + torch.randn_like(batch, device=self.device) * self.sigma) * self.beta
            hard += count(logits.argmax(1).numpy(), self.num_classes)
            scores = logits.softmax(1)
            soft += scores.sum(0).numpy()
            squares += (scores**2).sum(0).numpy()
        return hard, soft, squares


GIVEN = {"model": ChannelMeans(), "num_classes": 3, "sigma": 0.25, "device": "cpu", "beta": 16.0}
GIVEN |= {"start_img": 0, "skip": 1, "N0": 30, "N": 300, "alpha": 0.001, "batch": 128}


@pytest.mark.parametrize("mode", ["hard", "soft", "both"])
def test_certify_loop(monkeypatch, mode):
    """Votes are as theirs; soft radii are larger, and within what the true score gives. No check errs more than 1e-4."""
    images = [(NEAR, 0)] * 40 + [(EVEN, 0)] * 4
    theirs, ours = both(
        monkeypatch, CERTIFY, "rs.core", MODULE, {"Smooth": Theirs}, mode=mode, dataset=images, num_img=len(images), **GIVEN
    )
    theirs, ours = theirs["answers"], ours["answers"]
    for numbers in ours:
        assert [type(number) for number in numbers] == [int, float] * (len(numbers) // 2)
    width = 4 if mode == "both" else 2
    assert ours[40:] == theirs[40:] == [(-1, 0.0) * (width // 2)] * 4
    mine, original = np.array(ours[:40]), np.array(theirs[:40])
    assert mine.shape == original.shape == (40, width)
    assert (mine[:, ::2] == 0).all()
    assert (original[:, ::2] == 0).all()
    if mode != "soft":
        assert_alike(mine[:, 1], original[:, 1])
    if mode != "hard":
        assert mine[:, -1].mean() > original[:, -1].mean() + 5 * stats.sem(original[:, -1])
        margin = 0.25 * (stats.norm.ppf(true_score(0)) - stats.norm.ppf(true_score(1))) / 2
        assert (mine[:, -1] > margin).sum() <= 2  # each with probability 0.001


def true_score(label):
    """The smoothed softmax score of a class at NEAR: the noise of a channel's mean is 0.125."""
    means = NEAR.mean((1, 2)).double().numpy()
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    z = np.stack(np.meshgrid(nodes, nodes, nodes, indexing="ij"), axis=-1)
    values = np.exp(16 * (means + 0.125 * z))
    w = weights / weights.sum()
    return float(np.einsum("ijk,i,j,k", values[..., label] / values.sum(-1), w, w, w))


@pytest.mark.filterwarnings("ignore:legacy=True")
def test_legacy_loop(monkeypatch):
    """With their bound the soft radii, too, are from one distribution."""
    loop = CERTIFY.replace("mode, beta)", "mode, beta, legacy=True)")
    given = {**GIVEN, "mode": "soft", "dataset": [(NEAR, 0)] * 40, "num_img": 40}
    found = both(monkeypatch, loop, "rs.core", MODULE, {"Smooth": Theirs}, **given)
    assert_alike(*([radius for _, radius in each["answers"]] for each in found))


def test_legacy_is_their_number_of_the_same_noise():
    """From the scores of the very noise that is drawn, and no more than their float32 sums may be off by."""
    n, alpha = 2000, 0.001
    with pytest.warns(UserWarning, match="its radii are smaller than the default's"):
        smooth = Smooth(ChannelMeans(), 3, 0.25, "cpu", "soft", 16.0, legacy=True, seed=5)
    label, radius = smooth.certify(NEAR, 50, n, alpha, 500)
    noisy = ops.perturb(NEAR[None], Gaussian(0.25), seed=5, samples=range(n), stream="estimation")
    scores = (16 * ChannelMeans()(noisy)).softmax(1)[:, 0].double().numpy()
    expected = 0.25 * stats.norm.ppf(scores.mean() - bernstein(scores.var(ddof=1), n, alpha))
    assert label == 0
    assert radius == pytest.approx(expected, abs=1e-7)
    assert radius <= expected


def test_hard_is_cohens_and_both_is_hard_and_soft():
    hard, soft, both_modes = (Smooth(ChannelMeans(), 3, 0.25, "cpu", m, 16.0, seed=5) for m in ("hard", "soft", "both"))
    plain = cohen.Smooth(ChannelMeans(), 3, 0.25, seed=5)
    for call in range(2):
        votes, scores = hard.certify(NEAR, 30, 300, 0.001, 100), soft.certify(NEAR, 30, 300, 0.001, 100)
        assert votes == plain.certify(NEAR, 30, 300, 0.001, 100)
        assert both_modes.certify(NEAR, 30, 300, 0.001, 100) == votes + scores
        [found] = certify(
            ChannelMeans(), NEAR[None], Gaussian(0.25), num_classes=3, head=soft.head, n0=30, n=300, seed=5, input_ids=[call]
        )
        assert scores == tuple(found)


def test_predict():
    x, model = NEAR.clone(), ChannelMeans()
    for mode, expected in (("hard", 0), ("soft", 0), ("both", (0, 0))):
        found = Smooth(model, 3, 0.25, "cpu", mode, seed=5).predict(x, 200, 64)
        assert found == expected
        assert {type(each) for each in np.atleast_1d(np.array(found, dtype=object))} == {int}
    counts = Smooth(model, 3, 0.25, "cpu", seed=5)._sample_noise(x, 200, 64)
    votes, scores = Smooth(model, 3, 0.25, "cpu", "both", seed=5)._sample_noise(x, 200, 64)
    assert counts.tolist() == votes.tolist()
    assert scores.sum() == pytest.approx(200, abs=1e-5)


def test_logits_are_left_alone():
    kept = []

    def model(x):
        kept.append((logits := x.mean((2, 3))) * 1)
        kept.append(logits)
        return logits

    Smooth(model, 3, 0.25, "cpu", "both", 16.0, seed=5).certify(NEAR, 10, 50, 0.1, 50)
    assert len(kept) > 2
    assert all(torch.equal(one, other) for one, other in zip(kept[::2], kept[1::2], strict=True))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"mode": "harder"}, ValueError, "mode must be one of 'hard', 'soft', 'both', got 'harder'"),
        ({"beta": 0.0}, ValueError, "beta must be a finite number above 0, got 0.0"),
        ({"beta": "1"}, TypeError, "beta must be a number, got '1'"),
    ],
)
def test_errors(change, error, message):
    with pytest.raises(error, match=message):
        Smooth(ChannelMeans(), 3, 0.25, "cpu", **change)


def test_warns_where_every_input_abstains():
    for mode in ("hard", "soft", "both"):
        with pytest.warns(UserWarning, match=r"n is 5: .* every input abstains") as caught:
            Smooth(ChannelMeans(), 3, 0.25, "cpu", mode, seed=5).certify(NEAR, 10, 5, 0.001, 50)
        assert {each.filename for each in caught} == {__file__}
