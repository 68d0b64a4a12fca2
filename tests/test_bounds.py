"""rsfast.bounds: every bound lies on the safe side of its formula in 50-digit arithmetic, close to it, and covers."""

import json
from fractions import Fraction
from math import comb
from pathlib import Path

import mpmath as mp
import numpy as np
import pytest
from scipy.stats import binom

from rsfast import bounds
from rsfast.stats.bounds.clopper_pearson import majority_p_value

VECTORS = json.loads((Path(__file__).parent / "vectors" / "clopper_pearson.json").read_text())
TOLERANCE = mp.mpf("1e-11")
UNIT = 2**30


@pytest.fixture(autouse=True)
def _precision():
    with mp.workdps(50):
        yield


def upper_tail(k, n, p):
    """P(Bin(n, p) >= k) for p below k / n, 0 < k: the first term times a continued fraction (DLMF 8.17.22)."""
    a, b, p = mp.mpf(k), mp.mpf(n - k + 1), mp.mpf(p)
    log_beta = mp.loggamma(a) + mp.loggamma(b) - mp.loggamma(a + b)
    c = mp.mpf(1)
    d = h = 1 / (1 - (a + b) * p / (a + 1))
    for m in range(1, 100_000):
        even = m * (b - m) * p / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * p / ((a + 2 * m) * (a + 2 * m + 1))
        d, c = 1 / (1 + even * d), 1 + even / c
        h *= d * c
        d, c = 1 / (1 + odd * d), 1 + odd / c
        h *= d * c
        if abs(d * c - 1) < mp.mpf("1e-30"):
            return h * mp.exp(a * mp.log(p) + b * mp.log1p(-p) - log_beta) / a
    raise ArithmeticError((k, n, p))


def exact_tail(k, n, p):
    """P(Bin(n, p) >= k), every term of it, as a fraction."""
    p = Fraction(p)
    return sum(comb(n, j) * p**j * (1 - p) ** (n - j) for j in range(k, n + 1))


@pytest.mark.parametrize(("k", "n", "p"), [(1, 1, 0.25), (1, 9, 0.05), (7, 9, 0.5), (9, 9, 0.875), (60, 100, 0.53)])
def test_the_oracle(k, n, p):
    exact = exact_tail(k, n, p)
    assert abs(upper_tail(k, n, p) * exact.denominator / exact.numerator - 1) < mp.mpf("1e-28")


@pytest.mark.parametrize("row", VECTORS, ids=lambda row: f"{row['k']}-{row['n']}-{row['alpha']}")
def test_clopper_pearson_vectors(row):
    lower = bounds.clopper_pearson_lower(row["k"], row["n"], float(row["alpha"]))
    upper = bounds.clopper_pearson_upper(row["k"], row["n"], float(row["alpha"]))
    assert 0 <= mp.mpf(row["lower"]) - mp.mpf(float(lower)) <= TOLERANCE
    assert 0 <= mp.mpf(float(upper)) - mp.mpf(row["upper"]) <= TOLERANCE
    assert lower.dtype == upper.dtype == np.float64


@pytest.mark.parametrize("n", [1, 2, 10, 1000, 10**5, 10**7, 2**33 - 1, 2**33])
@pytest.mark.parametrize("alpha", [1e-190, 1e-12, 1e-3, 0.5])
def test_clopper_pearson_brackets_alpha(n, alpha):
    """The tail grows with p: at most alpha at the bound, above alpha 1e-11 further on."""
    ks = sorted({k for k in (1, 2, 10, n // 3, n // 2, n - 10, n - 1, n) if 1 <= k <= n})
    if alpha == 0.5:  # the oracle is slow at the median of large samples
        ks = [k for k in ks if min(k, n - k) <= 10**4]
    lowers = bounds.clopper_pearson_lower(ks, n, alpha)
    uppers = bounds.clopper_pearson_upper(n - np.asarray(ks), n, alpha)
    for k, lower, upper in zip(ks, lowers.tolist(), uppers.tolist(), strict=True):
        for p in (mp.mpf(lower), 1 - mp.mpf(upper)):
            assert p == 0 or upper_tail(k, n, p) <= alpha
            assert p + TOLERANCE >= mp.mpf(k) / n or upper_tail(k, n, p + TOLERANCE) > alpha
        assert lower > 0 or alpha / n < TOLERANCE


def test_clopper_pearson_without_successes_and_without_failures():
    n = np.array([1, 2, 10, 1000, 10**5, 2**33])
    assert np.all(bounds.clopper_pearson_lower(0, n, 0.001) == 0)
    assert np.all(bounds.clopper_pearson_upper(n, n, 0.001) == 1)
    for trials, lower, upper in zip(
        n.tolist(), bounds.clopper_pearson_lower(n, n, 0.001), bounds.clopper_pearson_upper(0, n, 0.001), strict=True
    ):
        exact = mp.mpf(0.001) ** (mp.mpf(1) / trials)
        assert 0 <= exact - mp.mpf(float(lower)) <= TOLERANCE
        assert 0 <= mp.mpf(float(upper)) - (1 - exact) <= TOLERANCE
        assert lower < 1
        assert upper > 0


def test_clopper_pearson_keeps_small_limits():
    """One success in n: 1 - (1 - alpha)^(1/n), about 1e-22 here, to six digits and not to 1e-11."""
    for n in (100, 10**6, 2**33):
        exact = -mp.expm1(mp.log1p(-mp.mpf(1e-12)) / n)
        assert 0 <= 1 - mp.mpf(float(bounds.clopper_pearson_lower(1, n, 1e-12))) / exact < mp.mpf("2e-6")


@pytest.mark.parametrize("n", [10, 30, 100])
@pytest.mark.parametrize("alpha", [0.001, 0.05])
def test_clopper_pearson_coverage_by_enumeration(n, alpha):
    """The bound exceeds the truth with probability at most alpha at every p; just below a bound, with barely less."""
    lowers = bounds.clopper_pearson_lower(np.arange(n + 1), n, alpha)
    assert np.all(np.diff(lowers) > 0)
    uppers = bounds.clopper_pearson_upper(np.arange(n + 1), n, alpha)
    np.testing.assert_array_equal(uppers, np.minimum(np.nextafter(1 - lowers[::-1], 2), 1))
    for k in range(1, n + 1, max(1, n // 12)):
        p = np.nextafter(lowers[k], 0)
        wrong = exact_tail(int(np.flatnonzero(lowers > p)[0]), n, float(p))
        assert Fraction(alpha) * Fraction(999_999, 10**6) < wrong <= Fraction(alpha)
    for p in np.linspace(0.01, 0.99, 9):
        wrong = np.flatnonzero(lowers > p)
        assert wrong.size == 0 or exact_tail(int(wrong[0]), n, float(p)) <= Fraction(alpha)


def test_alpha_is_one_sided():
    """A two-sided alpha handed to the bound would give the 0.0005 limit, and ten unanimous votes would not certify."""
    assert 0.5 < float(bounds.clopper_pearson_lower(10, 10, 0.001)) < 0.5012
    assert float(bounds.clopper_pearson_lower(10, 10, 0.0005)) < 0.5


def test_clopper_pearson_broadcasts():
    grid = bounds.clopper_pearson_lower(np.array([[5], [7]]), np.array([10, 20, 30], dtype=np.int32), 0.05)
    assert grid.shape == (2, 3)
    assert grid[1, 2] == bounds.clopper_pearson_lower(7, 30, 0.05)
    assert bounds.clopper_pearson_lower(7, 30, 0.05).shape == ()
    assert bounds.clopper_pearson_upper(np.zeros(0, dtype=np.int64), 4, 0.05).shape == (0,)


@pytest.mark.parametrize("alpha", [0.3, 1e-3, 1e-100, 1e-200])
def test_limits_of_many_are_those_of_each(alpha):
    """Equal counts are bounded once, and a single pair by a search of its own."""
    rng = np.random.default_rng(5)
    n = np.repeat([1, 10, 1000, 10**5, 2**33], 24)
    k, uniform = np.floor(n * rng.beta(1, 0.3, n.size)).astype(np.int64), rng.choice([0, 0.3, 1], n.size)
    k[::6], k[1::6] = n[::6], 0
    lower, upper = bounds.clopper_pearson_lower(k, n, alpha), bounds.clopper_pearson_upper(k, n, alpha)
    randomized = bounds.randomized_clopper_pearson_lower(k, n, alpha, uniform)
    assert len(np.unique(lower)) < n.size
    for i in range(n.size):
        assert lower[i] == bounds.clopper_pearson_lower(k[i], n[i], alpha)
        assert upper[i] == bounds.clopper_pearson_upper(k[i], n[i], alpha)
        assert randomized[i] == bounds.randomized_clopper_pearson_lower(k[i], n[i], alpha, uniform[i])


def random_samples(count):
    rng = np.random.default_rng(7)
    mean = np.concatenate([rng.uniform(0, 1, count - 40), np.repeat([0.0, 1.0, 0.5, 1e-300], 10)])
    variance = np.concatenate([rng.uniform(0, 1, count - 40) ** rng.integers(1, 30, count - 40), np.tile([0.0, 0.5], 20)])
    trials = np.floor(2 ** rng.uniform(1, 33, count)).astype(np.int64)
    return mean, variance, trials


@pytest.mark.parametrize("alpha", [1e-12, 0.001, 0.05, 0.999])
def test_mean_bounds_round_outward(alpha):
    mean, variance, trials = random_samples(3000)
    hoeffding = bounds.hoeffding_lower(mean, trials, alpha), bounds.hoeffding_upper(mean, trials, alpha)
    bernstein = (
        bounds.empirical_bernstein_lower(mean, variance, trials, alpha),
        bounds.empirical_bernstein_upper(mean, variance, trials, alpha),
    )
    inside = 0
    for i in range(mean.size):
        m, v, n = mp.mpf(float(mean[i])), mp.mpf(float(variance[i])), int(trials[i])
        log = mp.log(2 / mp.mpf(alpha))
        widths = mp.sqrt(-mp.log(mp.mpf(alpha)) / (2 * n)), mp.sqrt(2 * v * log / n) + 7 * log / (3 * mp.mpf(n - 1))
        for width, (lower, upper) in zip(widths, (hoeffding, bernstein), strict=True):
            assert -mp.mpf("1e-14") <= mp.mpf(float(lower[i])) - max(m - width, 0) <= 0
            assert 0 <= mp.mpf(float(upper[i])) - min(m + width, 1) <= mp.mpf("1e-14")
            inside += m - width > 0
    assert inside > 1500  # most bounds are not merely clipped


def test_known_values():
    """By hand: Hoeffding with ln(1/alpha) = 2 and n = 100; Maurer and Pontil with ln(2/alpha) = 2, V = 1/16 and n = 101."""
    assert float(bounds.hoeffding_lower(0.5, 100, np.exp(-2.0))) == pytest.approx(0.4, abs=1e-13)
    width = (2 * 0.0625 * 2 / 101) ** 0.5 + 7 * 2 / 300
    arguments = 0.5, 0.0625, 101, 2 * np.exp(-2.0)
    assert float(bounds.empirical_bernstein_lower(*arguments)) == pytest.approx(0.5 - width, abs=1e-13)
    assert float(bounds.empirical_bernstein_upper(*arguments)) == pytest.approx(0.5 + width, abs=1e-13)


def test_empirical_bernstein_of_one_draw_is_trivial():
    assert bounds.empirical_bernstein_lower([0.0, 1.0], 0.0, 1, 0.05).tolist() == [0, 0]
    assert bounds.empirical_bernstein_upper([0.0, 1.0], np.inf, 1, 0.05).tolist() == [1, 1]


def test_mean_bounds_cover_in_simulation():
    """At alpha = 0.2, 20,000 samples of 60 scores; more failures than 4340 has probability below 1e-8 if coverage holds.

    The scores, Beta(0.3, 1.2), are near 0 mostly. Bounds at the mean itself, or off by the second term, fail far more often.
    """
    alpha, samples, n = 0.2, 20_000, 60
    allowed = int(binom.isf(1e-8, samples, alpha))
    assert allowed <= 4340
    q = np.floor(np.random.default_rng(11).beta(0.3, 1.2, (samples, n)) * UNIT).astype(np.int64)
    low, high, variance = bounds.moments(q.sum(1), (-(-q * q // UNIT)).sum(1), n)
    truth = 0.3 / 1.5
    assert np.sum(bounds.empirical_bernstein_lower(low, variance, n, alpha) > truth) <= allowed
    assert np.sum(bounds.empirical_bernstein_upper(high, variance, n, alpha) < truth) <= allowed
    assert np.sum(bounds.hoeffding_lower(low, n, alpha) > truth) <= allowed
    assert np.sum(bounds.hoeffding_upper(high, n, alpha) < truth) <= allowed
    assert np.sum(low > truth) > allowed  # and it would show


def from_scores(q, n=None):
    """The exact mean and variance of integer scores, and what a Tally keeps of them."""
    q = [int(value) for value in q]
    n = n or len(q)
    mean = Fraction(sum(q), n * UNIT)
    variance = sum((Fraction(value, UNIT) - mean) ** 2 for value in q) / (n - 1)
    return sum(q), sum(-(-value * value // UNIT) for value in q), mean, variance


def hostile():
    rng = np.random.default_rng(3)
    yield "all one", [UNIT] * 1000
    yield "all zero", [0] * 1000
    yield "all third", [UNIT // 3] * 1000
    yield "one lower", [UNIT] * 999 + [UNIT - 1]
    yield "one zero", [UNIT] * 999 + [0]
    yield "one unit", [0] * 999 + [1]
    yield "two draws", [0, UNIT]
    yield "top two units", rng.integers(UNIT - 1, UNIT + 1, 5000)
    yield "uniform", rng.integers(0, UNIT + 1, 5000)


@pytest.mark.parametrize(("name", "q"), list(hostile()))
def test_moments_are_exact_outward(name, q):
    sums, squares, mean, variance = from_scores(q)
    low, high, spread = (Fraction(float(value)) for value in bounds.moments(sums, squares, len(q)))
    ulp = Fraction(1, 2**52)
    assert mean - ulp <= low <= mean
    assert low < mean or mean == 0
    assert min(mean + Fraction(2, UNIT), 1) <= high <= mean + Fraction(2, UNIT) + ulp
    # squares are rounded up by less than one unit a draw, which the variance keeps
    assert variance <= spread <= (variance + Fraction(len(q), (len(q) - 1) * UNIT)) * (1 + ulp) + Fraction(1, 2**1000)


def test_moments_do_not_cancel():
    """10^6 draws at 2^30 but for one a unit lower: a variance of 8.7e-25, of which float64 sums hold no digit."""
    n = 10**6
    sums, squares = n * UNIT - 1, n * UNIT - 1  # ceil((2^30 - 1)^2 / 2^30) = 2^30 - 1
    exact = Fraction(n * squares * UNIT - sums**2, n * (n - 1) * UNIT**2)
    low, high, variance = bounds.moments([sums, n * UNIT], [squares, n * UNIT], n)
    assert exact < Fraction(float(variance[0])) <= exact * (1 + Fraction(1, 2**51))
    assert variance[1] < 1e-300
    assert low[0] < 1
    assert low[1] < 1
    assert high.tolist() == [1, 1]


def test_moments_of_the_largest_tally():
    """2^33 draws: products near 2^125, where neither int64 nor float64 would do."""
    n, sums, squares = 2**33, 2**62 + 1, 2**62 - 5
    low, high, variance = bounds.moments(sums, squares, n)
    exact = Fraction(n * squares * UNIT - sums**2, n * (n - 1) * UNIT**2)
    assert exact < Fraction(float(variance)) <= exact * (1 + Fraction(1, 2**51))
    assert Fraction(float(low)) < Fraction(sums, n * UNIT)
    assert Fraction(float(high)) > Fraction(sums + 2 * n, n * UNIT)


def test_moments_of_counts():
    """bits=0, slack=0: k votes in n, mean k / n and variance k (n - k) / (n (n - 1))."""
    k, n = np.array([[0, 1, 99_990, 100_000]]), np.array([[100_000], [300_000]])
    low, high, variance = bounds.moments(k, k, n, bits=0, slack=0)
    assert low.shape == high.shape == variance.shape == (2, 4)
    for i, j in np.ndindex(2, 4):
        mean, spread = Fraction(int(k[0, j]), int(n[i, 0])), int(k[0, j]) * (int(n[i, 0]) - int(k[0, j]))
        assert 0 <= Fraction(float(high[i, j])) - mean < Fraction(1, 10**15)
        assert 0 <= mean - Fraction(float(low[i, j])) < Fraction(1, 10**15)
        exact = Fraction(spread, int(n[i, 0]) * (int(n[i, 0]) - 1))
        assert 0 < Fraction(float(variance[i, j])) - exact < Fraction(1, 10**16)


def test_moments_of_one_draw():
    low, high, variance = bounds.moments(UNIT // 2, UNIT // 4, 1)
    assert low < 0.5 < high
    assert variance == np.inf


@pytest.mark.parametrize("function", [bounds.clopper_pearson_lower, bounds.clopper_pearson_upper])
@pytest.mark.parametrize(
    ("successes", "trials", "error", "message"),
    [
        (0.5, 10, TypeError, r"successes must be an integer"),
        (float("nan"), 10, TypeError, r"successes must be an integer"),
        ([True], 10, TypeError, r"successes must be an integer"),
        (5, 10.0, TypeError, r"trials must be an integer"),
        (-1, 10, ValueError, r"successes must be at least 0"),
        ([3, 11], 10, ValueError, r"^successes must be at most trials, 10, got \[3, 11\]"),
        (0, 0, ValueError, r"trials must be at least 1"),
        (0, 2**33 + 1, ValueError, r"^trials must be at most 2\*\*33, got 8589934593"),
        (2**63, 10, ValueError, r"successes must be .* fit in 64 bits"),
    ],
)
def test_count_errors(function, successes, trials, error, message):
    with pytest.raises(error, match=message):
        function(successes, trials, 0.05)


@pytest.mark.parametrize(
    ("alpha", "error"),
    [(0, ValueError), (1, ValueError), (-0.1, ValueError), (np.nan, ValueError), ("0.1", TypeError), (True, TypeError)],
)
def test_alpha_errors(alpha, error):
    for function, arguments in (
        (bounds.clopper_pearson_lower, (5, 10)),
        (bounds.clopper_pearson_upper, (5, 10)),
        (bounds.hoeffding_lower, (0.5, 10)),
        (bounds.hoeffding_upper, (0.5, 10)),
        (bounds.empirical_bernstein_lower, (0.5, 0.1, 10)),
        (bounds.empirical_bernstein_upper, (0.5, 0.1, 10)),
    ):
        with pytest.raises(error, match=f"alpha must be .*, got {alpha!r}"):
            function(*arguments, alpha)


@pytest.mark.parametrize("mean", [-0.1, 1.1, float("nan"), [0.5, float("nan")]])
def test_mean_errors(mean):
    for function, rest in (
        (bounds.hoeffding_lower, (10, 0.05)),
        (bounds.hoeffding_upper, (10, 0.05)),
        (bounds.empirical_bernstein_lower, (0.1, 10, 0.05)),
        (bounds.empirical_bernstein_upper, (0.1, 10, 0.05)),
    ):
        with pytest.raises(ValueError, match=r"mean must be in \[0, 1\]"):
            function(mean, *rest)


@pytest.mark.parametrize("function", [bounds.empirical_bernstein_lower, bounds.empirical_bernstein_upper])
def test_variance_and_trials_errors(function):
    for variance in (-1e-9, float("nan")):
        with pytest.raises(ValueError, match=r"variance must be at least 0"):
            function(0.5, variance, 10, 0.05)
    with pytest.raises(ValueError, match=r"trials must be at least 1"):
        function(0.5, 0.1, 0, 0.05)


@pytest.mark.parametrize(
    ("sums", "squares", "trials", "message"),
    [
        (-1, 0, 10, "sums must be at least 0"),
        (2 * UNIT + 1, 2 * UNIT, 2, r"sums must be at most trials \* 2\*\*30, with trials 2, got 2147483649"),
        (UNIT, UNIT // 2 - 1, 2, "squares must be that of 2 scores .*, got 536870911"),  # below any two scores that sum to 1
        (UNIT, UNIT + 1, 2, "squares must be that of 2 scores .*, got 1073741825"),
        (0, 0, 0, "trials must be at least 1"),
    ],
)
def test_moments_errors(sums, squares, trials, message):
    with pytest.raises(ValueError, match=message):
        bounds.moments(sums, squares, trials)
    with pytest.raises(TypeError, match=r"sums must be an integer"):
        bounds.moments(0.5, 0, 1)


def randomized_tail(k, n, p, u):
    """P(X > k) + u P(X = k), every term of it, in 50 digits."""
    p, terms = mp.mpf(p), [mp.mpf(u)] + [1] * (n - k)
    return mp.fsum(term * comb(n, j) * p**j * (1 - p) ** (n - j) for j, term in enumerate(terms, k))


@pytest.mark.parametrize("alpha", [1e-12, 0.001, 0.05, 0.5])
@pytest.mark.parametrize("n", [1, 2, 10, 57, 200])
def test_randomized_clopper_pearson_brackets_alpha(n, alpha):
    """Alpha or less at the limit, more 2e-11 above it."""
    k = np.unique([0, 1, n // 3, n // 2, n - 1, n])
    u = np.array([0.0, 1e-6, alpha / 2, alpha, 0.3, 0.75, 1 - 2.0**-53, 1.0])
    limits = bounds.randomized_clopper_pearson_lower(k[:, None], n, alpha, u)
    for (i, j), lower in np.ndenumerate(limits):
        above = mp.mpf(float(lower)) + 2 * TOLERANCE
        assert lower == 0 or randomized_tail(int(k[i]), n, float(lower), float(u[j])) <= mp.mpf(alpha)
        assert above >= 1 or randomized_tail(int(k[i]), n, above, float(u[j])) > mp.mpf(alpha)
    assert limits.max() < 1
    uppers = bounds.randomized_clopper_pearson_upper(n - k[:, None], n, alpha, u)
    np.testing.assert_array_equal(uppers, np.minimum(np.nextafter(1 - limits, 2), 1))


@pytest.mark.parametrize("n", [10**5, 10**7, 2**33])
def test_randomized_clopper_pearson_of_many_trials(n):
    for k in (n // 2, n - n // 1000, n - 3):
        for u in (0.0, 0.25, 1.0):
            lower = mp.mpf(float(bounds.randomized_clopper_pearson_lower(k, n, 0.001, u)))
            for p, safe in ((lower, True), (lower + TOLERANCE, False)):
                tail = u * upper_tail(k, n, p) + (1 - u) * upper_tail(k + 1, n, p)
                assert (tail <= mp.mpf(0.001)) == safe


def test_randomized_clopper_pearson_is_clopper_pearson_at_one():
    """And never below it: the limits fall as the uniform rises, down to it. It broadcasts."""
    n, u = 40, np.linspace(0, 1, 9)
    k = np.arange(n + 1)
    for function, plain, sign in (
        (bounds.randomized_clopper_pearson_lower, bounds.clopper_pearson_lower, 1),
        (bounds.randomized_clopper_pearson_upper, bounds.clopper_pearson_upper, -1),
    ):
        limits = function(k[:, None], n, 0.05, u)
        assert limits.shape == (n + 1, 9)
        np.testing.assert_allclose(limits[:, -1], plain(k, n, 0.05), rtol=0, atol=1e-15)
        assert np.all(sign * np.diff(limits, axis=1) <= 0)
        assert function(7, 40, 0.05, u[3]) == limits[7, 3]
        assert function(7, 40, 0.05, np.zeros(0)).shape == (0,)


@pytest.mark.parametrize("uniform", [-1e-9, 1.01, float("nan")])
def test_uniform_errors(uniform):
    for function in (bounds.randomized_clopper_pearson_lower, bounds.randomized_clopper_pearson_upper):
        with pytest.raises(ValueError, match=r"uniform must be in \[0, 1\]"):
            function(5, 10, 0.05, uniform)


def test_clopper_pearson_against_statsmodels():
    """Its interval is two-sided: alpha each side is 2 alpha."""
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    n = np.array([1, 7, 100, 5000])[:, None]
    k = np.floor(np.linspace(0, 1, 11) * n).astype(np.int64)
    low, high = proportion.proportion_confint(k, np.broadcast_to(n, k.shape), alpha=2 * 0.001, method="beta")
    np.testing.assert_allclose(bounds.clopper_pearson_lower(k, n, 0.001), low, rtol=0, atol=1e-11)
    np.testing.assert_allclose(bounds.clopper_pearson_upper(k, n, 0.001), high, rtol=0, atol=1e-11)


def test_largest_safe_returns_nothing_unsafe():
    """Guesses on either side, both sides, and a test that lapses: what comes back was found safe, and its successor not."""
    edge = np.array([0.0, 1e-300, 0.3, 1 - 2.0**-53, 1.0])
    for below, above in ((0.0, 1.0), (0.9, 1.0), (0.0, 0.1), (0.2, 0.4), (0.4, 0.2)):
        found = bounds.largest_safe(lambda p: p <= edge, np.full(5, below), np.full(5, above))
        np.testing.assert_array_equal(found, np.minimum(edge, 1 - 2.0**-53))
    asked = []

    def lapsing(p):
        asked.append((float(p), bool(p <= 0.3 and not 0.1 < p < 0.2)))
        return np.asarray(asked[-1][1])

    found = float(bounds.largest_safe(lapsing, np.array(0.05), np.array(0.6)))
    assert (found, True) in asked
    assert (np.nextafter(found, 1), False) in asked


def test_the_variance_is_of_the_whole_sample():
    """Two batches, each of equal scores: the average of their variances is 0, and that of a third, of one draw, NaN."""
    half, full = UNIT // 2, UNIT
    sums, squares = 50 * half + 50 * full + half, 50 * half // 2 + 50 * full + half // 2
    low, _, variance = bounds.moments(sums, squares, 101, slack=0)
    assert float(variance) == pytest.approx(np.var([0.5] * 51 + [1] * 50, ddof=1), abs=1e-12)
    assert float(bounds.empirical_bernstein_lower(low, variance, 101, 0.001)) < float(low) - 0.25


def test_majority_p_value():
    """Never below the exact two-sided p-value, hardly above it, and unanimous votes to the bit."""
    for n in (1, 2, 3, 10, 11, 40, 101):
        first = np.arange((n + 1) // 2, n + 1)
        for k, found in zip(first.tolist(), majority_p_value(first, n - first).tolist(), strict=True):
            exact = min(1, 2 * exact_tail(k, n, 0.5))
            assert exact <= Fraction(found) <= exact * (1 + Fraction(1, 10**9))
            assert k < n or Fraction(found) == exact
    for n in (10**4 + 1, 10**7, 2**33):
        for deviations in (3, 7, 36, 37):  # the last tail is below 1e-290, where SciPy's may be 0
            k = int(n / 2 + deviations * n**0.5 / 2)
            found, exact = float(majority_p_value(np.array(k), np.array(n - k))), 2 * upper_tail(k, n, 0.5)
            assert exact <= found <= exact * (1 + mp.mpf("2e-6") if deviations < 30 else 10**4)
    assert majority_p_value(np.array([0, 4]), np.array([0, 4])).tolist() == [1, 1]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("alpha", [1e-199, 1e-245, 1e-300, 3e-308])
def test_clopper_pearson_where_scipy_underflows(alpha):
    """Below about 1e-240 its tail is 0 for some arguments, which would make a limit too large."""
    for n in (10, 1000, 10_000, 10**7, 2**33):
        for k in sorted({n - 60, n - 38, n - 35, n - 10, n - 1, n} & set(range(max(1, n - 60), n + 1))):
            lower = bounds.clopper_pearson_lower(k, n, alpha)
            assert 0 < float(lower) < k / n
            assert 0.01 < upper_tail(k, n, float(lower)) / mp.mpf(alpha) <= 1
            p = float(bounds.randomized_clopper_pearson_lower(k, n, alpha, 0.5))
            assert 0 < p < 1
            rest = upper_tail(k + 1, n, p) if k < n else 0
            assert (upper_tail(k, n, p) + rest) / 2 <= mp.mpf(alpha)
            assert float(bounds.clopper_pearson_upper(n - k, n, alpha)) == float(bounds.mirrored(lower))


def test_alpha_that_floats_cannot_divide():
    """Of what users ask for 1e-300 is the least; a share of that, which a bound gets, may be smaller."""
    assert bounds.check_alpha(1e-300) == 1e-300
    for alpha in (9.9e-301, 1e-310, 5e-324):
        with pytest.raises(ValueError, match=f"^alpha must be at least 1e-300, got {alpha!r}; below that floating point"):
            bounds.check_alpha(alpha)
    for function, arguments in (
        (bounds.clopper_pearson_lower, (5, 10)),
        (bounds.clopper_pearson_upper, (5, 10)),
        (bounds.hoeffding_lower, (0.5, 10**5)),
        (bounds.hoeffding_upper, (0.5, 10**5)),
        (bounds.empirical_bernstein_lower, (0.5, 0.1, 10**5)),
        (bounds.empirical_bernstein_upper, (0.5, 0.1, 10**5)),
    ):
        assert 0 < float(function(*arguments, 1e-300 / 1000)) <= 1
        for alpha in (1e-310, 5e-324):
            with pytest.raises(ValueError, match=f"^alpha must be at least 2.2250738585072014e-308, got {alpha!r}; below"):
                function(*arguments, alpha)
