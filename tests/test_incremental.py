"""rsfast.compare: what is proved of a changed model, and with how many runs of it."""

import math

import mpmath
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import rsfast
from rsfast.bounds import clopper_pearson_lower
from rsfast.stats import incremental

NOISE = rsfast.Gaussian(0.25)
INPUTS = torch.tensor([[0.05], [0.2], [0.4], [0.0], [1.0]])


def model(x):
    return torch.stack([x[:, 0], -x[:, 0]], dim=1)


LOW = torch.nn.Linear(1, 2).bfloat16()


def pruned(x):
    """It loses what lies between 0 and 0.001."""
    return torch.stack([x[:, 0], 0.001 - 0 * x[:, 0]], dim=1)


def three_classes(x):
    return torch.stack([x[:, 0], torch.full_like(x[:, 0], -0.1), -x[:, 0] - 0.3], dim=1)


@pytest.fixture(scope="module")
def found():
    return rsfast.certify(model, INPUTS, NOISE, num_classes=2, n=100_000, seed=3)


def test_a_little_is_lost(found):
    """Few pairs keep most of the radius; none exceeds that of the changed model, whose boundary is 0.001 nearer."""
    pairs = rsfast.compare(model, pruned, INPUTS, found, num_classes=2)
    assert [each.before for each in pairs] == found
    for x, (before, after, lost, _) in zip(INPUTS[:, 0].tolist(), pairs, strict=True):
        assert after.radius <= max(x - 0.001, 0)
        assert (after.prediction == 0) == (after.radius > 0)
        assert (after.rule, after.alpha, after.n0, after.input_id) == ("incremental", 0.001, 0, before.input_id)
        assert 2 * after.n <= before.n
        assert 0 <= lost <= after.n
    radii = np.array([[before.radius, after.radius] for before, after, *_ in pairs])
    lost = radii[:, 0] - radii[:, 1]
    assert (lost[1:3] <= 0.03 * np.maximum(radii[1:3, 0], radii[:, 0].mean()) + 1e-9).all()
    assert lost[0] <= radii[0, 0] / 2  # however small it is beside the mean
    assert sum(2 * after.n for _, after, *_ in pairs[1:3]) < 0.1 * 200_000
    assert pairs[3].after.abstained
    assert pairs[3].before.abstained


def test_the_same_model_is_the_best_case(found):
    pairs = rsfast.compare(model, lambda x: model(x), INPUTS, found, num_classes=2, n=500, rtol=1e-6)
    assert {after.n for before, after, *_ in pairs if not before.abstained} == {500}
    assert all(lost == 0 and after.radius <= before.radius for before, after, lost, _ in pairs)


def test_what_is_proved_by_hand(found):
    """The limits of one input by 30-digit arithmetic, a proof of the formula and of its roundings."""
    mpmath.mp.dps = 30
    before = found[1]
    pairs = incremental.Pairs(*(np.array([each]) for each in (1000, 780, 12, 220, 15)))
    limits = incremental.proved([incremental.Before.of(before)], pairs, 0.001)

    def log_ratio(k, n, p):
        """Log of the mixture of Beta(0.1, 1) over p's own likelihood, of k successes in n."""
        a, b = mpmath.mpf("0.1"), mpmath.mpf(1)
        return (
            mpmath.log(mpmath.beta(a + k, b + n - k) / mpmath.beta(a, b)) - k * mpmath.log(p) - (n - k) * mpmath.log(1 - p)
        )

    def upper(k, n, alpha):
        low, high = mpmath.mpf(k) / n, mpmath.mpf(1)
        for _ in range(80):
            p = (low + high) / 2
            low, high = (low, p) if log_ratio(k, n, p) > -mpmath.log(alpha) else (p, high)
        return high

    votes, n, share = before.counts[0], before.n, mpmath.mpf(0.001)
    lowest = mpmath.mpf(float(clopper_pearson_lower(votes, n, 0.001 * 0.1)))  # tested against 60 digits elsewhere
    exact = max(lowest - upper(12, 1000, share * 0.45), 1 - upper(220, 1000, share * 0.45))
    assert exact - 1e-9 <= limits.lower[0] <= exact
    assert limits.radius[0] <= 0.25 * mpmath.sqrt(2) * mpmath.erfinv(2 * exact - 1)


def test_top_two():
    """The radius is that of the two classes, of a certificate that had it, and never above the truth."""
    inputs = torch.tensor([[0.02], [0.1]])
    found = rsfast.certify(three_classes, inputs, NOISE, num_classes=3, n=100_000, seed=5, rule="top_two")
    changed = [
        each.after for each in rsfast.compare(three_classes, lambda x: three_classes(x), inputs, found, num_classes=3)
    ]
    for before, after in zip(found, changed, strict=True):
        assert 0.9 * before.radius <= after.radius <= before.radius
        assert after.p_upper < 1 - after.p_lower
        assert after.alpha_upper == 0.0005


def test_votes_for_no_class():
    """NaN of the changed model is lost mass, and no vote for class 0."""

    def broken(x):
        return torch.where(x > 0.1, model(x), math.nan)

    inputs = torch.tensor([[0.4]])
    found = rsfast.certify(model, inputs, NOISE, num_classes=2, n=10_000, seed=1)
    (pair,) = rsfast.compare(model, broken, inputs, found, num_classes=2)
    assert 0 < pair.after.radius <= 0.3
    assert pair.lost > 0.05 * pair.after.n


def test_batches_and_early_certificates(found):
    """Batch size does not show; a certificate that stopped early has limits that hold at any n."""
    one, other = (rsfast.compare(model, pruned, INPUTS, found, num_classes=2, batch_size=size) for size in (37, 1024))
    assert one == other
    early = rsfast.certify(model, INPUTS[2:3], NOISE, num_classes=2, radius=0.2, seed=3)
    (pair,) = rsfast.compare(model, pruned, INPUTS[2:3], early, num_classes=2)
    assert pair.after.radius <= early[0].radius


def test_options_of_the_certificates(found):
    """The pair runs as the certificates say: the same scale and shift."""
    scaled = rsfast.certify(lambda x: model(x - 0.1), INPUTS, NOISE, num_classes=2, n=10_000, seed=3, scale=2.0, shift=0.1)
    pairs = rsfast.compare(lambda x: model(x - 0.1), lambda x: pruned(x - 0.1), INPUTS, scaled, num_classes=2)
    assert pairs[2].after.radius > 0.3
    assert pairs[2].after.execution == scaled[2].execution


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"certificates": []}, ValueError, "certificates must hold at least one"),
        ({"certificates": [1]}, TypeError, "certificates must be a list of Certificate"),
        ({"certificates": "half"}, ValueError, "certificates must be one an input, 5, got 2"),
        ({"certificates": "twice"}, ValueError, "one input id twice"),
        ({"inputs": iter(INPUTS[:2])}, ValueError, "certificates must be one an input, 2, got 5"),
        ({"inputs": DataLoader(INPUTS, shuffle=True)}, ValueError, "a DataLoader that shuffles (its RandomSampler)"),
        ({"certificates": "soft"}, ValueError, "certificates[0] must be of votes"),
        ({"certificates": "seeds"}, ValueError, "certificates must be of one call, got seed 3"),
        ({"model_a": lambda x: -model(x)}, ValueError, "model_a must be the model that was certified"),
        (
            {"model_a": lambda x: model(x - 0.3), "model_b": lambda x: model(x - 0.3)},
            ValueError,
            "model_a must be the model",
        ),
        ({"model_b": model}, ValueError, "got the changed model itself"),
        ({"model_a": LOW}, ValueError, "execution says, in float32, got bfloat16 parameters or buffers"),
        ({"model_b": 3}, TypeError, "model_b must be callable"),
        ({"model_b": lambda x: x}, ValueError, "num_classes must be 1, the logits that model_b returns a row, got 2"),
        ({"inputs": (each for each in INPUTS[:3])}, ValueError, "certificates must be one an input, 3, got 5"),
        ({"inputs": TensorDataset(INPUTS[:3])}, ValueError, "certificates must be one an input, 3, got 5"),
        ({"alpha": 1.5}, ValueError, "alpha must be"),
        ({"rtol": 0}, ValueError, "rtol must be"),
        ({"n": 0}, ValueError, "n must be"),
    ],
)
def test_mistakes(found, change, error, text):
    given = {"model_a": model, "model_b": pruned, "inputs": INPUTS, "certificates": found, "num_classes": 2} | change
    if isinstance(name := given["certificates"], str):
        soft = rsfast.certify(model, INPUTS, NOISE, num_classes=2, n=100, seed=3, head=rsfast.Softmax())
        other = rsfast.certify(model, INPUTS, NOISE, num_classes=2, n=100, seed=4)
        given["certificates"] = {"half": found[:2], "twice": found[:1] * 5, "soft": soft, "seeds": [*found[:4], other[4]]}[
            name
        ]
    with pytest.raises(error) as raised:
        rsfast.compare(**given)
    assert text in str(raised.value)


def test_wrong_inputs_are_seen_from_few_votes():
    """Shares of votes that differ by less than what the other samples could make up for."""
    found = rsfast.certify(model, torch.tensor([[0.2]]), NOISE, num_classes=2, n=20_000, seed=1)
    with pytest.raises(ValueError, match=r"model_a must be the model that was certified, on its inputs, got one with "):
        rsfast.compare(model, pruned, torch.tensor([[0.1]]), found, num_classes=2)


def test_what_is_out_of_reach_is_given_up():
    """A change that loses most votes: few pairs show that no number of them proves a radius."""
    found = rsfast.certify(model, INPUTS[2:3], NOISE, num_classes=2, n=100_000, seed=3)

    def other(x):
        return model(x - 0.5)

    (pair,) = rsfast.compare(model, other, INPUTS[2:3], found, num_classes=2)
    assert pair.lost > 0.5 * pair.after.n
    assert pair.after.n < 1000
    assert pair.after.abstained


@pytest.mark.parametrize("lost", [0, 5, 200])
def test_a_forecast_is_what_as_many_pairs_then_prove(found, lost):
    """Where the rest is as the first thousand pairs were, a little above it: they may have been unlucky."""
    before, one = [incremental.Before.of(found[2])], np.array([1000])
    pairs = incremental.Pairs(one, kept=940 * one // 1000 - lost, lost=0 * one + lost, rival=60 + 0 * one, gained=0 * one)
    later = incremental.Pairs(*(40 * each for each in pairs))
    proved = incremental.proved(before, later, 0.001).radius[0]
    likely = incremental.still_likely(before, pairs, 0.001, 40_000)[0]
    assert proved <= likely <= proved + 0.05
