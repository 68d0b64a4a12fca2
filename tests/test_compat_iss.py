"""rsfast.compat.iss beside a plain loop that samples as ISS does: the same script.

The radius that n votes give differs from that of n others by ``sigma sqrt(2 p (1 - p) / n) / phi`` (standard deviation), phi
the normal density at the radius over sigma. 5.5 of them are allowed: of all 30 radii one differs by more with chance 1e-6.
"""

import itertools
import secrets

import literal_iss
import numpy as np
import pytest
import torch
from peer_loops import WITHIN, lower, run
from scipy.stats import norm
from torch import nn

import rsfast
from rsfast.compat import iss

SIGMA, ALPHA = 0.5, 0.001

SCRIPT = """
from certify_iss import certify
lines = ["idx\\tlabel\\tpredict\\tpA\\tsamplesize\\tradius\\tcorrect"]
for i, (x, label) in enumerate(dataset):
    prediction, pABar, sample_size, radius = certify(
        model, 2, x, 0.5, n0=200, max_size=20000, batch_size=100, alpha=0.001, max_loss=loss, loss_type=loss_type
    )
    correct = int(prediction == label)
    lines.append(f"{i}\\t{label}\\t{prediction}\\t{pABar:.6f}\\t{sample_size}\\t{radius:.6f}\\t{correct}")
"""


def model():
    """Class 0 where the mean of [1, 2, 2] is above 0.5."""
    linear = nn.Linear(4, 2)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[0.25], [-0.25]]) * torch.ones(4))
        linear.bias.copy_(torch.tensor([-0.5, 0.5]))
    return nn.Sequential(nn.Flatten(), linear)


def dataset():
    """Images with radii of 0.4, 0.6 and 0.8, of either class."""
    pairs = [(0.7, 0), (0.8, 0), (0.9, 0), (0.3, 1), (0.1, 0)]
    return [(torch.full((1, 2, 2), level), label) for level, label in pairs]


def columns(names):
    return np.array([[float(each) for each in line.split("\t")] for line in names["lines"][1:]])


def allowed(radius, n):
    p = norm.cdf(radius / SIGMA)
    return WITHIN * SIGMA * np.sqrt(2 * p * (1 - p) / n) / norm.pdf(radius / SIGMA)


@pytest.mark.parametrize(("loss", "loss_type"), [(0.05, "absolute"), (0.1, "relative")])
def test_the_same_script(loss, loss_type):
    """Classes are equal, and radii differ by no more than the loss and the sampling error."""
    torch.manual_seed(1)
    names = {"model": model(), "dataset": dataset(), "loss": loss, "loss_type": loss_type}
    theirs, mine = (columns(run(SCRIPT, "certify_iss", module, **names)) for module in ("literal_iss", "rsfast.compat.iss"))
    assert mine[:, 2].tolist() == theirs[:, 2].tolist() == [0, 0, 0, 1, 1]
    assert mine[:, 6].tolist() == [1, 1, 1, 1, 0]
    full = 2 * (np.abs(np.array([0.7, 0.8, 0.9, 0.3, 0.1]) - 0.5))  # what infinitely many samples prove
    for found in (mine, theirs):
        assert bool((found[:, 4] < 20_000).any())
        assert bool((found[:, 5] < full + 0.02).all())
        least = full - 0.03 - (loss if loss_type == "absolute" else loss * full)  # 0.03: what 20,000 samples lose, and noise
        assert bool((found[:, 5] > least - allowed(full, 20_000)).all())


LOOP = """
from certify_iss import _lower_confidence_bound, _sample_noise, find_opt_batchnum, generate_iss
iss = generate_iss(loss, batch_size, upper, sigma, alpha, "absolute")
lines = []
for x, label in dataset:
    counts_prediction = _sample_noise(model, num_classes, x, sigma, n0, batch_size)
    prediction_uncertain = counts_prediction.argmax().item()
    pa_lower, pa_upper = proportion_confint(counts_prediction[prediction_uncertain].item(), n0 * batch_size, alpha)
    opt_batchnum = find_opt_batchnum(iss, pa_lower, pa_upper)
    sample_size = opt_batchnum * batch_size
    if sample_size != 0:
        counts_certification = counts_prediction
        counts_certification += _sample_noise(model, num_classes, x, sigma, opt_batchnum - n0, batch_size)
        nA = counts_certification[prediction_uncertain].item()
        pABar = _lower_confidence_bound(nA, sample_size, alpha)
        prediction, radius = (-1, 0) if pABar < 0.5 else (prediction_uncertain, sigma * norm.ppf(pABar))
    else:
        prediction, pABar, radius = -1, pa_lower, 0
    lines.append((prediction, pABar, sample_size, radius))
"""


def test_the_loop_of_the_script(monkeypatch):
    """Classes are equal, radii smaller by what the bound takes to hold, and planned samples as many within a factor of 2."""
    torch.manual_seed(4)
    seeds = itertools.count(8)
    monkeypatch.setattr(secrets, "randbits", lambda bits: next(seeds))
    settings = {"loss": 0.05, "batch_size": 400, "upper": 50, "sigma": SIGMA, "alpha": ALPHA, "n0": 1, "num_classes": 2}
    names = {"model": model(), "dataset": dataset(), "norm": norm, "proportion_confint": confidence_interval} | settings
    theirs, mine = (run(LOOP, "certify_iss", module, **names)["lines"] for module in ("literal_iss", "rsfast.compat.iss"))
    assert [row[0] for row in mine] == [row[0] for row in theirs] == [0, 0, 0, 1, 1]
    for one, two in zip(mine, theirs, strict=True):
        assert 0.5 <= one[2] / two[2] <= 2  # the plans are for what 400 samples say
        assert abs(one[3] - two[3]) < allowed(two[3], min(one[2], two[2])) + 2 * 0.05 + 0.03


def confidence_interval(k, n, alpha):
    return lower(k, n, alpha / 2), 1 - lower(n - k, n, alpha / 2)


def test_the_loop_is_valid():
    """At a tie any radius is wrong: the script's bound gives one nearly twice as often as alpha, as votes choose the class.

    Votes choose the size, too: what counts is whether the bound is above 1/2 at any of five. Of 4,000 inputs 200 may be at
    alpha = 0.05, and 280 with chance 3e-8. By the script's bound 354 are expected at the last size; 250 have chance 1e-9.
    """
    alpha, ends = 0.05, np.arange(201, 1006, 201)
    votes = np.random.default_rng(1).binomial(201, 0.5, (4000, 5)).cumsum(1)
    most = np.maximum(votes, ends - votes)
    assert above_half(most, ends, lambda k, n: iss._lower_confidence_bound(k, n, alpha)).any(1).sum() < 280
    with pytest.warns(UserWarning, match="no certificate"):
        wrong = above_half(most, ends, lambda k, n: iss._lower_confidence_bound(k, n, alpha, legacy=True))
    assert wrong[:, -1].sum() > 250
    found = iss._lower_confidence_bound(960, 1000, alpha)
    assert found == rsfast.sequences.beta_binomial_sequence_lower(960, 1000, alpha / 3)


def above_half(votes, ends, bound):
    """Whether a bound is, of votes at these sizes; it is taken once of a number of votes."""
    found = np.empty(votes.shape, dtype=bool)
    for place, n in enumerate(ends.tolist()):
        for k in np.unique(votes[:, place]).tolist():
            found[votes[:, place] == k, place] = bound(k, n) > 0.5
    return found


def test_votes():
    """They are those of rsfast.sample at a place in the stream; none of no batches."""
    x = dataset()[0][0]
    tally = rsfast.sample(model(), x[None], rsfast.Gaussian(SIGMA), num_classes=2, n=500, start=100, seed=3, input_ids=[6])
    votes = iss._sample_noise(model(), 2, x, SIGMA, 5, 100, seed=3, input_id=6, start=100)
    assert votes.tolist() == tally.counts[0, :2].tolist()
    assert votes.dtype == np.int64
    assert iss._sample_noise(model(), 2, x, SIGMA, 0, 100).tolist() == [0, 0]
    assert (
        iss._sample_noise(model(), 2, x, SIGMA, 5, 100).tolist() != iss._sample_noise(model(), 2, x, SIGMA, 5, 100).tolist()
    )
    with pytest.raises(ValueError, match="batchnum must be at least 0, got -1"):
        iss._sample_noise(model(), 2, x, SIGMA, -1, 100)


@pytest.mark.parametrize("loss_type", iss.LOSS_TYPES)
def test_plans(loss_type):
    """Where votes are whole numbers they are the script's; elsewhere votes are rounded down, which takes a few batches."""
    mine, theirs = (plan(0.05, 1000, 60, SIGMA, ALPHA, loss_type) for plan in (iss.generate_iss, literal_iss.generate_iss))
    assert list(mine.values()) == list(theirs.values())
    assert list(mine) == pytest.approx(list(theirs))
    for ends in ((0.4, 0.55), (0.93, 0.97), (0.5, 0.5), (0.9991, 1.0)):
        assert iss.find_opt_batchnum(mine, *ends) == literal_iss.find_opt_batchnum(theirs, *ends)
    mine, theirs = (plan(0.05, 130, 60, SIGMA, ALPHA, loss_type) for plan in (iss.generate_iss, literal_iss.generate_iss))
    assert max(abs(mine[p] - q) for p, q in zip(mine, theirs.values(), strict=True)) <= 3


def test_what_it_is():
    """A relative loss is rsfast.certify's rtol, an absolute one that times the radius that the selection leaves likely."""
    x = dataset()[1][0]
    shared = {"num_classes": 2, "seed": 5, "input_ids": [4]}
    proof = {"n0": 200, "n": 20_000, "alpha": ALPHA, "rule": "one_vs_rest"}
    for loss, loss_type, rtol in ((0.1, "relative", 0.1), (0.05, "absolute", None)):
        if rtol is None:
            tally = rsfast.sample(model(), x[None], rsfast.Gaussian(SIGMA), n=200, stream="selection", **shared)
            upper = rsfast.bounds.clopper_pearson_upper(int(tally.counts.max()), 200, ALPHA / 2)
            lower = rsfast.bounds.clopper_pearson_lower(int(upper * 20_000), 20_000, ALPHA)
            rtol = 0.05 / (SIGMA * norm.ppf(lower))
        [found] = rsfast.certify(model(), x[None], rsfast.Gaussian(SIGMA), rtol=rtol, **shared, **proof)
        mine = iss.certify(model(), 2, x, SIGMA, 200, 20_000, 100, ALPHA, loss, loss_type, seed=5, input_id=4)
        assert mine == (found.prediction, found.p_lower, 200 + found.n, found.radius)
        assert mine[2] < 20_000


def test_abstention():
    """At a tie; and where the loss is more than any radius, after the selection alone."""
    x = torch.full((1, 2, 2), 0.5)
    found = iss.certify(model(), 2, x, SIGMA, 100, 1000, 100, ALPHA, 0.2, "relative", seed=1)
    assert (found[0], found[3]) == (-1, 0.0)
    assert iss.certify(model(), 2, x, SIGMA, 100, 1000, 100, ALPHA, 3.0, "absolute", seed=1)[::2] == (-1, 100)


def test_the_bound_of_an_abstention():
    """Of 200 classes that are equally likely one always has more votes: its bound is above its probability rarely."""

    def tied(x):
        place = torch.special.ndtr(x[:, 0] / SIGMA) * 200
        return nn.functional.one_hot(place.long().clamp(0, 199), 200).float()

    given = {"n0": 100, "max_size": 1000, "batch_size": 100, "alpha": 0.05, "max_loss": 3.0, "loss_type": "absolute"}
    bounds = [iss.certify(tied, 200, torch.zeros(1), SIGMA, **given, seed=seed)[1] for seed in range(40)]
    assert sum(bound > 1 / 200 for bound in bounds) <= 8  # more have a chance of 0.0002 at alpha = 0.05


def test_seeds():
    x = dataset()[0][0]
    one, two, other = (
        iss.certify(model(), 2, x, SIGMA, 100, 5000, size, ALPHA, 0.1, "relative", seed=2, input_id=number)
        for size, number in ((100, 0), (333, 0), (100, 1))
    )
    assert one == two != other


@pytest.mark.parametrize(
    ("changed", "kind", "message"),
    [
        ({"loss_type": "both"}, ValueError, "loss_type must be one of 'absolute', 'relative', got 'both'"),
        ({"max_loss": 1.0}, ValueError, "max_loss must be a finite number above 0 and below 1"),
        ({"max_loss": 0.0}, ValueError, "max_loss must be a finite number above 0"),
        ({"n0": 0}, ValueError, "n0 must be from 1"),
        ({"max_size": 0}, ValueError, "max_size must be from 1"),
        ({"alpha": 1.0}, ValueError, "alpha must be"),
        ({"sigma": -1.0}, ValueError, "sigma must be"),
        ({"x": torch.zeros(2, 1, 2, 2)}, ValueError, "x must be one input"),
    ],
)
def test_wrong_uses(changed, kind, message):
    given = {"x": dataset()[0][0], "sigma": SIGMA, "n0": 100, "max_size": 1000, "batch_size": 100, "alpha": ALPHA}
    with pytest.raises(kind, match=message):
        iss.certify(model(), 2, **(given | {"max_loss": 0.1, "loss_type": "relative"} | changed))
