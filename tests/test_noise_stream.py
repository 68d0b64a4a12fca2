"""The noise stream: Philox, its counters, Box-Muller and the statistics of what comes out.

The slow tests (marker noise) look at all 2^32 radius words, all 2^32 angle words and 10^9 normals.
"""

import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mpmath as mp
import numpy as np
import pytest
import torch
from conftest import assert_same_bits
from scipy import stats

from rsfast.noise import STREAMS, Gaussian
from rsfast.noise import philox as philox_of_counters
from rsfast.ops import _cpu, arithmetic, perturb

VECTORS = Path(__file__).parent / "vectors"
# Salmon et al. 2011 (Random123's known-answer file), and for the counter of a sample an independent implementation.
PHILOX = json.loads((VECTORS / "philox.json").read_text())
NORMAL = json.loads((VECTORS / "normal.json").read_text())  # exact Box-Muller by mpmath, 20 digits

ONE_SIGMA = Gaussian(1.0)
GAUSSIAN = _cpu.draws().index("gaussian")
EDGE_WORDS = sorted(
    {
        (center + offset) % 2**32
        for center in (
            *(k << 29 for k in range(8)),  # quadrants, and half way, where the sine and cosine polynomials swap
            *(1 << k for k in range(32)),
            *(
                3 << k for k in range(31)
            ),  # the mantissa of the logarithm wraps; from 3/4 of 2^32 on, the complement is taken
            *(round(2**k * math.sqrt(0.5)) for k in range(2, 33)),  # where it would in other reductions
            *((1 << 32) - (1 << k) for k in range(25)),
        )
        for offset in (-2, -1, 0, 1, 2)
    }
)


def philox_words(seed, counter, blocks=1, threads=1):
    """The CPU kernel's words [blocks, 4] from `counter` on."""
    out = np.full((blocks, 4), 0xA5A5A5A5, dtype=np.uint32)
    first, c1, c2, c3 = counter
    _cpu.philox_words(seed, c1, c2, c3, first, blocks, out.ctypes.data, threads)
    return out


def reference_philox(seed, counter):
    words = philox_of_counters(tuple(torch.tensor([c]) for c in counter), seed)
    return [int(word) for word in words]


def philox(counter, key):
    """Philox4x32-10 on Python integers, as Salmon et al. 2011 write it."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c0, 2**32)
        high1, low1 = divmod(0xCD9E8D57 * c2, 2**32)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return [c0, c1, c2, c3]


def kernel_normals(words):
    """The CPU kernel's Box-Muller on uint32 words [pairs, 2]: float32 [pairs, 2]."""
    words = np.ascontiguousarray(words, dtype=np.uint32)
    out = np.full(words.shape, np.nan, dtype=np.float32)
    _cpu.noise_of_words(GAUSSIAN, words.ctypes.data, words.size, out.ctypes.data)
    return out


def reference_normals(words):
    words = torch.from_numpy(np.asarray(words).astype(np.int64))
    return torch.stack(arithmetic.box_muller(words[:, 0], words[:, 1]), dim=-1).numpy()


@pytest.fixture(params=[*_cpu.isas(), "reference"])
def box_muller(request):
    """Every implementation of Box-Muller: the kernel on each instruction set, and the reference."""
    before = _cpu.isa()
    if request.param == "reference":
        yield reference_normals
    else:
        _cpu.use_isa(request.param)
        yield kernel_normals
    _cpu.use_isa(before)


def exact_radius(words):
    """sqrt(-2 ln((w + 1/2) / 2^32)) in float64: the argument is exact, and the library's log is good to an ulp."""
    return np.sqrt(-2 * np.log((words.astype(np.float64) + 0.5) * 2.0**-32))


def exact_angle(words):
    """(cos, sin)(2 pi w / 2^32) in float64, the nearest quarter turn taken off the integer."""
    words = words.astype(np.int64)
    quarter = (words + (1 << 29)) >> 30
    rest = (words - (quarter << 30)).astype(np.float64) * (2 * np.pi * 2.0**-32)
    c, s = np.cos(rest), np.sin(rest)
    quarter = quarter % 4
    return np.choose(quarter, [c, -s, -c, s]), np.choose(quarter, [s, c, -s, -c])


def exact_normals(words):
    r = exact_radius(words[:, 0])
    return np.stack([r * part for part in exact_angle(words[:, 1])], axis=-1)


def mp_normals(radius, angle):
    with mp.workdps(40):
        r = mp.sqrt(-2 * mp.log((mp.mpf(radius) + 0.5) / 2**32))
        theta = 2 * mp.pi * angle / 2**32
        return [r * mp.cos(theta), r * mp.sin(theta)]


def assert_close(found, expected):
    """The contract's tolerance: 4 units in the last place, or 2e-7 if that is more."""
    expected = np.asarray(expected, dtype=np.float64)
    allowed = np.maximum(4.0 * np.spacing(np.abs(expected).astype(np.float32)), 2e-7)
    error = np.abs(found.astype(np.float64) - expected)
    worst = np.unravel_index((error / allowed).argmax(), error.shape)
    assert (error <= allowed).all(), (worst, found[worst], expected[worst])


# Philox


@pytest.mark.parametrize("vector", PHILOX, ids=lambda vector: "-".join(map(str, vector["counter"])))
def test_philox_known_answers(vector, isa):
    seed = vector["key"][0] | vector["key"][1] << 32
    assert philox_words(seed, vector["counter"]).tolist() == [vector["words"]]
    assert reference_philox(seed, vector["counter"]) == vector["words"]
    assert philox(vector["counter"], vector["key"]) == vector["words"]


def test_philox_blocks_run_on(isa):
    """Block after block, over tile ends and threads, and past 2^31; the right side is this file's own Philox."""
    seed, counter = 0xFEDCBA9876543210, (2**31 - 40, 0x89ABCDEF, 5, 1 << 24 | 7)
    for blocks in (1, 15, 16, 17, 83):
        expected = [philox((counter[0] + i, *counter[1:]), (0x76543210, 0xFEDCBA98)) for i in range(blocks)]
        assert philox_words(seed, counter, blocks).tolist() == expected
    many = philox_words(seed, counter, 100_001, threads=3)
    assert np.array_equal(many, philox_words(seed, counter, 100_001))
    for i in (0, 12_345, 33_333, 33_334, 66_667, 100_000):
        assert many[i].tolist() == philox((counter[0] + i, *counter[1:]), (0x76543210, 0xFEDCBA98))


# Box-Muller


def test_normals_known_answers(box_muller):
    words = np.array([row["words"] for row in NORMAL], dtype=np.uint32)
    assert_close(box_muller(words), [[float(z) for z in row["z"]] for row in NORMAL])


def test_normals_of_edge_words(box_muller):
    """Every pair of edge words against float64, and every edge word against mpmath."""
    pairs = np.array([(a, b) for a in EDGE_WORDS for b in EDGE_WORDS], dtype=np.uint32)
    found = box_muller(pairs)
    assert_close(found, exact_normals(pairs))
    expected = [[float(z) for z in mp_normals(w, w)] for w in EDGE_WORDS]
    assert_close(found[np.flatnonzero(pairs[:, 0] == pairs[:, 1])], expected)


def test_the_oracle():
    """float64 against mpmath: a billionth of the tolerance."""
    pairs = np.array([(a, a) for a in EDGE_WORDS], dtype=np.uint32)
    for found, word in zip(exact_normals(pairs), EDGE_WORDS, strict=True):
        for z, expected in zip(found, mp_normals(word, word), strict=True):
            assert abs(z - expected) <= abs(expected) * mp.mpf("1e-15") + mp.mpf("1e-30")


@pytest.fixture(scope="module")
def million():
    words = np.random.default_rng(20240917).integers(0, 2**32, (1 << 20, 2), dtype=np.uint32)
    return words, reference_normals(words)


def test_a_million_normals(million, isa):
    """Against float64, and bit for bit against the reference."""
    words, expected = million
    found = kernel_normals(words)
    assert_close(found, exact_normals(words))
    assert_same_bits(torch.from_numpy(found), torch.from_numpy(expected))


def test_reach(isa):
    """Word 0 gives sqrt(2 ln 2^33) = 6.7637, the largest radius; word 2^32 - 1 the least, 2^-16, and not 0."""
    found = kernel_normals([[0, 0], [2**32 - 1, 0]])
    assert found[:, 0] == pytest.approx([6.7637056350018952, 2.0**-16], rel=1e-7)
    assert (found[:, 1] == 0).all()


# The contract: what a sample is a function of


def contract_cases():
    """(seed, stream, input id, sample, element), with every field at its ends."""
    seeds = [0, 1, 2**32 - 1, 2**32, 0x0123456789ABCDEF, 2**64 - 1]
    ids = [0, 1, 2**16, 2**31, 2**32 - 1]
    samples = [0, 1, 2**31, 2**32 - 1, 2**32, 2**32 + 5, 2**55 + 2**32 + 1, 2**56 - 1]
    elements = [0, 1, 2, 3, 4, 63, 64, 65, 4095, 4096, 100_002]
    for i in range(48):
        stream = list(STREAMS)[i % 4]
        yield seeds[i % 6], stream, ids[i // 4 % 5], samples[(5 * i + i // 8) % 8], elements[7 * i % 11]


def test_the_contract(box_muller):
    """z at counter (e // 4, sample low, input id, stream << 24 | sample high), key (seed low, seed high)."""
    backend = "reference" if box_muller is reference_normals else "cpu"
    numbers = {"selection": 0, "estimation": 1, "training": 2, "user": 3}
    cases = list(contract_cases())
    assert len({case[0] for case in cases}) == 6
    assert {case[3] >> 32 for case in cases} > {0, 1}
    for seed, stream, input_id, sample, element in cases:
        counter = (element // 4, sample % 2**32, input_id, numbers[stream] << 24 | sample >> 32)
        words = philox(counter, (seed % 2**32, seed >> 32))
        pair = words[:2] if element % 4 < 2 else words[2:]
        found = perturb(
            torch.zeros(1, element + 1),
            ONE_SIGMA,
            seed=seed,
            samples=[sample],
            input_ids=[input_id],
            stream=stream,
            backend=backend,
        )[0, element].numpy()
        assert found == box_muller(np.array([pair]))[0, element % 2]
        assert_close(found, float(mp_normals(*pair)[element % 2]))


# Independence


def normals(seed, stream, input_ids, samples, elements):
    """Normals [len(samples), elements] of input ids [len(samples)]."""
    x = torch.zeros(1, elements).expand(len(samples), elements)
    return perturb(x, ONE_SIGMA, seed=seed, samples=samples, input_ids=input_ids, stream=stream)


def scores(a, b):
    """Correlations of a and b and of their squares, each a standard normal if they are independent ones."""
    a, b = a.double().flatten(), b.double().flatten()
    root = math.sqrt(a.numel())
    return [float((a * b).sum()) / root, float(((a * a - 1) * (b * b - 1)).sum()) / (2 * root)]


def test_independence():
    """Of neighbours in every coordinate of the stream, 2^20 pairs each.

    58 scores, each standard normal but for what 2^20 terms leave (tails of a product of chi-squares are heavier: the bound
    6 leaves room). False-failure probability about 58 * 2e-9, with the heavier tails below 1e-6; the seeds are fixed.
    """
    size = 1 << 10
    base = normals(3, "estimation", [0] * size, range(size), size)
    flat = base.flatten()
    pairs = {f"element {lag}": (base[:, :-lag], base[:, lag:]) for lag in (1, 2, 3, 4, 5, 7, 8, 16, 32, 64, 128, 256)}
    pairs |= {f"sample {lag}": (base[:-lag], base[lag:]) for lag in (1, 2, 3, 4, 16)}
    pairs["sample 2^32"] = base, normals(3, "estimation", [0] * size, range(2**32, 2**32 + size), size)
    for other in (1, 2, 255, 2**16, 2**32 - 1):
        pairs[f"input {other}"] = base, normals(3, "estimation", [other] * size, range(size), size)
    for stream in ("selection", "training", "user"):
        pairs[f"stream {stream}"] = base, normals(3, stream, [0] * size, range(size), size)
    for seed in (2, 4, 3 + 2**32):
        pairs[f"seed {seed}"] = base, normals(seed, "estimation", [0] * size, range(size), size)
    found = {name: scores(*pair) for name, pair in pairs.items()}
    assert {name: both for name, both in found.items() if max(map(abs, both)) > 6} == {}
    assert max(map(abs, scores(flat, flat))) > 100  # the scores see dependence


def test_moments():
    """Mean, variance, skewness and kurtosis of 2^22 normals within 5 standard errors: false failure below 4 * 5.8e-7."""
    z = normals(5, "estimation", [0] * 1024, range(1024), 4096).double().flatten()
    n = z.numel()
    mean, variance = float(z.mean()), float(z.var(correction=0))
    skewness, kurtosis = (float(((z - mean) ** k).mean()) / variance ** (k / 2) for k in (3, 4))
    found = [mean * math.sqrt(n), (variance - 1) * math.sqrt(n / 2), skewness * math.sqrt(n / 6)]
    found += [(kurtosis - 3) * math.sqrt(n / 24)]
    assert max(map(abs, found)) < 5


def test_no_block_is_drawn_twice():
    """The blocks of four normals of 4 streams, 16 ids, 16 samples and 16 elements, for 4 seeds, all differ.

    65536 blocks of more than 80 random bits each: two agree by chance with probability below 2^-48.
    """
    ids = [*range(8), 2**8, 2**16, 2**24, 2**31, 2**32 - 4, 2**32 - 3, 2**32 - 2, 2**32 - 1]
    samples = [*range(8), 2**24, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**40, 2**55, 2**56 - 1]
    blocks = [
        normals(seed, stream, [i for i in ids for _ in samples], samples * len(ids), 64).reshape(-1, 4)
        for seed in (0, 1, 2**32, 2**64 - 1)
        for stream in STREAMS
    ]
    assert len(torch.cat(blocks)) == 65536
    assert len(torch.unique(torch.cat(blocks).view(torch.int32), dim=0)) == 65536


# Slow


def _histogram(sample):
    """Of 2^20 normals: sums of z, z^2, z^3 and z^4, and counts by the high 16 bits of the float."""
    z = normals(11, "estimation", [0], [sample], 1 << 20)
    high = z.view(torch.int32).numpy().view(np.uint32).ravel() >> 16
    d = z.double().flatten()
    square = d * d
    sums = [float(part) for part in (d.sum(), square.sum(), (square * d).sum(), (square * square).sum())]
    return np.array(sums), np.bincount(high, minlength=1 << 16)


@pytest.mark.noise
def test_a_billion_normals(threads, capsys):
    """1024 * 2^20 normals against the normal distribution.

    Mean, variance, skewness and kurtosis within 5 standard errors: false failure 4 * 5.8e-7. Kolmogorov-Smirnov over
    the 2^16 cuts that the high half of a float makes: sqrt(n) D < 2.7, false failure below 2 exp(-2 * 2.7^2) = 9.4e-7.
    Chi-square of all bins expected to hold 1000 or more: p > 1e-6. Counts beyond 3, 4, 5 and 6: binomial tail p > 5e-7
    on either side. All together below 1e-5; the seed is fixed.
    """
    threads(1)
    with ThreadPoolExecutor(2) as pool:
        parts = list(pool.map(_histogram, range(1024)))
    n = 1 << 30
    m1, m2, m3, m4 = sum(part[0] for part in parts) / n
    variance = m2 - m1**2
    skewness = (m3 - 3 * m1 * m2 + 2 * m1**3) / variance**1.5
    kurtosis = (m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4) / variance**2
    z = {
        "mean": m1 * math.sqrt(n),
        "variance": (variance - 1) * math.sqrt(n / 2),
        "skewness": skewness * math.sqrt(n / 6),
        "kurtosis": (kurtosis - 3) * math.sqrt(n / 24),
    }
    # Bins in ascending order of z: negative floats from the largest magnitude down, then positive ones up.
    counts = sum(part[1] for part in parts)
    magnitude = (np.arange(0x7F80, dtype=np.uint32) << 16).view(np.float32).astype(np.float64)  # lower edges
    positive, negative = counts[:0x7F80], counts[0x8000 : 0x8000 + 0x7F80]
    assert positive.sum() + negative.sum() == n
    edges = np.concatenate([-magnitude[:0:-1], magnitude])
    ordered = np.concatenate([negative[::-1], positive])  # a negative bin ends at its magnitude, and takes that in
    cumulated = np.cumsum(ordered)[:-1]
    ks = np.abs(cumulated / n - stats.norm.cdf(edges)).max() * math.sqrt(n)
    mass = stats.norm.sf(magnitude) - np.append(stats.norm.sf(magnitude[1:]), 0)
    expected = n * np.concatenate([mass[::-1], mass])
    full = expected >= 1000
    chi = ((ordered[full] - expected[full]) ** 2 / expected[full]).sum()
    rest, rest_expected = ordered[~full].sum(), expected[~full].sum()
    chi += (rest - rest_expected) ** 2 / rest_expected
    p_chi = float(stats.chi2.sf(chi, full.sum()))
    tails = {}
    for cut in (3, 4, 5, 6):
        k = int(ordered[np.r_[edges <= -cut, False]].sum() + ordered[np.r_[False, edges >= cut]].sum())
        p = 2 * stats.norm.sf(cut)
        tails[cut] = k, n * p, float(min(stats.binom.cdf(k, n, p), stats.binom.sf(k - 1, n, p)))
    with capsys.disabled():
        print("\n" + ", ".join(f"{name} {score:.2f}" for name, score in z.items()) + " standard errors")
        print(f"sqrt(n) KS {ks:.3f}; chi-square {chi:.0f} in {full.sum()} bins, p = {p_chi:.4f}")
        print("; ".join(f"|z| > {cut}: {k}, {mean:.1f} expected, p = {p:.3f}" for cut, (k, mean, p) in tails.items()))
    assert max(map(abs, z.values())) < 5
    assert ks < 2.7
    assert p_chi > 1e-6
    assert min(p for _, _, p in tails.values()) > 5e-7


PART = 1 << 18


def _exhaust(pool, pairs_of, check):
    """Run Box-Muller on 2^14 parts of 2^18 pairs of words and `check` each; return the checks' rows, one array.

    `pairs_of(i)` makes the pairs of a part. test_words.py compares the instruction sets.
    """

    def run(i):
        pairs = pairs_of(i).astype(np.uint32)
        return check(pairs, kernel_normals(pairs))

    return np.concatenate([*pool.map(run, range(1 << 14))])


def _extremes(words, found, exact):
    """Rows [relative error, error in ulp, |exact|, word] of the largest and the least relative error; 0 is found as 0."""
    size = np.abs(exact)
    assert (found[size == 0] == 0).all()
    size[size == 0] = 1
    relative = (found - exact) * np.sign(exact) / size
    unit = (size.astype(np.float32).view(np.uint32) & np.uint32(0x7F800000)).view(np.float32) * 2.0**-23
    ulp = (np.abs(relative) * size / unit).max()
    return [(relative[i], ulp, size[i], words[i]) for i in (relative.argmax(), relative.argmin())]


def _worst_by_size(rows):
    """For each 128th of an octave from 2^-5 up, the words of the rows with the largest and with the least relative error."""
    rows = rows[rows[:, 2] >= 2.0**-5]
    place = np.floor(128 * np.log2(rows[:, 2]))
    chosen = []
    for sign in (1, -1):
        order = np.lexsort((-sign * rows[:, 0], place))
        chosen.append(rows[order[np.unique(place[order], return_index=True)[1]], 3].astype(np.uint32))
    return chosen


@pytest.mark.noise
def test_all_words(capsys):
    """All 2^32 radii r and all 2^32 angles (cos, sin) against float64; then normals of the worst pairs of them.

    r is z0 at angle 0, whose cosine is exactly 1; (cos, sin) is z at a radius word whose r is exactly 1. A normal is their
    product, rounded once more, and worst where both are off in the same direction: of every size of r and of cos or sin (a
    128th of an octave) the worst words are paired, and held to the tolerance of the contract.
    """
    words = round(2**32 * math.exp(-0.5)) + np.arange(-200, 201)
    at_one = kernel_normals(np.stack([words, 0 * words], axis=-1))[:, 0]
    one = words[at_one == 1.0][0]

    def radius_pairs(part):
        words = np.arange(part * PART, (part + 1) * PART)
        return np.stack([words, 0 * words], axis=-1)

    def radius_check(pairs, z):
        assert (z[:, 1] == 0).all()
        return _extremes(pairs[:, 0], z[:, 0], exact_radius(pairs[:, 0]))

    def angle_pairs(part):  # a quarter as many angles about 0, and each turned by one, two and three quarters
        rest = np.arange(part * PART // 4, (part + 1) * PART // 4) - (1 << 29)
        words = np.concatenate([(rest + (quarter << 30)) % 2**32 for quarter in range(4)])
        return np.stack([np.full_like(words, one), words], axis=-1)

    def angle_check(pairs, z):
        c, s = exact_angle(pairs[: PART // 4, 1])
        turns = [(c, s), (-s, c), (-c, -s), (s, -c)]
        parts = zip(np.split(pairs[:, 1], 4), np.split(z, 4), turns, strict=True)
        return [
            row for words, found, exact in parts for i in (0, 1) for row in _extremes(words, found[:, i], exact[i].copy())
        ]

    with ThreadPoolExecutor(2) as pool:
        radius, angle = _exhaust(pool, radius_pairs, radius_check), _exhaust(pool, angle_pairs, angle_check)
    radii, angles = _worst_by_size(radius), _worst_by_size(angle)
    pairs = np.concatenate([[(r, a) for r in radii[i] for a in angles[j]] for i in (0, 1) for j in (0, 1)]).astype(np.uint32)
    found, expected = kernel_normals(pairs), exact_normals(pairs)
    ulp = np.abs(found - expected) / np.spacing(np.abs(expected).astype(np.float32))
    with capsys.disabled():
        for name, rows in (("r", radius), ("cos and sin", angle)):
            print(f"\n{name}: {np.abs(rows[:, 0]).max() * 2**24:.4f} * 2^-24 of itself, {rows[:, 1].max():.4f} ulp", end="")
        print(f"\nz of {len(pairs)} worst pairs: {ulp[np.abs(expected) >= 0.5].max():.4f} ulp where |z| >= 1/2")
    assert radius[:, 1].max() <= 4
    assert angle[:, 1].max() <= 4
    assert len(pairs) > 10**6
    assert_close(found, expected)
