"""rsfast.stats.estimates: each bound gets what it is defined on, from Tallies, and what it lacks is said."""

import re
from functools import partial

import numpy as np
import pytest
import torch

from rsfast import bounds, sequences
from rsfast.heads import Softmax, Sparsemax, Votes
from rsfast.noise import Gaussian, uniforms
from rsfast.ops.tally import Tally
from rsfast.stats.estimates import Estimates, Scores, leading_classes
from rsfast.stats.proof import certificates
from rsfast.stats.registry import BOUNDS
from rsfast.stats.rules import LIKELY, best_case

NOISE, ALPHA, SEED = Gaussian(1.0), 0.01, 5
certificates = partial(certificates, assume_independent=True)  # Tallies here are made by hand
UNIT = 1 << 30
SELECTION, ESTIMATION = np.array([[60, 30, 10]]), np.array([[610, 290, 100]])


def votes(counts):
    counts = np.atleast_2d(counts)
    tally = Tally(len(counts), counts.shape[1])
    tally.counts[:, :-1] = torch.from_numpy(counts)
    tally.n[:] = tally.counts.sum(1)
    return tally


def certify(selection, estimation, rule="one_vs_rest", **options):
    if "sequence" in options.get("bound", ""):
        options = {"max_samples": 1000} | options
    options = {"alpha": ALPHA, "seed": SEED, "input_ids": [3]} | options
    return certificates(selection, estimation, NOISE, rule=rule, **options)[0]


def binary(hits, trials):
    """The histogram of votes."""
    counts, sums = np.zeros((2, 1, sequences.BINS), dtype=np.int64)
    counts[0, 0], counts[0, -1], sums[0, -1] = trials - hits, hits, hits << 30
    return counts, sums


def test_votes_get_the_bound_that_is_named():
    u = uniforms(SEED, 3)
    counts, sums = binary(610, 1000)
    prior = (0.6, 0.6 * 0.4, 100)
    expected = {
        "clopper_pearson": bounds.clopper_pearson_lower(610, 1000, ALPHA),
        "randomized_clopper_pearson": bounds.randomized_clopper_pearson_lower(610, 1000, ALPHA, u[0]),
        "hoeffding": bounds.hoeffding_lower(0.61, 1000, ALPHA),
        "empirical_bernstein": bounds.empirical_bernstein_lower(0.61, 0.61 * 0.39 * 1000 / 999, 1000, ALPHA),
        "betting": sequences.betting_lower(counts, ALPHA, sums=sums, prior=prior),
        "beta_binomial_sequence": sequences.beta_binomial_sequence_lower(610, 1000, ALPHA, a=60.5, b=40.5),
        "betting_sequence": sequences.betting_sequence_lower(counts, ALPHA, 5000, sums=sums, prior=prior)[-1],
    }
    assert set(expected) == set(BOUNDS)
    for bound, lower in expected.items():
        most = 5000 if BOUNDS[bound].sequence else None
        found = certify(votes(SELECTION), votes(ESTIMATION), bound=bound, max_samples=most)
        assert found.bound == bound
        assert found.p_lower == pytest.approx(float(lower), abs=1e-12), bound


def test_the_rival_and_the_others():
    """Top-two: the second class of the selection gets the bound that is named; a third that turns out larger counts too."""
    half, u = ALPHA / 2, uniforms(SEED, 3)
    for estimation, rival, other in (([610, 290, 100], 290, 100), ([610, 100, 290], 100, 290)):
        uppers = {
            "clopper_pearson": bounds.clopper_pearson_upper(290, 1000, half),
            "randomized_clopper_pearson": max(
                bounds.randomized_clopper_pearson_upper(rival, 1000, half, u[1]),
                bounds.clopper_pearson_upper(other, 1000, half),
            ),
            "beta_binomial_sequence": max(
                sequences.beta_binomial_sequence_upper(rival, 1000, half, a=30.5, b=70.5),
                sequences.beta_binomial_sequence_upper(other, 1000, half),
            ),
        }
        for bound, upper in uppers.items():
            found = certify(votes(SELECTION), votes(estimation), "top_two", bound=bound)
            assert found.p_upper == float(upper), bound


def test_uniforms():
    """From a stream of their own: in (0, 1], another pair for each input and seed, and uniform as far as 20,000 tell."""
    u = np.array([uniforms(1, i) for i in range(10_000)]).ravel()
    assert u.min() > 0
    assert u.max() <= 1
    assert len(set(u)) > 19_990
    assert np.abs(np.sort(u) - np.arange(0.5, 20_000) / 20_000).max() < 3.3 / 20_000**0.5  # Kolmogorov: chance 7e-10
    assert uniforms(1, 0) != uniforms(2, 0)
    assert abs(np.corrcoef(u[::2], u[1::2])[0, 1]) < 0.06


def test_randomized_is_never_below_clopper_pearson():
    for k in (501, 700, 999, 1000):
        counts = [k, 1000 - k]
        found, plain = (
            certify(votes([70, 30]), votes(counts), bound=bound)
            for bound in ("randomized_clopper_pearson", "clopper_pearson")
        )
        assert found.radius > plain.radius or plain.radius == 0
        assert found == certify(votes([70, 30]), votes(counts), bound="randomized_clopper_pearson")


# Soft scores.


def scored(q, tracked=None, head=None):
    """A Tally of one input from integer scores [classes, draws]."""
    head = Softmax(1.0) if head is None else head
    tally = Tally(1, len(q), [head], tracked_classes=tracked)
    tally.n += q.shape[1]
    tally.counts[0, 0] = q.shape[1]
    tally.sums[0, 0] = torch.from_numpy(q.sum(1))
    tally.squares[0, 0] = torch.from_numpy((-(-q * q // UNIT)).sum(1))
    for place, k in enumerate([] if tracked is None else np.asarray(tracked)[0, 0]):
        for b, value in zip(sequences.bin_of(q[k]), q[k], strict=True):
            tally.bin_counts[0, 0, place, b] += 1
            tally.bin_sums[0, 0, place, b] += int(value)
    return tally


@pytest.fixture
def scores():
    rng = np.random.default_rng(3)
    q = (rng.dirichlet([12, 4, 2, 1], size=600).T * UNIT).astype(np.int64)
    return q[:, :100], q[:, 100:]


def test_scores_get_the_bound_that_is_named(scores):
    first, second = scores
    selection = scored(first)
    tracked = leading_classes(selection)
    assert tracked.tolist() == [[[0, 1]]]
    estimation = scored(second, tracked)
    counts, sums = (t[0, 0].numpy() for t in (estimation.bin_counts, estimation.bin_sums))
    mean = first.mean(axis=1) / UNIT
    variance = (-(-first * first // UNIT)).mean(axis=1) / UNIT - mean**2
    half = ALPHA / 2
    uppers = {}
    for share, name in ((half, "betting"), (half / 2, "betting_sequence")):
        _, high, spread = bounds.moments(second[2:].sum(1), (-(-second[2:] * second[2:] // UNIT)).sum(1), 500)
        uppers[name] = bounds.empirical_bernstein_upper(high, spread, 500, share).max()
    prior = [(mean[k], variance[k], 100) for k in (0, 1)]
    lower = sequences.betting_lower(counts[0][None], half, sums=sums[0][None], prior=prior[0])
    upper = sequences.betting_upper(counts[1][None], half, sums=sums[1][None], prior=prior[1])
    found = certify(selection, estimation, "top_two", head=Softmax(1.0))
    assert found.bound == "betting"
    assert found.p_lower == pytest.approx(float(lower), abs=1e-12)
    assert found.p_upper == pytest.approx(max(float(upper), uppers["betting"]), abs=1e-12)

    found = certify(selection, estimation, "top_two", head=Softmax(1.0), bound="betting_sequence", max_samples=900)
    upper = sequences.betting_sequence_upper(counts[1][None], half, 900, sums=sums[1][None], prior=prior[1])[-1]
    assert found.p_upper == pytest.approx(float(upper), abs=1e-12)  # the others are far below

    # Where others are above the rival, their own limit counts, and at the k-th analysis with its share of alpha.
    swapped = second[[0, 2, 1, 3]]
    others = second[[1, 3]]
    _, high, spread = bounds.moments(others.sum(1), (-(-others * others // UNIT)).sum(1), 500)
    for bound, share in (("betting", half), ("betting_sequence", half / 6)):
        ranges = [scored(swapped[:, :200], tracked), scored(swapped[:, 200:], tracked)]
        found = certify(selection, ranges, "top_two", head=Softmax(1.0), bound=bound)
        assert found.p_upper == float(bounds.empirical_bernstein_upper(high, spread, 500, share).max())


def test_ranges_adapt_the_bets(scores):
    """The bets of later ranges know the earlier ones: with a selection sample that misleads, that is worth a lot."""
    _, second = scores
    selection = scored(np.array([[UNIT, 0, 0, 0], [UNIT, 0, 0, 0], [0, UNIT, 0, 0]] * 30).T)
    tracked = leading_classes(selection)
    ends = sequences.range_ends(500)
    ranges = [scored(second[:, a:b], tracked) for a, b in zip([0, *ends[:-1]], ends, strict=True)]
    together = ranges[0]
    for tally in ranges[1:]:
        together += tally
    split, whole = (certify(selection, each, head=Softmax(1.0)) for each in (ranges, together))
    assert split.n == whole.n == 500
    assert split.p_lower > whole.p_lower + 0.005


def test_a_draw_that_votes_for_nobody_is_a_score_of_zero():
    selection, tracked = scored(np.tile([[UNIT - 9, UNIT - 9, UNIT - 9, 0], [9, 9, 9, 0]], 20)), [[[0, 1]]]
    estimation = scored(np.full((2, 400), [[UNIT - 9], [9]]), tracked)
    empty = Tally(1, 2, [Softmax(1.0)], tracked_classes=tracked)
    empty.n += 100
    empty.counts[0, -1] = 100
    empty.bin_counts[..., 0] = 100
    found = certify(selection, estimation + empty, head=Softmax(1.0))
    assert found.n == 500
    assert 0.7 < found.p_lower < 0.8


@pytest.mark.parametrize("bound", ["betting", "betting_sequence"])
def test_histograms_that_lack_or_are_of_other_classes(scores, bound):
    first, second = scores
    selection = scored(first)
    for tracked, what in ((None, "none"), ([[[1, 0]]], "those of the classes [[1, 0]]"), ([[[0]]], "[[0]]")):
        with pytest.raises(ValueError, match=rf"got .*{re.escape(what)}.* sample\(tracked_classes=leading_classes"):
            certify(selection, scored(second, tracked), head=Softmax(1.0), bound=bound)


def test_leading_classes_of_every_head():
    tally = Tally(2, 3, [Votes(), Softmax(1.0), Sparsemax(1.0)])
    tally.sums += torch.tensor([[[3, 9, 5], [7, 7, 7]], [[0, 0, 1], [2, 1, 0]]])
    assert leading_classes(tally).tolist() == [[[1, 2], [0, 1]], [[2, 0], [0, 1]]]
    assert leading_classes(votes([1, 2, 3])).shape == (1, 0, 2)
    with pytest.raises(TypeError, match=r"^selection must be a Tally, got None"):
        leading_classes(None)


def test_the_best_case_is_as_likely_as_it_says():
    """Exceeded by the mean of all samples with chance LIKELY, seen from a part; to 4 standard errors of 20,000 draws."""
    rng, p, seen, most, draws = np.random.default_rng(7), np.array([0.9, 0.07, 0.03]), 6000, 10_000, 20_000
    part = rng.multinomial(seen, p, size=draws)
    whole = part + rng.multinomial(most - seen, p, size=draws)
    selected = Scores.of(votes(np.tile(SELECTION, (draws, 1))), Votes())

    def of(estimation):
        options = {"histograms": False, "max_samples": most, "seed": SEED, "input_ids": range(draws)}
        return Estimates.of(selected, [votes(estimation)], [Votes()], **options)

    for place, side in ((0, "upper"), (1, "lower")):
        best, _ = best_case(of(part), place, side)
        beyond = whole[:, [place]] / most > best if side == "upper" else whole[:, [place]] / most < best
        error = 4 * np.sqrt(LIKELY / draws)
        assert abs(beyond.mean() - LIKELY) < error + 0.3 * LIKELY  # counts are whole numbers
        best, _ = best_case(of(whole), place, side)
        np.testing.assert_allclose(best, whole[:, [place]] / most, rtol=1e-12)
    swapped, _ = best_case(of(part[:, [0, 2, 1]]), 1, "lower")  # the selection had put the smaller second
    np.testing.assert_array_equal(swapped, best_case(of(part), 1, "lower")[0])
