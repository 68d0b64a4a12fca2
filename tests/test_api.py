"""The public functions end to end: where the smoothed radius is known, beside the 2019 loop, and on bad input."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from scipy.stats import binom, ks_2samp
from torch import nn

import rsfast
from rsfast import ABSTAIN, ClippedLogits, Gaussian, Smooth, Softmax, Sparsemax, Votes, certify, predict, sample
from rsfast.demo import Loop2019


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
    monkeypatch.setattr(rsfast.sampler, "_MEMORY", 1)  # two inputs under way
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
        ({"head": []}, ValueError, "it must hold at least one head, and none twice"),
        ({"head": [Votes(), Votes()]}, ValueError, "none twice"),
        ({"head": ["votes"]}, TypeError, "heads holds 'votes'; each must be one of Votes"),
        ({"head": "votes"}, TypeError, "head is 'votes'; it must be one of Votes, .* or a list of them"),
        ({"head": [Votes(), Softmax()], "bound": "clopper_pearson"}, ValueError, "with the head Softmax"),
        ({"radius": 0.5, "bound": "clopper_pearson"}, ValueError, "which holds for one look"),
        ({"radius": 0.5, "rtol": 0.5}, ValueError, "one of them must be None"),
        ({"rtol": 0}, ValueError, "rtol is 0; it must be above 0 and below 1"),
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
    perturb = rsfast.batches.perturb
    monkeypatch.setattr(
        rsfast.batches, "perturb", lambda *a, **k: drawn.append((k["stream"], *k["samples"].tolist())) or perturb(*a, **k)
    )
    tune(heads=[Votes(), Sparsemax(1.0)], n0=10, n=100)
    assert {stream for stream, *_ in drawn} == {"training"}
    assert Counter(sample for _, *samples in drawn for sample in samples) == dict.fromkeys(range(110), len(CALIBRATION))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"heads": []}, ValueError, "at least one head"),
        ({"criterion": "best"}, ValueError, "criterion is 'best'; it must be a radius, or one of average_radius"),
        ({"criterion": -1.0}, ValueError, "criterion is -1.0; as a radius it must be finite and not negative"),
        ({"criterion": None}, TypeError, "criterion is None; it must be a radius"),
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


def test_the_warning_is_for_clopper_pearson_alone():
    """Nine unanimous votes certify nothing by it; the randomized bound may."""
    options = {"num_classes": 2, "n": 9, "seed": 1}
    x = Linear(4).at([3.0] * 20)
    with pytest.warns(UserWarning, match="certify needs n of at least 10"):
        certify(Linear(4), x, Gaussian(0.25), **options)
    with pytest.warns(UserWarning, match=r"at alpha = 0\.0005 .* certify needs n of at least 11"):
        certify(Linear(4), x, Gaussian(0.25), head=[Votes(), Softmax()], **options)
    found = certify(Linear(4), x, Gaussian(0.25), bound="randomized_clopper_pearson", **options)
    assert 0 < sum(certificate.radius > 0 for certificate in found) < 20


def test_a_model_that_returns_nan_certifies_nothing():
    [certificate] = certify(lambda x: x[:, :2] * math.nan, torch.ones(1, 2), Gaussian(0.25), num_classes=2, n=100, seed=0)
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
    with pytest.raises(ValueError, match=r"x has shape .* must be one input"):
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


# Errors


X = torch.zeros(2, 3)
GOOD = {"num_classes": 3, "n": 100, "seed": 1}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"n": 0}, ValueError, r"n is 0; it must be from 1"),
        ({"n": 2.5}, TypeError, r"n is 2.5; it must be an int"),
        ({"n": 1 << 33}, ValueError, r"n is 8589934592; it must be from 1 to 8589934591"),
        ({"n0": 0}, ValueError, r"n0 is 0; it must be from 1"),
        ({"alpha": 0}, ValueError, r"alpha is 0; it must be above 0"),
        ({"alpha": 1.0}, ValueError, r"alpha is 1.0; it must be above 0 and below 1"),
        ({"alpha": math.nan}, ValueError, r"alpha is nan"),
        ({"num_classes": 1}, ValueError, r"num_classes is 1; it must be from 2"),
        ({"num_classes": 4}, ValueError, r"num_classes is 4, but the model returned 3 logits a row"),
        ({"seed": -1}, ValueError, r"seed is -1; it must be in \[0, 2\^64\)"),
        ({"seed": "1"}, TypeError, r"seed is '1'; it must be an int"),
        ({"batch_size": 0}, ValueError, r"batch_size is 0; it must be from 1"),
        ({"batch_size": "big"}, ValueError, r"batch_size is 'big'; it must be an int or 'auto'"),
        ({"input_ids": [0]}, ValueError, r"input_ids has shape \[1\]; it must be \[2\]"),
        ({"input_ids": [0, -1]}, ValueError, r"input_ids runs from -1"),
        (
            {"backend": "gpu"},
            ValueError,
            r"backend is 'gpu'; it must be 'auto' or one of 'reference', 'cpu', 'cuda', 'triton'",
        ),
        ({"dtype": torch.float64}, TypeError, r"dtype is torch.float64; it must be one of"),
        ({"channels_last": True}, ValueError, r"channels_last is True, but an input has 1 axes"),
        ({"scale": [1.0, 2.0]}, ValueError, r"scale has shape \[2\]; it must be a number or \[3\]"),
        ({"clamp": (1, 0)}, ValueError, r"clamp is \(1, 0\); it must be \(low, high\) with low <= high"),
        ({"head": "votes"}, TypeError, r"head is 'votes'; it must be one of Votes"),
        ({"bound": "wald"}, ValueError, r"bound is 'wald'"),
        ({"rule": "best"}, ValueError, r"rule is 'best'"),
        ({"head": Softmax(), "bound": "clopper_pearson"}, ValueError, r"bound is 'clopper_pearson'; with the head"),
        ({"head": ClippedLogits(0, 1), "rule": "one_vs_rest"}, ValueError, r"rule is 'one_vs_rest'; with the head"),
        ({"batchsize": 3}, TypeError, r"batchsize is no argument; further ones are scale, shift"),
    ],
)
def test_certify_says_what_is_wrong(change, error, message):
    with pytest.raises(error, match=message):
        certify(first_three, X, Gaussian(0.25), **{**GOOD, **change})


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        (np.zeros((2, 3), np.float32), TypeError, r"inputs is a ndarray; it must be a dense float32 tensor"),
        (
            torch.zeros(2, 3, dtype=torch.uint8),
            TypeError,
            r"inputs has dtype torch.uint8; it must be float32; convert integer images",
        ),
        (
            torch.zeros(2, 3, dtype=torch.float64),
            TypeError,
            r"inputs has dtype torch.float64; it must be float32; call x.float",
        ),
        (torch.zeros(3), ValueError, r"inputs has shape \[3\]; it must be \[I, \*shape\]"),
        (torch.zeros(0, 3), ValueError, r"inputs has shape \[0, 3\]"),
        (torch.tensor([[0.0, 1.0], [math.nan, 0.0]]), ValueError, r"inputs\[1\] holds NaN or infinity"),
        (torch.tensor([[0.0, math.inf]]), ValueError, r"inputs\[0\] holds NaN or infinity"),
    ],
)
def test_inputs_are_checked(inputs, error, message):
    with pytest.raises(error, match=message):
        certify(first_three, inputs, Gaussian(0.25), **GOOD)


@pytest.mark.parametrize("sigma", [0, -0.25, math.nan, math.inf, 1e-60])
def test_sigma_is_checked(sigma):
    with pytest.raises(ValueError, match=r"sigma is .*; it must be positive"):
        Gaussian(sigma)
    with pytest.raises(ValueError, match=r"sigma is .*; it must be positive"):
        Smooth(first_three, 3, sigma)


def test_a_model_on_another_device_is_named():
    with pytest.raises(ValueError, match=r"inputs is on 'cpu', but the model is on 'meta'; they must share a device"):
        certify(nn.Linear(3, 3, device="meta"), X, Gaussian(0.25), **GOOD)
    with pytest.raises(ValueError, match=r"inputs is on 'cpu', but the model is on 'meta'"):
        Smooth(nn.Linear(3, 3, device="meta"), 3, 0.25).predict(torch.zeros(3), 11, 0.001, 10)


def test_noise_and_model_are_checked():
    with pytest.raises(TypeError, match=r"noise is 0.25; it must be a Gaussian"):
        certify(first_three, X, 0.25, **GOOD)
    with pytest.raises(TypeError, match=r"model is 3; it must be callable"):
        certify(3, X, Gaussian(0.25), **GOOD)
    with pytest.raises(TypeError, match=r"base_classifier is None; it must be callable"):
        Smooth(None, 3, 0.25)
    with pytest.raises(TypeError, match=r"sedd is no argument; further ones are scale, shift"):
        Smooth(first_three, 3, 0.25, sedd=1)


def test_sample_needs_a_seed_and_a_range():
    with pytest.raises(TypeError, match=r"seed is None; it must be an int"):
        sample(first_three, X, Gaussian(0.25), **{**GOOD, "seed": None})
    with pytest.raises(ValueError, match=r"start is -1; it must be an int from 0"):
        sample(first_three, X, Gaussian(0.25), start=-1, **GOOD)
    with pytest.raises(ValueError, match=r"stream is 'test'; it must be one of 'selection'"):
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


def test_too_small_n_is_said():
    with pytest.warns(UserWarning, match=r"n is 9: at alpha = 0.001 every input abstains.* certify needs n of at least 10"):
        certify(first_three, X, Gaussian(0.25), **{**GOOD, "n": 9})
    with pytest.warns(UserWarning, match=r"n is 10: .* predict needs n of at least 11"):
        predict(first_three, X, Gaussian(0.25), alpha=0.001, **{**GOOD, "n": 10})
    with pytest.warns(UserWarning, match=r"n is 9"):
        Smooth(first_three, 3, 0.25).certify(torch.zeros(3), 10, 9, 0.001, 10)
