"""rsfast.stats.registry: a bound that is declared is all that certify needs; what it cannot do is refused, and said why."""

import numpy as np
import pytest
import torch

import rsfast
from rsfast import Gaussian, Softmax, Votes
from rsfast.bounds import hoeffding_lower, hoeffding_upper
from rsfast.stats.registry import BOUNDS, Bound, available, register, resolve_bound, sample_ranges

SEEN = []  # by the toy bound: sizes of its sample ranges


class Toy(Bound):
    """Hoeffding's bounds of votes at half of alpha, in sample ranges of halves; of no use but to be another bound."""

    name = "toy"
    histograms = True

    def sample_ranges(self, n):
        return [n // 2, n]

    def lower(self, estimates, place, alpha):
        counts, _ = estimates.histograms_at(place)
        SEEN.append(counts.sum(axis=-1).tolist())
        ours = estimates.at(place)
        return hoeffding_lower(ours.sums / ours.trials, ours.trials, alpha / 2)

    def upper(self, estimates, place, alpha):
        ours = estimates.at(place)
        return hoeffding_upper(ours.sums / ours.trials, ours.trials, alpha / 2)

    def upper_of_others(self, estimates, alpha):
        others = estimates.others()
        return hoeffding_upper(others.sums / others.trials, others.trials, alpha / 2).max(axis=1, keepdims=True)

    def forecast(self, estimates, mean, variance, alpha):
        return hoeffding_lower(mean, estimates.max_samples, alpha / 2)


@pytest.fixture
def toy():
    SEEN.clear()
    register(Toy())
    yield
    del BOUNDS["toy"]


def model(x):
    return torch.stack([x[:, 0], -x[:, 0], x[:, 0] * 0 - 1], dim=1)


INPUTS = torch.tensor([[0.2], [-0.1], [0.01]])
OPTIONS = {"num_classes": 3, "n0": 50, "n": 1000, "alpha": 0.01, "seed": 1, "batch_size": 300}


@pytest.mark.filterwarnings("ignore:inputs hold values")
@pytest.mark.parametrize("rule", ["auto", "one_vs_rest", "top_two", "bonferroni"])
@pytest.mark.usefixtures("toy")
def test_a_bound_that_is_registered_certifies(rule):
    found = rsfast.certify(model, INPUTS, Gaussian(0.25), bound="toy", rule=rule, **OPTIONS)
    known = rsfast.certify(model, INPUTS, Gaussian(0.25), bound="hoeffding", rule=rule, **OPTIONS | {"alpha": 0.005})
    assert [each.bound for each in found] == ["toy"] * 3
    assert max(each.radius for each in found) > 0.05
    np.testing.assert_allclose([each.radius for each in found], [each.radius for each in known], rtol=1e-9)
    assert [each.prediction for each in found] == [each.prediction for each in known]
    assert {tuple(sizes) for of_inputs in SEEN for sizes in of_inputs} == {(500, 500)}


@pytest.mark.filterwarnings("ignore:inputs hold values")
@pytest.mark.usefixtures("toy")
def test_what_a_bound_does_not_declare_is_refused():
    for options, reason in (
        ({"radius": 0.1}, "got 'toy'; it holds for one analysis"),
        ({"head": Softmax()}, "got 'toy'; it counts votes"),
        ({"rule": "class_partitioning"}, "bound must be clopper_pearson with the rule 'class_partitioning'.*, got 'toy'"),
    ):
        with pytest.raises(ValueError, match=reason):
            rsfast.certify(model, INPUTS, Gaussian(0.25), bound="toy", **OPTIONS, **options)
    with pytest.raises(ValueError, match=r"bound must be one of auto, clopper_pearson, .*, toy, got 'toys'"):
        rsfast.certify(model, INPUTS, Gaussian(0.25), bound="toys", **OPTIONS)


@pytest.mark.usefixtures("toy")
def test_a_name_is_taken_once():
    for name in ("toy", "betting", "auto"):
        with pytest.raises(ValueError, match=f"name must not be that of another bound, got '{name}'"):
            register(type("Another", (Toy,), {"name": name})())


def test_auto_is_the_first_preferred_that_is_available():
    for head, early, name in (
        (Votes(), False, "clopper_pearson"),
        (Softmax(), False, "betting"),
        (Votes(), True, "beta_binomial_sequence"),
        (Softmax(), True, "betting_sequence"),
    ):
        assert resolve_bound("auto", head, early).name == name
        assert name in available(head, early)


@pytest.mark.parametrize("bound", BOUNDS.values(), ids=BOUNDS)
@pytest.mark.parametrize("head", [Votes(), Softmax()], ids=str)
@pytest.mark.parametrize("early", [False, True])
def test_each_bound_can_do_what_it_declares(bound, head, early):
    can = (bound.scores or head == Votes()) and (bound.sequence or not early)
    assert bool(bound.unavailable_reason(head, early)) != can
    assert (bound.name in available(head, early)) == can


def test_the_parts_of_alpha_of_all_analyses_sum_to_at_most_alpha():
    for bound in BOUNDS.values():
        parts = [bound.alpha_of_analysis(0.05, analysis) for analysis in range(1, 10_000 if bound.sequence else 2)]
        assert 0.0499 < sum(parts) <= 0.05


def test_several_bounds_take_the_finest_ranges_or_the_coarsest_analyses():
    names = ("clopper_pearson", "betting", "betting_sequence")
    for n in (1, 20, 33, 1000, 100_000):
        single = [BOUNDS[name].sample_ranges(n) for name in names]
        assert sample_ranges([BOUNDS[name] for name in names], n, early=False) == single[-1]
        assert sample_ranges([BOUNDS[name] for name in names[:2]], n, early=False) == single[1]
        coarse, fine = (BOUNDS[name].analysis_ends(n) for name in ("betting_sequence", "beta_binomial_sequence"))
        assert sample_ranges([BOUNDS["beta_binomial_sequence"]], n, early=True) == fine
        assert sample_ranges([BOUNDS["beta_binomial_sequence"], BOUNDS["betting_sequence"]], n, early=True) == coarse
        assert sample_ranges([BOUNDS["betting_sequence"]], n, early=True) == coarse == single[-1]
