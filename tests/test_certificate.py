"""rsfast.stats.certificate: the rules, the rounding of the radius, abstention, and what must not pass for a certificate."""

import dataclasses
import json
import math
from fractions import Fraction
from functools import partial

import mpmath as mp
import numpy as np
import pandas
import pytest
import torch
from scipy.stats import binom, binomtest

from rsfast import bounds
from rsfast.heads import ClippedLogits, Softmax, Sparsemax, Votes
from rsfast.noise import STREAM_VERSION, Gaussian
from rsfast.ops.tally import Tally
from rsfast.stats.bounds.clopper_pearson import ClopperPearson
from rsfast.stats.certificate import ABSTAIN, Certificate, Execution
from rsfast.stats.prediction import prediction, predictions, smallest_predictable_n
from rsfast.stats.proof import certificates, smallest_certifiable_n
from rsfast.stats.registry import BOUNDS
from rsfast.stats.rules import radius, resolve

UNIT = 2**30
ALPHA = 0.001
NOISE = Gaussian(0.5)
certificates = partial(certificates, assume_independent=True)  # Tallies here are made by hand


VOTES = (Votes(),)


def tally_of(counts, scores=None, heads=VOTES):
    """A Tally of votes [I][K + 1]; scores [I][M][K], sums and squares of each soft head as real numbers."""
    counts = torch.tensor(counts, dtype=torch.int64)
    tally = Tally(counts.shape[0], counts.shape[1] - 1, heads)
    tally.counts.copy_(counts)
    tally.n.copy_(counts.sum(1))
    if scores is not None:
        moments = torch.tensor(scores, dtype=torch.float64).mul(UNIT).ceil().long()  # [I, M, 2, K]
        tally.sums.copy_(moments[:, :, 0])
        tally.squares.copy_(moments[:, :, 1])
    return tally


def certify(selection, estimation, noise=NOISE, *, alpha=ALPHA, seed=0, **options):
    return certificates(tally_of(selection), tally_of(estimation), noise, alpha=alpha, seed=seed, **options)


def exact_radius(sigma, lower, upper):
    """(Q(lower) - Q(upper)) / 2 in 40 digits, by inverting the normal distribution function."""
    with mp.workdps(40):
        quantile = lambda p: mp.sqrt(2) * mp.erfinv(2 * mp.mpf(p) - 1)  # noqa: E731
        return mp.mpf(float(np.float32(sigma))) * (quantile(lower) - quantile(upper)) / 2


def test_one_vs_rest_votes():
    (result,) = certify([[1, 8, 1, 0]], [[2, 990, 8, 0]], rule="one_vs_rest")
    assert result.prediction == 1
    assert result.alpha_upper == 0
    assert result.p_lower == bounds.clopper_pearson_lower(990, 1000, ALPHA)
    assert result.p_upper == 1 - result.p_lower
    exact = exact_radius(0.5, result.p_lower, 1 - mp.mpf(result.p_lower))
    assert 0 < exact - mp.mpf(result.radius) < mp.mpf("1e-14")
    assert (result.counts, result.n0, result.n) == ((990, 8), 10, 1000)
    assert (result.bound, result.rule, result.norm, result.alpha) == ("clopper_pearson", "one_vs_rest", "l2", ALPHA)
    assert (result.head, result.noise, result.stream_version) == (Votes(), NOISE, STREAM_VERSION)
    assert not result.abstained


def test_top_two_votes_halve_alpha_and_take_the_largest_upper_bound():
    (result,) = certify([[8, 1, 1, 0]], [[600, 150, 250, 0]], rule="top_two")
    assert result.p_lower == bounds.clopper_pearson_lower(600, 1000, ALPHA / 2)
    assert result.p_upper == bounds.clopper_pearson_upper(250, 1000, ALPHA / 2) < 1 - result.p_lower
    assert result.counts == (600, 250)
    assert result.alpha_upper == ALPHA / 2
    (other,) = certify([[8, 1, 1, 0]], [[600, 150, 250, 0]], rule="one_vs_rest")
    assert result.radius > 1.5 * other.radius


def test_top_two_votes_are_capped():
    """With every vote for A, up of the others at alpha / 2 is 1 - lo(A), and both are the same number, rounded twice."""
    (result,) = certify([[9, 1, 0]], [[100, 0, 0]], rule="top_two")
    assert result.p_upper == 1 - result.p_lower <= bounds.clopper_pearson_upper(0, 100, ALPHA / 2)


@pytest.mark.parametrize("rule", ["one_vs_rest", "top_two"])
@pytest.mark.parametrize("sigma", [0.25, 0.1, 3e-30, 1e30])
def test_radius_rounds_down(rule, sigma):
    rng = np.random.default_rng(5)
    votes = [[int(n * a), int(n * (1 - a) * b), 0, 0] for n in (100, 10**4, 10**7) for a, b in rng.uniform(0.3, 1, (40, 2))]
    votes = [[a, b, int((a + b) * 0.05) + 1, 0] for a, b, *_ in votes] + [[2**33 - 2, 1, 0, 0], [2**33 - 1, 0, 0, 0]]
    results = [certify([[3, 1, 1, 0]], [each], Gaussian(sigma), rule=rule)[0] for each in votes]
    certified = [result for result in results if not result.abstained]
    assert len(certified) > 40
    for result in certified:
        upper = result.p_upper if rule == "top_two" else 1 - mp.mpf(result.p_lower)
        exact = exact_radius(sigma, result.p_lower, upper)
        assert result.radius < exact
        assert result.radius > exact - mp.mpf("4e-14") * sigma
        assert np.isfinite(result.radius)


def test_radius():
    values = radius(NOISE, [0.9, 0.5, 0.4, 0.0], [[0.1], [0.3], [1.0]])
    assert values.shape == (3, 4)
    assert values[0, 0] == pytest.approx(float(NOISE.potential(0.9)), abs=1e-14)
    assert values[1, 2] == pytest.approx(float(exact_radius(0.5, 0.4, 0.3)), abs=1e-14)
    assert np.all(values[:, 3] == -np.inf)
    assert np.all(values[2] == -np.inf)
    assert radius(NOISE, 0.5, 0.5) == 0


@pytest.mark.parametrize("bad", [1.0, 1.5, -0.1, np.nan])
def test_radius_refuses_certainty(bad):
    with pytest.raises(ValueError, match=r"p_lower must be at least 0 and below 1, got .*"):
        radius(NOISE, bad, 0.5)
    with pytest.raises(ValueError, match=r"p_upper must be above 0 and at most 1, got .*"):
        radius(NOISE, 0.5, 1 - bad)


@pytest.mark.parametrize("rule", ["one_vs_rest", "top_two"])
def test_abstention(rule):
    (result,) = certify([[9, 1, 0]], [[501, 499, 0]], rule=rule)
    assert (result.prediction, result.radius) == (ABSTAIN, 0.0)
    assert result.abstained
    assert result.p_lower == bounds.clopper_pearson_lower(501, 1000, ALPHA if rule == "one_vs_rest" else ALPHA / 2)


def test_the_class_is_chosen_on_the_selection_votes_only():
    """The estimation sample's favourite is not looked at: the class chosen before gets the bound, and abstains."""
    (result,) = certify([[6, 4, 0]], [[1, 999, 0]])
    assert result.abstained
    assert result.counts == (1, 999)
    assert result.p_lower == bounds.clopper_pearson_lower(1, 1000, ALPHA)


def test_selection_ties_go_to_the_lowest_class():
    (result,) = certify([[0, 5, 5, 0]], [[0, 1000, 0, 0]])
    assert result.prediction == 1


@pytest.mark.parametrize("rule", ["one_vs_rest", "top_two"])
def test_no_votes_count_as_trials_and_for_no_class(rule):
    (result,) = certify([[1, 3, 6]], [[0, 960, 40]], rule=rule)
    assert result.prediction == 1
    assert result.n == 1000
    assert result.counts == (960, 0)
    assert result.p_lower == bounds.clopper_pearson_lower(960, 1000, ALPHA if rule == "one_vs_rest" else ALPHA / 2)
    (broken,) = certify([[0, 0, 100]], [[0, 0, 1000]], rule=rule)  # a model that returns NaN does not certify class 0
    assert broken.abstained
    assert (broken.p_lower, broken.counts, broken.n) == (0, (0, 0), 1000)


def test_alpha_is_one_sided():
    """Ten unanimous votes certify at alpha = 0.001, by alpha^(1/10) > 1/2; at half of it they do not."""
    assert certify([[1, 0, 0]], [[10, 0, 0]])[0].prediction == 0
    assert certify([[1, 0, 0]], [[9, 0, 0]])[0].abstained
    assert certify([[1, 0, 0]], [[10, 0, 0]], rule="top_two")[0].abstained


def test_many_inputs_are_independent():
    selection, estimation = [[9, 1, 0], [1, 9, 0], [5, 5, 0]], [[90, 5, 5], [3, 97, 0], [10, 90, 0]]
    together = certify(selection, estimation, input_ids=[7, 8, 2**32 - 1], backend="cpu", seed=12)
    assert [r.input_id for r in together] == [7, 8, 2**32 - 1]
    assert [r.prediction for r in together] == [0, 1, ABSTAIN]
    for i, result in enumerate(together):
        (alone,) = certify(selection[i : i + 1], estimation[i : i + 1], input_ids=[result.input_id], backend="cpu", seed=12)
        assert alone == result
    assert [r.input_id for r in certify(selection, estimation)] == [0, 1, 2]


HEADS = (Softmax(1.0), Votes(), Sparsemax(2.0), ClippedLogits(-1.0, 1.0))
N = 10_000
SELECTION = tally_of([[0, 10, 0, 0]], [[([1, 8, 1], [1, 7, 1]), ([9, 1, 0], [9, 1, 0]), ([1, 2, 9], [1, 2, 9])]], HEADS)
ESTIMATION = tally_of(
    [[0, N, 0, 0]],
    [
        [
            ([1000, 8000, 1000], [150, 6500, 110]),
            ([9000, 600, 400], [8600, 500, 300]),
            ([4800, 4000, 9500], [2400, 4000, 9100]),
        ]
    ],
    HEADS,
)


def soft(head, bound="empirical_bernstein", **options):
    (result,) = certificates(SELECTION, ESTIMATION, NOISE, head=head, alpha=ALPHA, bound=bound, seed=0, **options)
    return result


@pytest.mark.parametrize(("head", "row", "label"), [(Softmax(1.0), 0, 1), (Sparsemax(2.0), 1, 0)])
def test_soft_heads(head, row, label):
    sums, squares = ESTIMATION.sums[0, row, label].item(), ESTIMATION.squares[0, row, label].item()
    mean, _, variance = bounds.moments(sums, squares, N)
    result = soft(head, rule="one_vs_rest")
    assert (result.prediction, result.bound, result.rule) == (label, "empirical_bernstein", "one_vs_rest")
    assert result.p_lower == bounds.empirical_bernstein_lower(mean, variance, N, ALPHA)
    assert result.p_upper == 1 - result.p_lower
    assert result.counts == ((N, 0) if label == 1 else (0, N))
    assert (
        soft(head, bound="hoeffding", rule="one_vs_rest").p_lower == bounds.hoeffding_lower(mean, N, ALPHA) < result.p_lower
    )


@pytest.mark.parametrize("rule", ["one_vs_rest", "top_two", "auto"])
def test_a_lipschitz_constant_enlarges_the_radius(rule):
    """The same bounds through the potential of Lipschitz scores; it is recorded."""
    head = Softmax(1.0)
    plain, found = soft(head, rule=rule), soft(head, rule=rule, lipschitz=0.25)
    assert (found.lipschitz, plain.lipschitz) == (0.25, None)
    if rule != "auto":
        assert (found.p_lower, found.p_upper) == (plain.p_lower, plain.p_upper)
    low, high = NOISE.potential([found.p_lower, found.p_upper], 0.25)
    assert 0 <= (low - high) / 2 - found.radius < 1e-13
    assert found.radius > 1.05 * plain.radius
    assert radius(NOISE, 0.9, 0.1, 1e6) == pytest.approx(float(radius(NOISE, 0.9, 0.1)), rel=1e-9)


def test_votes_are_not_lipschitz():
    with pytest.raises(
        ValueError, match=r"lipschitz must be None with the head Votes\(\), which jumps from 0 to 1, got 0\.5"
    ):
        certify([[8, 1, 1, 0]], [[60, 15, 25, 0]], lipschitz=0.5)
    for wrong, error in ((0, ValueError), (float("inf"), ValueError), ("1", TypeError)):
        with pytest.raises(error, match=r"^lipschitz (is|must be) "):
            soft(Softmax(1.0), lipschitz=wrong)


def test_top_two_of_means_takes_the_largest_upper_bound_not_the_largest_mean():
    """Class 1 has the smaller mean and the larger variance, so the larger bound; the cap does not apply."""
    result = soft(ClippedLogits(-1.0, 1.0))
    assert (result.prediction, result.rule) == (2, "top_two")
    low, high, variance = bounds.moments(ESTIMATION.sums[0, 2].numpy(), ESTIMATION.squares[0, 2].numpy(), N)
    assert result.p_lower == bounds.empirical_bernstein_lower(low[2], variance[2], N, ALPHA / 2)
    uppers = bounds.empirical_bernstein_upper(high, variance, N, ALPHA / 2)
    assert result.p_upper == uppers[0] > 1 - result.p_lower
    hoeffding = soft(ClippedLogits(-1.0, 1.0), bound="hoeffding")
    assert hoeffding.p_upper == bounds.hoeffding_upper(high[0], N, ALPHA / 2)


def test_larger_variance_wins():
    counts = [[N, 0, 0, 0]]
    scores = [[([9000, 310, 300], [8500, 20, 290])]]
    first, second = (tally_of(counts, scores, (Softmax(1.0),)) for _ in range(2))
    options = {"bound": "empirical_bernstein", "rule": "top_two"}
    (result,) = certificates(first, second, NOISE, head=Softmax(1.0), alpha=ALPHA, seed=0, **options)
    _, high, variance = bounds.moments(second.sums[0, 0].numpy(), second.squares[0, 0].numpy(), N)
    uppers = bounds.empirical_bernstein_upper(high, variance, N, ALPHA / 2)
    assert uppers[1] < uppers[2] == result.p_upper < 1 - result.p_lower


def test_cap_needs_scores_that_sum_to_one():
    """The same numbers as softmax scores and as clipped logits: 1 - lo(A) bounds the others in the first case only."""
    counts, scores = [[N, 0, 0]], [[([9900, 1500], [9850, 1200])]]
    for head, capped in ((Softmax(1.0), True), (ClippedLogits(0.0, 1.0), False)):
        first, second = (tally_of(counts, scores, (head,)) for _ in range(2))
        options = {"bound": "empirical_bernstein", "rule": "top_two"}
        (result,) = certificates(first, second, NOISE, head=head, alpha=ALPHA, seed=0, **options)
        assert (result.p_upper == 1 - result.p_lower) == capped
        assert capped or result.p_upper > 0.15


@pytest.mark.parametrize("rule", ["one_vs_rest", "top_two"])
def test_votes_with_bounds_for_means(rule):
    """A vote's score is 0 or 1: exact moments, no slack for the representation."""
    level = ALPHA if rule == "one_vs_rest" else ALPHA / 2
    k, n = np.array([9000, 400]), 10_000
    low, high, variance = bounds.moments(k, k, n, bits=0, slack=0)
    assert high[0] - low[0] < 1e-15
    for name, lowers, uppers in (
        ("hoeffding", bounds.hoeffding_lower(low, n, level), bounds.hoeffding_upper(high, n, level)),
        (
            "empirical_bernstein",
            bounds.empirical_bernstein_lower(low, variance, n, level),
            bounds.empirical_bernstein_upper(high, variance, n, level),
        ),
    ):
        (result,) = certify([[9, 1, 0, 0]], [[9000, 400, 300, 300]], bound=name, rule=rule)
        assert result.p_lower == lowers[0]
        assert result.p_upper == (1 - lowers[0] if rule == "one_vs_rest" else uppers[1])
        assert result.bound == name


def test_certificates_fail_no_more_often_than_alpha():
    """6000 inputs at alpha = 0.1: more failures than binom.isf(1e-8) has probability below 1e-8 if every rule is right.

    The bound must hold for the selected class, and the radius for the smoothed classifier.
    """
    alpha, inputs = 0.1, 6000
    allowed = int(binom.isf(1e-8, inputs, alpha))
    p = np.array([0.52, 0.38, 0.06, 0.04, 0.0])
    rng = np.random.default_rng(2)
    selection, estimation = rng.multinomial(20, p, inputs).tolist(), rng.multinomial(400, p, inputs).tolist()
    potential = NOISE.potential(p)
    for rule, truth in (("one_vs_rest", potential[0]), ("top_two", (potential[0] - potential[1]) / 2)):
        results = certify(selection, estimation, alpha=alpha, rule=rule)
        wrong = sum(not r.abstained and (r.prediction != 0 or r.radius > truth) for r in results)
        assert wrong <= allowed
        assert sum(not r.abstained for r in results) > inputs // 20  # not by abstaining


def test_selecting_and_bounding_on_the_same_votes_would_fail():
    """Fifty equally likely classes: the same check passes with two samples and fails, as it must, with one used twice.

    False-failure probability below 1e-8 for the first; the second count is 1994 of 2000, where 279 are allowed.
    """
    alpha, inputs, classes = 0.1, 2000, 50
    allowed = int(binom.isf(1e-8, inputs, alpha))
    rng = np.random.default_rng(4)
    first, second = (
        [[*row, 0] for row in rng.multinomial(300, np.full(classes, 1 / classes), inputs).tolist()] for _ in range(2)
    )
    assert sum(r.p_lower > 1 / classes for r in certify(first, second, alpha=alpha)) <= allowed
    assert sum(r.p_lower > 1 / classes for r in certify(second, second, alpha=alpha)) > allowed


def test_one_tally_cannot_be_both_samples():
    tally = tally_of([[90, 10, 0]])
    with pytest.raises(ValueError, match="estimation must be another, independent sample, got selection"):
        certificates(tally, tally, NOISE, alpha=ALPHA, seed=0)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"alpha": 0.0}, ValueError, r"alpha must be a finite number above 0 and below 1, got 0\.0"),
        ({"alpha": 1}, ValueError, r"alpha must be a finite number above 0 and below 1, got 1"),
        ({"alpha": float("nan")}, ValueError, r"alpha must be .*, got nan"),
        ({"alpha": "0.001"}, TypeError, r"alpha must be a number, got '0\.001'"),
        ({"bound": "wilson"}, ValueError, r"bound must be one of auto, clopper_pearson, .*, got 'wilson'"),
        ({"rule": "cpm"}, ValueError, r"rule must be one of auto, one_vs_rest, top_two, .*, got 'cpm'"),
        ({"head": Softmax(1.0)}, ValueError, r"head must be one of the Tallies' heads, .*, got Softmax\(temperature=1\.0\)"),
        (
            {"head": Softmax(1.0), "bound": "clopper_pearson"},
            ValueError,
            r"bound must be one of auto, hoeffding, .*, got 'clopper_pearson'; it counts votes",
        ),
        (
            {"head": ClippedLogits(0, 1), "rule": "one_vs_rest"},
            ValueError,
            r"rule must be top_two or bonferroni with the head Clipped.*, got 'one_vs_rest'",
        ),
        ({"input_ids": [1, 2]}, ValueError, r"input_ids must have one entry for each of 1 inputs, got 2"),
    ],
)
def test_argument_errors(options, error, message):
    with pytest.raises(error, match=message):
        certify([[9, 1, 0]], [[90, 10, 0]], **options)


def test_tally_errors():
    with pytest.raises(ValueError, match=r"estimation\.num_classes must be selection\.num_classes, 2, got 3"):
        certify([[9, 1, 0]], [[90, 10, 0, 0]])
    with pytest.raises(ValueError, match=r"estimation\.num_inputs must be selection\.num_inputs, 1, got 2"):
        certify([[9, 1, 0]], [[90, 10, 0]] * 2)
    with pytest.raises(ValueError, match=r"estimation\.heads must be selection\.heads, .*, got .*Sparsemax"):
        certificates(SELECTION, tally_of([[1, 1, 1, 0]], heads=(Sparsemax(1.0),)), NOISE, alpha=ALPHA, seed=0)
    with pytest.raises(ValueError, match=r"head must be one of .*, got Votes\(\)"):
        certificates(*(tally_of([[1, 1, 0]], heads=(Softmax(1.0),)) for _ in range(2)), NOISE, alpha=ALPHA, seed=0)
    with pytest.raises(ValueError, match=r"estimation\.n must be at least 1 for each input, got 0"):
        certify([[9, 1, 0], [9, 1, 0]], [[90, 10, 0], [0, 0, 0]])
    with pytest.raises(ValueError, match=r"selection\.n must be at least 1 for each input, got 0"):
        certify([[0, 0, 0]], [[90, 10, 0]])


def test_resolve():
    assert resolve(Votes(), "auto", "auto") == ("clopper_pearson", "auto")
    assert resolve(Softmax(1.0), "auto", "auto") == ("betting", "auto")
    assert resolve(Softmax(1.0), "auto", "one_vs_rest") == ("betting", "one_vs_rest")
    assert resolve(Sparsemax(1.0), "hoeffding", "top_two") == ("hoeffding", "top_two")
    assert resolve(ClippedLogits(0, 1), "auto", "auto") == ("betting", "top_two")
    assert resolve(Votes(), "auto", "auto", early=True) == ("beta_binomial_sequence", "auto")
    assert resolve(Sparsemax(1.0), "auto", "auto", early=True) == ("betting_sequence", "auto")
    with pytest.raises(TypeError, match=r"head must be one of Votes, .*, got 'votes'"):
        resolve("votes", "auto", "auto")
    for bound in ("randomized_clopper_pearson", "beta_binomial_sequence"):
        with pytest.raises(
            ValueError, match=f"bound must be one of .*betting_sequence with the head Softmax.*, got '{bound}'"
        ):
            resolve(Softmax(1.0), bound, "auto")


def test_max_samples_and_ranges_that_do_not_fit():
    for most, error, message in (
        (99, ValueError, r"max_samples must be at least the estimation samples of every input, 100, .*, got 99"),
        (2**33, ValueError, "max_samples must be .*, got 8589934592"),
        ("5", TypeError, "max_samples must be an int"),
        (100.5, TypeError, "max_samples must be an int"),
    ):
        with pytest.raises(error, match=message):
            certify([[9, 1, 0]], [[90, 10, 0]], max_samples=most)
    selection, estimation = tally_of([[9, 1, 0]]), tally_of([[90, 10, 0]])
    for wrong, message in (
        ([], "estimation must hold at least one Tally, and none twice, got 0 Tallies"),
        ([estimation, estimation], "estimation must hold at least one Tally, and none twice, got 2 Tallies"),
        ([estimation, selection], "estimation must be another"),
        ([estimation, tally_of([[1, 1, 1, 0]])], "estimation.num_classes must be selection.num_classes, 2, got 3"),
    ):
        with pytest.raises(ValueError, match=message):
            certificates(selection, wrong, NOISE, alpha=ALPHA, seed=0)
    for wrong in (None, [None], [estimation, "x"]):
        with pytest.raises(TypeError, match=r"estimation must be a Tally, or a list of Tallies, got (None|\'x\')"):
            certificates(selection, wrong, NOISE, alpha=ALPHA, seed=0)
    parts = [tally_of([[40, 5, 0]]), tally_of([[50, 5, 0]])]
    options = {"alpha": ALPHA, "seed": 0}
    assert certificates(selection, parts, NOISE, **options) == certificates(selection, estimation, NOISE, **options)


def test_data_that_stopped_early_take_a_sequence():
    """max_samples above n says that n was chosen on the way: only a bound that holds at every n is left."""
    selection, few = tally_of([[9, 1, 0]]), tally_of([[90, 10, 0]])
    (found,) = certificates(selection, few, NOISE, alpha=ALPHA, max_samples=1000, seed=0)
    assert (found.bound, found.max_samples, found.n) == ("beta_binomial_sequence", 1000, 100)
    for bound in ("clopper_pearson", "betting", "randomized_clopper_pearson"):
        with pytest.raises(ValueError, match=f"bound must be one of .*, got '{bound}'; it holds for one analysis"):
            certificates(selection, few, NOISE, alpha=ALPHA, max_samples=1000, bound=bound, seed=0)
    for bound in ("beta_binomial_sequence", "betting_sequence"):
        with pytest.raises(ValueError, match=f"max_samples must be the most samples .* with the bound '{bound}', got None"):
            certificates(selection, few, NOISE, alpha=ALPHA, bound=bound, seed=0)
    with pytest.raises(ValueError, match=r"estimation\.n must be .*, got 100 to 101; if sampling stopped early, state max"):
        certify([[9, 1, 0], [9, 1, 0]], [[90, 10, 0], [90, 11, 0]])
    with pytest.raises(ValueError, match=r"rule must be one for any number of analyses .*, got 'class_partitioning'"):
        certificates(selection, few, NOISE, alpha=ALPHA, max_samples=1000, rule="class_partitioning", seed=0)


@pytest.mark.parametrize("head", [Votes(), Softmax(1.0)])
def test_with_max_samples_the_last_analysis_is_one_of_several(head):
    """Whoever read a sequence on the way may not take a bound for one analysis at the end, though n is max_samples."""
    first, last = (
        tally_of([[n, 0, 0]], [[([0.9 * n, 0.1 * n], [0.82 * n, 0.02 * n])]], (Votes(), Softmax(1.0))) for n in (10, 100)
    )
    options = {"head": head, "alpha": ALPHA, "max_samples": 100, "seed": 0}
    fixed = {"hoeffding", "empirical_bernstein", "betting"} | ({"clopper_pearson"} if head == Votes() else set())
    for bound in fixed:
        with pytest.raises(ValueError, match=f"bound must be one of .*, got '{bound}'; it holds for one analysis"):
            certificates(first, last, NOISE, bound=bound, **options)
    with pytest.raises(ValueError, match=r"rule must be .*, got 'class_partitioning'"):
        certificates(first, last, NOISE, rule="class_partitioning", **options)
    if head == Votes():
        (found,) = certificates(first, last, NOISE, **options)
        assert (found.bound, found.n, found.max_samples) == ("beta_binomial_sequence", 100, 100)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"seed": None}, TypeError, "seed must be an int .*, got None"),
        ({"seed": -1}, ValueError, r"seed must be in \[0, 2\^64\), got -1"),
        ({"input_ids": ["a"]}, ValueError, r"input_ids must hold ints in \[0, 2\^32\), got 'a'"),
        ({"input_ids": [1.5]}, ValueError, r"input_ids must hold ints in \[0, 2\^32\), got 1\.5"),
        ({"input_ids": [1 << 32]}, ValueError, r"input_ids must hold ints in \[0, 2\^32\), got 4294967296"),
        ({"noise": 0.25}, TypeError, r"noise must be one of Gaussian.*, got 0\.25"),
        ({"bound": ["betting"]}, ValueError, r"bound must be one of auto, .*, got \['betting'\]"),
        ({"execution": {}}, TypeError, r"execution must be an Execution, got \{\}"),
    ],
)
def test_wrong_arguments_are_named(options, error, message):
    options = {"noise": NOISE, "alpha": ALPHA, "seed": 0} | options
    with pytest.raises(error, match=message):
        certificates(tally_of([[9, 1, 0]]), tally_of([[90, 10, 0]]), **options)


@pytest.mark.parametrize("head", [Votes(), Softmax(0.3), Sparsemax(1e-7), ClippedLogits(-3.5, 0.1)])
def test_dict_round_trip(head):
    fields = {"prediction": 3, "radius": 0.1 + 0.2, "p_lower": 1 / 3, "p_upper": 5e-324, "counts": (2**33, 0)}
    rest = {"n0": 100, "n": 2**33, "alpha": 1e-12, "rule": "top_two", "bound": "hoeffding", "seed": 2**64 - 1}
    rest |= {"stream_version": 1, "input_id": 2**32 - 1, "backend": "cpu", "execution": Execution("bfloat16", compile=True)}
    ours = Certificate(norm="l2", head=head, noise=Gaussian(0.1), **fields, **rest)
    assert Certificate.from_dict(json.loads(json.dumps(ours.to_dict(), allow_nan=False))) == ours
    names = {field.name for field in dataclasses.fields(Certificate)}
    assert set(ours.to_dict()) == names - {"max_samples", "top_k"} | {"cap"}  # its name in files; 1 is left out
    older = {name: value for name, value in ours.to_dict().items() if name != "norm"}
    assert Certificate.from_dict(older) == ours
    assert json.loads(json.dumps(ours.to_dict()))["head"] == head.to_dict()


@pytest.mark.parametrize("head", HEADS, ids=lambda head: type(head).__name__)
def test_a_data_frame_has_a_row_for_each(head):
    """In the order of the fields; of one certificate, of many, and of an iterator."""
    found = certificates(SELECTION, ESTIMATION, NOISE, head=head, alpha=ALPHA, seed=0, bound="hoeffding")
    names = [field.name for field in dataclasses.fields(Certificate)]
    for rows in (found, found * 3, iter(found)):
        frame = pandas.DataFrame(rows)
        assert frame.columns.tolist() == names
        for row, each in zip(frame.itertuples(), found, strict=False):
            assert (row.prediction, row.radius, row.counts, row.n) == (each.prediction, each.radius, each.counts, each.n)
            assert row.noise == {"sigma": 0.5}
    assert len(pandas.DataFrame(found * 3)) == 3 * len(found)


def test_a_certificate_unpacks():
    [each] = certify([[9, 1, 0]], [[990, 10, 0]])
    prediction, radius = each
    assert (prediction, radius) == (each.prediction, each.radius) == tuple(each) == (each[0], each[1])
    assert [*each] == list(each) == [prediction, radius]
    assert [label for label, _ in [each, each]] == [prediction] * 2
    with pytest.raises(ValueError, match="too many values"):
        (prediction,) = each


def test_results_are_plain_python():
    for result in certify([[9, 1, 0], [1, 1, 0]], [[990, 10, 0], [500, 500, 0]]):
        assert Certificate.from_dict(json.loads(json.dumps(result.to_dict()))) == result
        for field in dataclasses.fields(Certificate):
            kinds = (int, float, str, tuple, Votes, Gaussian, Execution, type(None))
            assert type(getattr(result, field.name)) in kinds, field.name
        assert tuple(result) == (result.prediction, result.radius)
        with pytest.raises(dataclasses.FrozenInstanceError):
            result.radius = 1.0


def test_from_dict_errors():
    data = certify([[9, 1, 0]], [[990, 10, 0]])[0].to_dict()
    with pytest.raises(ValueError, match=r"noise must be one of 'Gaussian', .*, got 'Cauchy'"):
        Certificate.from_dict(data | {"noise": {"name": "Cauchy", "sigma": 1.0}})
    with pytest.raises(ValueError, match=r"head must be one of .*, got 'Vibes'"):
        Certificate.from_dict(data | {"head": {"name": "Vibes"}})
    with pytest.raises(TypeError, match="colour"):
        Certificate.from_dict(data | {"colour": "red"})
    with pytest.raises(TypeError, match="colour"):
        Certificate.from_dict(data | {"execution": {"colour": "red"}})
    with pytest.raises(TypeError, match="radius"):
        Certificate.from_dict({name: value for name, value in data.items() if name != "radius"})


def test_the_execution_is_recorded():
    """It is part of the certificate; one written before it was is read as of the plain execution."""
    execution = Execution("float16", "bfloat16", channels_last=True, cuda_graph=True)
    assert [result.execution for result in certify([[9, 1, 0]] * 2, [[990, 10, 0]] * 2, execution=execution)] == [
        execution
    ] * 2
    (plain,) = certify([[9, 1, 0]], [[990, 10, 0]])
    assert plain.execution == Execution()
    data = plain.to_dict()
    assert data.pop("execution") == {
        "dtype": "float32",
        "autocast": None,
        "channels_last": False,
        "compile": False,
        "cuda_graph": False,
        "clamp": None,
        "scale": None,
        "shift": None,
        "reduced_precision": None,
        "mode_fixed": False,
    }
    assert Certificate.from_dict(data) == plain
    assert dataclasses.replace(plain, execution=execution) != plain


@pytest.mark.parametrize(
    ("error", "message", "fields"),
    [
        (ValueError, "dtype must be one of 'float32', 'float16', 'bfloat16', 'float64', got 'int32'", {"dtype": "int32"}),
        (ValueError, "dtype must be .*, got None", {"dtype": None}),
        (ValueError, "autocast must be one of None, 'float16', .*, got torch.bfloat16", {"autocast": torch.bfloat16}),
        (ValueError, "autocast must be .*, got 'float32'", {"autocast": "float32"}),
        (TypeError, "channels_last must be a bool, got 1", {"channels_last": 1}),
        (TypeError, "compile must be a bool, got 'default'", {"compile": "default"}),
        (TypeError, "cuda_graph must be a bool, got None", {"cuda_graph": None}),
        (TypeError, r"clamp must be \(low, high\), got 0.5", {"clamp": 0.5}),
        (TypeError, r"clamp must be \(low, high\), got \[0.5\]", {"clamp": [0.5]}),
        (TypeError, "clamp must hold numbers only, got '1'", {"clamp": [0.0, "1"]}),
        (ValueError, r"clamp must be \(low, high\) with low <= high, got \[1.0, 0.0\]", {"clamp": [1.0, 0.0]}),
        (ValueError, r"clamp must be .*, got \(nan, 1.0\)", {"clamp": (math.nan, 1.0)}),
        (ValueError, r"clamp must be .*, got \(inf, inf\)", {"clamp": (math.inf, math.inf)}),
        (TypeError, "scale must be a sequence of numbers, got 2.0", {"scale": 2.0}),
        (TypeError, r"shift must be a sequence of numbers, got \[\]", {"shift": []}),
        (TypeError, "scale must hold numbers only, got True", {"scale": [True]}),
        (ValueError, r"scale must be finite, got \[1.0, inf\]", {"scale": [1.0, math.inf]}),
        (ValueError, r"shift must be finite, got \[1e\+39\]", {"shift": [1e39]}),
        (
            ValueError,
            r"scale and shift must have the same length, got \(1.0, 2.0\) and \(1.0, 2.0, 3.0\)",
            {"scale": [1, 2], "shift": [1, 2, 3]},
        ),
        (
            ValueError,
            r"scale and shift must have the same length, got \(1.0,\) and \(1.0, 2.0, 3.0\)",
            {"scale": [1, 1], "shift": [1, 2, 3]},
        ),
        (TypeError, "reduced_precision must be a sequence of str, got 'tf32'", {"reduced_precision": "tf32"}),
        (TypeError, r"reduced_precision must be a sequence of str, got \[1\]", {"reduced_precision": [1]}),
        (TypeError, "mode_fixed must be a bool, got 0", {"mode_fixed": 0}),
    ],
)
def test_execution_errors(error, message, fields):
    with pytest.raises(error, match=f"^{message}"):
        Execution.from_dict(fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"clamp": (-0.1, 1.1), "scale": (0.1, 0.2), "shift": (1 / 3,)},
        {"clamp": (0, math.inf), "scale": [3, 3, 3], "shift": [0.5, 1, 1]},
        {"clamp": (-math.inf, 0.0), "reduced_precision": ["bfloat16 parameters or buffers"]},
    ],
)
def test_an_execution_is_the_same_after_json(fields):
    """Also with an infinite end, which JSON has no number for; and its values are those of float32."""
    execution = Execution(**fields)
    again = Execution.from_dict(json.loads(json.dumps(execution.to_dict(), allow_nan=False)))
    assert again == execution
    assert hash(again) == hash(execution)
    for name in ("clamp", "scale", "shift"):
        values = getattr(execution, name) or ()
        assert all(type(value) is float and (math.isinf(value) or float(np.float32(value)) == value) for value in values)


def test_what_is_the_same_for_all_channels_is_one_number():
    assert Execution(scale=(0.1,)) == Execution(scale=[0.1, 0.1, 0.1]) == Execution(scale=(float(np.float32(0.1)),))
    assert Execution(scale=(0.1,)) != Execution(scale=(0.1, 0.1, 0.2))


LOW = [
    (Execution(dtype="float16"), "dtype = float16"),
    (Execution(dtype="bfloat16"), "dtype = bfloat16"),
    (Execution(autocast="bfloat16"), "autocast = bfloat16"),
    (Execution(reduced_precision=("int8 parameters or buffers",)), "int8 parameters or buffers"),
]


@pytest.mark.parametrize(("execution", "what"), LOW)
def test_scores_below_float32_have_no_lipschitz_constant(execution, what):
    with pytest.raises(
        ValueError, match=f"^lipschitz must be None where the model computes in less .*, got 0.25 with {what}; scores"
    ):
        soft(Softmax(1.0), lipschitz=0.25, execution=execution)
    assert soft(Softmax(1.0), execution=execution).execution == execution


def test_a_lipschitz_constant_is_per_unit_of_what_the_model_takes():
    """The largest scale, of whatever sign, makes it one per unit of the inputs, rounded up; one below 1 changes nothing."""
    head = Softmax(1.0)
    for scale in ((3.0,), (1.0, -3.0), (0.5, 3.0, 2.0)):
        found = soft(head, lipschitz=0.1, execution=Execution(scale=scale))
        wanted = soft(head, lipschitz=np.nextafter(0.1 * 3, 1))
        assert (found.lipschitz, found.radius) == (wanted.lipschitz, wanted.radius)
        assert Fraction(found.lipschitz) >= Fraction(0.1) * 3
    for scale in (None, (0.5,), (0.25, -1.0)):
        assert soft(head, lipschitz=0.1, execution=Execution(scale=scale)).lipschitz == 0.1
    with pytest.raises(ValueError, match="lipschitz must be positive and finite, got inf"):
        soft(head, lipschitz=1e300, execution=Execution(scale=(1e30,)))


def two_sided(a, b):
    """The two-sided exact binomial test of a against b successes with probability 1/2, from its definition."""
    tail = binom.cdf(min(a, b), a + b, 0.5)
    return 1.0 if a == b else 2 * tail


def test_predictions():
    votes = [[2, 18, 0, 0], [11, 0, 0, 0], [10, 0, 0, 0], [500, 0, 500, 0], [0, 560, 440, 0], [0, 540, 460, 0]]
    assert predictions(tally_of(votes), ALPHA) == [1, 0, ABSTAIN, ABSTAIN, 1, ABSTAIN]
    assert [prediction(np.array(row[:3]), ALPHA) for row in votes] == [1, 0, ABSTAIN, ABSTAIN, 1, ABSTAIN]
    rng = np.random.default_rng(9)
    random = rng.multinomial(200, [0.45, 0.05, 0.35, 0.15], 300)  # the last column votes for nobody
    expected = []
    for row in random[:, :3]:
        second, first = np.sort(row)[1:]
        expected.append(int(row.argmax()) if two_sided(first, second) <= 0.05 else ABSTAIN)
    assert predictions(tally_of(random.tolist()), 0.05) == expected
    assert len(set(expected)) > 1


@pytest.mark.parametrize("alpha", [1e-12, 0.001, 0.05, 0.5, 0.99])
def test_predictions_are_those_of_scipys_test(alpha):
    """One computation for all inputs gives what a test of each gives."""
    votes = [[n - second, 0, second] for n in (1, 8, 99, 1000, 10**6, 2**33 - 1) for second in near_the_edge(n, alpha)]
    expected = [0 if binomtest(first, first + second, 0.5).pvalue <= alpha else ABSTAIN for first, _, second in votes]
    assert predictions(tally_of([[*row, 0] for row in votes]), alpha) == expected
    assert [prediction(np.array(row), alpha) for row in votes] == expected
    assert len(set(expected)) == 2


def near_the_edge(n, alpha):
    """Counts of the second class around the largest that is rejected, and at both ends."""
    edge = int(binom.ppf(alpha / 2, n, 0.5))
    return sorted({0, n // 2, *(min(max(edge + step, 0), n // 2) for step in range(-5, 6))})


def test_predictions_of_no_votes_abstain():
    assert predictions(tally_of([[0, 0, 0], [0, 0, 50], [1, 0, 50]]), 0.999) == [ABSTAIN, ABSTAIN, ABSTAIN]


def test_predictions_check_alpha():
    with pytest.raises(ValueError, match="alpha must be a finite number above 0 and below 1, got 1"):
        predictions(tally_of([[9, 1, 0]]), 1)


@pytest.mark.parametrize(("first", "exponent"), [(2, 1), (5, 4), (11, 10), (53, 52)])
def test_a_p_value_that_is_alpha_is_enough(first, exponent):
    """Of `first` unanimous votes it is 2^(1 - first) to the bit; the level is kept by a test that rejects at equality."""
    alpha = 2.0**-exponent
    for votes, label in (([first, 0, 0], 0), ([0, first, 0], 1)):
        assert prediction(np.array(votes), alpha) == label
        assert prediction(np.array(votes), np.nextafter(alpha, 0)) == ABSTAIN
        assert predictions(tally_of([[*votes, 7]]), alpha) == [label]
    assert smallest_predictable_n(alpha) == first
    assert smallest_predictable_n(np.nextafter(alpha, 0)) == first + 1


def test_two_classes_ahead_that_are_equal_abstain():
    """However large alpha: the p-value is 1. A third class does not matter."""
    for votes in ([5, 5, 0], [0, 7, 7], [4, 4, 4], [1, 1, 0]):
        assert prediction(np.array(votes), 1 - 2**-53) == ABSTAIN


def test_a_limit_of_one_half_proves_nothing(monkeypatch):
    """The radius is then 0, and an abstention; at the next number it is positive."""

    class Fixed(ClopperPearson):
        name = "fixed"

        def lower(self, estimates, place, alpha):
            return np.full((1, 1), limit)

    monkeypatch.setitem(BOUNDS, "fixed", Fixed())
    for limit, label in ((0.5, ABSTAIN), (np.nextafter(0.5, 1), 0)):
        (found,) = certify([[9, 1, 0]], [[90, 10, 0]], rule="one_vs_rest", bound="fixed")
        assert (found.p_lower, found.prediction) == (limit, label)
        assert (found.radius > 0) == (label == 0)


POWERS = [2.0**-1, 2.0**-2, 2.0**-10, 2.0**-52]


@pytest.mark.parametrize("alpha", [1e-12, 1e-6, 0.001, 0.05, 0.1, 0.3, 0.49, 0.51, 0.75, 0.99, 2**-10 * (1 + 1e-9), *POWERS])
def test_smallest_n(alpha):
    n = smallest_certifiable_n(alpha)
    assert certify([[1, 0, 0]], [[n, 0, 0]], alpha=alpha)[0].prediction == 0
    assert n == 1 or certify([[1, 0, 0]], [[n - 1, 0, 0]], alpha=alpha)[0].abstained
    m = smallest_predictable_n(alpha)
    assert predictions(tally_of([[m, 0, 0], [m - 1, 0, 0]]), alpha) == [0, ABSTAIN]


def test_smallest_n_at_powers_of_two():
    """alpha^(1/n) > 1/2 is strict, 2^(1 - n) <= alpha is not."""
    for e in (1, 2, 10, 52):
        assert smallest_certifiable_n(2.0**-e) == e + 1
        assert smallest_predictable_n(2.0**-e) == e + 1
    assert (smallest_certifiable_n(0.001), smallest_predictable_n(0.001)) == (10, 11)
    for function in (smallest_certifiable_n, smallest_predictable_n):
        with pytest.raises(ValueError, match="alpha must be a finite number above 0 and below 1, got 0"):
            function(0)
