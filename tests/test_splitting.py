"""Splitting noise: cells and centres in exact arithmetic, attacks on certificates, and all shifts on small grids."""

import itertools
import math
import re
from fractions import Fraction

import numpy as np
import pytest
import torch

import rsfast
from rsfast.noise import DRAWS, Gaussian, NoiseParameters, Splitting, Uniform, philox
from rsfast.ops import arithmetic, perturb


def words_of(seed, counter, elements):
    """The words of a row, one an element, by the Philox of tests/test_noise_stream.py's known answers."""
    blocks = torch.arange((elements + 3) // 4)
    found = philox((blocks, *(torch.full_like(blocks, value) for value in counter)), seed)
    return torch.stack(found, dim=1).flatten()[:elements].numpy()


# Random


def exact_centre(x, word, width):
    """The centre of x's cell and the cell's number, as fractions, for edges at width (word / 2^32 + k)."""
    shift = Fraction(int(word), 2**32)
    k = math.ceil(Fraction(x) / width - shift) - 1
    first = width * (shift + k)
    return (max(first, Fraction(0)) + min(first + width, Fraction(1))) / 2, k


@pytest.mark.parametrize("lam", [0.01, 0.3, 0.5, 0.7, 3.0])
def test_centres_of_random_cells(lam, backend):
    """Within 2^-23 of the exact ones; the words are those of the sample, the input and the stream."""
    x = torch.rand(1, 600, generator=torch.Generator().manual_seed(4))
    x[0, :2] = torch.tensor([0.0, 1.0])
    found = perturb(x, Splitting(lam), seed=77, samples=[2**33 + 5], input_ids=[9], stream="user", backend=backend)
    words = words_of(77, (5, 9, 3 << 24 | 2), 600)
    width = 2 * Fraction(float(np.float32(lam)))
    exact = [float(exact_centre(each, word, width)[0]) for each, word in zip(x[0].tolist(), words, strict=True)]
    assert np.abs(found[0].double().numpy() - exact).max() <= 2.0**-23


def centres(words, x, lam):
    """What the reference makes of given words, one for each x: float64."""
    noise = Splitting(lam).parameters((len(x),))
    z, x = torch.from_numpy(words)[None], torch.from_numpy(x)[None]
    return DRAWS["splitting"].combine(z, x, noise, arithmetic)[0].double().numpy()


def edges_below(x, lam):
    """How many of the edges of all 2^32 words, from the cell 0 on, lie below x (float32 [m]): int64, by bisection.

    Edges rise with the word. So x is in the cell n of the words up to some word, and in the cell n - 1 of those beyond, for
    the n of the word 0; which of the two it is, the centre says.
    """
    width = 2 * float(np.float32(lam))
    n = np.array([exact_centre(float(each), 0, Fraction(width))[1] for each in x])

    def in_upper(words):
        first = width * (words / 2**32 + n)
        upper, lower = ((np.maximum(begin, 0) + np.minimum(begin + width, 1)) / 2 for begin in (first, first - width))
        found = centres(words, x, lam)
        return np.abs(found - upper) < np.abs(found - lower)

    low, high = np.full(len(x), -1), np.full(len(x), 1 << 32)  # the last word known to be in the upper cell; the first not
    while np.any(high - low > 1):
        middle = np.clip((low + high) // 2, 0, (1 << 32) - 1)
        upper = in_upper(middle)
        low, high = np.where(upper & (high - low > 1), middle, low), np.where(~upper & (high - low > 1), middle, high)
    return n * (1 << 32) + high


@pytest.mark.parametrize("lam", [2.0**-9, 0.03, 0.25, 0.3, 0.5, 0.7, 1.0, 3.3, 100.0])
def test_how_often_a_cell_changes_over_all_words(lam):
    """Of x < y in [0, 1], the share of the 2^32 words that put an edge between them is (y - x) / 2 lam + 2^-31 at most.

    This is the docstring's statement of what floating point does: neighbours of all sizes, neighbours on the grid of images,
    and pairs far apart.
    """
    rng = np.random.default_rng(6)
    x = np.concatenate([rng.uniform(0, 1, 300), 10 ** rng.uniform(-9, 0, 200), 2.0 ** -np.arange(0, 30)]).astype(np.float32)
    x = np.unique(np.concatenate([x, np.nextafter(x, np.float32(0)), np.nextafter(x, np.float32(2)), [0, 1]]))
    x = np.unique(np.concatenate([x[x <= 1], np.arange(256, dtype=np.float32) / np.float32(255)]).astype(np.float32))
    below, width = edges_below(x, lam), 2 * float(np.float32(lam))
    for step in (1, 2, 7, 100):
        counted = (below[step:] - below[:-step]).astype(np.float64)
        assert np.all(counted >= 0)
        assert np.all(counted / 2**32 <= (x[step:].astype(np.float64) - x[:-step]) / width + 2.0**-31)
    assert np.abs(below / 2**32 - x.astype(np.float64) / width).max() <= (2.0**-25 + 2.0**-31) / width + 2.0**-31


def test_the_seen_value_depends_on_cell_and_word_alone(backend):
    """Within a cell no bit of x shows."""
    x = torch.linspace(0, 1, 4001)[:, None]
    for lam in (0.05, 0.5, 0.8):
        seen = perturb(x, Splitting(lam), seed=3, samples=[4] * 4001, input_ids=[1] * 4001, backend=backend)
        assert len(seen.unique()) <= math.ceil(1 / (2 * lam)) + 1


def test_values_outside_the_unit_interval(isa):
    """They are cut like others, and infinity and NaN become NaN, on every backend alike."""
    x = torch.tensor([[-0.3, 1.7, -5.0, 1e6, -1e6, math.inf, -math.inf, math.nan, 3e38]])
    for noise in (Splitting(0.25), Splitting(0.5, deterministic=True)):
        found = perturb(x, noise, seed=1, samples=range(9))
        expected = perturb(x, noise, seed=1, samples=range(9), backend="reference")
        assert torch.equal(found.isnan(), expected.isnan())
        assert torch.equal(found.nan_to_num(), expected.nan_to_num())
        assert found[:, 5:8].isnan().all()


# Attacks on random certificates


def changed_cells(d, lam):
    """The chance that any cell changes, exactly, and so the total variation at most."""
    return 1 - np.prod(np.maximum(1 - np.abs(d) / (2 * lam), 0), axis=-1)


@pytest.mark.parametrize("share", [(1.0, 0.0), (0.0, -1.0), (0.5, 0.5), (0.8, -0.2), (0.3, -0.7)], ids=str)
@pytest.mark.parametrize("lam", [0.15, 0.5, 0.9])
def test_cells_change_as_often_as_the_certificate_counts(lam, share):
    """At the vertices of the l1 ball and between them. 2^17 samples: within 5 standard errors, false failure 6e-7 each."""
    x, d = torch.tensor([[0.4, 0.6]]), torch.tensor([share]) * 0.2
    first, second = (perturb(each, Splitting(lam), seed=8, samples=range(1 << 17)) for each in (x, x + d))
    found = float((first != second).any(1).float().mean())
    exact = changed_cells(d[0].double().numpy(), lam)
    assert abs(found - exact) <= 5 * math.sqrt(exact * (1 - exact) / (1 << 17))
    assert exact <= 0.2 / (2 * lam) + 1e-8
    assert max(map(abs, share)) < 1 or exact == pytest.approx(0.2 / (2 * lam))


@pytest.mark.parametrize("share", [(1.0, 0.0), (0.0, -1.0), (0.5, 0.5), (0.8, -0.2), (0.3, -0.7)], ids=str)
def test_a_classifier_that_knows_the_shift_is_not_certified_beyond_it(share):
    """Class 1 unless a cell is that of x + d and not of x, and then by chance of the third element: at x + d it ties.

    With lam = 1/2 the seen value tells the edge s, and the cell of x is the upper one where s < x. 20 certificates at
    alpha = 1e-4, n = 10,000: false failure 2e-3, seed fixed. At a vertex they come within 10 % of d.
    """
    lam, size = 0.5, 0.3
    x, d = torch.tensor([0.4, 0.6, 0.5]), torch.tensor([*share, 0.0]) * size
    variation = changed_cells(d.double().numpy(), lam)
    inside = 0.5 / (1 - variation)  # p(x) is 1/2 + variation, of which the shift takes all that is not inside

    def model(batch):
        edge = (2 * batch) % 1
        upper = batch > 0.5
        at_x, at_other = ((edge < place) == upper for place in (x, x + d))
        one = at_x.all(1) & (~at_other.all(1) | (edge[:, 2] < inside))
        return torch.stack([1 - one.float(), one.float()], dim=1)

    beyond = rsfast.sample(model, (x + d)[None], Splitting(lam), num_classes=2, n=40_000, seed=1)
    assert abs(int(beyond.counts[0, 1]) / 40_000 - 0.5) < 5 * 0.5 / 200
    found = rsfast.certify(model, x.expand(20, 3), Splitting(lam), num_classes=2, n0=100, n=10_000, alpha=1e-4, seed=9)
    assert all(each.prediction == 1 for each in found)
    assert max(each.radius for each in found) <= size
    assert max(map(abs, share)) < 1 or np.mean([each.radius for each in found]) > 0.9 * size


# Deterministic

GRIDS = [(0.5, 255), (1.0, 255), (0.1, 255), (1 / 510, 255), (2.5, 255), (0.25, 10), (1.5, 1), (0.35, 100), (0.5, 1023)]


def exact_cells(places, x, count, levels):
    """The cells (count of edges below) and twice the centres, in units of 1 / levels: integers.

    Of grid points x (integers) with edges at place + 1/2 + count k, for integers k.
    """
    k = (x - places - 1) // count  # floor((x - place - 1/2) / count), since x and place are integers
    first = 2 * (places + count * k) + 1  # of halves
    return k, np.maximum(first, 0) + np.minimum(first + 2 * count, 2 * levels)


def places_of(seed, samples, elements, count):
    words = words_of(seed, (0, 0, 6 << 24), elements)
    return (((words >> 16) * count >> 16) + np.asarray(samples)[:, None]) % count


@pytest.mark.parametrize(("lam", "levels"), GRIDS)
def test_every_cell_of_every_grid_point(lam, levels, backend):
    """All levels + 1 inputs and all N samples: the exact centre, rounded once to float32, bit for bit.

    A centre is an integer over 4 levels. float64 holds it to 2^-53, and no such quotient lies nearer than 2^-43 to the
    middle of two float32 numbers without being it; so rounding float64 to float32 is right.
    """
    noise = Splitting(lam, deterministic=True, levels=levels)
    count, x = noise.evaluations, torch.arange(levels + 1) / levels
    assert count == round(2 * lam * levels)
    found = perturb(x[None], noise, seed=12, samples=range(count), input_ids=[5], backend=backend).numpy()
    _, twice = exact_cells(places_of(12, range(count), levels + 1, count), np.arange(levels + 1), count, levels)
    np.testing.assert_array_equal(found, (twice / (4 * levels)).astype(np.float32))


@pytest.mark.parametrize(("lam", "levels"), [(0.5, 65535), (32767.5, 1), (0.1, 65535), (257 / 2, 255)])
def test_the_largest_grids(lam, levels, isa):
    """Some samples of them; and grid points that were divided in float64 or multiplied by a rounded reciprocal."""
    noise = Splitting(lam, deterministic=True, levels=levels)
    count, samples = noise.evaluations, [0, 1, 77, 65534, 2**40 + 1]
    grid = np.arange(levels + 1)
    _, twice = exact_cells(places_of(3, samples, levels + 1, count), grid, count, levels)
    expected = (twice / (4 * levels)).astype(np.float32)
    for x in (grid / levels, grid.astype(np.float32) / np.float32(levels), grid.astype(np.float32) * np.float32(1 / levels)):
        found = perturb(torch.from_numpy(x.astype(np.float32))[None], noise, seed=3, samples=samples)
        np.testing.assert_array_equal(found.numpy(), expected)


def test_a_step_on_the_grid_changes_one_sample():
    """Of each element, from each level to the next: of the N samples the cell changes in exactly one."""
    for lam, levels in GRIDS:
        noise = Splitting(lam, deterministic=True, levels=levels)
        x = (torch.arange(levels + 1) / levels)[:, None].expand(-1, 3).contiguous()
        rows = torch.arange(levels + 1).repeat_interleave(noise.evaluations)
        samples = torch.arange(noise.evaluations).repeat(levels + 1)
        seen = perturb(x, noise, seed=4, samples=samples, rows=rows).view(levels + 1, noise.evaluations, 3)
        assert torch.all((seen[1:] != seen[:-1]).sum(1) == 1)


def test_fixed_shifts(backend):
    """The same for every input and stream, others for every seed; sample N is sample 0."""
    noise, x = Splitting(0.5, deterministic=True), torch.full((3, 50), 0.4)
    options = {"samples": [7, 7, 7], "backend": backend}
    seen = perturb(x, noise, seed=1, **options)
    assert torch.equal(seen, perturb(x, noise, seed=1, input_ids=[8, 2**31, 4], stream="selection", **options))
    assert torch.equal(seen, perturb(x, noise, seed=1, samples=[262, 7 + 255 * 2**40, 7], backend=backend))
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen, perturb(x, noise, seed=2, **options))
    assert len(seen[0].unique()) > 20  # shifts differ from element to element


# Certificates without chance


def counts_of(classifier, noise, points, seed):
    """Votes [points, classes] of all evaluations at grid points (integers [m, d])."""
    x = torch.from_numpy(points / noise.levels).float()
    n = noise.evaluations
    rows, samples = torch.arange(len(x)).repeat_interleave(n), torch.arange(n).repeat(len(x))
    votes = classifier(perturb(x, noise, seed=seed, samples=samples, rows=rows).numpy()).reshape(len(x), n)
    return np.stack([(votes == k).sum(1) for k in range(3)], axis=1)


def random_classifier(rng, favoured, chance):
    """A class for each value it ever sees, without any order: mostly the favoured one."""
    salt = rng.integers(1, 2**62)

    def classify(seen):
        mixed = np.zeros(len(seen), dtype=np.uint64)
        for column in np.ascontiguousarray(seen).view(np.uint32).T:
            mixed = (mixed ^ column) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(salt)
            mixed ^= mixed >> np.uint64(29)
        u = (mixed >> np.uint64(11)).astype(np.float64) / 2**53
        return np.where(u < chance, favoured, np.where(u < (1 + chance) / 2, (favoured + 1) % 3, (favoured + 2) % 3))

    return classify


@pytest.mark.parametrize(("lam", "levels", "dimension"), [(1.0, 6, 2), (1.5, 4, 3), (2.0, 20, 1), (0.75, 8, 2), (3.0, 2, 3)])
def test_no_neighbour_within_the_exact_radius_has_another_class(lam, levels, dimension):
    """All grid points and all shifts between them, for random base classifiers."""
    noise = Splitting(lam, deterministic=True, levels=levels)
    points = np.array(list(itertools.product(range(levels + 1), repeat=dimension)))
    distance = np.abs(points[:, None] - points[None]).sum(2)
    rng, certified = np.random.default_rng(17), 0
    for seed in range(12):
        counts = counts_of(random_classifier(rng, seed % 3, rng.uniform(0.5, 0.95)), noise, points, seed)
        order = np.sort(counts, axis=1)
        lead, leader = order[:, -1] - order[:, -2], counts.argmax(1)
        radius = noise.exact_radius(lead)
        within = distance / levels <= radius[:, None] + 1e-9
        assert np.all((leader[:, None] == leader[None])[within])
        assert np.all(lead[None].repeat(len(points), 0)[within] > 0)
        certified += int(((distance > 0) & within).sum())
    assert certified > 100  # or it would be no test


def test_a_half_space_attains_the_exact_radius():
    """Class 1 right of 1/2: the lead at j / levels is 2 j - levels, and the first point left of it is one unit further."""
    noise = Splitting(0.5, deterministic=True, levels=21)
    points = np.arange(22)[:, None]
    counts = counts_of(lambda seen: (seen[:, 0] > 0.5).astype(int), noise, points, seed=5)
    lead = counts[:, 1] - counts[:, 0]
    assert lead.tolist() == [2 * j - 21 for j in range(22)]
    units = noise.exact_radius(lead[11:]) * 21
    np.testing.assert_allclose(units, np.arange(11), atol=1e-9)  # from j down to 11 where class 1 still leads


def test_exact_radius_is_rounded_down():
    lead = np.arange(-20, 2000)
    for levels in (1, 3, 10, 255, 256, 65535):
        found = Splitting(0.5, deterministic=True, levels=levels).exact_radius(lead)
        for each, radius in zip(lead.tolist(), found.tolist(), strict=True):
            exact = Fraction(math.ceil(Fraction(each, 2)) - 1, levels)
            assert exact - Fraction(2, 2**53) * max(abs(exact), 1) <= Fraction(radius) <= exact


# Parameters


def test_what_is_stated():
    random, fixed = Splitting(0.5), Splitting(np.float64(0.5), deterministic=True)
    assert (random.norm, random.evaluations, random.grid) == ("l1", None, None)
    assert (fixed.evaluations, fixed.grid, fixed.settings) == (255, 255, "lam = 0.5, deterministic = True, levels = 255")
    assert (Gaussian(0.5).grid, Uniform(0.5).evaluations) == (None, None)
    assert Splitting(float(np.float32(0.1)), deterministic=True).evaluations == 51
    assert random != fixed


def test_the_potential_is_that_of_uniform_noise():
    p = np.linspace(-0.1, 1.1, 50)
    np.testing.assert_array_equal(Splitting(0.3).potential(p), Uniform(0.3).potential(p))


BYTES = torch.tensor([[0, 255, 51], [254, 1, 0]], dtype=torch.uint8)


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("form", [lambda x: x, list], ids=["tensor", "list"])
def test_inputs_are_images(deterministic, form):
    """Others are refused, with the place of the first bad value; the ends of [0, 1] are taken."""
    noise, how = Splitting(0.5, deterministic), {"num_classes": 2} | ({} if deterministic else {"n": 100, "n0": 10})
    hint = re.escape("images are in [0, 1]: pass images.float() / 255") + (", or uint8" if deterministic else "$")
    low = torch.tensor([[0.0, 1.0, 0.2], [0.2, 1.0, -0.2]])
    with pytest.raises(ValueError, match=rf"^inputs\[0\] must .* noise, got 255 at \[1\]; {hint}"):
        rsfast.certify(pytest.fail, form(BYTES.float()), noise, **how)
    with pytest.raises(ValueError, match=rf"^inputs\[1\] must .* noise, got -0.200000003 at \[2\]; {hint}"):
        rsfast.certify(lambda batch: batch[:, :2], form(low), noise, **how)
    assert len(rsfast.certify(lambda batch: batch[:, :2], form(BYTES.float() / 255), noise, **how)) == 2
    with pytest.raises(ValueError, match=r"^inputs\[0\] must be finite"):
        rsfast.certify(pytest.fail, form(BYTES / 0.0), noise, **how)


def test_errors():
    whole = "lam must be such that 2 lam levels is an integer from 1 to 65535 if deterministic"
    wrong = {
        "lam must be from 1/512 to 32768, got 0.001": {"lam": 0.001},
        "lam must be from 1/512 to 32768, got nan": {"lam": math.nan},
        "levels must be from 1 to 65535, got 0": {"lam": 0.5, "levels": 0},
        "levels must be from 1 to 65535, got 65536": {"lam": 0.5, "levels": 65536},
        f"{whole}, got lam = 0.3 and levels = 256, of which it is 153.6; lam may be 0.30078125, which is 154 / 512": {
            "lam": 0.3,
            "levels": 256,
            "deterministic": True,
        },
        f"{whole}, got lam = 200.0 and levels = 255, of which it is 102000; lam may be 128.5, which is 65535 / 510": {
            "lam": 200.0,
            "deterministic": True,
        },
    }
    for message, parameters in wrong.items():
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            Splitting(**parameters)
    for name, value in (("deterministic", 1), ("levels", 255.0), ("levels", True)):
        with pytest.raises(TypeError, match=f"^{name} must be an? (int|bool), got {value}"):
            Splitting(0.5, **{name: value})
    with pytest.raises(TypeError, match=r"^deterministic must be True for an exact radius, got Splitting\(lam=0.5, "):
        Splitting(0.5).exact_radius([1])
    with pytest.raises(ValueError, match=r"^evaluations must be from 0 to 65535, got -1"):
        NoiseParameters("splitting", [-1.0, 1.0, 1.0, 1.0, 0.5]).check()
