"""Many heads, inputs and classes at once: the same certificates and limits, to the bit, as one at a time."""

import numpy as np
import pytest
import torch

from rsfast import bounds, sequences
from rsfast.engine.plan import Certification, StoppingRule
from rsfast.heads import ClippedLogits, Softmax, Sparsemax, Votes
from rsfast.heads.bins import BINS, UNIT, bin_edges, bin_of
from rsfast.noise import Gaussian
from rsfast.ops import accumulate
from rsfast.ops.tally import Tally
from rsfast.stats.bounds.empirical_bernstein import EmpiricalBernstein
from rsfast.stats.common import analysis_ends, bisection_bracket, largest_safe
from rsfast.stats.estimates import Estimates, Scores, leader_and_rival, leading_classes
from rsfast.stats.proof import certificates
from rsfast.stats.registry import available
from rsfast.stats.rules import RULES, CertificationSpec, alike

NOISE = Gaussian(0.5)
HEADS = (Sparsemax(0.1), Votes(), Softmax(0.5), ClippedLogits(-1.0, 3.0), Sparsemax(2.0), Softmax(2.0), ClippedLogits(-3, 2))
N0, N = 50, 600
INPUTS = [5, 0, 7]


def sampled(ends):
    """The selection, and a Tally for each range of the estimation, of three inputs that differ in how sure the model is."""
    torch.manual_seed(0)
    logits = torch.tensor([[2.5, 0.0, -0.5, 0.0], [0.2, 0.5, 0.0, 0.1], [0.0, 0.0, 4.0, 3.0]])
    tallies, tracked = [], None
    for size in np.diff([-N0, 0, *ends]).tolist():
        tally = Tally(len(INPUTS), 4, HEADS, tracked_classes=tracked)
        rows = torch.arange(len(INPUTS)).repeat(size)
        accumulate(logits[rows] + torch.randn(len(rows), 4), tally, rows=rows)
        tracked = torch.from_numpy(leading_classes(tally)) if tracked is None else tracked
        tallies.append(tally)
    return tallies[0], tallies[1:]


def evaluate(specs, stopping, tallies, looks, ids=INPUTS):
    selection, ranges = tallies
    plan = Certification(specs, stopping, n0=N0, n=N, seed=3)
    return plan.evaluate(selection, ranges[:looks], ids)


def of_every_bound_and_rule(early, **options):
    for head in HEADS:
        for bound in available(head, early):
            for rule in ("auto", *RULES):
                try:
                    yield CertificationSpec(NOISE, 0.01, head, bound, rule, early=early, **options)
                except ValueError:
                    continue  # this head does not go with this rule, or this bound


def check(specs, stopping, tallies, looks, alone):
    """Return the certificates, equal where specs are proved together or one at a time, and for one input at a time."""
    found = evaluate(specs, stopping, tallies, looks)
    for result, *of_specs in zip(found, *map(alone, specs), strict=True):
        assert result == (None if None in of_specs else of_specs)
    for place, each in enumerate(INPUTS):
        one = tallies[0].select([place]), [tally.select([place]) for tally in tallies[1]]
        assert evaluate(specs, stopping, one, looks, [each]) == [found[place]]
    return found


def test_one_analysis():
    specs = list(of_every_bound_and_rule(False))
    specs += [CertificationSpec(NOISE, alpha, head) for head in HEADS for alpha in (0.01, 0.05)]
    specs += [CertificationSpec(NOISE, 0.01, head, lipschitz=0.5) for head in HEADS if head.soft]
    assert len(alike(specs)) < len(specs) / 2
    selection, ranges = tallies = sampled(analysis_ends(N))

    def alone(spec):
        options = {name: getattr(spec, name) for name in ("head", "alpha", "bound", "rule", "lipschitz")}
        options |= {"max_samples": N} if spec.limits_by.sequence else {}
        return certificates(selection, ranges, NOISE, seed=3, input_ids=INPUTS, assume_independent=True, **options)

    found = check(specs, StoppingRule(), tallies, len(ranges), alone)
    assert {certificate.rule for each in found for certificate in each} == set(RULES)
    assert {certificate.abstained for each in found for certificate in each} == {True, False}


@pytest.mark.parametrize("stopping", [StoppingRule(radius=0.2), StoppingRule(rtol=0.9)])
def test_early_stopping(stopping):
    specs, tallies = list(of_every_bound_and_rule(True)), sampled(analysis_ends(N))
    for looks in (5, len(tallies[1])):

        def alone(spec, looks=looks):
            return [each and each[0] for each in evaluate([spec], stopping, tallies, looks)]

        check(specs, stopping, tallies, looks, alone)
    decided = [each is None for looks in range(1, 12) for each in evaluate(specs, stopping, tallies, looks)]
    assert set(decided) == {True, False}


def histograms(rng, inputs, ranges):
    """Histograms of scores that are spread, near 0, near 1, or all the same, and a few scores or billions."""
    lower, upper = bin_edges()
    kinds = [rng.beta(2, 2, 100), rng.beta(0.05, 2, 100), 1 - rng.beta(0.05, 2, 100), np.full(100, 0.7), np.ones(100)]
    shares = np.stack([np.bincount(bin_of((kind * UNIT).astype(np.int64)), minlength=BINS) / 100 for kind in kinds])
    sizes = rng.choice([1, 50, 3000, 10**8], (inputs, 1)) // rng.integers(1, 4, (inputs, ranges)) + 1
    counts = np.stack([rng.multinomial(n, shares[place % len(kinds)]) for place, n in enumerate(sizes)])
    return counts, counts * lower + (counts * (upper - lower) * rng.random(counts.shape)).astype(np.int64)


@pytest.mark.parametrize("ranges", [1, 9])
def test_betting_on_many_samples(ranges):
    counts, sums = histograms(rng := np.random.default_rng(1), 70, ranges)
    prior = rng.random(70), rng.random(70) / 4, rng.integers(0, 100, 70)
    most = int(counts.sum((1, 2)).max())
    for function, rest in (
        (sequences.betting_lower, {}),
        (sequences.betting_upper, {}),
        (sequences.betting_sequence_lower, {"max_samples": most, "every": False}),
        (sequences.betting_sequence_upper, {"max_samples": most, "every": False}),
    ):
        found = function(counts, 0.001, sums=sums, prior=prior, **rest)
        for place in range(0, 70, 3):
            alone = function(counts[place], 0.001, sums=sums[place], prior=tuple(each[place] for each in prior), **rest)
            np.testing.assert_array_equal(found[place], alone)
        boxed = function(counts.reshape(7, 10, ranges, BINS), 0.001, sums=sums.reshape(7, 10, ranges, BINS), **rest)
        flat = function(counts, 0.001, sums=sums, **rest)
        np.testing.assert_array_equal(boxed.reshape(flat.shape), flat)


def test_a_search_from_nearer_ends_at_the_same_limit():
    rng = np.random.default_rng(2)
    for width in (0, 1e-12, 1e-3, 2.0):
        points = np.concatenate([rng.random(50) ** rng.integers(1, 40, 50), [0.0, 0.5, 1.0, np.nextafter(1, 0)]])
        below, above = points * (1 - width), points * (1 + width)
        low, high = bisection_bracket(below, above)
        for place, point in enumerate(points):
            visited = [(np.float64(0), np.float64(1))]  # by a search for `point` from 0 and 1

            def safe(p, point=point, visited=visited):
                visited.append((float(p), visited[-1][1]) if p <= point else (visited[-1][0], float(p)))
                return np.asarray(p <= point)

            largest_safe(safe, np.array(0.0), np.array(1.0))
            ends = [(float(a), min(float(b), 1.0)) for a, b in visited]
            bracket = float(low[place]), min(float(high[place]), 1.0)
            assert bracket in ends
            assert bracket[0] <= max(below[place], 0)
            assert bracket[1] >= min(above[place], 1)


@pytest.mark.parametrize("n", [1, 2, 30, 10_000, 2**32])
def test_limits_of_other_classes_that_cannot_be_the_largest_are_left_out(n):
    """The largest is the same; and sums that no draws have are still found, wherever they are."""
    rng = np.random.default_rng(n)
    most = n * UNIT
    sums = (rng.random((40, 60)) ** rng.integers(1, 30, (40, 60)) * most).astype(np.int64)
    least = [[-(-(int(total) ** 2) // most) for total in row] for row in sums]  # all scores the same, or a few of 1
    squares = np.array(least) + ((sums - least) * rng.choice([0, 1e-6, 0.5, 1], sums.shape)).astype(np.int64)
    scores = Scores(sums, np.minimum(squares, sums), np.full((40, 1), n), 30, 2)
    estimates = Estimates(scores, scores, np.tile([3, 9], (40, 1)), None, 1, n, 0, np.arange(40))
    others = estimates.others()
    _, mean, variance = bounds.moments(others.sums, others.squares, n)
    limits = bounds.empirical_bernstein_upper(mean, variance, n, 0.01)
    np.testing.assert_array_equal(EmpiricalBernstein().upper_of_others(estimates, 0.01)[:, 0], limits.max(axis=1))
    sums[:, 7], squares[:, 7] = 0, 1  # of a class that is far behind
    for change in (
        {"squares": squares},
        {"squares": np.where(sums > 0, squares * 0, 0)},
        {"squares": sums + 1},
        {"sums": sums * 0 + most + 1},
    ):
        with pytest.raises(ValueError, match="must be"):
            EmpiricalBernstein().upper_of_others(estimates._replace(scores=scores._replace(**change)), 0.01)


def test_leading_classes_and_votes_of_leader_and_rival():
    rng = np.random.default_rng(3)
    sums = rng.integers(0, 4, (50, 6))
    scores = Scores(sums, sums, np.full((50, 1), 20), 0, 0)
    order = np.argsort(-sums, axis=1, kind="stable")
    np.testing.assert_array_equal(scores.leading_classes(), order[:, :2])
    classes = rng.integers(0, 6, (100, 1))  # of two heads
    for row, found in enumerate(np.hstack(leader_and_rival(sums, classes)).tolist()):
        votes = sums[row % 50].tolist()
        assert found == [votes.pop(classes[row, 0]), max(votes)]
