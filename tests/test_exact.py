"""Exact certificates of deterministic noise: by enumeration, in every function, the command line and run folders."""

import json
from fractions import Fraction
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import LINEAR_NETS, integers, rows, sidecar

import rsfast
from rsfast import ABSTAIN, Certificate, Gaussian, Provenance, Softmax, Splitting, SubspaceSmoothing, Tally, ops
from rsfast.cli import main
from rsfast.runs import plot, results
from rsfast.runs.layout import sidecar_bytes
from rsfast.runs.recertify import recertify

# Of a classifier that returns NaN on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:model returned NaN")

ROTATED = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 4, 4)))[0][:, :2]  # five planes of R^4
AXES = np.eye(4)[[[0, 1], [1, 2], [2, 3], [3, 0], [0, 2]]]  # five pairs of elements
ONES = SubspaceSmoothing(np.eye(5)[:, None])  # five single elements


def lottery(seed, classes=3):
    """A classifier that draws the class of each view from its bits: nothing is smooth, so only the vote's lead counts."""
    words = np.random.default_rng(seed).integers(1, 1 << 31, 4)

    def model(batch):
        hashed = (batch.view(torch.int32).long() * torch.from_numpy(words)).sum(1) % 1009 * 7919 % 1013
        return torch.nn.functional.one_hot(hashed % (classes + 2) % classes, classes).float()

    return model


def marked(votes):
    """A classifier of views of single elements that stand for their vote: NaN for a vote that nobody gets."""

    def model(batch):
        value = batch.sum(1).round().long()
        logits = torch.nn.functional.one_hot(value.clamp(min=1) - 1, votes).float()
        return torch.where((value == 0)[:, None], torch.nan, logits)

    return model


@pytest.mark.parametrize("projections", [AXES, ROTATED], ids=["axes", "rotated"])
def test_every_perturbation_of_a_small_grid(projections):
    """All pairs of 16 inputs and 100 classifiers: none that a certificate covers has another class."""
    noise = SubspaceSmoothing(projections)
    x = torch.tensor(list(product([0.25, 1.0], repeat=4)))
    sizes = np.array([[noise.size(b - a) for b in x.double().numpy()] for a in x.double().numpy()])
    changed = np.array([[ops.changed(a, b, noise) for b in x] for a in x])
    assert np.all(changed <= sizes)
    covered = 0
    for seed in range(100):
        found = rsfast.certify(lottery(seed), x, noise, num_classes=3)
        classes = np.array([each.prediction for each in found])
        radii = np.array([each.radius for each in found])
        inside = (sizes <= radii[:, None]) & (classes != ABSTAIN)[:, None]
        within = (changed <= radii[:, None]) & (classes != ABSTAIN)[:, None]
        assert np.all((classes[None, :] == classes[:, None])[inside | within])
        covered += (within & ~np.eye(len(x), dtype=bool)).sum()
    assert covered > 0 or projections is ROTATED  # of which each sees any delta but 0


@pytest.mark.parametrize("votes", list(product(range(4), repeat=5))[::3])
def test_the_radius_is_the_largest(votes):
    """By brute force over all other votes: no fewer changed evaluations than radius + 1 take the class away."""
    (found,) = rsfast.certify(marked(3), torch.tensor([votes]).float(), ONES, num_classes=3)
    counts = np.array([votes.count(label) for label in (1, 2, 3)])
    best = counts.max()
    if (counts == best).sum() > 1:
        assert (found.prediction, found.radius) == (ABSTAIN, 0)
        return
    assert found.prediction == counts.argmax()
    assert found.counts == (best, np.sort(counts)[-2])
    needed = min(
        sum(a != b for a, b in zip(votes, other, strict=True))
        for other in product(range(4), repeat=5)
        if any(other.count(label) >= other.count(found.prediction + 1) for label in {1, 2, 3} - {found.prediction + 1})
    )
    assert found.radius == needed - 1


def test_all_functions_agree(tmp_path):
    x, model = torch.rand(40, 4, generator=torch.Generator().manual_seed(1)).round(decimals=1), lottery(5)
    noise = SubspaceSmoothing(AXES)
    options = {"num_classes": 3, "seed": 7}
    found = rsfast.certify(model, x, noise, **options)
    assert {each.prediction for each in found} == {ABSTAIN, 0, 1, 2}
    assert list(rsfast.certify_each(model, iter(x), noise, batch_size=3, **options)) == found
    assert rsfast.certify(model, x, noise, n0=0, n=5, alpha=0, bound="exact", rule="exact", radius=None, **options) == found
    assert rsfast.certify(model, x, noise, head=[rsfast.Votes()], **options) == [[each] for each in found]
    assert rsfast.predict(model, x, noise, **options) == [each.prediction for each in found]
    assert rsfast.predict(model, x, noise, n=5, alpha=0, **options) == [each.prediction for each in found]
    parts = [rsfast.sample(model, x, noise, n=n, start=start, **options) for n, start in ((2, 0), (3, 2))]
    (parts[0] + parts[1]).save(tmp_path / "tally.safetensors")
    tally = Tally.load(tmp_path / "tally.safetensors")
    assert tally.provenance == (parts[0] + parts[1]).provenance
    assert rsfast.exact_certificates(tally, backend=found[0].backend, execution=found[0].execution) == found
    for each in found:
        assert (each.n0, each.n, each.max_samples, each.alpha, each.alpha_upper) == (0, 5, 5, 0.0, 0.0)
        assert (each.rule, each.bound, each.norm) == ("exact", "exact", "projections")
        assert Certificate.from_dict(json.loads(json.dumps(each.to_dict()))) == each


def test_shares_are_rounded_outward_and_no_further():
    noise = SubspaceSmoothing(np.eye(41)[:, None])
    for right in range(21, 42):
        x = torch.tensor([[2.0] * right + [1.0] * (41 - right)])
        (found,) = rsfast.certify(marked(2), x, noise, num_classes=2)
        lower, upper = Fraction(found.p_lower), Fraction(found.p_upper)
        assert lower <= Fraction(right, 41) <= Fraction(np.nextafter(found.p_lower, 2))
        assert Fraction(41 - right, 41) <= upper
        assert right == 41 or Fraction(np.nextafter(found.p_upper, 0)) < Fraction(41 - right, 41)
        assert right < 41 or (lower, upper) == (1, 0)


def test_covers():
    x = torch.tensor([[3.0, 3.0, 3.0, 3.0, 1.0]])
    (found,) = rsfast.certify(marked(3), x, ONES, num_classes=3)
    assert (found.prediction, found.radius) == (2, 1)
    assert found.covers([5.0, 0, 0, 0, 0])
    assert found.covers(np.zeros(5))
    assert not found.covers([5.0, 1e-30, 0, 0, 0])
    (tie,) = rsfast.certify(marked(3), torch.tensor([[3.0, 3.0, 1.0, 1.0, 2.0]]), ONES, num_classes=3)
    assert not tie.covers(np.zeros(5))


def test_it_is_exact_whatever_the_batch_and_the_seed():
    x, model = torch.rand(9, 4, generator=torch.Generator().manual_seed(2)), lottery(3)
    noise = SubspaceSmoothing(ROTATED)
    first = [(each.prediction, each.counts) for each in rsfast.certify(model, x, noise, num_classes=3)]
    for size in (1, 4, 7, 64):
        found = rsfast.certify(model, x, noise, num_classes=3, batch_size=size, seed=size, backend="reference")
        assert [(each.prediction, each.counts) for each in found] == first


# Errors


X = torch.ones(1, 5)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("n0", 100, "0"),
        ("n", 4, "5"),
        ("alpha", 0.001, "0"),
        ("alpha", False, "0"),
        ("bound", "clopper_pearson", "'auto'"),
        ("rule", "top_two", "'auto'"),
        ("lipschitz", 1.0, "None"),
        ("radius", 1.0, "None"),
        ("rtol", 0.1, "None"),
    ],
)
def test_an_option_that_makes_no_sense_is_an_error(name, value, allowed):
    message = (
        rf"^{name} must be {allowed} with deterministic noise, whose 5 evaluations are all counted, got {value!r}; leave"
    )
    with pytest.raises(ValueError, match=message):
        rsfast.certify(marked(3), X, ONES, num_classes=3, **{name: value})
    if name in ("n", "alpha"):
        with pytest.raises(ValueError, match=message):
            rsfast.predict(marked(3), X, ONES, num_classes=3, **{name: value})


def test_soft_heads_and_tuning_are_refused():
    with pytest.raises(ValueError, match=r"^head must be Votes\(\) with deterministic noise, .*, got Softmax"):
        rsfast.certify(marked(3), X, ONES, num_classes=3, head=Softmax(1.0))
    with pytest.raises(ValueError, match=r"^head must be Votes\(\) with deterministic noise, .*, got Softmax"):
        rsfast.certify(marked(3), X, ONES, num_classes=3, head=[rsfast.Votes(), Softmax(1.0)])
    with pytest.raises(ValueError, match=r"^noise must be random where heads are compared"):
        rsfast.tune_head(marked(3), X, [0], ONES, [rsfast.Votes()], num_classes=3)


def test_there_are_no_more_samples_than_evaluations():
    with pytest.raises(ValueError, match=r"^start \+ n must be at most 5, the evaluations of Subspace.*, got 6$"):
        rsfast.sample(marked(3), X, ONES, num_classes=3, n=3, start=3, seed=0)
    with pytest.raises(ValueError, match=r"^samples must lie in \[0, 5\)"):
        ops.perturb(X, ONES, seed=0, samples=[5])


def test_random_noise_has_a_failure_probability():
    for options in ({"alpha": 0}, {"n0": 0}):
        with pytest.raises(ValueError, match=r"^(alpha|n0) must be "):
            rsfast.certify(marked(3), X, Gaussian(0.5), num_classes=3, **options)
    for name, options in (("n", {"alpha": 0.1}), ("alpha", {"n": 100})):
        with pytest.raises(TypeError, match=rf"^{name} must be given with random noise, got None; pass the .* {name}="):
            rsfast.predict(marked(3), X, Gaussian(0.5), num_classes=3, **options)


def test_sample_takes_all_evaluations():
    how = {"num_classes": 3, "seed": 0}
    whole = rsfast.sample(marked(3), X, ONES, n=5, **how)
    assert rsfast.sample(marked(3), X, ONES, **how) == whole
    assert rsfast.sample(marked(3), X, ONES, n=2, **how) + rsfast.sample(marked(3), X, ONES, start=2, **how) == whole
    with pytest.raises(ValueError, match=r"^start must be an int from 0 to 4, got 5$"):
        rsfast.sample(marked(3), X, ONES, start=5, **how)
    with pytest.raises(TypeError, match=r"^n must be given with random noise, got None; pass the number of samples"):
        rsfast.sample(marked(3), X, Gaussian(0.5), **how)


@pytest.mark.parametrize("noise", [ONES, Splitting(0.5, deterministic=True)])
def test_every_stream_holds_the_same_evaluations(noise):
    x, model = torch.tensor([[0.0, 1.0, 1.0, 0.0, 1.0]]), lambda batch: torch.stack([batch[:, 0], batch[:, 1]], dim=1)
    first, *others = (
        rsfast.exact_certificates(rsfast.sample(model, x, noise, num_classes=2, seed=0, stream=stream))
        for stream in ("selection", "estimation", "training", "user")
    )
    assert others == [first] * 3


def test_tallies_that_are_no_whole_noise():
    whole = {"num_classes": 3, "seed": 0}
    tally = rsfast.sample(marked(3), X, ONES, n=4, **whole)
    with pytest.raises(ValueError, match=r"^tally must hold the samples 0 to 4 of input 0, all evaluations, got \(range"):
        rsfast.exact_certificates(tally)
    with pytest.raises(TypeError, match=r"^tally must be a Tally, got 3"):
        rsfast.exact_certificates(3)
    tally = rsfast.sample(marked(3), X, ONES, n=5, **whole)
    with pytest.raises(ValueError, match=r"^noise must be random where a sample selects the class"):
        rsfast.certificates(tally, tally, ONES, alpha=0.1)
    with pytest.raises(ValueError, match=r"^tally must be of random noise, got one of Subspace"):
        rsfast.predictions(tally, 0.1)
    tally.counts[0, 0] += 1
    tally.n += 1
    with pytest.raises(ValueError, match=r"^tally.n\[0\] must be 5, as its provenance states, got 6"):
        rsfast.exact_certificates(tally)
    tally.provenance = None
    with pytest.raises(ValueError, match=r"^tally.provenance must state which samples the Tally holds"):
        rsfast.exact_certificates(tally)
    tally.provenance = Provenance(Gaussian(1.0), seed=0, stream="user", samples=range(6), input_ids=[0])
    with pytest.raises(ValueError, match=r"^tally must be of deterministic noise, got one of Gaussian"):
        rsfast.exact_certificates(tally)


def test_changed_needs_two_inputs_and_deterministic_noise():
    with pytest.raises(ValueError, match=r"^other must have the shape of x, \[5\], got \[4\]"):
        ops.changed(X[0], X[0, :4], ONES)
    with pytest.raises(ValueError, match=r"^noise must be deterministic, got Gaussian"):
        ops.changed(X[0], X[0], Gaussian(1.0))


# Run folders and the command line


@pytest.fixture
def folder(workspace):
    """Six images of 12 numbers, four classes, and seven planes in a file."""
    workspace("exact_nets", LINEAR_NETS, np.arange(6) % 4)
    planes = np.linalg.qr(np.random.default_rng(3).normal(size=(7, 12, 12)))[0][:, :2]
    np.save("planes.npy", planes)
    return SubspaceSmoothing(planes)


BASE = "--model exact_nets:Net --data data.npz --num-classes 4 --noise subspacesmoothing:planes.npy --seed 11"


def test_command_line_and_run_folder(folder, capsys):
    assert main(f"certify {BASE} --out run".split()) == 0
    capsys.readouterr()
    import exact_nets

    images = torch.from_numpy(np.load("data.npz")["images"])
    found = rsfast.certify(exact_nets.Net(), images, folder, num_classes=4, seed=11)
    read = results.read("run")
    assert read.predict.tolist() == [each.prediction for each in found]
    assert read.radius.tolist() == [each.radius for each in found]
    assert len(set(read.radius.tolist())) > 1
    written = sidecar("run")
    assert [written[name] for name in ("n0", "n", "alpha", "bound", "rule", "norm")] == [
        *(0, 7, 0.0),
        *("exact", "exact", "projections"),
    ]
    assert set(integers("run")[0]) == {"idx", "estimation"}
    assert main(f"certify {BASE} --n 7 --alpha 0 --resume --out run".split()) == 0
    recertify("run", "again")
    assert rows("again") == rows("run")
    with pytest.raises(ValueError, match=r"^alpha must be 0 with deterministic noise"):
        recertify("run", "other", alpha=0.1)
    plot.plot({"run": read}, "figure.svg")
    assert Path("figure.svg").stat().st_size > 1000
    assert main(["analyze", "run"]) == 0
    assert "projections" in capsys.readouterr().out


def test_shards_merge(folder):
    assert main(f"certify {BASE} --out whole".split()) == 0
    for number, part in enumerate(("--end 4", "--start 4")):
        assert main(f"certify {BASE} {part} --out part{number}".split()) == 0
    assert main(["merge", "part0", "part1", "--out", "all"]) == 0
    assert rows("all") == rows("whole")


def test_predictions_in_a_run_folder(folder):
    assert main(f"certify {BASE} --out run".split()) == 0
    assert main(f"predict {BASE} --out predicted".split()) == 0
    assert results.read("predicted").predict.tolist() == results.read("run").predict.tolist()
    assert (sidecar("predicted")["n"], sidecar("predicted")["alpha"]) == (7, 0.0)
    assert main(f"predict {BASE} --resume --out predicted".split()) == 0


@pytest.mark.parametrize(
    "option", ["--n 100", "--alpha 0.001", "--n0 100", "--rule top_two", "--radius 1", "--head softmax:1"]
)
def test_the_command_line_refuses_what_makes_no_sense(folder, option, capsys):
    with pytest.raises(SystemExit):
        main(f"certify {BASE} {option} --out run".split())
    message = capsys.readouterr().err
    assert f"error: {option.split()[0].removeprefix('--')} must be " in message
    assert "with deterministic noise, whose 7 evaluations are all counted" in message
    assert not Path("run").exists()


def test_the_help_still_shows_defaults(capsys):
    with pytest.raises(SystemExit):
        main(["certify", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "estimation samples of an input (default: 100000)" in text
    with pytest.raises(SystemExit):
        main(["predict", "--help"])
    assert "samples of an input (default: 1000)" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("change", [{"n": 6}, {"alpha": 0.5}, {"n0": 3}])
def test_a_changed_sidecar_is_noticed(folder, change):
    assert main(f"certify {BASE} --out run".split()) == 0
    Path("run/results.json").write_text(json.dumps(sidecar("run") | change))
    with pytest.raises(ValueError, match=r"check sum|must be"):
        recertify("run", "again")


def test_settings_that_no_reader_would_take_are_not_written():
    with pytest.raises(ValueError, match=r"^results.json must have at most 128 MiB, got 128; take noise with fewer numbers"):
        sidecar_bytes({"noise": "0" * (1 << 27)})


def test_counts_that_are_not_all_evaluations_are_refused(folder):
    """Without check sums, as an earlier version would have written it."""
    assert main(f"certify {BASE} --out run".split()) == 0
    lines = integers("run")
    for line in lines:
        line["estimation"]["n"] += 1
        line["estimation"]["counts"][-1] += 1
    Path("run/counts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.warns(UserWarning, match="no check sums"), pytest.raises(ValueError, match=r"n = 7"):
        recertify("run", "again")
