"""The public functions end to end: where the smoothed radius is known, beside the 2019 loop, and on bad input."""

import copy
import math
import pickle
import re
import threading
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from scipy.stats import binom, ks_2samp
from torch import nn

import rsfast
from rsfast import ABSTAIN, ClippedLogits, Gaussian, Smooth, Softmax, Sparsemax, Votes, certify, predict, sample
from rsfast.engine.batches import Batches
from rsfast.engine.sampler import Pacing
from rsfast.engine.sampling import Sampling
from rsfast.loop2019 import Loop2019
from rsfast.noise import Laplace, Uniform


class Linear(nn.Module):
    """Two classes, split by the hyperplane <w, x> = 0: the smoothed classifier's radius at x is |<w, x>| / |w|."""

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.register_buffer("w", torch.randn(dimension, generator=torch.Generator().manual_seed(3)))

    def forward(self, x):
        margin = x.flatten(1) @ self.w
        return torch.stack([margin, -margin], dim=1)

    def at(self, radii):
        """Inputs at signed distances `radii` from the hyperplane."""
        return (torch.as_tensor(radii, dtype=torch.float64)[:, None] * (self.w / self.w.norm()).double()).float()

    def radius(self, x):
        """In float64, for the float32 inputs as they are."""
        return ((x.double() @ self.w.double()) / self.w.double().norm()).abs()


def first_three(x):
    return x.flatten(1)[:, :3]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("head", "bound", "rule"),
    [
        (Votes(), "clopper_pearson", "one_vs_rest"),
        (Votes(), "clopper_pearson", "top_two"),
        (Votes(), "hoeffding", "one_vs_rest"),
        (Softmax(0.05), "empirical_bernstein", "one_vs_rest"),
        (Sparsemax(0.1), "empirical_bernstein", "top_two"),
        (Votes(), "randomized_clopper_pearson", "auto"),
        (Votes(), "beta_binomial_sequence", "one_vs_rest"),
        (Softmax(0.05), "betting", "auto"),
        (Sparsemax(0.1), "betting_sequence", "top_two"),
        (ClippedLogits(-1.0, 1.0), "betting", "top_two"),
    ],
)
def test_radius_of_a_linear_classifier_exceeds_its_margin_no_more_than_chance_allows(head, bound, rule):
    """2,000 certificates, each wrong with probability at most 0.001. More than 12 wrong ones have probability below 1e-6.

    Soft heads are increasing in the margin and symmetric, so they are certified to at most the margin too.
    """
    model = Linear(8)
    x = model.at(np.random.default_rng(5).uniform(0.02, 0.6, 2000))
    certificates = certify(
        model, x, Gaussian(0.25), num_classes=2, n0=50, n=2000, head=head, bound=bound, rule=rule, seed=11
    )
    radii = np.array([certificate.radius for certificate in certificates])
    wrong = int((radii > model.radius(x).numpy()).sum())
    assert binom.sf(12, 2000, 0.001) < 1e-6
    assert wrong <= 12
    assert (radii > 0).sum() > 1000
    assert all(certificate.prediction in (0, ABSTAIN) for certificate in certificates)


@pytest.mark.parametrize("distance", [0.125, 0.25, 0.5])
def test_radius_of_a_linear_classifier_comes_within_five_percent(distance):
    model = Linear(8)
    x = model.at([-distance])
    [(prediction, radius)] = certify(model, x, Gaussian(0.25), num_classes=2, n=100_000, alpha=0.001, seed=4)
    assert prediction == 1
    assert 0.95 * distance < radius <= distance


@pytest.mark.slow
@pytest.mark.parametrize(("head", "inputs"), [(Votes(), 1000), (Softmax(0.05), 200)])
def test_deciding_at_a_radius_errs_no_more_than_chance_allows(head, inputs):
    """Inputs whose radius is just below the one asked for, with alpha = 0.05: more wrong ones have chance 1e-9."""
    model = Linear(8)
    x = model.at(np.full(inputs, 0.2 - 1e-6))
    found = certify(model, x, Gaussian(0.25), num_classes=2, n=2000, alpha=0.05, head=head, radius=0.2, seed=12)
    assert sum(certificate.radius >= 0.2 for certificate in found) <= binom.isf(1e-9, inputs, 0.05)
    assert any(certificate.n < 2000 for certificate in found)
    options = {"num_classes": 2, "n": 2000, "alpha": 0.05, "head": head, "radius": 0.1, "seed": 12}
    assert all(
        certificate.radius >= 0.1 and certificate.n < 2000
        for certificate in certify(model, x[:20], Gaussian(0.25), **options)
    )


def test_batches_and_places_do_not_show_in_early_decisions(monkeypatch):
    model = Linear(6)
    x = model.at([0.5, 0.2, -0.1, 0.31, 0.0, -0.6, 0.28])
    options = {"num_classes": 2, "n": 4000, "radius": 0.3, "seed": 2}
    found = certify(model, x, Gaussian(0.25), **options)
    assert found[0].n < 4000
    assert [certificate.radius >= 0.3 for certificate in found] == [True, False, False, False, False, True, False]
    assert len({certificate.n for certificate in found}) > 2
    assert certify(model, x, Gaussian(0.25), batch_size=7, **options) == found
    monkeypatch.setattr(Sampling, "pacing", Pacing(memory=1))  # two inputs under way
    assert certify(model, x, Gaussian(0.25), **options) == found
    alone = [certify(model, x[i : i + 1], Gaussian(0.25), input_ids=[i], **options)[0] for i in range(7)]
    assert alone == found


def test_several_heads_share_alpha():
    """Each is what it would be alone, at half of alpha; on the same samples."""
    model, heads = Linear(6), [Votes(), Softmax(0.1)]
    x = model.at([0.5, -0.2])
    options = {"num_classes": 2, "n": 500, "seed": 2}
    found = certify(model, x, Gaussian(0.25), head=heads, alpha=0.01, **options)
    assert [[certificate.head for certificate in of_input] for of_input in found] == [heads, heads]
    for k, head in enumerate(heads):
        alone = certify(model, x, Gaussian(0.25), head=head, alpha=0.005, **options)
        assert [of_input[k] for of_input in found] == alone
    assert [c.bound for c in found[0]] == ["clopper_pearson", "betting"]
    assert [c.bound for c in certify(model, x, Gaussian(0.25), head=heads, radius=0.1, **options)[0]] == [
        "beta_binomial_sequence",
        "betting_sequence",
    ]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"head": []}, ValueError, "head must hold at least one head, and none twice"),
        ({"head": [Votes(), Votes()]}, ValueError, "none twice"),
        ({"head": ["votes"]}, TypeError, "each of head must be one of Votes, .*, got 'votes'"),
        (
            {"head": "votes"},
            TypeError,
            "head must be one of Votes, .* or a list of them, got 'votes'; pass an object, such as",
        ),
        ({"head": Softmax}, TypeError, "head must be one of .*, got <class .*>; pass an object, such as rsfast.Softmax"),
        ({"head": [Votes(), Softmax()], "bound": "clopper_pearson"}, ValueError, "with the head Softmax"),
        ({"radius": 0.5, "bound": "clopper_pearson"}, ValueError, "it holds for one analysis"),
        ({"radius": 0.5, "rtol": 0.5}, ValueError, "rtol must be None where radius is given"),
        ({"rtol": 0}, ValueError, "rtol must be a finite number above 0 and below 1, got 0"),
    ],
)
def test_wrong_heads_and_goals(options, error, message):
    def never(x):
        raise AssertionError("sampled before the arguments were checked")

    with pytest.raises(error, match=message):
        certify(never, torch.ones(1, 2), Gaussian(0.25), num_classes=2, seed=1, **options)


# tune_head: class 0 has the larger logit on three inputs of four, by little, so a soft head sees little of it.

CALIBRATION, LABELS = torch.tensor([[0.3], [0.2], [0.4], [-0.5]]), [0, 0, 0, 1]


def two_classes(x):
    return torch.stack([x[:, 0], -x[:, 0]], dim=1)


def tune(**options):
    heads = options.pop("heads", [Softmax(10.0), Votes(), Softmax(0.01)])
    options = {"num_classes": 2, "n": 500, "seed": 3} | options
    return rsfast.tune_head(two_classes, CALIBRATION, LABELS, Gaussian(0.25), heads, **options)


@pytest.mark.parametrize("criterion", ["average_radius", "certified_accuracy", 0.25])
def test_tune_head_scores_every_head_as_certification_would(criterion):
    tuned = tune(criterion=criterion)
    assert tuned.head == max(tuned.scores, key=tuned.scores.get)
    assert tuned.scores[Softmax(10.0)] < tuned.scores[Votes()] or criterion == "certified_accuracy"
    expected = {"average_radius": (0.2, 0.36), "certified_accuracy": (1.0, 1.0), 0.25: (0.5, 0.75)}[criterion]
    assert expected[0] <= tuned.scores[Votes()] <= expected[1]
    assert tune(criterion=criterion) == tuned


def test_tune_head_counts_right_predictions_alone():
    assert rsfast.tune_head(
        two_classes, CALIBRATION, [1, 1, 1, 0], Gaussian(0.25), [Votes()], num_classes=2, n=500, seed=3
    ).scores == {Votes(): 0.0}


def test_tune_head_takes_no_sample_that_certification_takes(monkeypatch):
    drawn = []

    def perturber(*arguments, **options):
        run = rsfast.ops.perturber(*arguments, **options)

        def noted(out, places, stream):
            drawn.append((stream, *places[2].tolist()))
            run(out, places, stream)

        return noted

    monkeypatch.setattr(Batches, "perturber", staticmethod(perturber))
    tune(heads=[Votes(), Sparsemax(1.0)], n0=10, n=100)
    assert {stream for stream, *_ in drawn} == {"training"}
    assert Counter(sample for _, *samples in drawn for sample in samples) == dict.fromkeys(range(110), len(CALIBRATION))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"heads": []}, ValueError, "at least one head"),
        ({"criterion": "best"}, ValueError, "criterion must be one of 'average_radius', 'certified_accuracy', got 'best'"),
        ({"criterion": -1.0}, ValueError, "criterion must be a finite number at least 0, got -1.0"),
        ({"criterion": None}, TypeError, "criterion must be a number, got None"),
        ({"bound": "clopper_pearson"}, ValueError, "with the head Softmax"),
    ],
)
def test_tune_head_wrong_uses(options, error, message):
    with pytest.raises(error, match=message):
        tune(**options)
    for labels in ([0, 1], [0, 1, 2, 0]):
        with pytest.raises(ValueError, match="labels "):
            rsfast.tune_head(two_classes, CALIBRATION, labels, Gaussian(0.25), [Votes()], num_classes=2)


def test_certify_records_what_was_done():
    x = Linear(4).at([0.3, -0.4])
    first, second = certify(Linear(4), x, Gaussian(0.25), num_classes=2, n0=20, n=200, alpha=0.01, input_ids=[7, 9], seed=5)
    assert (first.prediction, second.prediction) == (0, 1)
    assert (first.n0, first.n, first.alpha, first.input_id, second.input_id, first.seed) == (20, 200, 0.01, 7, 9, 5)
    assert (first.rule, first.bound, first.norm, first.backend) == ("one_vs_rest", "clopper_pearson", "l2", "cpu")
    assert sum(first.counts) == 200
    assert first.stream_version == rsfast.STREAM_VERSION
    again = certify(Linear(4), x[1:], Gaussian(0.25), num_classes=2, n0=20, n=200, alpha=0.01, input_ids=[9], seed=5)
    assert again == [second]


def test_seed_none_draws_a_seed_and_records_it():
    x = Linear(4).at([0.1])
    one, two = (certify(Linear(4), x, Gaussian(0.25), num_classes=2, n=500)[0] for _ in range(2))
    assert one.seed != two.seed
    assert certify(Linear(4), x, Gaussian(0.25), num_classes=2, n=500, seed=one.seed) == [one]


def test_backends_give_the_same_certificates():
    x = Linear(6).at([0.2, -0.3, 0.01])
    one, two = (
        certify(Linear(6), x, Gaussian(0.25), num_classes=2, n=300, head=Softmax(0.2), seed=1, backend=backend)
        for backend in ("cpu", "reference")
    )
    assert [c.to_dict() | {"backend": ""} for c in one] == [c.to_dict() | {"backend": ""} for c in two]


def test_the_warning_is_not_for_the_randomized_bound():
    """Nine unanimous votes certify nothing by Clopper and Pearson's; it may."""
    options = {"num_classes": 2, "n": 9, "seed": 1}
    x = Linear(4).at([3.0] * 20)
    with pytest.warns(UserWarning, match="certify needs n of at least 10"):
        certify(Linear(4), x, Gaussian(0.25), **options)
    of_two = r"at alpha = 0\.0005 .* certify needs n of at least "
    with pytest.warns(UserWarning, match=f"{of_two}11"), pytest.warns(UserWarning, match=f"{of_two}12"):
        certify(Linear(4), x, Gaussian(0.25), head=[Votes(), Softmax()], **options)
    found = certify(Linear(4), x, Gaussian(0.25), bound="randomized_clopper_pearson", **options)
    assert 0 < sum(certificate.radius > 0 for certificate in found) < 20


def test_a_model_that_returns_nan_certifies_nothing():
    with pytest.warns(UserWarning, match="^model returned NaN"):
        [certificate] = certify(
            lambda x: x[:, :2] * math.nan, torch.ones(1, 2), Gaussian(0.25), num_classes=2, n=100, seed=0
        )
    assert (certificate.prediction, certificate.radius, certificate.counts) == (ABSTAIN, 0.0, (0, 0))


@pytest.mark.usefixtures("unprobed")
def test_scale_and_shift_are_the_models_normalisation():
    """The model sees (x + noise - mean) / std, while sigma and radius stay in the units of x."""
    mean, std = torch.tensor([0.4, 0.5]), torch.tensor([0.2, 0.25])
    seen = []

    def model(batch):
        seen.append(batch.clone())
        return batch.flatten(1)[:, :2]

    x = torch.rand(1, 2, 3, 3)
    sample(model, x, Gaussian(0.5), num_classes=2, n=8, seed=2, scale=1 / std, shift=-mean / std)
    noisy = rsfast.ops.perturb(x, Gaussian(0.5), seed=2, samples=range(8))
    expected = (noisy - mean.view(2, 1, 1)) / std.view(2, 1, 1)
    torch.testing.assert_close(seen[0], expected, rtol=1e-5, atol=1e-5)


# Smooth


def test_smooth_agrees_with_the_2019_loop():
    """Same class every time; the two samples of 300 radii each are from one distribution: the Kolmogorov-Smirnov test
    rejects, at 1e-6, with probability 1e-6."""
    model, sigma = Linear(12), 0.25
    x = model.at([0.21]).view(3, 2, 2)
    torch.manual_seed(0)
    ours, theirs = Smooth(model, 2, sigma, seed=8), Loop2019(model, 2, sigma)
    mine = [ours.certify(x, 50, 400, 0.001, 128) for _ in range(300)]
    original = [theirs.certify(x, 50, 400, 0.001, 128) for _ in range(300)]
    assert {label for label, _ in mine} == {label for label, _ in original} == {0}
    assert ks_2samp([r for _, r in mine], [r for _, r in original]).pvalue > 1e-6
    assert len({r for _, r in mine}) > 10


def test_smooth_certify_equals_certify():
    model = Linear(12)
    x = model.at([0.21]).view(1, 3, 2, 2)
    smooth = Smooth(model, 2, 0.25, seed=8)
    for call in range(3):
        [certificate] = certify(model, x, Gaussian(0.25), num_classes=2, n0=50, n=400, seed=8, input_ids=[call])
        assert smooth.certify(x, 50, 400, 0.001, 32) == tuple(certificate)


def test_smooth_predict_equals_predict_and_abstains():
    model = Linear(12)
    x = model.at([-0.2, 0.0]).view(2, 3, 2, 2)
    smooth = Smooth(model, 2, 0.25, seed=8)
    expected = predict(model, x, Gaussian(0.25), num_classes=2, n=300, alpha=0.001, seed=8)
    assert [smooth.predict(image, 300, 0.001, 64) for image in x] == expected == [1, ABSTAIN]


@pytest.mark.parametrize("noise", [Laplace(0.2), Uniform(0.5)], ids=repr)
def test_smooth_takes_any_noise(noise):
    model = Linear(12)
    x = model.at([0.21, 0.0]).view(2, 3, 2, 2)
    smooth = Smooth(model, 2, noise, seed=8)
    assert smooth.sigma == smooth.noise == noise
    for call in range(2):
        [certificate] = certify(model, x[:1], noise, num_classes=2, n0=50, n=400, seed=8, input_ids=[call])
        assert smooth.certify(x[0], 50, 400, 0.001, 32) == tuple(certificate)
        assert certificate.radius > 0
        assert certificate.norm == "l1"
    expected = predict(model, x[1:], noise, num_classes=2, n=300, alpha=0.001, seed=8, input_ids=[2])
    assert [smooth.predict(x[1], 300, 0.001, 64)] == expected
    smooth.sigma = 0.25
    assert smooth.noise == Gaussian(0.25)


def test_smooth_keeps_the_sigma_of_gaussian_noise_as_a_number():
    """Forks multiply by it."""
    one, other = Smooth(last_three, 3, Gaussian(0.25), seed=8), Smooth(last_three, 3, 0.25, seed=8)
    assert one.sigma == 0.25
    assert type(one.sigma) is float
    assert answers(one) == answers(other)


def test_smooth_refuses_noise_that_is_not_random():
    """Its bound is of independent samples."""

    class Steady(Laplace):
        evaluations = 7

    with pytest.raises(ValueError, match=r"^sigma must be random noise, got .*Steady\(b=0\.5\); rsfast\.certify gives"):
        Smooth(last_three, 3, Steady(0.5))


def test_smooth_returns_python_numbers():
    label, radius = Smooth(Linear(4), 2, 0.25, seed=1).certify(Linear(4).at([0.5]).view(1, 2, 2), 10, 100, 0.001, 10)
    assert (type(label), type(radius)) == (int, float)
    assert type(Smooth(Linear(4), 2, 0.25, seed=1).predict(torch.zeros(1, 2, 2), 100, 0.001, 10)) is int
    assert Smooth.ABSTAIN == -1


@pytest.mark.parametrize(
    ("shape", "seen"), [((3, 4, 5), (3, 4, 5)), ((1, 3, 4, 5), (3, 4, 5)), ((4, 5), (1, 4, 5)), ((7,), (7,))]
)
def test_smooth_takes_every_shape_of_one_input(shape, seen):
    batches = []

    def model(batch):
        batches.append(batch.shape[1:])
        return batch.flatten(1)[:, :3]

    Smooth(model, 3, 0.25, seed=0).certify(torch.zeros(shape), 10, 10, 0.001, 10)
    assert set(batches) == {torch.Size(seen)}


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 1, 3, 4, 5), ()])
def test_smooth_refuses_what_is_not_one_input(shape):
    with pytest.raises(ValueError, match=r"x must be one input, .* got shape"):
        Smooth(first_three, 3, 0.25).certify(torch.zeros(shape), 10, 10, 0.001, 10)


def test_smooth_calls_what_forks_override():
    class Fork(Smooth):
        def _sample_noise(self, x, num, batch_size):
            self.asked = [*getattr(self, "asked", []), num]
            return np.array([0, num - 1, 1])

        def _lower_confidence_bound(self, NA, N, alpha):
            assert (NA, N, alpha) == (99, 100, 0.001)
            return 0.9

    fork = Fork(first_three, 3, 0.5)
    label, radius = fork.certify(torch.zeros(1, 2, 2), 10, 100, 0.001, 10)
    assert (label, fork.asked) == (1, [10, 100])
    assert radius == pytest.approx(0.5 * 1.2815515655446004, rel=1e-12)  # Phi^-1(0.9), scipy.stats.norm.ppf


@pytest.mark.usefixtures("unprobed")
def test_smooth_never_draws_the_same_noise_twice():
    smooth = Smooth(first_three, 3, 1.0, seed=0)
    seen = []
    smooth.base_classifier = lambda batch: (seen.append(batch.clone()), batch[:, :3])[1]
    for _ in range(2):
        smooth._sample_noise(torch.zeros(64), 5, 3)
        smooth.certify(torch.zeros(64), 5, 10, 0.001, 10)
        smooth.predict(torch.zeros(64), 11, 0.001, 10)
    rows = torch.cat(seen)
    assert len(rows) == 2 * (5 + 15 + 11)
    assert len(torch.unique(rows, dim=0)) == len(rows)


def test_smooth_takes_votes_of_its_own_stream():
    counts = Smooth(first_three, 3, 0.25, seed=0)._sample_noise(torch.zeros(3), 100, 7)
    assert counts.dtype.kind == "i"
    assert counts.shape == (3,)
    assert counts.sum() == 100


NEAR = torch.tensor([0.2, 0.1, 0.0])  # under noise of 0.25 each class gets votes, the first the most


def last_three(x):
    return x.flatten(1)[:, -3:]


def answers(smooth, calls=2):
    """What certify, predict and direct sampling give, call by call."""
    return [
        (
            smooth.certify(NEAR, 20, 1000, 0.01, 100),
            smooth.predict(NEAR, 1000, 0.01, 100),
            *smooth._sample_noise(NEAR, 50, 20),
        )
        for _ in range(calls)
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"base_classifier": lambda x: x.flip(1)},
        {"base_classifier": lambda x: x[:, :2], "num_classes": 2},
        {"sigma": 0.5},
        {"sigma": np.float32(0.125)},
        {"seed": 9},
        {"options": {"scale": torch.tensor([1.0, 3.0, 1.0]), "shift": 0.5}},
    ],
)
def test_what_is_set_on_a_smooth_is_used_from_the_next_call(change):
    """As if it had been given at first."""
    settings = {"base_classifier": last_three, "num_classes": 3, "sigma": 0.25, "seed": 8}
    smooth, before = Smooth(**settings), Smooth(**settings)
    now = settings | {name: value for name, value in change.items() if name != "options"}
    expected = Smooth(**now, **change.get("options", {}))
    assert answers(smooth) == answers(before) != answers(expected)
    for name, value in change.items():
        setattr(smooth, name, value)
    assert answers(smooth) == answers(expected) != answers(before)
    assert smooth.noise == Gaussian(smooth.sigma)


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("base_classifier", None, TypeError, "base_classifier must be callable on a batch, got None"),
        (
            "base_classifier",
            torch.nn.ReLU,
            TypeError,
            "base_classifier must be an instance, callable on a batch, got the class ReLU",
        ),
        ("num_classes", 1, ValueError, "num_classes must be from 2 to 1048576, got 1"),
        ("num_classes", 3.0, TypeError, "num_classes must be an int, got 3.0"),
        ("sigma", 0.0, ValueError, "sigma must be positive.*, got 0.0"),
        ("sigma", "0.5", TypeError, "sigma must be a number or a noise, got '0.5'"),
        ("seed", -1, ValueError, r"seed must be in \[0, 2\^64\), got -1"),
        ("options", {"sedd": 1}, TypeError, "keyword arguments must be among scale, .*, got sedd"),
        ("options", None, TypeError, "options must be a dict of keyword arguments, got None"),
    ],
)
def test_what_is_wrong_changes_nothing_on_a_smooth(name, value, error, message):
    smooth, expected = Smooth(last_three, 3, 0.25, seed=8), Smooth(last_three, 3, 0.25, seed=8)
    with pytest.raises(error, match=message):
        setattr(smooth, name, value)
    assert answers(smooth) == answers(expected)
    with pytest.raises(AttributeError):
        smooth.noise = Gaussian(0.5)


class SamplesItself(Smooth):
    """As the original and its forks do: with torch's noise of the sigma that the object has."""

    def _sample_noise(self, x, num, batch_size):
        batch = x + self.sigma * torch.randn(num, *x.shape)
        return self._count_arr(self.base_classifier(batch).argmax(1).numpy(), self.num_classes)


def test_the_radius_of_a_fork_that_samples_itself_is_for_the_sigma_that_it_has():
    """The other class is 0.1 / sqrt(2) away: more is certified with probability at most 1e-6."""
    torch.manual_seed(0)
    fork = SamplesItself(last_three, 3, 3.0)
    fork.sigma = 0.25
    label, radius = fork.certify(torch.tensor([0.2, 0.1, -9.0]), 100, 20_000, 1e-6, 100)
    assert label == 0
    assert 0.0 < radius <= 0.1 / math.sqrt(2)


@pytest.mark.parametrize("method", ["certify", "predict"])
@pytest.mark.parametrize(
    ("fork", "name", "batch"),
    [
        *[(Smooth, name, batch) for name in ("sigma", "base_classifier", "num_classes") for batch in (1, 3)],
        (SamplesItself, "sigma", 1),  # it has one batch a sample
        (SamplesItself, "base_classifier", 1),
    ],
)
def test_nothing_is_answered_where_a_smooth_changed_meanwhile(method, name, fork, batch):
    """In the selection or in the estimation; and the next call is as if that had been all of it."""
    batches = []

    def changes(x):
        batches.append(len(x))
        if len(batches) == batch:
            setattr(smooth, name, {"sigma": 0.5, "base_classifier": last_three, "num_classes": 4}[name])
        return x

    def call(smooth):
        if method == "predict":
            return smooth.predict(NEAR, 300, 0.01, 100)
        return smooth.certify(NEAR, 100, 200, 0.01, 100)

    smooth = fork(changes, 3, 0.25, seed=8)
    with pytest.raises(RuntimeError, match=rf"{name} must stay .* until the call that began with it ends, got "):
        call(smooth)
    smooth.base_classifier, smooth.num_classes, smooth.sigma = last_three, 3, 0.25
    expected = Smooth(last_three, 3, 0.25, seed=8)
    call(expected)
    assert fork is SamplesItself or answers(smooth) == answers(expected)


def test_a_change_and_back_does_not_show():
    """Whatever another thread sets between two batches, a call goes on with what was there when it began."""
    batches = []

    def swings(x):
        batches.append(len(x))
        smooth.sigma = 5.0 if len(batches) < 11 else 0.25
        return last_three(x)

    smooth = Smooth(swings, 3, 0.25, seed=8)
    smooth._sample_noise(NEAR, 6, 6)  # a model is probed once
    batches.clear()
    smooth.sigma, expected = 0.25, Smooth(last_three, 3, 0.25, seed=8)
    assert smooth.certify(NEAR, 100, 1000, 0.01, 100) == expected.certify(NEAR, 100, 1000, 0.01, 100)
    assert len(batches) == 11


def test_count_arr():
    smooth = Smooth(first_three, 3, 0.25)
    for arr, counts in ([2, 0, 2], [1, 0, 2]), ([], [0, 0, 0]), (np.array([1], np.int16), [0, 1, 0]):
        found = smooth._count_arr(np.array(arr, dtype=getattr(arr, "dtype", np.int64)), 3)
        assert found.tolist() == counts
        assert found.dtype == np.int64
    for arr, error, message in (
        ([0, 3], ValueError, r"arr must lie in \[0, 3\), got 0 to 3"),
        ([-1], ValueError, r"arr must lie in \[0, 3\), got -1"),
        ([0.5], TypeError, r"arr must be integers \[B\], got float64 \[1\]"),
        ([[0, 1]], TypeError, r"arr must be integers \[B\], got int64 \[1, 2\]"),
    ):
        with pytest.raises(error, match=message):
            smooth._count_arr(np.array(arr), 3)


@pytest.mark.parametrize("how", ["method", "static method", "on the object"])
def test_a_fork_that_counts_otherwise_is_heard(how):
    """It takes the last class for the first."""

    def merged(arr, length):
        return np.bincount(np.where(arr == 2, 0, arr), minlength=length)

    if how == "method":
        fork = type("Fork", (Smooth,), {"_count_arr": lambda self, arr, length: merged(arr, length)})(
            last_three, 3, 0.25, seed=8
        )
    elif how == "static method":
        fork = type("Fork", (Smooth,), {"_count_arr": staticmethod(merged)})(last_three, 3, 0.25, seed=8)
    else:
        fork = Smooth(last_three, 3, 0.25, seed=8)
        fork._count_arr = merged
    expected = Smooth(lambda x: torch.stack([x[:, [0, 2]].amax(1), x[:, 1], x[:, 1] - 1], dim=1), 3, 0.25, seed=8)
    assert answers(fork) == answers(expected) != answers(Smooth(last_three, 3, 0.25, seed=8))


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda smooth: pickle.loads(pickle.dumps(smooth))])
def test_a_copy_of_a_smooth_goes_on_as_its_original(copied):
    smooth = Smooth(last_three, 3, 0.25, seed=8, clamp=(0.0, 1.0))
    answers(smooth)
    other = copied(smooth)
    expected = answers(smooth)
    assert answers(other) == expected
    other.sigma = 0.5
    assert smooth.sigma == 0.25


def test_a_fork_with_an_init_of_its_own():
    class Fork(Smooth):
        def __init__(self, base_classifier, sigma, device):
            self.base_classifier, self.sigma, self.device = base_classifier, sigma, device

    fork, other = Fork(last_three, 0.25, "cpu"), Fork(last_three, 0.25, "cpu")
    with pytest.raises(AttributeError, match=r"num_classes is not set; .* the subclass must set it"):
        fork.certify(NEAR, 10, 100, 0.01, 10)
    fork.num_classes = other.num_classes = 3
    assert fork.seed != other.seed
    assert answers(fork) == answers(Smooth(last_three, 3, 0.25, seed=fork.seed))
    fork.options["scale"] = 0.5
    assert answers(fork) == answers(Smooth(last_three, 3, 0.25, seed=fork.seed, scale=0.5), 4)[2:]


def test_calls_within_calls_and_calls_that_fail():
    """A model that asks another object and one that asks its own, and batches that fail: each call has an id of its own."""
    expected = answers(Smooth(last_three, 3, 0.25, seed=8), 6)
    smooth, other, direct = (Smooth(last_three, 3, 0.25, seed=8) for _ in range(3))
    of_others = []

    def asks(x):
        of_others.append(other._sample_noise(NEAR, 50, 20))
        return last_three(x)

    smooth.base_classifier = asks
    assert answers(smooth, 1) == expected[:1]
    assert [*map(list, of_others)] == [list(direct._sample_noise(NEAR, 50, 20)) for _ in of_others]

    def fails(x):
        raise ZeroDivisionError

    smooth.base_classifier = fails
    for call in (lambda: smooth.certify(NEAR, 10, 100, 0.01, 10), lambda: smooth.predict(NEAR, 100, 0.01, 10)):
        with pytest.raises(ZeroDivisionError):
            call()
    smooth.base_classifier = last_three
    assert answers(smooth, 1) == expected[2:3]

    def asks_its_own(x):
        smooth.base_classifier = last_three  # for the call within
        within.append(answers(smooth, 1)[0])
        smooth.base_classifier = asks_its_own
        return last_three(x)

    within = []
    smooth.base_classifier = asks_its_own
    smooth._sample_noise(NEAR, 50, 50)  # a batch, after two of the probe: ids 6 to 11 are those of the calls within
    assert within == expected[3:]


def test_threads_share_a_smooth():
    """Eight threads, 24 calls of each kind: the answers are those of one thread, one for each id."""
    model = Linear(12)
    x = model.at([0.1]).view(3, 2, 2)
    serial, shared, together = (Smooth(model, 2, 0.25, seed=8), Smooth(model, 2, 0.25, seed=8), threading.Barrier(8))
    expected = [serial.certify(x, 20, 2000, 0.01, 100) for _ in range(24)]
    model.eval()

    def three_calls(_):
        together.wait()
        return [shared.certify(x, 20, 2000, 0.01, 100) for _ in range(3)]

    with ThreadPoolExecutor(8) as pool:
        found = [answer for of_thread in pool.map(three_calls, range(8)) for answer in of_thread]
    assert len(set(expected)) > 12
    assert Counter(found) == Counter(expected)
    seen = set()
    shared.base_classifier = lambda batch: (seen.update(map(tuple, batch.flatten(1).tolist())), model(batch))[1]
    shared._sample_noise(x, 6, 6)  # a model is probed once
    seen.clear()

    def draws(_):
        together.wait()
        shared._sample_noise(x, 50, 10)
        shared.predict(x, 60, 0.01, 10)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(draws, range(8)))
    assert len(seen) == 8 * (50 + 60)


# Errors


X = torch.zeros(2, 3)
GOOD = {"num_classes": 3, "n": 100, "seed": 1}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"n": 0}, ValueError, r"n must be from 1 to 8589934591, got 0"),
        ({"n": 2.5}, TypeError, r"n must be an int.*, got 2.5"),
        ({"alpha": 0}, ValueError, r"alpha must be a finite number above 0 and below 1, got 0"),
        ({"alpha": 1.0}, ValueError, r"alpha must be a finite number above 0 and below 1, got 1.0"),
        ({"alpha": math.nan}, ValueError, r"alpha must be .*, got nan"),
        ({"n": 1 << 33}, ValueError, r"n must be from 1 to 8589934591, got 8589934592"),
        ({"n0": 0}, ValueError, r"n0 must be from 1 to 8589934591, got 0"),
        ({"num_classes": 1}, ValueError, r"num_classes must be from 2 to 1048576, got 1"),
        ({"num_classes": 4}, ValueError, r"num_classes must be 3, the logits that model returns a row, got 4"),
        ({"seed": -1}, ValueError, r"seed must be in \[0, 2\^64\), got -1"),
        ({"seed": "1"}, TypeError, r"seed must be an int.*, got '1'"),
        ({"batch_size": 0}, ValueError, r"batch_size must be from 1 to 8589934591, got 0"),
        ({"batch_size": "big"}, ValueError, r"batch_size must be an int or 'auto', got 'big'"),
        ({"input_ids": [0]}, ValueError, r"input_ids must have shape \[2\], got \[1\]"),
        ({"input_ids": [0, -1]}, ValueError, r"input_ids must lie in .*, got values from -1"),
        ({"backend": "gpu"}, ValueError, r"backend must be one of 'auto', 'reference', 'cpu', 'cuda', 'triton', got 'gpu'"),
        ({"dtype": torch.int32}, TypeError, r"dtype must be one of .*, got torch.int32"),
        ({"dtype": ""}, ValueError, r"dtype must be one of .*: 'float32', 'float16', 'bfloat16', 'float64', got ''$"),
        ({"autocast": "half"}, ValueError, r"autocast must be None or .* 'bfloat16', 'float16', got 'half'$"),
        ({"channels_last": True}, ValueError, r"channels_last must be False unless .*, got True and 1 axes"),
        ({"scale": [1.0, 2.0]}, ValueError, r"scale must be a number or have shape \[3\], one a channel, got \[2\]"),
        ({"clamp": (1, 0)}, ValueError, r"clamp must be \(low, high\) with low <= high, got \(1, 0\)"),
        ({"head": "votes"}, TypeError, r"head must be one of Votes, .*, got 'votes'"),
        ({"bound": "wald"}, ValueError, r"bound must be .*, got 'wald'"),
        ({"rule": "best"}, ValueError, r"rule must be .*, got 'best'"),
        ({"head": Softmax(), "bound": "clopper_pearson"}, ValueError, r"bound must be .*, got 'clopper_pearson'"),
        ({"head": ClippedLogits(0, 1), "rule": "one_vs_rest"}, ValueError, r"rule must be .*, got 'one_vs_rest'"),
        ({"batchsize": 3}, TypeError, r"keyword arguments must be among scale, shift, .*, got batchsize"),
    ],
)
def test_certify_says_what_is_wrong(change, error, message):
    with pytest.raises(error, match=message):
        certify(first_three, X, Gaussian(0.25), **{**GOOD, **change})


@pytest.mark.parametrize("call", [certify, predict, rsfast.certify_each, sample])
def test_a_class_is_no_model(call):
    options = GOOD | ({"alpha": 0.001} if call is predict else {})
    with pytest.raises(TypeError, match=r"^model must be an instance, callable on a batch, got the class Flatten$"):
        call(nn.Flatten, X, Gaussian(0.25), **options)


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        (
            torch.zeros(2, 3, dtype=torch.bool),
            TypeError,
            r"inputs must have dtype float32, got torch.bool; call x.float\(\)$",
        ),
        (torch.zeros(2, 3, dtype=torch.complex64), TypeError, r"inputs must have dtype float32, got torch.complex64$"),
        (np.zeros((2, 3), np.float32), TypeError, r"inputs must be a dense float32 tensor .*, got a ndarray"),
        (
            torch.zeros(2, 3, dtype=torch.uint8),
            TypeError,
            r"inputs must have dtype float32, got torch.uint8; convert integer images",
        ),
        (
            torch.zeros(2, 3, dtype=torch.float64),
            TypeError,
            r"inputs must have dtype float32, got torch.float64; call x.float",
        ),
        (torch.zeros(3), ValueError, r"inputs must have shape \[I, \*shape\] with .*, got \[3\]"),
        (torch.zeros(0, 3), ValueError, r"inputs must have shape .*, got \[0, 3\]"),
        (torch.tensor([[0.0, 1.0], [math.nan, 0.0]]), ValueError, r"inputs\[1\] must be finite, got NaN or infinity"),
        (torch.tensor([[0.0, math.inf]]), ValueError, r"inputs\[0\] must be finite, got NaN or infinity"),
    ],
)
def test_inputs_are_checked(inputs, error, message):
    with pytest.raises(error, match=message):
        certify(first_three, inputs, Gaussian(0.25), **GOOD)


@pytest.mark.parametrize("sign", [1, -1])
def test_inputs_among_which_noise_would_vanish_are_refused(sign):
    """The error names the input, its largest value and sigma; up to 2^23 sigma, where noise still shows, all is well."""
    most = 0.25 * 2**23
    for value in (1e38, 3e9, math.nextafter(most, math.inf) * (1 + 1e-6)):
        x = torch.zeros(3, 3)
        x[1, 2] = sign * value
        found = re.escape(f"{float(x.abs().max()):g}")
        message = rf"^inputs\[1\] must hold values of at most 2\.09715e\+06, got {found}; .* sigma = 0.25$"
        for source in (x, list(x)):
            with pytest.raises(ValueError, match=message):
                certify(first_three, source, Gaussian(0.25), **GOOD)
        with pytest.raises(ValueError, match=message):
            predict(first_three, x, Gaussian(0.25), alpha=0.001, **GOOD)
        with pytest.raises(ValueError, match=message):
            sample(first_three, x, Gaussian(0.25), **GOOD)
        with pytest.raises(ValueError, match=r"^inputs\[0\] must hold values of at most 2\.09715e\+06, "):
            Smooth(first_three, 3, 0.25).certify(x[1], 10, 100, 0.001, 10)
        assert len(certify(first_three, x, Gaussian(value), **GOOD)) == 3
    x = torch.full((1, 3), sign * most)
    assert len(certify(first_three, [x[0]], Gaussian(0.25), **GOOD)) == len(certify(first_three, x, Gaussian(0.25), **GOOD))
    noisy = rsfast.ops.perturb(x, Gaussian(0.25), seed=1, samples=range(100))
    assert len(noisy.unique()) > 4


@pytest.mark.parametrize("sigma", [0, -0.25, math.nan, math.inf, 1e-60])
def test_sigma_is_checked(sigma):
    with pytest.raises(ValueError, match=r"sigma must be positive.*, got"):
        Gaussian(sigma)
    with pytest.raises(ValueError, match=r"sigma must be positive.*, got"):
        Smooth(first_three, 3, sigma)


def test_a_model_on_another_device_is_named():
    with pytest.raises(ValueError, match=r"inputs must be on the model's device, 'meta', got 'cpu'"):
        certify(nn.Linear(3, 3, device="meta"), X, Gaussian(0.25), **GOOD)
    with pytest.raises(ValueError, match=r"inputs must be on the model's device, 'meta', got 'cpu'"):
        Smooth(nn.Linear(3, 3, device="meta"), 3, 0.25).predict(torch.zeros(3), 11, 0.001, 10)


def test_noise_and_model_are_checked():
    with pytest.raises(
        TypeError, match=r"noise must be one of Gaussian.*, got 0\.25; pass an object, such as rsfast\.Gaussian"
    ):
        certify(first_three, X, 0.25, **GOOD)
    with pytest.raises(TypeError, match=r"model must be callable on a batch, got 3"):
        certify(3, X, Gaussian(0.25), **GOOD)
    with pytest.raises(TypeError, match=r"base_classifier must be callable on a batch, got None"):
        Smooth(None, 3, 0.25)
    with pytest.raises(TypeError, match=r"keyword arguments must be among scale, shift, .*, got sedd"):
        Smooth(first_three, 3, 0.25, sedd=1)


def linear(dtype):
    model = nn.Linear(3, 3).to(dtype)
    with torch.no_grad():
        model.weight.copy_(torch.eye(3)), model.bias.zero_()
    return model


@pytest.mark.parametrize("own", [torch.float64, torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("given", [None, torch.float64, torch.bfloat16], ids=str)
def test_a_batch_of_another_dtype_than_the_model_is_refused_before_sampling(own, given):
    """The error names the dtype to pass, with which the call then works."""
    if own == (given or torch.float32):
        return
    model, calls = linear(own), []
    model.register_forward_hook(lambda *_: calls.append(1))
    message = rf"^dtype must be {own}, that of the model's parameters, got {given or torch.float32}, .*; pass dtype={own}"
    for function, more in ((certify, {}), (predict, {"alpha": 0.001}), (sample, {})):
        with pytest.raises(ValueError, match=message):
            function(model, X, Gaussian(0.25), **GOOD, **more, dtype=given)
    with pytest.raises(ValueError, match=message):
        Smooth(model, 3, 0.25, dtype=given).certify(X[0], 10, 100, 0.001, 10)
    assert not calls
    assert certify(model, X, Gaussian(0.25), num_classes=3, n=100, seed=1, dtype=own)[0].execution.dtype == str(own)[6:]


@pytest.mark.parametrize("name", ["dtype", "autocast"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_a_dtype_may_be_a_name(name, dtype):
    """With torch's prefix or without."""
    if (name, dtype) == ("autocast", torch.float64):
        return
    model = linear(dtype if name == "dtype" else torch.float32)
    keywords = {"num_classes": 3, "n": 100, "seed": 1}
    calls = [
        lambda value: certify(model, X, Gaussian(0.25), **keywords, **{name: value}),
        lambda value: list(rsfast.certify_each(model, X, Gaussian(0.25), **keywords, **{name: value})),
        lambda value: predict(model, X, Gaussian(0.25), **keywords, alpha=0.001, **{name: value}),
        lambda value: sample(model, X, Gaussian(0.25), **keywords, **{name: value}).counts.tolist(),
    ]
    if name == "dtype":
        calls.append(lambda value: Smooth(model, 3, 0.25, seed=1, dtype=value).certify(X[0], 10, 100, 0.001, 10))
        calls.append(lambda value: rsfast.ops.perturb(X, Gaussian(0.25), seed=1, samples=range(2), dtype=value).tolist())
    for call in calls:
        assert call(str(dtype)) == call(str(dtype).removeprefix("torch.")) == call(dtype)


def test_a_model_that_converts_its_input_takes_any_dtype():
    class Converts(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = linear(torch.float64)

        def forward(self, x):
            return self.inner(x.double())

    keywords = {"num_classes": 3, "n": 300, "seed": 1}
    found = [certify(Converts(), X, Gaussian(0.25), **keywords, dtype=dtype) for dtype in (None, torch.float64)]
    assert [each.counts for each in found[0]] == [each.counts for each in found[1]]
    plain = certify(linear(torch.float64), X, Gaussian(0.25), **keywords, dtype=torch.float64)
    assert plain == found[1]
    half = certify(linear(torch.bfloat16), X, Gaussian(0.25), **keywords, autocast=torch.bfloat16)
    assert half[0].execution.to_dict() | {"dtype": "float32", "autocast": "bfloat16"} == half[0].execution.to_dict()


def test_a_batch_of_float64_is_what_autocast_leaves_alone():
    message = r"^autocast must be None where dtype is torch.float64, which it leaves alone, got torch.bfloat16"
    with pytest.raises(ValueError, match=message):
        certify(linear(torch.float64), X, Gaussian(0.25), **GOOD, dtype=torch.float64, autocast=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match=message):
        certify(linear(torch.float64), X, Gaussian(0.25), **GOOD, dtype=torch.float64)


def test_sample_needs_a_seed_and_a_range():
    with pytest.raises(TypeError, match=r"seed must be an int, got None"):
        sample(first_three, X, Gaussian(0.25), **{**GOOD, "seed": None})
    with pytest.raises(ValueError, match=r"start must be an int from 0 to .*, got -1"):
        sample(first_three, X, Gaussian(0.25), start=-1, **GOOD)
    with pytest.raises(ValueError, match=r"stream must be one of 'selection', .*, got 'test'"):
        sample(first_three, X, Gaussian(0.25), stream="test", **GOOD)


def test_errors_come_before_any_sampling():
    def model(batch):
        raise AssertionError("the model ran")

    with pytest.raises(ValueError, match="clamp"):
        certify(model, X, Gaussian(0.25), clamp=(2, 1), **GOOD)
    with pytest.raises(ValueError, match="rule"):
        certify(model, X, Gaussian(0.25), rule="none", **GOOD)
    with pytest.raises(ValueError, match="stream"):
        sample(model, X, Gaussian(0.25), stream="none", **GOOD)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "top_two", "n": 10}, "n is 10: .* certify needs n of at least 11$"),
        ({"bound": "hoeffding", "n": 13}, "n is 13: .* certify needs n of at least 14$"),
        ({"head": Softmax(), "n": 10}, "n is 10: .* certify needs n of at least 11$"),
        ({"head": Softmax(), "bound": "empirical_bernstein", "n": 36}, "n is 36: .* certify needs n of at least 37$"),
        ({"radius": 0.01, "n": 10}, "n is 10: .* certify needs n of at least 11$"),
        ({"rtol": 0.1, "n": 10}, "n is 10: .* certify needs n of at least 11$"),
        (
            {"radius": 0.5, "n": 200},
            r"radius is 0\.5: no input can reach it, as at sigma = 0\.25 and alpha = 0\.001 n = 200 unanimous votes prove "
            r"the l2 radius 0\.4\d+; ",
        ),
        ({"head": [Votes(), Softmax()], "radius": 1, "n": 500}, r"radius is 1: .* alpha = 0\.0005 n = 500 "),
    ],
)
@pytest.mark.parametrize("call", [certify, rsfast.certify_each])
def test_what_no_votes_can_prove_is_warned_of(options, message, call):
    """Before any sampling, at the caller's line; and not where they can."""
    sampled = []

    def model(batch):
        sampled.append(len(batch))
        return first_three(batch)

    with pytest.warns(UserWarning, match=message) as caught:
        result = call(model, X, Gaussian(0.25), **GOOD | options)
    assert {warning.filename for warning in caught} == {__file__}
    assert call is certify or not sampled
    list(result)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        enough = {"radius": 0.4} if "radius" in options and options["n"] > 100 else {"n": options["n"] + 1}
        list(call(model, X, Gaussian(0.25), **GOOD | options | enough))


def test_smooth_abstains_at_a_limit_of_one_half():
    """As forks give one; at the next number there is a radius."""
    for limit, found in ((0.5, ABSTAIN), (np.nextafter(0.5, 1), 0)):

        class Fork(Smooth):
            def _lower_confidence_bound(self, NA, N, alpha, limit=limit):
                return limit

        prediction, radius = Fork(first_three, 3, 0.25, seed=1).certify(torch.tensor([9.0, 0.0, 0.0]), 10, 10, 0.001, 10)
        assert prediction == found
        assert (radius > 0) == (found == 0)


def test_too_small_n_is_said():
    with pytest.warns(UserWarning, match=r"n is 9: at alpha = 0.001 every input abstains.* certify needs n of at least 10"):
        certify(first_three, X, Gaussian(0.25), **{**GOOD, "n": 9})
    with pytest.warns(UserWarning, match=r"n is 10: .* predict needs n of at least 11"):
        predict(first_three, X, Gaussian(0.25), alpha=0.001, **{**GOOD, "n": 10})
    with pytest.warns(UserWarning, match=r"n is 9"):
        Smooth(first_three, 3, 0.25).certify(torch.zeros(3), 10, 9, 0.001, 10)
