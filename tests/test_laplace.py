"""Laplace noise: what it draws, its potential, its certificates; and what any noise must satisfy to be registered."""

import re

import mpmath as mp
import numpy as np
import pytest
import torch
from scipy import stats

import rsfast
from rsfast.noise import DRAWS, POTENTIAL_ERROR, Gaussian, Laplace
from rsfast.ops import _cpu, arithmetic, perturb
from rsfast.stats.rules import CertificationSpec, radius

SCORES = np.concatenate([10.0 ** np.arange(-300, 0, 13), np.linspace(0.2, 0.8, 61), 1 - 10.0 ** np.arange(-16, 0)])
EDGES = [(c + o) % 2**32 for c in (*(k << 28 for k in range(16)), *(1 << k for k in range(32))) for o in (-2, -1, 0, 1, 2)]


def kernel_values(words):
    words, out = np.asarray(words, dtype=np.uint32), np.full(len(words), np.nan, dtype=np.float32)
    draw = _cpu.draws().index("laplace")
    _cpu.noise_of_words(draw=draw, words=words.ctypes.data, count=words.size, out=out.ctypes.data)
    return out


def reference_values(words):
    return DRAWS["laplace"].plain([torch.tensor(np.asarray(words, dtype=np.int64))], arithmetic)[0].numpy()


@pytest.fixture(params=[*_cpu.isas(), "reference"])
def values_of(request):
    """Every implementation: the kernel on each instruction set, and the reference."""
    before = _cpu.isa()
    if request.param != "reference":
        _cpu.use_isa(request.param)
    yield reference_values if request.param == "reference" else kernel_values
    _cpu.use_isa(before)


def known_answer(word):
    """-ln((2 k + 1) / 2^32) with k the low 31 bits, negative where the top bit is set, by mpmath."""
    with mp.workdps(40):
        magnitude = -mp.log(mp.mpf(2 * (word & 0x7FFFFFFF) + 1) / 2**32)
        return -magnitude if word >> 31 else magnitude


def test_known_answers(values_of):
    """Within 4 units in the last place, or 2e-7 if that is more, as the contract has it."""
    words = EDGES + np.random.default_rng(5).integers(0, 2**32, 400).tolist()
    found, exact = values_of(words), np.array([float(known_answer(word)) for word in words])
    assert np.all(np.abs(found - exact) <= np.maximum(2e-7, 4 * np.spacing(np.abs(exact).astype(np.float32))))


def test_a_million_words(values_of):
    """Against float64, whose logarithms are good to an ulp; every implementation gives the same bits."""
    words = np.random.default_rng(6).integers(0, 2**32, 1 << 20)
    k = (words & 0x7FFFFFFF).astype(np.float64)
    exact = np.where(k < 2**30, -np.log((2 * k + 1) / 2**32), -np.log1p((2 * k + 1 - 2**32) / 2**32))
    found = values_of(words)
    assert np.all(np.abs(np.abs(found) - exact) <= np.maximum(2e-7, 4 * np.spacing(exact.astype(np.float32))))
    assert np.array_equal(np.signbit(found), words >> 31 == 1)
    assert np.array_equal(found.view(np.uint32), kernel_values(words).view(np.uint32))


def test_reach_and_symmetry(values_of):
    """The largest is 32 ln 2, the least 2^-32; the top bit does nothing but turn the sign."""
    largest, least, *rest = values_of([0, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
    assert float(largest) == np.float32(32 * np.log(2))
    assert float(least) == 2.0**-32
    assert rest == [-largest, -least]


def test_distribution():
    """Kolmogorov-Smirnov of 2^22 elements, and the counts beyond 1, 4, 8 and 12: false failure below 1e-5; fixed seed."""
    z = perturb(torch.zeros(1, 1 << 16), Laplace(1.0), seed=2024, samples=range(64)).double().numpy().ravel()
    assert stats.kstest(z, "laplace").pvalue > 1e-6
    for cut in (1, 4, 8, 12):
        for count in ((z > cut).sum(), (z < -cut).sum()):
            assert stats.binomtest(int(count), z.size, np.exp(-cut) / 2).pvalue > 1e-6


def test_elements_are_independent():
    """Rank correlations of neighbours, of a block's words and of samples: z-scores below 5, false failure 9 * 5.8e-7."""
    z = perturb(torch.zeros(1, 1 << 14), Laplace(1.0), seed=7, samples=range(32)).numpy()
    pairs = [(z[:, i::4], z[:, j::4]) for i in range(4) for j in range(i)]
    pairs += [(z[:, :-4], z[:, 4:]), (z[:-1], z[1:]), (np.abs(z[:, ::2]), np.abs(z[:, 1::2]))]
    for a, b in pairs:
        assert abs(stats.spearmanr(a.ravel(), b.ravel()).statistic) * a.size**0.5 < 5


# The potential


@pytest.mark.parametrize("b", [0.1, 1.0, 700.0])
def test_relative_error_of_the_potential(b):
    applied = float(np.float32(b))
    with mp.workdps(340):
        for p in [*SCORES, np.nextafter(0.5, 0), np.nextafter(0.5, 1), 0.25, np.nextafter(0.25, 0), 5e-324]:
            exact = applied * (mp.log(2 * mp.mpf(p)) if p < 0.5 else -mp.log(2 * (1 - mp.mpf(p))))
            assert abs(mp.mpf(float(Laplace(b).potential(p))) - exact) <= POTENTIAL_ERROR * abs(exact), p


def test_the_potential_is_odd_and_increasing():
    q = 1 - SCORES[SCORES >= 0.5]  # exact
    assert np.array_equal(Laplace(1.0).potential(1 - q), -Laplace(1.0).potential(q))
    assert np.all(np.diff(Laplace(1.0).potential(np.sort(SCORES))) >= 0)
    ends = Laplace(1.0).potential([0.0, 0.5, 1.0, np.nan, -0.1, 1.1])
    np.testing.assert_array_equal(ends, [-np.inf, 0.0, np.inf, np.nan, np.nan, np.nan])


def test_no_score_moves_faster_and_a_half_line_attains_it():
    """Indicators of unions of intervals, whose smoothed score and its derivative are sums of cdfs and densities."""
    rng, x = np.random.default_rng(3), np.linspace(-3, 3, 201)
    fastest = 0.0
    for _ in range(300):
        ends = np.sort(rng.normal(size=2 * rng.integers(1, 5))).reshape(-1, 2)
        if rng.uniform() < 0.5:
            ends[-1, 1] = np.inf
        p = sum(stats.laplace.cdf(right - x) - stats.laplace.cdf(left - x) for left, right in ends)
        slope = np.abs(sum(stats.laplace.pdf(left - x) - stats.laplace.pdf(right - x) for left, right in ends))
        fastest = max(fastest, float((slope / np.minimum(p, 1 - p)).max()))  # Q'(p) is 1 / min(p, 1 - p)
    assert fastest <= 1 + 1e-9
    np.testing.assert_allclose(Laplace(0.7).potential(stats.laplace.cdf(x / 0.7)), x, atol=1e-12)


def test_radius_is_rounded_down():
    """Below (b/2) ln(1 / (4 (1 - lo) up)) by no more than the charge, and never above it."""
    rng = np.random.default_rng(8)
    low, high = 1 - 10 ** rng.uniform(-12, -0.4, 400), 10 ** rng.uniform(-12, -0.4, 400)
    for lower, upper, found in zip(low, high, radius(Laplace(0.5), low, high), strict=True):
        exact = mp.mpf(0.25) * mp.log(1 / (4 * (1 - mp.mpf(lower)) * mp.mpf(upper)))
        assert exact * (1 - 2e-14) <= mp.mpf(found) <= exact


def test_no_lipschitz_constant():
    message = re.escape(
        "lipschitz must be None with Laplace noise, whose potential for Lipschitz scores is not known, got 2.0"
    )
    with pytest.raises(ValueError, match=f"^{message}"):
        Laplace(1.0).potential(0.9, lipschitz=2.0)
    with pytest.raises(ValueError, match=f"^{message}"):
        CertificationSpec(Laplace(1.0), 0.001, rsfast.Softmax(), lipschitz=2.0)


# Certificates


def right_of_zero(batch):
    """Class 1 where the first element is above 0: p_1 = 1 - exp(-x / b) / 2, and the l1 radius at x is x."""
    return torch.stack([-batch[:, 0], batch[:, 0]], dim=1)


def test_certificates_of_a_half_space():
    """Never above the truth at this seed (alpha = 0.001 each), and within 5 % of it at n = 100,000."""
    x = torch.zeros(3, 5)
    x[:, 0] = torch.tensor([0.2, 0.5, 1.0])
    found = rsfast.certify(right_of_zero, x, Laplace(0.25), num_classes=2, n=100_000, seed=4)
    for certificate, truth in zip(found, x[:, 0].tolist(), strict=True):
        assert certificate.prediction == 1
        assert certificate.norm == "l1"
        assert 0.95 * truth <= certificate.radius <= truth
        assert rsfast.Certificate.from_dict(certificate.to_dict()) == certificate


def test_predict_sample_and_tallies(tmp_path):
    x = torch.full((2, 5), 0.5)
    assert rsfast.predict(right_of_zero, x, Laplace(0.25), num_classes=2, n=100, alpha=0.001, seed=1) == [1, 1]
    options = {"num_classes": 2, "seed": 3}
    selection = rsfast.sample(right_of_zero, x, Laplace(0.25), n=50, stream="selection", **options)
    first = rsfast.sample(right_of_zero, x, Laplace(0.25), n=600, **options)
    tally = first + rsfast.sample(right_of_zero, x, Laplace(0.25), n=400, start=600, **options)
    assert tally.provenance.noise == Laplace(0.25)
    tally.save(tmp_path / "tally.safetensors")
    read = rsfast.Tally.load(tmp_path / "tally.safetensors")
    assert read == tally
    assert read.provenance == tally.provenance
    whole = rsfast.certify(right_of_zero, x, Laplace(0.25), n0=50, n=1000, **options)
    found = rsfast.certificates(selection, read, Laplace(0.25), alpha=0.001)
    assert [each.radius for each in found] == [each.radius for each in whole]
    with pytest.raises(ValueError, match="noise"):
        rsfast.certificates(selection, read, Gaussian(0.25), alpha=0.001)
