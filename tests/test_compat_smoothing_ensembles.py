"""rsfast.compat.smoothing_ensembles beside plain loops with the classes of smoothing-ensembles: the same scripts.

The radius that is asked for is 0.15 or more from what an input has, so that both decide alike: a sample of 1,000 would
need an error of 5 standard deviations, and of all 15 inputs one has it with chance 4e-6. Radii and shares are compared by
votes (tests/peer_loops.py): of 8 one differs by more with chance 3e-7.
"""

import numpy as np
import pytest
import torch
from peer_loops import assert_same_votes, run, votes_of_radii
from torch import nn

from rsfast import Gaussian, certify
from rsfast.compat.smoothing_ensembles import (
    Ensemble,
    SmoothEnsembleAdaptive,
    SmoothEnsembleAdaptiveKConsensus,
    SmoothEnsembleKConsensus,
)

SIGMA, N, ALPHA = 0.5, 2000, 0.001
MODULES = ("literal_smoothing_ensembles", "rsfast.compat.smoothing_ensembles")


def classifiers():
    """Five of them, each of the mean of [1, 2, 2]: above or below 0.5, with weights that differ between the pixels."""
    found = []
    for number in range(5):
        linear = nn.Linear(4, 2)
        weight = torch.ones(4) / 4
        weight[number % 4] += 0.05
        weight /= weight.sum()
        with torch.no_grad():
            linear.weight.copy_(torch.stack([weight, -weight]))
            linear.bias.copy_(torch.tensor([-0.5, 0.5]))
        found.append(nn.Sequential(nn.Flatten(), linear))
    return found


def dataset():
    """Images whose radius is about 0.8, 0.5 of class 0, 0.6 of class 1, and near 0; the last label is wrong."""
    levels, labels = (0.9, 0.75, 0.2, 0.5, 0.85), (0, 0, 1, 0, 1)
    return [(torch.full((1, 2, 2), level), label) for level, label in zip(levels, labels, strict=True)]


ADAPTIVE = """
from smooth_ensemble_adaptive import SmoothEnsembleAdaptive
smoothed = SmoothEnsembleAdaptive(base_classifiers, 2, 0.5)
lines = ["idx\\tlabel\\tpredict\\tradius proved\\tcorrect\\tlevels_needed\\testimated_pr"]
for i in range(len(dataset)):
    (x, label) = dataset[i]
    results = smoothed.certify(x, 100, 100000, [1000, 10000], 0.001, 0.0001, 500, 0.3)
    correct = int(results[1] == label)
    lines.append("{}\\t{}\\t{}\\t{:.3}\\t{}\\t{}\\t{}".format(i, label, results[1], str(results[0]), correct, *results[2:]))
"""


def columns(names):
    return [line.split("\t") for line in names["lines"]]


def test_the_adaptive_script():
    torch.manual_seed(1)
    theirs, mine = (
        run(ADAPTIVE, "smooth_ensemble_adaptive", module, base_classifiers=classifiers(), dataset=dataset())
        for module in MODULES
    )
    assert [row[:5] for row in columns(mine)] == [row[:5] for row in columns(theirs)]
    assert [row[3] for row in columns(mine)[1:]] == ["1", "1", "1", "-1", "1"]
    assert {row[5] for row in columns(mine)[1:]} <= {"0", "1"}
    assert {type(each) for each in mine["results"][:3]} == {int}
    for one, two in zip(columns(mine)[1:], columns(theirs)[1:], strict=True):
        assert 0 <= float(one[6]) <= 1
        assert abs(float(one[6]) - float(two[6])) < 0.35  # of 16 samples or more


CONSENSUS = """
from smooth_ensemble_adaptive_and_k_consensus import SmoothEnsembleAdaptiveKConsensus
smoothed = SmoothEnsembleAdaptiveKConsensus(base_classifiers, 2, 0.5, 2)
results = [smoothed.certify(x, 100, 100000, [1000, 10000], 0.001, 0.001, 500, 0.3) for x, _ in dataset]
"""


def test_the_adaptive_consensus_script():
    """The first two of five agree on most samples; fewer samples are taken."""
    torch.manual_seed(2)
    name = "smooth_ensemble_adaptive_and_k_consensus"
    theirs, mine = (run(CONSENSUS, name, module, base_classifiers=classifiers(), dataset=dataset()) for module in MODULES)
    assert [each[:2] for each in mine["results"]] == [each[:2] for each in theirs["results"]]
    for one, two in zip(mine["results"], theirs["results"], strict=True):
        assert [type(each) for each in one] == [type(each) for each in two]
        assert 0.9 * one[4] < one[5] <= one[4]
    assert sum(each[4] for each in mine["results"]) < 0.7 * sum(each[4] for each in theirs["results"])


FIXED = """
from smooth_ensemble_k_consensus import SmoothEnsembleKConsensus
smoothed = SmoothEnsembleKConsensus(base_classifiers, 2, 0.5, 2)
results = [smoothed.certify(x, 100, 2000, 0.001, 500) for x, _ in dataset]
"""


def test_the_consensus_script():
    torch.manual_seed(3)
    data = [pair for pair in dataset() if pair[0][0, 0, 0] in (0.75, 0.2, 0.85)]
    data += [(torch.full((1, 2, 2), 0.7), 0)]
    theirs, mine = (
        run(FIXED, "smooth_ensemble_k_consensus", module, base_classifiers=classifiers(), dataset=data)["results"]
        for module in MODULES
    )
    assert [each[0] for each in mine] == [each[0] for each in theirs]
    assert_same_votes(*(votes_of_radii([each[1] for each in found], SIGMA, N, ALPHA) for found in (mine, theirs)), N)
    assert_same_votes(*([N * each[4] for each in found] for found in (mine, theirs)), N)
    for one, two in zip(mine, theirs, strict=True):
        assert [type(each) for each in one] == [int, float, float, int, float]
        assert abs(one[2] - two[2]) < 0.03  # 5 standard deviations of a difference of shares of 0.98
        assert 0 < one[3] <= two[3] + 2  # of five batches each; ours may be probed


def test_agreeing_classifiers_decide():
    """An ensemble with k votes as all do where the first k agree, and as the sum of all where they do not."""
    models, x = classifiers(), torch.rand(4000, 1, 2, 2, generator=torch.Generator().manual_seed(0)) * 0.2 + 0.4
    calls = []

    def third(batch):
        calls.append(len(batch))
        return models[2](batch)

    ensemble = Ensemble([*models[:2], third, models[3], lambda batch: 10 * models[4](batch)], k=2)
    with torch.no_grad():
        found, outputs = ensemble(x), torch.stack([each(x) for each in ensemble.base_classifiers])
    agree = outputs[0].argmax(1) == outputs[1].argmax(1)
    assert torch.equal(found.argmax(1), torch.where(agree, outputs[0].argmax(1), outputs.sum(0).argmax(1)))
    assert calls[0] == int((~agree).sum()) > 20
    assert (ensemble.rows, ensemble.agreed, ensemble.further) == (4000, int(agree.sum()), 1)
    assert len(list(ensemble.parameters())) == 6  # of those that are modules
    with torch.no_grad():
        assert torch.equal(Ensemble(models)(x), torch.stack([each(x) for each in models]).sum(0))
    Ensemble(models[:1])(x)[0] += 1  # the sum of one is another tensor


def test_what_it_is():
    """rsfast.certify of the sum of logits with a radius; the level is that of the sample where it stopped."""
    x, models = dataset()[1][0], classifiers()
    [found] = certify(
        Ensemble(models), x[None], Gaussian(SIGMA), num_classes=2, n0=100, n=3000, alpha=ALPHA, radius=0.3, seed=4
    )
    smooth = SmoothEnsembleAdaptive(models, 2, SIGMA, seed=4)
    assert smooth.certify(x, 100, 0, [1000, 2000], ALPHA, ALPHA, 500, 0.3) == (1, 0, 0, found.counts[0] / found.n)
    small = [found.n - 1, 5, 2000]
    assert SmoothEnsembleAdaptive(models, 2, SIGMA, seed=4).certify(x, 100, 0, small, ALPHA, ALPHA, 500, 0.3)[2] == 1
    assert smooth.num_classifiers == len(smooth.base_classifiers) == 5
    votes = smooth._sample_noise(x, 500, 100)
    assert (votes.sum(), votes.dtype) == (500, np.int64)
    assert smooth.predict(x, 100, ALPHA, 100) == 0


def test_modes_are_put_back():
    models = classifiers()
    SmoothEnsembleKConsensus(models, 2, SIGMA, k=1, seed=1).certify(dataset()[0][0], 10, 100, 0.01, 50)
    assert all(model.training for model in models)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: SmoothEnsembleAdaptive([], 2, SIGMA), ValueError, "base_classifiers must hold at least one"),
        (lambda: SmoothEnsembleAdaptive(classifiers()[0], 2, SIGMA), TypeError, "base_classifiers must be a list"),
        (lambda: SmoothEnsembleAdaptive([nn.Linear], 2, SIGMA), TypeError, r"base_classifiers\[0\] must be an instance"),
        (lambda: SmoothEnsembleKConsensus(classifiers(), 2, SIGMA, 6), ValueError, "k must be from 1 to 5"),
        (lambda: SmoothEnsembleAdaptiveKConsensus(classifiers(), 2, SIGMA, 0), ValueError, "k must be from 1 to 5"),
        (lambda: decide(n_list=[]), TypeError, "n_list must be a list of sample sizes"),
        (lambda: decide(n_list=[0]), ValueError, "n_list must be from 1"),
        (lambda: decide(alpha=0.0), ValueError, "alpha must be"),
        (lambda: decide(beta=2), ValueError, "beta must be"),
        (lambda: decide(radius_to_certify=0), ValueError, "radius_to_certify must be"),
        (lambda: decide(x=torch.zeros(2, 1, 2, 2)), ValueError, "x must be one input"),
    ],
)
def test_wrong_uses(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


def decide(**changed):
    given = {"x": dataset()[0][0], "n0": 10, "n_original": 0, "n_list": [100], "alpha": 0.01, "beta": 0.01, "batch_size": 50}
    return SmoothEnsembleAdaptive(classifiers(), 2, SIGMA).certify(**(given | {"radius_to_certify": 0.1} | changed))


def test_a_radius_out_of_reach():
    with pytest.warns(UserWarning, match="no input can reach it"):
        assert decide(radius_to_certify=5.0)[:2] == (-1, -1)
