"""Masks: which parts are kept, by exact arithmetic; the distribution; certificates against exact counts, and attacks."""

import itertools
import json
import re
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import assert_same_bits
from scipy import stats
from truth import changes_of, nothing_negative, some_positive

import rsfast
from rsfast import Mask, Run
from rsfast.engine.inputs import warn_of_units
from rsfast.noise import STREAMS, from_dict, philox
from rsfast.ops import _cpu, perturb
from rsfast.runs.plot import plot
from rsfast.runs.recertify import recertify
from rsfast.stats import rules

FILL = -7.0
PLACE = {"seed": 0x9E3779B97F4A7C15, "stream": "selection", "samples": [0, 2**40 + 3], "input_ids": [5], "rows": [0, 0]}


def word(group, sample):
    """The word of a group at PLACE, from the definition of the stream."""
    high = STREAMS[PLACE["stream"]] << 24 | sample >> 32
    return philox((group // 4, sample % 2**32, PLACE["input_ids"][0], high), PLACE["seed"])[group % 4]


def groups_of(shape, patch):
    """The group of each element, counted one by one."""
    if not patch:
        return np.arange(np.prod(shape)).reshape(shape)
    cells = itertools.product(*(range(-(-length // patch)) for length in shape[1:]))
    numbers = {cell: number for number, cell in enumerate(cells)}
    found = np.empty(shape, dtype=int)
    for place in np.ndindex(*shape[1:]):
        found[(slice(None), *place)] = numbers[tuple(p // patch for p in place)]
    return found


def by_groups(x, noise, groups, samples, *, seed, stream, input_id, backend):
    """Rows of one input by the operator itself, with any groups."""
    rows, out = torch.zeros(len(samples), dtype=torch.int64), torch.empty(len(samples), *x.shape[1:])
    scalars = noise.parameters(x.shape[1:]).scalars
    place = seed - 2**64 if seed >= 2**63 else seed, STREAMS[stream]
    call = x, rows, rows[:1] + input_id, torch.tensor(samples), "mask", scalars, [groups], *place
    torch.ops.rsfast.perturb(*call, None, None, None, False, backend, out)
    return out


# Which parts are kept


@pytest.mark.parametrize(
    ("shape", "patch"),
    [((13,), 0), ((3, 5, 7), 0), ((3, 5, 7), 1), ((3, 5, 7), 2), ((2, 9, 65), 4), ((2, 4, 4), 9), ((2, 3, 5, 6), 2)],
)
def test_known_answers(shape, patch, backend):
    """Kept where the word's top 24 bits are below keep 2^24, in integers; hidden elements are the fill, others untouched."""
    noise, x, groups = Mask(0.3, FILL, patch), torch.rand(1, *shape), groups_of(shape, patch)
    found = perturb(x, noise, **PLACE, backend=backend)
    for row, sample in zip(found, PLACE["samples"], strict=True):
        kept = torch.tensor([word(int(g), sample) >> 8 < int(Fraction(0.3) * 2**24) for g in groups.ravel()]).view(shape)
        assert_same_bits(row, torch.where(kept, x[0], FILL))


def test_the_chance_is_met_exactly(backend):
    """The smallest threshold that keeps an element is one step above the top 24 bits of its word."""
    top = word(2, 0) >> 8
    for step, kept in ((0, False), (1, True)):
        y = perturb(torch.ones(1, 4), Mask((top + step) / 2**24), **PLACE, backend=backend)
        assert bool(y[0, 2]) is kept
    everything = perturb(torch.ones(1, 4096), Mask(1.0), **PLACE, backend=backend)
    assert bool((everything == 1).all())


def test_the_chance_is_rounded_down():
    for keep in (0.1, 0.3, 2.0**-24, 1.0, np.nextafter(1.0, 0), 0.5, 1 / 3):
        chance = Fraction(Mask(keep).chance)
        assert chance <= Fraction(keep) < chance + Fraction(1, 2**24)
        assert (chance * 2**24).denominator == 1
        assert chance == Fraction(Mask(keep).parameters((1,)).scalars[0])


def test_the_kernel_compares_the_top_bits(isa):
    """All top bits at which float32 might round, exactly; the last 8 bits count for nothing."""
    tops = np.unique([(1 << k) + o for k in range(24) for o in (-1, 0, 1)] + [2**24 - 2, 2**24 - 1]).clip(0, 2**24 - 1)
    words, out = np.repeat(tops, 2).astype(np.uint32) << 8, np.full(2 * len(tops), np.nan, dtype=np.float32)
    words[1::2] |= 255
    _cpu.noise_of_words(_cpu.draws().index("mask"), words.ctypes.data, words.size, out.ctypes.data)
    np.testing.assert_array_equal(out, np.repeat(tops / 2**24, 2))


def test_elements_as_groups_have_the_bits_of_elements(backend):
    """A group for every element, by the operator itself: what a patch is for groups 0, 1, 2, ... of any length."""
    for length in (1, 5, 63, 64, 257):
        x = torch.rand(1, length)
        for groups in (torch.arange(length), torch.randperm(length)):
            place = {"seed": 9, "stream": "user", "backend": backend}
            out = by_groups(x, Mask(0.25, FILL), groups.int(), range(3), input_id=4, **place)
            kept = perturb(torch.ones(1, length), Mask(0.25), samples=range(3), input_ids=[4], **place)[:, groups] != 0
            assert_same_bits(out, torch.where(kept, x, FILL))


def test_groups_far_away(backend):
    """Of 2^31 - 1, whose block is the largest that an int32 has: as elements there would be."""
    groups = torch.tensor([2**31 - 1, 2**31 - 4, 5], dtype=torch.int32)
    place = {"seed": PLACE["seed"], "stream": PLACE["stream"], "input_id": 5, "backend": backend}
    for step, kept in ((0, False), (1, True)):
        noise = Mask(((word(2**31 - 1, 0) >> 8) + step) / 2**24)
        assert bool(by_groups(torch.ones(1, 3), noise, groups, [0], **place)[0, 0]) is kept


def test_distribution():
    """Kept elements, pixels and cells are binomial, and neighbours uncorrelated: false failure below 1e-5; fixed seed."""
    for keep, patch in itertools.product((0.02, 0.5), (0, 1, 4)):
        y = perturb(torch.ones(1, 3, 32, 32), Mask(keep, 0.0, patch), seed=77, samples=range(64))
        kept = (y[:, :1, ::patch, ::patch] if patch else y).flatten(1).double()
        assert stats.binomtest(int(kept.sum()), kept.numel(), keep).pvalue > 1e-6
        pairs = (kept[:, :-1] - keep) * (kept[:, 1:] - keep)  # uncorrelated where parts are independent
        assert abs(float(pairs.sum())) < 5 * pairs.numel() ** 0.5 * keep * (1 - keep) + 5


@pytest.mark.noise
def test_a_billion_elements():
    """Counts of kept in 2^30: of elements, and by the number of a block's four that are kept. False failure 3e-6."""
    keep, fours = Mask(0.3).chance, np.zeros(5, dtype=np.int64)
    for start in range(0, 1 << 10, 16):
        y = perturb(torch.ones(1, 1 << 20), Mask(0.3), seed=2025, samples=range(start, start + 16))
        fours += np.bincount(y.view(-1, 4).sum(1).int().numpy(), minlength=5)
    kept, blocks = int(fours @ np.arange(5)), int(fours.sum())
    assert blocks == 1 << 28
    assert abs(kept - keep * 2**30) < 4.9 * (2**30 * keep * (1 - keep)) ** 0.5
    assert stats.chisquare(fours, blocks * stats.binom.pmf(np.arange(5), 4, keep)).pvalue > 1e-6


# Certificates: the formula


def exact_radius(noise, lower, upper):
    """The largest r with (1 - chance)^r > 1 - (lower - upper) / 2, in fractions."""
    b, needed, r = 1 - Fraction(noise.chance), 1 - (Fraction(lower) - Fraction(upper)) / 2, 0
    while b ** (r + 1) > needed:
        r += 1
    return r


def quotient(noise, lower, upper):
    """The real number of which the radius is the largest whole number strictly below."""
    return np.log1p((upper - lower) / 2) / np.log1p(-noise.chance)


def test_radius_is_the_largest_whole_number_that_is_proved():
    rng = np.random.default_rng(3)
    for keep in (0.011, 0.1, 0.25, 0.3, 0.5, 0.9):
        noise = Mask(keep)
        lower = np.concatenate([rng.uniform(0, 1, 150), 1 - 10 ** rng.uniform(-16, -1, 50), [0.0, 0.5, 1 - 2**-53]])
        for upper in (1 - lower, np.minimum(1 - lower, rng.uniform(0, 0.3, lower.shape)), np.full(lower.shape, 1e-300)):
            upper = np.maximum(upper, 5e-324)
            found = rules.radius(noise, lower, upper)
            exact = np.array([exact_radius(noise, *pair) for pair in zip(lower, upper, strict=True)])
            near = np.abs(quotient(noise, lower, upper) - np.round(quotient(noise, lower, upper))) < 1e-12
            assert np.array_equal(found[~near], exact[~near])
            assert np.all(found <= exact)
            assert near.mean() < 0.1  # the boundary itself is below


def test_radius_at_the_boundary():
    """b^k = 3/2 - lo exactly certifies k - 1, as the inequality is strict; a little more certifies k."""
    for keep in (1 / 16, 1 / 8, 1 / 4, 3 / 8):
        b = 1 - keep
        for k in range(1, 8):
            if (lower := 1.5 - b**k) >= 1:
                break
            assert Fraction(lower) == Fraction(3, 2) - Fraction(b) ** k
            for at, expected in ((lower - 1e-12, k - 1), (lower, k - 1), (lower + 1e-12, k)):
                assert exact_radius(Mask(keep), at, 1 - at) == expected
                assert rules.radius(Mask(keep), at, 1 - at) == expected


def test_radius_of_the_least_and_the_largest_chance():
    assert rules.radius(Mask(1.0), 1 - 2**-53, 2**-53) == 0
    assert rules.radius(Mask(0.5), 1 - 2**-53, 2**-53) == 0
    assert rules.radius(Mask(0.49), 1 - 2**-53, 2**-53) == 1
    least = rules.radius(Mask(2**-24), 1 - 2**-53, 2**-53)
    assert least == np.floor(np.log(2) * (2**24 - 0.5))  # ln(2) / (h + h^2/2), 11629079.4
    for lower, upper in ((0.5, 0.5), (0.3, 0.7), (0.0, 1.0), (0.3, 0.3)):
        assert rules.radius(Mask(0.1), lower, upper) == 0
    assert rules.radius(Mask(0.1), np.full((3, 1), 0.9), np.full(2, 0.1)).shape == (3, 2)


def test_no_potential_and_no_lipschitz_constant():
    with pytest.raises(NotImplementedError, match="Mask has no potential"):
        Mask(0.1).potential(0.9)
    with pytest.raises(ValueError, match="lipschitz must be None with Mask noise"):
        rules.CertificationSpec(Mask(0.1), 0.001, rsfast.Softmax(), lipschitz=2.0)


# Certificates: attacks


def smoothed_scores(table, keep, d, values):
    """All inputs [values^d, d], and the smoothed scores [values^d, 3] of a base classifier: a class for each input."""
    inputs = np.array(list(itertools.product(range(values), repeat=d)))
    scores = np.zeros((len(inputs), 3))
    for kept in itertools.product((False, True), repeat=d):
        seen = np.where(kept, inputs, values - 1)  # the last value is the fill: an attacker may write it, too
        classes = table[np.ravel_multi_index(tuple(seen.T), (values,) * d)]
        scores[np.arange(len(inputs)), classes] += keep ** sum(kept) * (1 - keep) ** (d - sum(kept))
    return inputs, scores


@pytest.mark.parametrize("keep", [1 / 16, 1 / 8, 1 / 4])
def test_no_subset_within_the_radius_flips_the_class(keep):
    """All subsets and changes of 5 elements with 3 values, one of them the fill; random base classifiers of 3 classes."""
    rng, d, noise = np.random.default_rng(4), 5, Mask(keep)
    reached = 0
    for _ in range(40):
        share = rng.uniform(0, 0.6)
        table = np.where(rng.uniform(size=3**d) < share, rng.integers(0, 3, 3**d), 0)
        table[-1] = 0  # nothing is seen
        inputs, scores = smoothed_scores(table, keep, d, 3)
        ordered = np.sort(scores, axis=1)
        lower, upper = ordered[:, -1] - 1e-12, ordered[:, -2] + 1e-12
        radii = noise.radius(lower, np.minimum(upper, 1 - lower))
        radii = np.maximum(radii, noise.radius(lower, upper))
        distances = (inputs[:, None] != inputs[None]).sum(axis=2)
        attacked = (distances <= radii[:, None]) & (radii[:, None] > 0)
        assert np.all((scores.argmax(axis=1)[:, None] == scores.argmax(axis=1)[None]) | ~attacked)
        reached = max(reached, int(radii.max()))
    assert reached >= {1 / 16: 5, 1 / 8: 3, 1 / 4: 1}[keep]


@pytest.mark.parametrize("keep", [1 / 16, 1 / 8, 1 / 4])
def test_some_classifier_attains_the_bound(keep):
    """Class 1 where something is seen, and nothing changed: r changes take exactly 1 - b^r, and the radius is the truth."""
    d, noise = 14, Mask(keep)
    kept = np.array(list(itertools.product((False, True), repeat=d)))
    weights = keep ** kept.sum(axis=1) * (1 - keep) ** (~kept).sum(axis=1)  # exact: powers of 2 in the denominator
    x = np.ones(d)
    found = []
    for changed in range(d + 1):
        x[:changed] = -1
        seen = torch.tensor(np.where(kept, x, 0))
        found.append(float(weights @ nothing_negative(seen)[:, 1].numpy()))
        assert found[changed] == pytest.approx(found[0] - (1 - (1 - keep) ** changed), abs=1e-14)
    truth = sum(score > 0.5 for score in found[1:])
    assert noise.radius(np.float64(found[0]), np.float64(1 - found[0])) == truth == changes_of(keep)(np.ones((1, d)))[0]
    assert truth == {1 / 16: 1, 1 / 8: 3, 1 / 4: 2}[keep]


def test_two_classes_apart_attain_the_bound():
    """As above, but what is changed makes a class of its own: p_A loses 1 - b^r, p_B wins as much, from 0."""
    keep, d = 1 / 16, 60
    b = 1 - keep
    truth = max(r for r in range(d) if b**r - b**d > 1 - b**r)
    assert Mask(keep).radius(np.float64(1 - b**d), np.float64(0.0)) == truth == 10


# The whole way


def images(count=3):
    """Inputs [count, 40] as `some_positive` makes them."""
    return torch.from_numpy(some_positive(np.linspace(0.4, 0.95, count)))


def model(batch):
    return 20 * nothing_negative(batch.flatten(1))


class Classifier(torch.nn.Module):
    def forward(self, batch):
        return model(batch)


TRUTH = changes_of(Mask(0.1).chance)(images().numpy())


METHODS = [
    *((rsfast.Votes(), rule) for rule in rules.RULES),
    *((head, rule) for head in (rsfast.Softmax(), rsfast.Sparsemax()) for rule in ("one_vs_rest", "top_two", "bonferroni")),
    *((rsfast.ClippedLogits(0.0, 20.0), rule) for rule in ("top_two", "bonferroni")),
]


@pytest.mark.parametrize(("head", "rule"), METHODS, ids=str)
def test_certificates_of_every_rule_and_head(head, rule):
    found = rsfast.certify(model, images(), Mask(0.1), num_classes=2, head=head, rule=rule, n=4000, seed=4)
    for certificate, truth in zip(found, TRUTH, strict=True):
        assert (certificate.prediction, certificate.norm) == (1, "l0")
        assert truth - 1 <= certificate.radius <= truth
        assert certificate.radius == int(certificate.radius)
        assert rsfast.Certificate.from_dict(json.loads(json.dumps(certificate.to_dict()))) == certificate


@pytest.mark.parametrize("stopping", [{"radius": 1}, {"radius": 4}, {"rtol": 0.3}])
@pytest.mark.parametrize("head", [rsfast.Votes(), rsfast.Softmax()])
def test_early_decisions(stopping, head):
    found = rsfast.certify(model, images(), Mask(0.1), num_classes=2, head=head, n=20_000, seed=4, **stopping)
    assert min(certificate.n for certificate in found) < 20_000
    for certificate, truth in zip(found, TRUTH, strict=True):
        assert certificate.radius <= truth
        if (asked := stopping.get("radius")) is not None and truth > asked:
            assert certificate.radius >= asked
    each = rsfast.certify_each(model, images(), Mask(0.1), num_classes=2, head=head, n=20_000, seed=4, **stopping)
    assert list(each) == found


def test_a_radius_of_nothing_is_an_abstention():
    """With keep = 1/2 and above, one change is seen too often for any certificate."""
    for keep in (0.5, 1.0):
        with pytest.warns(
            UserWarning, match=rf"^every input abstains, whatever the votes: at keep = {keep}, fill"
        ) as warned:
            found = rsfast.certify(model, images(1), Mask(keep), num_classes=2, n=1000, seed=1)
        assert (found[0].prediction, found[0].radius) == (rsfast.ABSTAIN, 0.0)
        assert Path(warned[0].filename) == Path(__file__)
        assert str(warned[0].message).endswith(" proves a radius; take a smaller keep, below 1/2")
    with pytest.warns(UserWarning, match="certify needs n of at least 31$"):  # .001^(1/31) > .8 = 3/2 - .7 > .001^(1/30)
        rsfast.certify(model, images(1), Mask(0.3), num_classes=2, n=20, seed=1)
    with pytest.warns(
        UserWarning, match="n = 1000 unanimous votes prove the l0 radius 6; take a smaller radius, or a smaller keep, "
    ):
        rsfast.certify(model, images(1), Mask(0.1), num_classes=2, n=1000, radius=7, seed=1)


def test_predict_sample_tune_and_tallies():
    x = images()
    assert rsfast.predict(model, x, Mask(0.1), num_classes=2, n=200, alpha=0.001, seed=1) == [1, 1, 1]
    options = {"num_classes": 2, "seed": 3}
    selection = rsfast.sample(model, x, Mask(0.1), n=50, stream="selection", **options)
    tally = rsfast.sample(model, x, Mask(0.1), n=1000, **options)
    assert tally.provenance.noise == Mask(0.1)
    found = rsfast.certificates(selection, tally, Mask(0.1), alpha=0.001)
    whole = rsfast.certify(model, x, Mask(0.1), n0=50, n=1000, **options)
    assert [each.radius for each in found] == [each.radius for each in whole]
    with pytest.raises(ValueError, match="noise"):
        rsfast.certificates(selection, tally, Mask(0.1, fill=0.5), alpha=0.001)
    tuned = rsfast.tune_head(model, x, [1, 1, 1], Mask(0.1), [rsfast.Votes(), rsfast.Softmax(1.0)], n=500, **options)
    assert tuned.head in (rsfast.Votes(), rsfast.Softmax(1.0))
    assert max(tuned.scores.values()) > 1


def test_a_run_of_patches(tmp_path, monkeypatch):
    """Written, read, certified again and drawn; radii count patches."""
    monkeypatch.chdir(tmp_path)
    x = torch.ones(2, 3, 16, 24)
    x[1, :, 8:] = 0
    noise = Mask(0.1, 0.0, patch=4)
    options = {"num_classes": 2, "labels": [1, 1], "seed": 3, "batch_size": 50}
    run = Run(Classifier(), x, noise, "run", **options)
    found = run.certify(n=1000)
    truth = changes_of(noise.chance)(np.array([[1.0] * 24, [1.0] * 12 + [0.0] * 12]))  # of patches of ones
    assert truth.tolist() == [5.0, 2.0]
    assert np.all((truth - 1 <= found.radius) & (found.radius <= truth))
    sidecar = json.loads(Path("run/results.json").read_text())
    assert (sidecar["noise"], sidecar["norm"]) == ({"name": "Mask", "keep": 0.1, "fill": 0.0, "patch": 4}, "l0")
    again = recertify("run", "again", alpha=0.01)
    assert np.all(again.radius >= found.radius)
    pytest.importorskip("matplotlib")
    plot({"run": found}, "run.svg")
    assert Path("run.svg").read_text().count("<path")


def test_no_input_is_too_large_and_no_units_are_meant(recwarn):
    """Nothing is added, so nothing is lost: inputs of any finite size, and no word about units."""
    x = torch.tensor([[3e38, -3e38, 5.0]])
    warn_of_units(x, Mask(0.5), 1)
    assert not recwarn.list
    assert rsfast.predict(lambda batch: batch[:, :2], x, Mask(1.0), num_classes=2, n=20, alpha=0.5, seed=1) == [0]
    with pytest.raises(ValueError, match=r"inputs\[0\] must be finite"):
        rsfast.predict(nothing_negative, x * 10, Mask(0.5), num_classes=2, n=20, alpha=0.5, seed=1)


# Parameters


@pytest.mark.parametrize("noise", [Mask(0.3), Mask(1), Mask(2**-24, -1.5), Mask(0.5, fill=3, patch=1), Mask(0.5, patch=16)])
def test_written_and_read(noise):
    assert from_dict(json.loads(json.dumps(noise.to_dict()))) == noise
    assert replace(noise) == noise
    assert hash(from_dict(noise.to_dict())) == hash(noise)
    noise.parameters((3, 4, 4)).check()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Mask(0), ValueError, "keep must be from 2^-24 to 1, got 0"),
        (lambda: Mask(2**-25), ValueError, "keep must be from 2^-24 to 1, got 2.9802322387695312e-08"),
        (lambda: Mask(1.5), ValueError, "keep must be from 2^-24 to 1, got 1.5"),
        (lambda: Mask(float("nan")), ValueError, "keep must be from 2^-24 to 1, got nan"),
        (lambda: Mask("0.5"), TypeError, "keep must be a number, got '0.5'"),
        (lambda: Mask(0.5, float("inf")), ValueError, "fill must be finite in float32, got inf"),
        (lambda: Mask(0.5, 1e39), ValueError, "fill must be finite in float32, got 1e+39"),
        (lambda: Mask(0.5, None), TypeError, "fill must be a number, got None"),
        (lambda: Mask(0.5, patch=-1), ValueError, "patch must be from 0 to 2147483647, got -1"),
        (lambda: Mask(0.5, patch=1.5), TypeError, "patch must be an int, got 1.5"),
        (
            lambda: Mask(0.5, patch=2).parameters((3, 5)),
            ValueError,
            "an input must have shape [channels, height, width], or more axes, with patch = 2, "
            "got [3, 5]; without a patch it may have any shape",
        ),
        (
            lambda: Mask(0.5, patch=1).parameters((1, 2**16, 2**16)),
            ValueError,
            "an input must have at most 2^31 cells with patch = 1, got shape [1, 65536, ",
        ),
        (
            lambda: rsfast.certify(model, torch.ones(2, 5), Mask(0.1, patch=1), num_classes=2, seed=1),
            ValueError,
            "an input must have shape [channels, height, width], or more axes, with patch = 1, got [5]",
        ),
    ],
)
def test_wrong_parameters(call, error, message):
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        call()


def test_the_operator_takes_groups_as_int32_and_one_an_element():
    place = {"seed": 0, "stream": "user", "input_id": 0, "backend": "auto"}
    for groups, message in ((torch.zeros(3), "int32"), (torch.zeros(2, dtype=torch.int32), r"\[3\]")):
        with pytest.raises((TypeError, ValueError), match=message):
            by_groups(torch.ones(1, 3), Mask(0.5), groups, [0], **place)
