"""Noises in l1: what they draw, and their potentials. What only one of them has is in a file of its own."""

import re
from concurrent.futures import ThreadPoolExecutor

import mpmath as mp
import numpy as np
import pytest
import torch
from l1_noises import EDGES, POTENTIALS, WORD_DRAWS, kernel_values, reference_values
from scipy import stats

import rsfast
from rsfast.noise import POTENTIAL_ERROR, Laplace, Splitting
from rsfast.ops import _cpu, perturb
from rsfast.stats.rules import CertificationSpec, radius

SCORES = np.concatenate([10.0 ** np.arange(-300, 0, 13), np.linspace(0.2, 0.8, 61), 1 - 10.0 ** np.arange(-16, 0)])


@pytest.fixture(params=WORD_DRAWS)
def draw(request):
    return request.param


@pytest.fixture(params=[*_cpu.isas(), "reference"])
def values_of(request):
    """Every implementation: the kernel on each instruction set, and the reference."""
    before = _cpu.isa()
    if request.param != "reference":
        _cpu.use_isa(request.param)
    yield reference_values if request.param == "reference" else kernel_values
    _cpu.use_isa(before)


def test_known_answers(values_of, draw):
    """Of edge words and 400 others, by 40-digit arithmetic; the top bit is the sign."""
    words = np.array(EDGES + np.random.default_rng(5).integers(0, 2**32, 400).tolist())
    with mp.workdps(40):
        exact = [float(WORD_DRAWS[draw].known(int(word) & 0x7FFFFFFF)) for word in words]
    found, exact = values_of(draw, words).astype(np.float64), np.array(exact)
    assert np.array_equal(np.signbit(found), words >> 31 == 1)
    assert np.all(np.abs(np.abs(found) - exact) <= WORD_DRAWS[draw].allowed(exact))


def test_a_million_words(values_of, draw):
    """Against float64, which is good to an ulp; every implementation gives the same bits."""
    words = np.random.default_rng(6).integers(0, 2**32, 1 << 20)
    exact, found = WORD_DRAWS[draw].exact((words & 0x7FFFFFFF).astype(np.float64)), values_of(draw, words)
    assert np.all(np.abs(np.abs(found) - exact) <= WORD_DRAWS[draw].allowed(exact))
    assert np.array_equal(np.signbit(found), words >> 31 == 1)
    assert np.array_equal(found.view(np.uint32), kernel_values(draw, words).view(np.uint32))


def test_reach_and_symmetry(values_of, draw):
    """The first and the last magnitude; the top bit does nothing but turn the sign."""
    first, last, *rest = values_of(draw, [0, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
    assert (float(first), float(last)) == WORD_DRAWS[draw].ends
    assert rest == [-first, -last]


def uniforms(name, samples, elements, seed):
    """Numbers that are uniform on (0, 1) if the noise is right: the distribution function of what it draws, float64."""
    x = torch.full((1, elements), 0.5 if name == "splitting" else 0.0)
    if name == "splitting":  # cells of width 1 that begin at s: x = 1/2 becomes (s + 1) / 2 if s is less, else s / 2
        return perturb(x, Splitting(0.5), seed=seed, samples=samples).double().mul(2).remainder(1).numpy()
    z = perturb(x, WORD_DRAWS[name].noise, seed=seed, samples=samples).double().numpy()
    return WORD_DRAWS[name].distribution.cdf(z)


def test_distribution(draw):
    """Kolmogorov-Smirnov of 2^22 elements, and counts beyond some cuts: false failure below 2e-5; fixed seed."""
    z = perturb(torch.zeros(1, 1 << 16), WORD_DRAWS[draw].noise, seed=2024, samples=range(64)).double().numpy().ravel()
    law = WORD_DRAWS[draw].distribution
    assert stats.kstest(z, law.cdf).pvalue > 1e-6
    for cut in WORD_DRAWS[draw].cuts:
        for count in ((z > cut).sum(), (z < -cut).sum()):
            assert stats.binomtest(int(count), z.size, law.sf(cut)).pvalue > 1e-6


@pytest.mark.parametrize("name", [*WORD_DRAWS, "splitting"])
def test_elements_are_independent(name):
    """Rank correlations of neighbours, of a block's words and of samples: z-scores below 5, false failure 9 * 5.8e-7."""
    u = uniforms(name, range(32), 1 << 14, seed=7)
    pairs = [(u[:, i::4], u[:, j::4]) for i in range(4) for j in range(i)]
    pairs += [(u[:, :-4], u[:, 4:]), (u[:-1], u[1:]), (np.abs(u[:, ::2] - 0.5), np.abs(u[:, 1::2] - 0.5))]
    for a, b in pairs:
        assert abs(stats.spearmanr(a.ravel(), b.ravel()).statistic) * a.size**0.5 < 5


# Slow


@pytest.mark.noise
def test_all_words(draw, threads):
    """All 2^32 words: magnitudes within what is allowed, the top bit their sign. test_words.py has all instruction sets."""
    threads(1)
    part = 1 << 20

    def values(start):
        return kernel_values(draw, np.arange(start, start + part, dtype=np.uint32))

    def check(start):
        exact = WORD_DRAWS[draw].exact(np.arange(start, start + part, dtype=np.float64))
        positive = values(start)
        assert np.all(np.abs(positive - exact) <= WORD_DRAWS[draw].allowed(exact)), start
        assert np.array_equal(values(start + (1 << 31)), -positive), start

    with ThreadPoolExecutor(2) as pool:
        for _ in pool.map(check, range(0, 1 << 31, part)):
            pass


@pytest.mark.noise
@pytest.mark.parametrize("name", [*WORD_DRAWS, "splitting"])
def test_a_billion_draws(name, threads, capsys):
    """1024 * 2^20 draws against their distribution function, in 2^16 bins of equal chance.

    Kolmogorov-Smirnov over the bins' edges: sqrt(n) D < 2.7, false failure below 2 exp(-2 * 2.7^2) = 9.4e-7. Chi-square:
    p > 1e-6. Mean and variance of the distribution function's values within 5 standard errors: 2 * 5.8e-7. All together
    below 4e-6; the seed is fixed.
    """
    threads(1)

    def part(sample):
        u = uniforms(name, [sample], 1 << 20, seed=11).ravel()
        return np.bincount(np.minimum(u * 65536, 65535).astype(np.int64), minlength=65536), u.sum(), ((u - 0.5) ** 2).sum()

    with ThreadPoolExecutor(2) as pool:
        counts, first, second = (sum(each) for each in zip(*pool.map(part, range(1024)), strict=True))
    n = 1 << 30
    ks = np.abs(np.cumsum(counts) / n - np.arange(1, 65537) / 65536).max() * n**0.5
    p = stats.chi2.sf(((counts - n / 65536) ** 2).sum() / (n / 65536), 65535)
    scores = (first / n - 0.5) * (12 * n) ** 0.5, (second / n - 1 / 12) * (180 * n) ** 0.5
    with capsys.disabled():
        print(
            f"\n{name}: sqrt(n) KS {ks:.3f}; chi-square p = {p:.4f}; mean {scores[0]:.2f}, variance {scores[1]:.2f} errors"
        )
    assert ks < 2.7
    assert p > 1e-6
    assert max(map(abs, scores)) < 5


# The potential


@pytest.mark.parametrize("cls", POTENTIALS)
@pytest.mark.parametrize("parameter", [0.1, 1.0, 700.0])
def test_relative_error_of_the_potential(cls, parameter):
    applied = mp.mpf(float(np.float32(parameter)))
    with mp.workdps(340):
        for p in [*SCORES, np.nextafter(0.5, 0), np.nextafter(0.5, 1), 0.25, np.nextafter(0.25, 0), 5e-324]:
            exact = POTENTIALS[cls](mp.mpf(p), applied)
            assert abs(mp.mpf(float(cls(parameter).potential(p))) - exact) <= POTENTIAL_ERROR * abs(exact), p


@pytest.mark.parametrize("cls", POTENTIALS)
def test_the_potential_is_odd_and_increasing(cls):
    q, one = 1 - SCORES[SCORES >= 0.5], cls(1.0)  # exact
    assert np.array_equal(one.potential(1 - q), -one.potential(q))
    assert np.all(np.diff(one.potential(np.sort(SCORES))) >= 0)
    end = np.inf if cls is Laplace else 1.0
    ends = one.potential([0.0, 0.5, 1.0, np.nan, -0.1, 1.1])
    np.testing.assert_array_equal(ends, [-end, 0.0, end, np.nan, np.nan, np.nan])


@pytest.mark.parametrize("cls", POTENTIALS)
def test_radius_is_rounded_down(cls):
    """Below (Q(lo) - Q(up)) / 2 by no more than the charge, and never above it."""
    rng = np.random.default_rng(8)
    low, high = 1 - 10 ** rng.uniform(-12, -0.4, 400), 10 ** rng.uniform(-12, -0.4, 400)
    applied = mp.mpf(float(np.float32(0.3)))
    with mp.workdps(40):
        for lower, upper, found in zip(low, high, radius(cls(0.3), low, high), strict=True):
            exact = (POTENTIALS[cls](mp.mpf(lower), applied) - POTENTIALS[cls](mp.mpf(upper), applied)) / 2
            assert exact * (1 - mp.mpf("2e-14")) <= mp.mpf(found) <= exact


@pytest.mark.parametrize("cls", POTENTIALS)
def test_no_lipschitz_constant(cls):
    message = re.escape(
        f"lipschitz must be None with {cls.__name__} noise, whose potential for Lipschitz scores is not known, got 2.0"
    )
    with pytest.raises(ValueError, match=f"^{message}"):
        cls(1.0).potential(0.9, lipschitz=2.0)
    with pytest.raises(ValueError, match=f"^{message}"):
        CertificationSpec(cls(1.0), 0.001, rsfast.Softmax(), lipschitz=2.0)
