"""The rules against each other, and their failure probability by enumeration of all outcomes of a trinomial."""

from functools import partial

import numpy as np
import pytest
import torch
from scipy.special import ndtri
from scipy.stats import binom

from benchmarks import coverage
from benchmarks.coverage import NOISE, tally_of
from rsfast import bounds
from rsfast.heads import Softmax, Votes
from rsfast.ops.tally import Tally
from rsfast.stats.proof import certificates
from rsfast.stats.rules import RULES, partition, resolve

certificates = partial(certificates, assume_independent=True)  # Tallies here are made by hand

N, ALPHA = 60, 0.05


def radii(selection, votes, rule):
    """The radius of each row of votes [I, K] after one selection [K]."""
    return coverage.radii(selection, np.asarray(votes), rule, ALPHA)


@pytest.mark.parametrize("rule", [*RULES, "auto"])
def test_failure_probability_of_every_trinomial(rule):
    """Whatever was selected, a radius above the true one comes with probability at most alpha; and not never."""
    rates = coverage.overclaimed(rule, N, ALPHA)
    assert rates.shape == (6, 127)
    assert np.all(rates <= ALPHA * (1 + 1e-9))
    assert rates.max() > ALPHA / 10  # the test could fail


def test_the_enumeration_is_of_all_outcomes():
    """The probabilities of each trinomial add up to 1, and are those of its counts one by one."""
    p, votes = coverage.trinomials(), coverage.outcomes(N)
    assert len(np.unique(votes, axis=0)) == len(votes) == (N + 1) * (N + 2) // 2
    found = coverage.chances(votes, p)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=0, atol=1e-9)
    first = np.zeros((len(p), N + 1))
    np.add.at(first.T, votes[:, 0], found.T)
    np.testing.assert_allclose(first, binom.pmf(np.arange(N + 1), N, p[:, :1]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("classes", [2, 3, 10, 100])
def test_top_two_is_never_below_the_others(classes):
    draw = np.random.default_rng(classes)
    for _ in range(30):
        p = draw.dirichlet(np.full(classes, 0.3) + 20 * np.eye(classes)[0])
        selection, votes = draw.multinomial(100, p), draw.multinomial(1000, p, size=5)
        found = {rule: radii(selection, votes, rule) for rule in RULES}
        assert (found["top_two"] >= found["class_partitioning"]).all()
        assert (found["top_two"] >= found["bonferroni"]).all()
        if classes == 2:  # two buckets, two classes: all the same
            np.testing.assert_array_equal(found["top_two"], found["bonferroni"])
            np.testing.assert_array_equal(found["top_two"], found["class_partitioning"])


def test_class_partitioning_helps_where_classes_are_many():
    """100 classes, of which three get votes: four buckets rather than a hundred classes."""
    selection, votes = np.zeros((2, 100), dtype=np.int64)
    selection[:4], votes[:4] = (60, 20, 15, 5), (600, 200, 150, 50)
    (partitioned,), (divided,) = (radii(selection, [votes], rule) for rule in ("class_partitioning", "bonferroni"))
    assert len(partition(selection)) == 3
    lower = bounds.clopper_pearson_lower(600, 1000, ALPHA / 3)
    upper = bounds.clopper_pearson_upper(200, 1000, ALPHA / 3)
    assert partitioned == pytest.approx((ndtri(lower) - ndtri(upper)) / 2, rel=1e-12)
    assert divided < partitioned


@pytest.mark.parametrize(
    ("votes", "buckets"),
    [
        ([10, 0], [[0], [1]]),
        ([0, 10], [[1], [0]]),
        ([5, 5, 5, 5], [[0], [1], [2], [3]]),
        ([90, 5, 5], [[0], [1], [2]]),
        ([90, 4, 3, 2, 1], [[0], [1], [2], [3, 4]]),
        ([50, 20, 10, 10, 10], [[0], [1], [2], [3, 4]]),
        ([0, 0, 9, 0], [[2], [0], [1, 3]]),
    ],
)
def test_partition(votes, buckets):
    assert [bucket.tolist() for bucket in partition(np.array(votes))] == buckets


def test_one_class_has_no_partition():
    with pytest.raises(ValueError, match=r"^votes must be \[classes\], two or more, got shape \[1\]"):
        partition(np.array([3]))


def test_every_class_is_in_one_bucket():
    draw = np.random.default_rng(1)
    for classes in (2, 3, 7, 1000):
        found = partition(draw.multinomial(200, draw.dirichlet(np.full(classes, 0.1))))
        assert sorted(np.concatenate(found).tolist()) == list(range(classes))


def test_a_bucket_is_bounded_as_a_whole():
    """The classes of the last bucket have their votes added: their sum may be the largest of the upper bounds."""
    selection, votes = [90, 8, 1, 1], [400, 100, 80, 80]
    (found,) = radii(selection, [votes], "class_partitioning")
    lower = bounds.clopper_pearson_lower(400, 660, ALPHA / 3)
    upper = min(bounds.clopper_pearson_upper(160, 660, ALPHA / 3), 1 - lower)
    assert found == pytest.approx((ndtri(lower) - ndtri(upper)) / 2, rel=1e-12)


def test_class_partitioning_is_for_votes():
    with pytest.raises(
        ValueError, match=r"bound must be clopper_pearson with the rule 'class_partitioning', .*, got 'betting'"
    ):
        resolve(Softmax(1.0), "auto", "class_partitioning")
    with pytest.raises(ValueError, match="got 'hoeffding'"):
        resolve(Votes(), "hoeffding", "class_partitioning")
    assert resolve(Softmax(1.0), "auto", "bonferroni") == ("betting", "bonferroni")


def test_the_enumeration_finds_a_rule_that_is_wrong():
    """Picking, on the very votes that are bounded, the largest class as A: the enumeration sees it fail at p = 1/3."""
    votes = coverage.outcomes(N)
    claimed = np.array([bounds.clopper_pearson_lower(int(max(v)), N, ALPHA) for v in votes])
    (chance,) = coverage.chances(votes, np.full((1, 3), 1 / 3))
    assert chance[claimed > 1 / 3].sum() > 1.5 * ALPHA


def picked(selection, votes, **options):
    """The rule and the upper bounds' part of alpha that "auto" comes to."""
    certificate = certificates(tally_of([selection]), tally_of([votes]), NOISE, alpha=ALPHA, seed=0, **options)[0]
    return certificate.rule, certificate.alpha_upper / ALPHA


def test_auto_picks_by_the_selection():
    """One-vs-rest where there is but one other class, or none was seen; top-two where the rest is spread."""
    assert picked([80, 20], [800, 200]) == ("one_vs_rest", 0)
    assert picked([100, 0, 0, 0, 0], [1000, 0, 0, 0, 0]) == ("one_vs_rest", 0)
    assert picked([60, 10, 10, 10, 10], [600, 100, 100, 100, 100]) == ("top_two", 1 / 2)


@pytest.mark.parametrize("bound", ["clopper_pearson", "hoeffding", "empirical_bernstein"])
@pytest.mark.parametrize(("rule", "share"), [("one_vs_rest", 1), ("top_two", 1 / 2), ("bonferroni", 1 / 5)])
def test_the_share_of_alpha_that_each_limit_has(bound, rule, share):
    """Of the leader's lower limit and of each other class's upper one; what the certificate records is what is left."""
    votes = [500, 200, 140, 100, 60]
    (found,) = certificates(tally_of([votes]), tally_of([votes]), NOISE, alpha=ALPHA, seed=0, bound=bound, rule=rule)

    def limit(side, count, alpha):
        low, high, variance = bounds.moments(count, count, 1000, bits=0, slack=0)
        known = {"clopper_pearson": (count, 1000), "hoeffding": (low if side == "lower" else high, 1000)}
        known["empirical_bernstein"] = (known["hoeffding"][0], variance, 1000)
        return float(getattr(bounds, f"{bound}_{side}")(*known[bound], alpha))

    assert found.p_lower == pytest.approx(limit("lower", 500, ALPHA * share), rel=1e-12)
    upper = 1 - found.p_lower if rule == "one_vs_rest" else limit("upper", 200, ALPHA * share)
    assert found.p_upper == pytest.approx(upper, rel=1e-12)
    assert found.alpha_upper == pytest.approx(ALPHA * (1 - share), rel=1e-12)


def test_auto_does_not_look_at_the_estimation():
    draw = np.random.default_rng(5)
    for selection in ([98, 2, 0, 0], [40, 20, 20, 20], [55, 15, 15, 15]):
        found = {picked(selection, draw.multinomial(500, draw.dirichlet(np.ones(4)))) for _ in range(20)}
        assert len(found) == 1


def test_auto_is_one_of_what_it_picks_from():
    """Its bounds are those of the rule with its shares of alpha, and both together fail with probability alpha."""
    selection, votes = [60, 10, 10, 10, 10], [600, 110, 100, 95, 95]
    (found,) = certificates(tally_of([selection]), tally_of([votes]), NOISE, alpha=ALPHA, seed=0)
    assert found.p_lower == bounds.clopper_pearson_lower(600, 1000, ALPHA - found.alpha_upper)
    assert found.p_upper == bounds.clopper_pearson_upper(110, 1000, found.alpha_upper)


@pytest.mark.parametrize("classes", [3, 10, 100])
def test_auto_is_about_the_best_on_average(classes):
    """Within 1% of the better of the two rules in mean radius, over inputs of all kinds; often better than both."""
    draw = np.random.default_rng(classes)
    p = np.array([draw.dirichlet(np.full(classes, 0.3) + scale * np.eye(classes)[0]) for scale in (1, 5, 20, 80) * 25])
    selection, votes = draw.multinomial(100, p), draw.multinomial(10_000, p)
    mean = {}
    for rule in ("one_vs_rest", "top_two", "auto"):
        found = certificates(tally_of(selection), tally_of(votes), NOISE, alpha=0.001, rule=rule, seed=0)
        mean[rule] = np.mean([certificate.radius for certificate in found])
    assert mean["auto"] >= 0.99 * max(mean["one_vs_rest"], mean["top_two"]) > 0.1


def test_auto_of_soft_scores():
    """Scores of a softmax over three classes: a rest that is spread, and none."""
    tallies = []
    for n in (100, 2000):
        tally = Tally(2, 3, (Softmax(1.0),))
        scores = np.array([[0.6, 0.2, 0.2], [1.0, 0.0, 0.0]]) * 2**30
        tally.sums[:, 0] = torch.from_numpy(scores).long() * n
        tally.squares[:, 0] = torch.from_numpy(np.ceil(scores / 2**30 * scores)).long() * n
        tally.counts[:, 0] = n
        tally.n += n
        tallies.append(tally)
    options = {"head": Softmax(1.0), "alpha": 0.001, "bound": "empirical_bernstein", "seed": 0}
    spread, concentrated = certificates(*tallies, NOISE, **options)
    assert (spread.rule, concentrated.rule) == ("top_two", "one_vs_rest")
    assert 0 < spread.radius < ndtri(0.6) + 0.3
    assert 0 < concentrated.radius < 3
