"""rsfast.sequences: every bound lies on the safe side of its formula in 50-digit arithmetic, close to it, and pays its bets.

How often the bounds are wrong is in test_coverage.py.
"""

import math
from itertools import pairwise

import mpmath as mp
import numpy as np
import pytest
from scipy.special import gammaln, xlog1py, xlogy
from scipy.stats import norm

from benchmarks.coverage import histograms
from rsfast import bounds, sequences
from rsfast.stats.bounds.beta_binomial import rough_limit
from rsfast.stats.common import fine_analysis_ends, largest_safe

UNIT = 2**30
BINS = sequences.BINS


@pytest.fixture(autouse=True)
def _precision():
    with mp.workdps(50):
        yield


# The beta-binomial sequence.


def log_ratio(k, n, p, a, b):
    """Robbins' mixture, in 50 digits; p may be 1 - tiny as an mpf."""
    p = mp.mpf(p)
    mixture = mp.loggamma(a + k) + mp.loggamma(b + n - k) - mp.loggamma(a + b + n)
    likelihood = (k * mp.log(p) if k else 0) + ((n - k) * mp.log1p(-p) if n > k else 0)
    return mixture - mp.loggamma(a) - mp.loggamma(b) + mp.loggamma(a + b) - likelihood


@pytest.mark.parametrize("n", [1, 2, 10, 1000, 10**5, 2**20, 10**7, 2**33 - 1, 2**33])
@pytest.mark.parametrize("alpha", [1e-12, 1e-3, 0.5])
@pytest.mark.parametrize(("a", "b"), [(0.5, 0.5), (1, 1), (300.25, 0.01)])
def test_beta_binomial_against_mpmath(n, alpha, a, b):
    """The exact ratio is 1 / alpha or more at the bound, and less a little above it."""
    tolerance = mp.mpf("2e-11") if n <= 2**20 else mp.mpf("2e-9")
    counts = sorted({1, n // 3, n // 2, n - 1, n - min(n, 1000), n} & set(range(1, n + 1)) if n < 10**6 else
                    {1, 2, 1000, n // 3, n // 2, n - 1000, n - 1, n})  # fmt: skip
    level = -mp.log(mp.mpf(alpha))
    lower = sequences.beta_binomial_sequence_lower(np.array(counts), n, alpha, a=a, b=b)
    upper = sequences.beta_binomial_sequence_upper(n - np.array(counts), n, alpha, a=b, b=a)
    np.testing.assert_array_equal(upper, np.minimum(np.nextafter(1 - lower, 2), 1))
    for k, p in zip(counts, lower.tolist(), strict=True):
        assert 0 < p < 1 or p == 0
        assert p == 0 or log_ratio(k, n, p, mp.mpf(a), mp.mpf(b)) >= level
        above = mp.mpf(p) + tolerance
        assert above >= mp.mpf(k) / n or log_ratio(k, n, above, mp.mpf(a), mp.mpf(b)) < level


def test_beta_binomial_without_successes_and_without_failures():
    n = np.array([1, 2, 100, 2**33])
    assert sequences.beta_binomial_sequence_lower(0, n, 0.05).tolist() == [0] * 4
    assert sequences.beta_binomial_sequence_upper(n, n, 0.05).tolist() == [1] * 4
    assert np.all(sequences.beta_binomial_sequence_lower(n, n, 0.05) < 1)
    assert np.all(sequences.beta_binomial_sequence_upper(0, n, 0.05) > 0)
    # Beta(1, 1), n of n: p ** n = alpha / (n + 1), by hand
    assert float(sequences.beta_binomial_sequence_lower(9, 9, 0.01, a=1, b=1)) == pytest.approx(0.001 ** (1 / 9), abs=1e-13)


def test_beta_binomial_broadcasts():
    grid = sequences.beta_binomial_sequence_lower(np.array([[5], [7]]), np.array([10, 20, 30], dtype=np.int32), 0.05)
    assert grid.shape == (2, 3)
    assert grid[1, 2] == sequences.beta_binomial_sequence_lower(7, 30, 0.05)
    assert sequences.beta_binomial_sequence_upper(np.zeros(0, dtype=np.int64), 4, 0.05).shape == (0,)


# Bins.


def test_bins_are_exponent_and_mantissa():
    """Every edge and its neighbours, and scores of every size, against a search among the edges."""
    lower, upper = sequences.bin_edges()
    assert lower.shape == upper.shape == (BINS,)
    assert lower.dtype == upper.dtype == np.int64
    assert lower[0] == 0
    assert upper[-1] == UNIT
    np.testing.assert_array_equal(lower[1:], upper[:-1])
    np.testing.assert_array_equal(lower, UNIT - upper[::-1])
    width = upper - lower
    assert np.all(width & (width - 1) == 0)
    distance = np.minimum(lower, UNIT - upper)
    assert np.all((width == 4096) | ((width * 4 <= distance) & (distance < width * 8)))

    rng = np.random.default_rng(1)
    q = np.concatenate([lower, upper, np.clip(lower - 1, 0, None), lower + 1, upper - 1, 2 ** rng.uniform(0, 30, 20_000)])
    q = np.concatenate([q, UNIT - q]).astype(np.int64)
    bins = sequences.bin_of(q)
    assert np.all((lower[bins] <= q) & (q <= upper[bins]))
    inner = ~np.isin(q, lower[1:])
    np.testing.assert_array_equal(bins[inner], np.searchsorted(lower, q[inner], side="right") - 1)
    # on an edge between two bins either would do: the one further from the end has it
    np.testing.assert_array_equal(sequences.bin_of(lower[1:65]), np.arange(1, 65))
    np.testing.assert_array_equal(sequences.bin_of(lower[65:]), np.arange(64, 127))
    assert sequences.bin_of(np.int32(0)).shape == ()


@pytest.mark.parametrize(
    ("scores", "error", "message"),
    [
        (0.5, TypeError, "scores must be an integer"),
        (-1, ValueError, "scores must be at least 0"),
        (UNIT + 1, ValueError, "at most"),
    ],
)
def test_bin_errors(scores, error, message):
    with pytest.raises(error, match=message):
        sequences.bin_of(scores)


# Betting.


def one_score_at_a_time(q, ends, alpha, horizons, prior_scores=()):
    """The log capital of the formula as a function of m, for scores q [n] in ranges up to ends: no bins, one loop a score.

    prior_scores: pairs of a score and a weight.
    """
    rates = [mp.mpf(2.0 ** (i / 4)) for i in range(-64, 49)]
    scores = [mp.mpf(int(value)) / UNIT for value in q]
    level = -mp.log(mp.mpf(alpha))
    bets = []
    for start in [0, *ends[:-1]]:
        known = [(mp.mpf(0), 0.5), (mp.mpf(1), 0.5), *prior_scores, *((y, 1) for y in scores[:start])]
        draws = sum(weight for _, weight in known)
        growth = [mp.fsum(weight * mp.log1p(t * y) for y, weight in known) / draws for t in rates]
        bets.append(
            [max(zip(rates, growth, strict=True), key=lambda r: mp.expm1(r[1] - level / h) / r[0])[0] for h in horizons]
        )

    def log_capital(m, analysis):
        players = []
        for player in range(len(horizons)):
            product = mp.mpf(1)
            for r in range(analysis + 1):
                t = bets[r][player]
                for y in scores[([0, *ends])[r] : ends[r]]:
                    product *= 1 + t / (1 + t * m) * (y - m)
            players.append(product)
        return mp.log(mp.fsum(players) / len(players))

    return log_capital


def on_edges(rng, n, centre):
    """Scores at edges of bins, where bins lose nothing."""
    edges = np.append(sequences.bin_edges()[0], UNIT)
    near = edges[np.abs(np.linspace(0, 1, BINS + 1) - centre) < 0.3]
    return rng.choice(near, n)


@pytest.mark.parametrize("alpha", [1e-6, 0.05])
@pytest.mark.parametrize("centre", [0.3, 0.55, 0.95])
def test_betting_against_mpmath(alpha, centre):
    """The capital, multiplied up score by score, is 1 / alpha or more at the bound, and less 1e-9 above it."""
    rng = np.random.default_rng(int(100 * centre))
    ends, n = [20, 45, 100], 100
    q = on_edges(rng, n, centre)
    counts, sums = histograms(q[None], ends)
    level = -mp.log(mp.mpf(alpha))

    capital = one_score_at_a_time(q, ends, alpha, [n])
    lower = mp.mpf(float(sequences.betting_lower(counts, alpha, sums=sums)[0]))
    assert capital(lower, 2) >= level > capital(lower + mp.mpf("1e-9"), 2)
    assert lower > 0.01

    horizons = [200, 100, 50, 25]
    capital = one_score_at_a_time(q, ends, alpha, horizons)
    largest = 0
    for analysis, value in enumerate(sequences.betting_sequence_lower(counts, alpha, 200, sums=sums)[0].tolist()):
        if value > largest:
            assert capital(mp.mpf(value), analysis) >= level
        largest = max(value, largest)
        assert value == largest
        assert capital(mp.mpf(value) + mp.mpf("1e-9"), analysis) < level

    # a prior of one mean and variance: two scores, 0.5 +- 0.1
    capital = one_score_at_a_time(q, ends, alpha, [n], [(mp.mpf("0.6"), 15), (mp.mpf("0.4"), 15)])
    lower = mp.mpf(float(sequences.betting_lower(counts, alpha, sums=sums, prior=(0.5, 0.01, 30))[0]))
    assert capital(lower, 2) >= level > capital(lower + mp.mpf("1e-9"), 2)


@pytest.mark.parametrize("with_sums", [True, False])
def test_bins_lose_on_the_safe_side(with_sums):
    """Scores anywhere: the capital of the scores themselves, with the same bets, is never below that of the bins.

    One range, so that the bets know nothing but the prior, binned or not.
    """
    rng = np.random.default_rng(4)
    for scores in (
        rng.random(200),
        rng.beta(5, 1, 200),
        1 - 0.001 * rng.random(200),
        np.full(200, 0.7),
        rng.beta(1, 20, 200),
    ):
        q = np.floor(scores * UNIT).astype(np.int64)
        counts, sums = histograms(q[None], np.array([200]))
        capital = one_score_at_a_time(q, [200], 0.01, [200])
        lower = mp.mpf(float(sequences.betting_lower(counts, 0.01, sums=sums if with_sums else None)[0]))
        assert lower == 0 or capital(lower, 0) >= -mp.log(mp.mpf(0.01))
        if with_sums:
            assert capital(lower + mp.mpf("2e-3"), 0) < -mp.log(mp.mpf(0.01))


def test_upper_bounds_mirror():
    rng = np.random.default_rng(8)
    q = np.floor(rng.beta(2, 5, (4, 300)) * UNIT).astype(np.int64)
    ends = sequences.range_ends(300)
    # a score on an edge may be in either bin: none is
    counts, sums = histograms(q, ends)
    mirrored, mirrored_sums = histograms(UNIT - q, ends)
    mean, variance = rng.random(4), rng.random(4) / 9
    for lower, upper, rest in (
        (sequences.betting_lower, sequences.betting_upper, ()),
        (sequences.betting_sequence_lower, sequences.betting_sequence_upper, (1000,)),
    ):
        low = lower(mirrored, 0.01, *rest, sums=mirrored_sums, prior=(1 - mean, variance, 50))
        high = upper(counts, 0.01, *rest, sums=sums, prior=(mean, variance, 50), slack=0)
        assert np.all((high >= 1 - low) & (high < 1 - low + 1e-15))
        high = upper(counts, 0.01, *rest, sums=sums, prior=(mean, variance, 50))
        assert np.all((high >= 1 - low + 2 / UNIT) & (high < 1 - low + 2 / UNIT + 1e-15))
        assert np.all(high > (q.mean() / UNIT))


def test_no_bet_knows_what_it_is_about():
    """Bets before a range depend on earlier ranges alone: bounds at earlier analyses are the same bits whatever comes after.

    Nor does a bound depend on which other inputs are computed with it.
    """
    rng = np.random.default_rng(9)
    q = np.floor(rng.beta(5, 2, (5, 400)) * UNIT).astype(np.int64)
    ends = sequences.range_ends(400)
    counts, sums = histograms(q, ends)
    whole = sequences.betting_sequence_lower(counts, 0.05, 1000, sums=sums)
    for r in range(1, len(ends)):
        part = sequences.betting_sequence_lower(counts[:, :r], 0.05, 1000, sums=sums[:, :r])
        np.testing.assert_array_equal(part, whole[:, :r])
    for i in range(5):
        np.testing.assert_array_equal(sequences.betting_sequence_lower(counts[i], 0.05, 1000, sums=sums[i]), whole[i])
    # The last range is bet on with what the others taught: its capital is linear in the histogram of that range.
    last = [np.concatenate([counts[:1, :-1], c[None, None]], axis=1) for c in rng.multinomial(200, np.ones(BINS) / BINS, 3)]
    assert np.all(np.diff([sequences.betting_lower(c, 0.05)[0] for c in last]) != 0)


def test_a_sum_inside_a_bin_counts():
    """All of 1000 scores at 0.7, between edges 0.6875 and 0.75: with sums the bound is close to that of the score itself."""
    q = np.full((1, 1000), int(0.7 * UNIT))
    counts, sums = histograms(q, sequences.range_ends(1000))
    assert 0.685 < float(sequences.betting_lower(counts, 0.001, sums=sums)[0]) < 0.7
    assert float(sequences.betting_lower(counts, 0.001)[0]) < 0.6875


SHAPES = {
    "above 0.999": lambda rng, size: 1 - 0.001 * rng.random(size),
    "above 0.99": lambda rng, size: 1 - 0.01 * rng.random(size),
    "always 1": lambda rng, size: np.ones(size),
    "always 0.9": lambda rng, size: np.full(size, 0.9),
    "Beta(9, 1)": lambda rng, size: rng.beta(9, 1, size),
    "Beta(0.9, 0.1)": lambda rng, size: rng.beta(0.9, 0.1, size),
    "Beta(70, 30)": lambda rng, size: rng.beta(70, 30, size),
    "Beta(700, 300)": lambda rng, size: rng.beta(700, 300, size),
    "Bernoulli(0.8)": lambda rng, size: (rng.random(size) < 0.8) * 1.0,
    "Bernoulli(0.99)": lambda rng, size: (rng.random(size) < 0.99) * 1.0,
    "uniform on [1/2, 1]": lambda rng, size: 0.5 + 0.5 * rng.random(size),
    "0.999, rarely 0": lambda rng, size: np.where(rng.random(size) < 0.01, 0, 0.999),
    "0.7, rarely 1": lambda rng, size: np.where(rng.random(size) < 0.01, 1, 0.7),
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("n", [100, 1000, 10_000, 100_000])
def test_betting_against_empirical_bernstein(name, n):
    """On every one of 20 samples, with or without a prior: never 1 % below its radius, and far above it near 1."""
    rng = np.random.default_rng(n)
    samples = 20 if n < 100_000 else 4
    selection, q = (np.floor(SHAPES[name](rng, (samples, size)) * UNIT).astype(np.int64) for size in (100, n))
    counts, sums = histograms(q, sequences.range_ends(n))
    mean, _, variance = bounds.moments(q.sum(1), (-(-q * q // UNIT)).sum(1), n)
    old = norm.ppf(np.maximum(bounds.empirical_bernstein_lower(mean, variance, n, 0.001), 0.5))
    for prior in (None, (selection.mean(1) / UNIT, (selection / UNIT).var(1, ddof=1), 100)):
        new = norm.ppf(np.maximum(sequences.betting_lower(counts, 0.001, sums=sums, prior=prior), 0.5))
        assert np.all(new >= 0.99 * old)
        if name == "above 0.999" and n <= 1000:
            assert np.all(new >= 1.1 * old)
        repeated = norm.ppf(
            np.maximum(sequences.betting_sequence_lower(counts, 0.001, n, sums=sums, prior=prior)[:, -1], 0.5)
        )
        assert n < 1000 or np.all(repeated >= 0.97 * new)


def test_wrong_priors_only_cost_tightness():
    """Priors far off, edges included: bounds stay below the sample mean, and come close to it again."""
    q = np.floor(np.random.default_rng(3).beta(5, 2, (1, 4096)) * UNIT).astype(np.int64)
    counts, sums = histograms(q, sequences.range_ends(4096))
    free = float(sequences.betting_lower(counts, 0.01, sums=sums)[0])
    for prior in ((0, 0, 50), (1, 0, 50), (1, np.inf, 50), (0, np.inf, 50), (0.5, 0, 50), (0.5, np.inf, 50), (0.9, 0.5, 0)):
        value = float(sequences.betting_lower(counts, 0.01, sums=sums, prior=prior)[0])
        assert free - 0.02 < value < q.mean() / UNIT


def test_the_largest_histogram():
    """2^33 - 1 scores: sums near 2^63, and a bound within its width of the mean."""
    n = 2**33 - 1
    counts = np.zeros((2, BINS), dtype=np.int64)
    b = int(sequences.bin_of(UNIT - 1))
    counts[:, b] = [n // 2, n - n // 2]
    sums = counts * (UNIT - 1)
    lower = float(sequences.betting_lower(counts, 1e-3, sums=sums))
    assert 1 - 1e-7 < lower < 1 - 1 / UNIT
    assert float(sequences.betting_upper(counts, 1e-3, sums=sums)) == 1
    counts = np.roll(counts, 64 - b, axis=1)
    half = counts * (UNIT // 2)
    assert 0.4999 < float(sequences.betting_lower(counts, 1e-3, sums=half)) < 0.5
    assert 0.5 < float(sequences.betting_upper(counts, 1e-3, sums=half)) < 0.5001


def test_many_scores_round_safely():
    """Histograms of 2^20 to 2^33 scores on edges, where the log capital is a difference of numbers up to 1e10."""
    rng, level = np.random.default_rng(6), -mp.log(mp.mpf(0.001))
    edges, rates = np.append(sequences.bin_edges()[0], UNIT), 2.0 ** (np.arange(-64, 49) / 4)
    for bits in range(20, 33):
        counts = (2.0 ** rng.uniform(0, bits - 5, (1, BINS)) * (rng.random((1, BINS)) < 0.3)).astype(np.int64)
        counts[0, 100] += 2 ** (bits - 1)
        n = int(counts.sum())
        lower = float(sequences.betting_lower(counts, 0.001, prior=(1, 0, 1000)))
        # 1000 scores of 1 are known before the only range, half a score of 1, and half of 0; this bets high
        growth = np.log1p(rates) * (1000.5 / 1001)
        t = mp.mpf(float(rates[np.argmax(np.expm1(growth + np.log(0.001) / n) / rates)]))
        grown = mp.fsum(int(c) * mp.log1p(t * int(y) / UNIT) for c, y in zip(counts[0], edges[:-1], strict=True))
        assert grown - n * mp.log1p(t * mp.mpf(lower)) >= level
        assert grown - n * mp.log1p(t * (mp.mpf(lower) + mp.mpf("1e-11"))) < level


def test_few_scores_and_few_ranges():
    one = np.zeros((1, BINS), dtype=np.int64)
    one[0, -1] = 1
    assert 0 <= float(sequences.betting_lower(one, 0.05, sums=one * UNIT)) < 0.05  # one score of 1: m < alpha
    assert float(sequences.betting_upper(one, 0.05, sums=one * UNIT)) == 1
    assert sequences.betting_sequence_lower(one, 0.05, 1).shape == (1,)
    empty = np.concatenate([one, np.zeros((2, BINS), dtype=np.int64)])  # ranges may be empty
    assert sequences.betting_sequence_lower(empty, 0.05, 5)[-1] == sequences.betting_sequence_lower(one, 0.05, 5)[-1]
    assert sequences.betting_lower(np.zeros((0, 3, BINS), dtype=np.int64), 0.05).shape == (0,)


FUNCTIONS = [
    (sequences.betting_lower, ()),
    (sequences.betting_upper, ()),
    (sequences.betting_sequence_lower, (100,)),
    (sequences.betting_sequence_upper, (100,)),
]


@pytest.mark.parametrize(("function", "rest"), FUNCTIONS)
def test_betting_errors(function, rest):
    good = np.zeros((2, BINS), dtype=np.int64)
    good[:, 10] = 5
    for counts, error, message in (
        (good / 1.0, TypeError, "(?s)counts must be an integer"),
        (good - 1, ValueError, "(?s)counts must be at least 0"),
        (good[0], ValueError, r"counts must be \[..., ranges, 128\] .*, got shape \(128,\)"),
        (good[:, :-1], ValueError, r"counts must be .*, got shape \(2, 127\)"),
        (np.zeros((0, BINS), dtype=np.int64), ValueError, "with 1 to 512 ranges"),
        (np.ones((513, BINS), dtype=np.int64), ValueError, "with 1 to 512 ranges"),
        (good * 0, ValueError, "at least one score for each input"),
        (good * 2**31, ValueError, r"at most 2\*\*33 - 1"),
    ):
        with pytest.raises(error, match=message):
            function(counts, 0.05, *rest)
    for sums in (good * 0, good[:1], good * UNIT):
        with pytest.raises(ValueError, match="sums must have the shape of counts"):
            function(good, 0.05, *rest, sums=sums)
    for prior, message in (
        ((1.5, 0, 1), "prior's mean must be in"),
        ((0.5, -1, 1), "prior's variance must be at least 0"),
        ((0.5, np.nan, 1), "prior's variance must be at least 0, got nan"),
        ((0.5, 0.1, -1), "prior's draws must be from 0"),
    ):
        with pytest.raises(ValueError, match=message):
            function(good, 0.05, *rest, prior=prior)


@pytest.mark.parametrize("function", [sequences.betting_sequence_lower, sequences.betting_sequence_upper])
@pytest.mark.parametrize(("most", "error"), [(9, ValueError), (2**33, ValueError), (100.0, TypeError), (True, TypeError)])
def test_max_samples_errors(function, most, error):
    counts = np.zeros((2, BINS), dtype=np.int64)
    counts[:, 10] = 5
    with pytest.raises(error, match=r"max_samples must be"):
        function(counts, 0.05, most)


@pytest.mark.parametrize(
    ("alpha", "error"),
    [(0, ValueError), (1, ValueError), (-0.1, ValueError), (np.nan, ValueError), ("0.1", TypeError), (True, TypeError)],
)
def test_alpha_errors(alpha, error):
    counts = np.ones((2, BINS), dtype=np.int64)
    for function, before, after in (
        (sequences.beta_binomial_sequence_lower, (5, 10), ()),
        (sequences.beta_binomial_sequence_upper, (5, 10), ()),
        *((function, (counts,), tuple(10 * value for value in rest)) for function, rest in FUNCTIONS),
    ):
        with pytest.raises(error, match=f"alpha must be .*, got {alpha!r}"):
            function(*before, alpha, *after)


@pytest.mark.parametrize("n", [1, 2, 10, 1000, 10**5, 2**20, 10**7, 2**33 - 1])
@pytest.mark.parametrize("alpha", [1e-12, 1e-3, 0.5, 0.999])
def test_the_search_between_brackets_finds_the_same_bits(n, alpha):
    """And the rough limit is never below the limit, and mostly close to it."""
    rng, close = np.random.default_rng(n), 0
    for a, b in ((0.5, 0.5), (100.5, 0.5), (90.5, 10.5), (300.25, 0.01)):
        shares = [0, 1, *rng.random(20), *1 - 10 ** -rng.uniform(0, 9, 20), *10 ** -rng.uniform(0, 9, 20)]
        k, trials, a, b = rng.binomial(n, shares), np.full(62, n), np.full(62, a), np.full(62, b)
        limit, rough = sequences.beta_binomial_sequence_lower(k, n, alpha, a=a, b=b), rough_limit(k, trials, alpha, a, b)
        assert (rough >= limit).all()
        close += int((rough <= limit * (1 + 1e-6)).sum())
        gammas = [gammaln(a + k), gammaln(b + (n - k)), -gammaln(a + b + n), -gammaln(a), -gammaln(b), gammaln(a + b)]
        mixture, size, level = sum(gammas), sum(map(np.abs, gammas)) + 4 - math.log(alpha), -math.log(alpha)

        def safe(p, k=k, mixture=mixture, size=size, level=level):
            likelihood = -xlogy(k, p) - xlog1py(n - k, -p)
            return mixture + likelihood - 2.0**-48 * (size + likelihood) >= level

        with np.errstate(invalid="ignore"):
            assert largest_safe(safe, np.zeros(62), k / n).tolist() == limit.tolist()
    assert close > 120 or n <= 10


@pytest.mark.parametrize("function", [sequences.beta_binomial_sequence_lower, sequences.beta_binomial_sequence_upper])
def test_beta_binomial_errors(function):
    with pytest.raises(TypeError, match=r"successes must be an integer"):
        function(0.5, 10, 0.05)
    with pytest.raises(ValueError, match=r"trials must be at least 1"):
        function(0, 0, 0.05)
    for value, error in ((0, ValueError), (np.nan, ValueError), (2**35, ValueError), ("1", TypeError), (True, TypeError)):
        with pytest.raises(error, match=r"^a must be"):
            function(5, 10, 0.05, **{"a" if function is sequences.beta_binomial_sequence_lower else "b": value})


@pytest.mark.parametrize("schedule", [sequences.range_ends, sequences.analysis_ends, fine_analysis_ends])
def test_schedules(schedule):
    for n in (1, 15, 16, 17, 1000, 2**33 - 1):
        ends = schedule(n)
        assert ends[-1] == n
        assert all(a < b for a, b in pairwise(ends))
        assert len(ends) <= sequences.MAX_RANGES
    for wrong, error in ((0, ValueError), (-5, ValueError), (2**33, ValueError), (10.0, TypeError), ("10", TypeError)):
        with pytest.raises(error, match=r"^n must be"):
            schedule(wrong)
