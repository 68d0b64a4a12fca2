"""GridGaussian: exact probabilities and sums, every backend's look-up, and certificates that no classifier breaks."""

import itertools
from fractions import Fraction

import mpmath as mp
import numpy as np
import pytest
import torch
from conftest import assert_same_bits
from scipy import stats
from scipy.special import ndtr

import rsfast
from rsfast.noise import Gaussian, GridGaussian, from_dict, philox
from rsfast.noise.rounded_normal import tails
from rsfast.ops import perturb
from rsfast.stats.rules import radius

SIGMAS = (2.0**-9, 0.01, 0.12, 0.25, 1.0, 8.0)


def counts_of(sigma):
    """The multiples of 2^-64 that the chances of at least 1, 2, ... are drawn with, as Python's integers."""
    return [int(count) for count in GridGaussian(sigma).parameters((1,)).tensors[1]]  # a 0 at the end


def probabilities(sigma):
    """P(0), P(1), ... as drawn."""
    counts = np.array(counts_of(sigma), dtype=np.float64) / 2.0**64
    return np.append(1 - 2 * counts[0], counts[:-1] - counts[1:])


def upper_tail(j, sigma):
    """The chance of at least j by mpmath, in units of 2^-64."""
    s = 255 * mp.mpf(sigma)
    return mp.erfc((j - mp.mpf(1) / 2) / s / mp.sqrt(2)) / 2 * 2**64


# What is drawn


@pytest.mark.parametrize("sigma", SIGMAS)
def test_thresholds_are_the_nearest_integers(sigma):
    """So the probability of a level is within 2^-64 of the difference of two Phi."""
    counts = counts_of(sigma)
    with mp.workdps(60):
        for j in range(1, len(counts) + 1, 1 + len(counts) // 600):
            assert abs(counts[j - 1] - upper_tail(j, sigma)) <= 0.5, j
        assert upper_tail(len(counts), sigma) < 0.5  # the first that is left out
    assert counts == sorted(counts, reverse=True)


@pytest.mark.parametrize("sigma", SIGMAS[:4])
def test_total_variation_is_what_all_levels_are_off_by(sigma):
    counts = [2**63, *counts_of(sigma), 0]
    with mp.workdps(60):
        exact = [mp.mpf(2) ** 63, *(upper_tail(j, sigma) for j in range(1, len(counts) - 1)), mp.mpf(0)]
        error = [a - b for a, b in zip(counts, exact, strict=True)]
        off = sum(abs(a - b) for a, b in itertools.pairwise(error)) / 2**64  # both halves of the distribution, times 1/2
        found = GridGaussian(sigma).total_variation(1)
        assert off <= found <= off * (1 + mp.mpf(2) ** -40)
    assert GridGaussian(sigma).total_variation(3 * 224 * 224) >= 3 * 224 * 224 * Fraction(found)


def test_tails_of_other_scales_are_refused():
    with pytest.raises(ValueError, match=r"^s must be from 0\.49 to 2\^16, got 1/4$"):
        tails(Fraction(1, 4))


def words_of(elements, sample, seed, stream=1):
    blocks = torch.arange((elements + 3) // 4)
    row = (torch.full_like(blocks, word) for word in (sample, 0, stream << 24))
    return torch.stack(philox((blocks, *row), seed), dim=1).flatten()[:elements].tolist()


def test_known_answers(backend):
    """The level is the number of thresholds above 63 bits, 31 of them from the element's word, whose top bit is the sign."""
    for sigma in SIGMAS:
        counts = counts_of(sigma)
        found = perturb(torch.zeros(1, 61), GridGaussian(sigma), seed=9, samples=[5], backend=backend)[0]
        high, low = words_of(61, 5, 9), words_of(61, 5, 9, stream=0x81)
        for value, a, b in zip(found.tolist(), high, low, strict=True):
            level = sum(count > ((a & 0x7FFFFFFF) << 32 | b) for count in counts)
            assert value == np.float32(-level if a >> 31 else level) / np.float32(255)


def tied(backend, device="cpu", rows=1):
    """Noise of 64 elements whose tables are made for them: many have the high word of thresholds, of up to four at once."""
    words, low = ([w for row in range(rows) for w in words_of(64 // rows, row, 3, stream=s)] for s in (1, 0x81))
    thresholds, shift = [], 10
    for place in range(0, 64, 3):
        high = (words[place] & 0x7FFFFFFF) << 32
        thresholds += [high | (low[place] + offset) % 2**32 for offset in ((1,), (0,), (-1, 0, 1, 2), (5, -5))[place % 4]]
    thresholds = torch.tensor(sorted(thresholds, reverse=True))
    cell = (((thresholds >> 32).float() + 0.5).view(torch.int32) >> shift).long() - (0x3F000000 >> shift)
    guide = torch.full(((32 << (23 - shift)) + 1, 2), -1, dtype=torch.int32)
    guide[cell, 0] = (thresholds >> 32).int()
    guide[:, 1] = (cell > torch.arange(len(guide))[:, None]).sum(1)
    tables = [guide.to(device), torch.cat([thresholds, torch.zeros(1, dtype=torch.int64)]).to(device)]
    zeros = torch.zeros(rows, dtype=torch.int64, device=device)
    out = torch.full((rows, 64 // rows), torch.nan, device=device)
    samples = torch.arange(rows, device=device)
    call = (torch.zeros_like(out[:1]), zeros, zeros[:1], samples, "grid_gaussian", [float(shift)], tables, 3, 1)
    torch.ops.rsfast.perturb(*call, None, None, None, False, backend, out)
    return out.cpu()


@pytest.mark.parametrize("rows", [1, 16])
def test_low_words_decide_ties(rows, backend):
    """Of a long row, and of short ones, which a CPU makes side by side."""
    expected = tied("reference", rows=rows)
    assert_same_bits(tied(backend, rows=rows), expected)
    assert len(expected.unique()) > 20


MANY = {"noise": GridGaussian(8.0), "seed": 4, "samples": [2]}


@pytest.fixture(scope="module")
def many():
    """2^20 elements at the largest sigma, of which some have the high word of a threshold."""
    highs = MANY["noise"].parameters((1,)).tensors[1] >> 32
    assert np.isin(np.array(words_of(1 << 20, 2, 4)) & 0x7FFFFFFF, highs).sum() >= 5
    return perturb(torch.zeros(1, 1 << 20), **MANY, backend="reference")


def test_ties_of_its_own_tables(many, isa):
    assert_same_bits(perturb(torch.zeros(1, 1 << 20), **MANY, backend="cpu"), many)


def test_distribution():
    """Chi-square of 2^22 levels, those rarer than 1e-5 as one, on either side: false failure 1e-6; fixed seed."""
    for sigma in (0.004, 0.05):
        y = perturb(torch.zeros(1, 1 << 16), GridGaussian(sigma), seed=2024, samples=range(64))
        assert chi_square([np.bincount(levels_of(y) + 8192, minlength=16385)], sigma) > 5e-7


def levels_of(y):
    return (y.double() * 255).round().int().numpy().ravel()


def chi_square(histograms, sigma):
    counts, p = sum(histograms), probabilities(sigma)
    n, most = counts.sum(), int((p > 1e-5).sum())
    found = counts[8193 - most : 8192 + most]
    exact = n * np.append(p[most - 1 : 0 : -1], p[:most])
    found, exact = np.append(found, n - found.sum()), np.append(exact, n - exact.sum())
    return stats.chisquare(found, exact).pvalue


def test_elements_are_independent():
    """Correlations of neighbours, of a block's words and of samples: z-scores below 5, false failure 9 * 5.8e-7."""
    z = perturb(torch.zeros(1, 1 << 14), GridGaussian(0.1), seed=7, samples=range(32)).numpy()
    pairs = [(z[:, i::4], z[:, j::4]) for i in range(4) for j in range(i)]
    pairs += [(z[:, :-4], z[:, 4:]), (z[:-1], z[1:]), (np.abs(z[:, ::2]), np.abs(z[:, 1::2]))]
    for a, b in pairs:
        assert abs(stats.spearmanr(a.ravel(), b.ravel()).statistic) * a.size**0.5 < 5


@pytest.mark.noise
def test_a_billion_levels(threads):
    """2^30 levels: chi-square p > 1e-6, and counts beyond 4, 5 and 6 sigma by a binomial test p > 1e-7 each; fixed seed."""
    threads(1)
    sigma, total = 0.25, np.zeros(16385, dtype=np.int64)
    for sample in range(1024):
        y = perturb(torch.zeros(1, 1 << 20), GridGaussian(sigma), seed=11, samples=[sample])
        total += np.bincount(levels_of(y) + 8192, minlength=16385)
    assert total.sum() == 1 << 30
    assert chi_square([total], sigma) > 1e-6
    for cut in (4, 5, 6):
        level = round(cut * 255 * sigma)
        for count in (total[8192 + level :].sum(), total[: 8193 - level].sum()):
            assert stats.binomtest(int(count), 1 << 30, counts_of(sigma)[level - 1] / 2.0**64).pvalue > 1e-7


# The sum


def test_sums_are_exact_for_every_value_of_a_pixel(backend):
    """y is (u + k) / 255 correctly rounded, with k the same for all 256 values u; uint8 and float32 alike."""
    u = torch.arange(256)[:, None]
    x = (u / 255).expand(256, 500)
    options = {"seed": 2, "samples": [3] * 256, "input_ids": [0] * 256, "backend": backend}
    y = perturb(x, GridGaussian(0.3), **options)
    k = levels_of(y).reshape(256, 500) - u.numpy()
    assert (k == k[0]).all()
    assert len(set(k[0].tolist())) > 100
    assert np.array_equal(y.numpy(), (u.numpy() + k).astype(np.float32) / np.float32(255))
    assert_same_bits(perturb(u.to(torch.uint8).expand(256, 500), GridGaussian(0.3), **options), y)


def test_every_quotient_that_can_occur(backend):
    """Inputs up to 256, and noise up to that of the largest sigma: an exhaustive proof of the correction."""
    most = 256 * 255 + len(counts_of(8.0))
    n = np.arange(-most - 9, most + 10, dtype=np.float32)
    x = torch.from_numpy(n / np.float32(255))[None]
    y = perturb(x, GridGaussian(2.0**-9), seed=1, samples=range(15), backend=backend).numpy()
    sums = np.round(y.astype(np.float64) * 255).astype(np.float32)
    assert np.abs(sums - n).max() in range(1, 6)
    assert np.array_equal(y, sums / np.float32(255))  # NumPy's division is correctly rounded
    assert not np.signbit(y[y == 0]).any()
    assert set(range(-most, most + 1)) <= set(sums.astype(int).ravel().tolist())


def test_without_noise_a_pixel_is_what_to_tensor_makes_of_it(backend):
    u = torch.arange(256, dtype=torch.uint8)[None].expand(200, 256)
    y = perturb(u, GridGaussian(0.004), seed=1, samples=range(200), backend=backend)
    unmoved = levels_of(y).reshape(200, 256) == u.numpy()
    assert unmoved.any(axis=0).all()
    assert np.array_equal(y.numpy()[unmoved], u.float().div(255).numpy()[unmoved])


# The certificate


def test_radius_is_rounded_down():
    """Below (sigma / 2) (Phi^-1(lo - c) - Phi^-1(up + c)), c the total variation of 2^26 elements, and by little."""
    rng, noise = np.random.default_rng(8), GridGaussian(0.3)
    low, high = 1 - 10 ** rng.uniform(-7, -0.4, 200), 10 ** rng.uniform(-7, -0.4, 200)
    with mp.workdps(40):
        charge = mp.mpf(noise.total_variation(1 << 26))
        assert 0 < charge < 2e-9

        def quantile(p):
            return mp.sqrt(2) * mp.erfinv(2 * p - 1)

        for lower, upper, found in zip(low, high, radius(noise, low, high), strict=True):
            exact = mp.mpf(noise.sigma) / 2 * (quantile(lower - charge) - quantile(upper + charge))
            assert exact - mp.mpf("1e-8") * abs(exact) <= found <= exact


def test_the_ends_of_a_radius():
    assert radius(GridGaussian(0.25), 0.0, 1.0) == -np.inf
    assert 1 < radius(GridGaussian(0.25), np.nextafter(1, 0), np.nextafter(0, 1)) < 1.6


def smoothed_scores(h, p):
    """Exact scores of a table of votes, one axis after the other: those of all points but the margins."""
    weights = np.append(p[:0:-1], p)
    for axis in range(h.ndim):
        h = np.apply_along_axis(np.convolve, axis, h, weights, mode="valid")
    return h


def largest_excess(h, p, sigma):
    """How far certificates reach beyond a point where the class differs, over all pairs; negative where none does."""
    score = smoothed_scores(h, p)
    lower = np.clip(np.maximum(score, 1 - score) - 1e-13, 0.5, 1 - 1e-13)
    radii = 255 * radius(GridGaussian(sigma), lower, 1 - lower)
    places = np.argwhere(np.ones(score.shape))
    ahead = (score > 0.5).ravel()
    distance = np.linalg.norm(places[:, None] - places[None], axis=2)
    return np.where(ahead[:, None] != ahead[None], radii.ravel()[:, None] - distance, -np.inf).max()


def tables_of_votes():
    """Random ones, half spaces, and unions of intervals, on a line and on a plane."""
    rng = np.random.default_rng(6)
    for _ in range(40):
        yield (rng.uniform(size=160) < rng.uniform(0.2, 0.8)).astype(float)
        yield np.repeat(rng.uniform(size=40) < 0.5, 4).astype(float)
        yield (rng.uniform(size=(44, 44)) < rng.uniform(0.3, 0.7)).astype(float)
    yield (np.arange(160) > 80).astype(float)
    for slope in (0.0, 0.3, 1.0):
        yield (np.arange(44)[:, None] + slope * np.arange(44) > 22 * (1 + slope)).astype(float)


def near_levels(p, most=15):
    """The distribution cut to where tables of 44 hold it; what is left out is added at 0, far below what is tested."""
    cut = p[:most].copy()
    cut[0] += 1 - cut[0] - 2 * cut[1:].sum()
    return cut


@pytest.mark.parametrize("s", [0.5, 0.8, 1.5])
def test_no_table_of_votes_breaks_a_certificate(s):
    """Exact scores, every pair of points: none within the radius has another class."""
    sigma = s / 255
    excess = [largest_excess(h, near_levels(probabilities(sigma)), sigma) for h in tables_of_votes()]
    assert max(excess) < 0
    assert max(excess) > -0.6  # so it is close: a half space's boundary lies half a step before the next point


def top_two_radius(p):
    """In steps, at 1: class A has the votes from 1 on, B those up to -1, a thousand others those at 0. A and B tie at 0."""
    at_0_or_more, below_minus_1 = 0.5 + p[0] / 2, 0.5 - p[0] / 2 - p[1]
    return 255 * float(radius(GridGaussian(0.5 / 255), at_0_or_more, below_minus_1))


def test_top_two_is_tight_and_breaks_another_noise_on_the_grid():
    """A is ahead of B at less than one step from 1. Weights exp(-k^2 / 2 s^2) would certify 1.16 steps."""
    assert 0.9999 < top_two_radius(probabilities(0.5 / 255)) < 1
    weights = np.exp(-2.0 * np.arange(15) ** 2)
    assert top_two_radius(weights / (2 * weights.sum() - 1)) > 1.1


def off_the_float_grid(batch):
    """Class 1 where an element in (-1/2, 0) is no multiple of 2^-24."""
    y = batch.flatten(1).double()
    hit = ((y > -0.5) & (y < 0) & (y * 2.0**24 % 1 != 0)).any(1).float()
    return torch.stack([1 - hit, hit], 1)


def knows(x, sigma, width):
    """Class 1 where an element next to 0 cannot be x plus sigma times a float32."""
    scale, x = float(torch.tensor(sigma)), x.double().flatten()

    def model(batch):
        y = batch.flatten(1).double()
        noise, unit = y - x, 2.0 ** (torch.frexp(y)[1].double() - 24)
        off = (noise - scale * (noise / scale).float().double()).abs() > 0.51 * unit
        hit = ((y.abs() < width) & off).any(1).float()
        return torch.stack([1 - hit, hit], 1)

    return model


def is_false(model, noise, x, other, n):
    """Whether the radius at x reaches `other`, where another class is certain."""
    at_x, there = rsfast.certify(model, torch.stack([x, other]), noise, num_classes=2, n=n, seed=1)
    return at_x.prediction != there.prediction != -1 and float((x.double() - other.double()).norm()) < at_x.radius


PIXELS = torch.full((3, 32, 32), 128 / 255)
FEW = PIXELS.clone()
FEW.view(-1)[:16] = 127 / 255
ATTACKS = {
    "multiples of 2^-24": (off_the_float_grid, 0.5, PIXELS, FEW, 2000),
    "the input is known": (knows(PIXELS, 0.12, 2.0**-2), 0.12, PIXELS, torch.full_like(PIXELS, 127 / 255), 1000),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_false_certificate_of_8_bit_images(attack):
    """With the plain Gaussian both classifiers get one: a radius beyond an image where the other class is certain."""
    model, sigma, x, other, n = ATTACKS[attack]
    assert is_false(model, Gaussian(sigma), x, other, n)
    assert not is_false(model, GridGaussian(sigma), x, other, n)


def test_certificates_of_a_half_space():
    """p is Phi((u - 1/2) / s) exactly, and radii at most that of the exact score; within 5 % of it at n = 100,000."""
    x = torch.zeros(3, 5, dtype=torch.uint8)
    x[:, 0] = torch.tensor([30, 60, 100])
    found = rsfast.certify(
        lambda y: torch.stack([-y[:, 0], y[:, 0]], 1), x, GridGaussian(0.25), num_classes=2, n=100_000, seed=4
    )
    for certificate, u in zip(found, (30, 60, 100), strict=True):
        assert (certificate.prediction, certificate.norm) == (1, "l2")
        assert 0.95 * (u - 0.5) / 255 <= certificate.radius <= (u - 0.5) / 255
        assert certificate.p_lower <= ndtr((u - 0.5) / 63.75)
        assert rsfast.Certificate.from_dict(certificate.to_dict()) == certificate


def test_parameters_and_errors():
    assert from_dict(GridGaussian(0.25).to_dict()) == GridGaussian(0.25)
    with pytest.raises(ValueError, match=r"^sigma must be from 2\^-9 to 8, got 0.001$"):
        GridGaussian(0.001)
    GridGaussian(0.25).parameters((1 << 26,)).check()
    with pytest.raises(
        ValueError, match=r"^inputs must have at most 2\^26 elements with GridGaussian noise, .* got 67108865$"
    ):
        GridGaussian(0.25).parameters(((1 << 26) + 1,))
    with pytest.raises(ValueError, match=r"^lipschitz must be None with GridGaussian noise, .*, got 2.0; leave it out"):
        GridGaussian(0.25).potential(0.9, lipschitz=2.0)
