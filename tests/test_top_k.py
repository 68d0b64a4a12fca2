"""Top-k certificates: their theorem against oracles and attacks, how often they are wrong, and that every way gives them."""

import json
from fractions import Fraction
from functools import partial
from itertools import product

import mpmath as mp
import numpy as np
import pytest
import torch
from conftest import LINEAR_NETS, follow, rows, sidecar
from scipy.stats import binom, norm

import rsfast
from rsfast.api import certify, certify_each, sample
from rsfast.cli import main
from rsfast.engine.plan import Certification, StoppingRule, largest_radius
from rsfast.heads import ClippedLogits, Softmax, Votes
from rsfast.noise import Gaussian, GridGaussian, HaarSubspaces, Laplace, Mask, Splitting, SubspaceSmoothing, Uniform
from rsfast.noise.base import Noise
from rsfast.ops import accumulate
from rsfast.ops.tally import Tally
from rsfast.runs import results
from rsfast.stats import rules
from rsfast.stats.certificate import ABSTAIN, Certificate
from rsfast.stats.estimates import leading_classes
from rsfast.stats.proof import certificates, exact_certificates
from rsfast.stats.registry import BOUNDS
from rsfast.stats.rules import CertificationSpec
from rsfast.stats.top_k import exact_lead, shares_of_rest, top_k_radius

ALPHA = 0.05
NOISE = Gaussian(1.0)


def scores(rng, classes, skew=0.5):
    """Scores of a class and of the others, the largest first, that sum to less than 1."""
    p = rng.dirichlet(np.full(classes + 1, skew))[:classes]
    return p[0], np.sort(p[1:])[::-1]


def radius_at(noise, ours, others, k, **options):
    return float(top_k_radius(noise, np.array([[ours]]), np.maximum(others[None, :k], 1e-300), **options)[0, 0])


# The theorem, against its equation solved in another way.

MAPS = {  # Q and its inverse, in the units of the noise's scale
    "Gaussian": (lambda p: mp.sqrt(2) * mp.erfinv(2 * p - 1), lambda q: mp.ncdf(q)),
    "Laplace": (
        lambda p: mp.log(2 * p) if p < 0.5 else -mp.log(2 * (1 - p)),
        lambda q: mp.exp(q) / 2 if q < 0 else 1 - mp.exp(-q) / 2,
    ),
    "Uniform": (lambda p: 2 * p - 1, lambda q: min(max((q + 1) / 2, mp.mpf(0)), mp.mpf(1))),
}


def oracle(name, ours, others, k):
    """The largest r with Q^-1(Q(ours) - r) above 1 / (k + 1), or above Q^-1(Q(p_S) + r) / t for one t; in 30 digits."""
    with mp.workdps(30):
        forward, back = MAPS[name]
        sums = [(t, sum(map(mp.mpf, others[k - t : k]))) for t in range(1, k + 1)]
        potentials = [(t, forward(total)) for t, total in sums if total < 1]
        ours = forward(mp.mpf(ours))

        def holds(r):
            kept = back(ours - r)
            return kept * (k + 1) > 1 or any(kept * t > back(q + r) for t, q in potentials)

        low, high = mp.mpf(0), mp.mpf(16)
        if not holds(low):
            return low
        for _ in range(52):
            middle = (low + high) / 2
            low, high = (middle, high) if holds(middle) else (low, middle)
        return low


@pytest.mark.parametrize("noise", [Gaussian(0.5), Laplace(0.5), Uniform(0.5)], ids=lambda noise: noise.name)
def test_the_radius_is_the_solution_of_the_theorems_equation_rounded_down(noise):
    rng, below_half = np.random.default_rng(0), 0
    for skew, k in product((0.2, 1.0), (2, 3, 5)):
        for _ in range(6):
            ours, others = scores(rng, k + 2, skew)
            found, exact = radius_at(noise, ours, others, k), float(oracle(noise.name, ours, others, k)) * noise.scale
            assert max(found, 0) <= exact * (1 + 1e-13)
            assert exact == 0 or found >= exact * (1 - 1e-9) - 1e-15
            below_half += ours < 0.5 and found > 0
    assert below_half > 5


def test_lipschitz_scores_against_the_equation_solved_in_the_radius():
    """The sum of t scores has t times their constant: Q of a set is that of t L, inverted here by bisection."""
    noise, constant = Gaussian(1.0), 0.3

    def back(q, lipschitz):
        grid = np.linspace(1e-5, 1 - 1e-5, 2001)
        return np.interp(q, noise.potential(grid, lipschitz), grid)

    for ours, others in ((0.5, np.array([0.2, 0.15])), (0.3, np.array([0.28, 0.1])), (0.45, np.array([0.4, 0.1, 0.02]))):
        k, r = len(others), np.linspace(0, 6, 6001)
        kept = back(noise.potential(ours, constant) - r, constant)
        ahead = kept > 1 / (k + 1)
        for t in range(1, k + 1):
            total = others[-t:].sum()
            ahead |= kept * t > back(noise.potential(total, t * constant) + r, t * constant)
        found = radius_at(noise, ours, others, k, lipschitz=constant)
        assert found == pytest.approx(r[ahead].max(), abs=2e-3)
        assert found > 1.02 * radius_at(noise, ours, others, k)


def test_with_k_1_it_is_the_radius_of_the_rules():
    rng = np.random.default_rng(1)
    lower, upper = rng.uniform(0, 1, (2, 200, 1))
    np.testing.assert_array_equal(top_k_radius(NOISE, lower, upper), rules.radius(NOISE, lower, upper))


def test_without_a_sum_what_is_left_is_the_kth_of_the_others():
    ours, others = 0.6, np.array([0.9, 0.5, 0.4])
    for k in (1, 2, 3):
        alone = float(NOISE.radius(np.array(ours), np.array(others[k - 1])))
        assert radius_at(NOISE, ours, others, k, sums_to_one=False) == alone
    assert radius_at(NOISE, ours, others, 3) > alone


def test_more_classes_ahead_are_never_a_smaller_radius():
    rng = np.random.default_rng(2)
    for _ in range(50):
        ours, others = scores(rng, 6)
        radii = [max(0, radius_at(NOISE, ours, others, k)) for k in (1, 2, 3, 4)]
        assert radii == sorted(radii)


def test_shares_of_the_rest_are_rounded_up():
    lower = np.random.default_rng(3).uniform(0, 1, (50, 1)) ** 3
    for share, p in zip(shares_of_rest(lower, 4), lower[:, 0], strict=True):
        for i, each in enumerate(share.tolist(), 1):
            assert (1 - Fraction(float(p))) / i <= Fraction(each) <= 1
    assert shares_of_rest(lower, 1).tolist() == (1 - lower).tolist()


@pytest.mark.parametrize("noise", [Mask(0.2), HaarSubspaces(1.0, 2, 9), GridGaussian(0.5), Laplace(0.3)], ids=str)
def test_how_far_a_score_reaches(noise):
    """To 1/2 it reaches as far as the class stays ahead of all others together; it falls as far as the other rises."""
    for p in (0.55, 0.9, 0.999):
        ahead = float(noise.radius(np.array(p), np.array(1 - p)))
        assert float(noise.reach(np.array(p), np.array(0.5))) == pytest.approx(ahead, rel=2e-3, abs=1e-9)
    there, back = (float(noise.reach(np.array(high), np.array(low))) for high, low in ((0.8, 0.3), (0.7, 0.2)))
    assert there == pytest.approx(back, rel=2e-3)
    assert float(noise.reach(np.array(0.3), np.array(0.8))) <= 0


def test_a_noise_that_does_not_say_how_far_a_score_reaches():
    class Odd(Noise):
        constraints = Gaussian.constraints
        sigma = 1.0

    with pytest.raises(NotImplementedError, match="Odd noise has no potential, and does not say how far a score reaches"):
        Odd().reach(np.array(0.9), np.array(0.5))


# Attacks on classifiers whose smoothed scores are known.


def interval_scores(edges, labels, classes, x):
    """Smoothed scores [points, classes] at points x of a classifier of a real number: intervals with labels; sigma = 1."""
    shares = np.diff(norm.cdf(np.concatenate([[-np.inf], edges, [np.inf]]) - np.asarray(x)[:, None]), axis=1)
    return np.stack([shares[:, labels == each].sum(axis=1) for each in range(classes)], axis=1)


def test_no_shift_within_the_radius_moves_the_class_out_of_the_first_k():
    """300 classifiers that cut the line into intervals, all shifts on a fine grid: where rank k is lost, it is beyond."""
    rng, close, certified = np.random.default_rng(4), 0, 0
    for _ in range(300):
        edges, classes = np.sort(rng.normal(0, 1.5, rng.integers(2, 9))), 5
        labels = rng.integers(0, classes, len(edges) + 1)
        at_x = interval_scores(edges, labels, classes, [0.0])[0]
        ours = int(rng.integers(classes))
        others = np.sort(np.delete(at_x, ours))[::-1]
        shifts = np.linspace(-4, 4, 1601)
        there = interval_scores(edges, labels, classes, shifts)
        ahead = (np.delete(there, ours, axis=1) >= there[:, ours : ours + 1]).sum(axis=1)
        for k in (1, 2, 3):
            found = radius_at(NOISE, min(at_x[ours], 1 - 1e-12), others, k)
            assert (ahead[np.abs(shifts) < found] < k).all()
            lost = np.abs(shifts[ahead >= k]).min(initial=np.inf)
            certified, close = certified + (found > 0), close + (0 < found > 0.8 * lost)
    assert certified > 300
    assert close > 30  # or the attack would be none


def test_the_radius_of_equal_others_is_attained():
    """One half-space for A, k equal parts of the rest along other directions: rank k is lost exactly at the radius."""
    for p, k in ((0.4, 2), (0.3, 3), (0.8, 5)):
        found = radius_at(NOISE, p, np.full(k, (1 - p) / k), k)
        assert found == pytest.approx(norm.ppf(p) - norm.ppf(1 / (k + 1)), rel=1e-9)
        just_beyond = norm.cdf(norm.ppf(p) - found * (1 + 1e-6))
        assert just_beyond < (1 - just_beyond) / k


def test_masks_are_not_broken_by_any_labels_of_changed_views():
    """Votes of all 2^8 masks, at random; the attacker labels each view that shows a changed part, in fractions as well."""
    rng, noise, parts = np.random.default_rng(5), Mask(0.125), 8
    views = (np.arange(1 << parts)[:, None] >> np.arange(parts)) & 1
    mass = np.where(views == 1, noise.chance, 1 - noise.chance).prod(axis=1)
    tight = certified = 0
    for _ in range(200):
        labels = rng.choice(4, len(views), p=rng.dirichlet(np.full(4, 0.4)))
        share = np.array([mass[labels == each].sum() for each in range(4)])
        others = np.sort(share[1:])[::-1]
        for k in (1, 2, 3):
            found = radius_at(noise, share[0], others, k)
            lost = parts + 1
            for r in range(parts, 0, -1):
                seen = views[:, :r].any(axis=1)  # all changed parts are alike to the mask
                kept = np.array([mass[(labels == each) & ~seen].sum() for each in range(4)])
                missing = np.maximum(kept[0] - np.sort(kept[1:])[::-1][:k], 0).sum()
                lost = r if missing <= mass[seen].sum() else lost
            found = min(found, parts)
            assert found < lost
            certified, tight = certified + (found > 0), tight + (found == lost - 1 and found > 0)
    assert certified > 100
    assert tight > 10


# Exact certificates.


def fewest_changes(votes, k):
    """The fewest changed evaluations after which k others have as many votes as class 0: a search through all votes."""
    level, seen, changes = {votes}, {votes}, 0
    while not any(sum(other >= each[0] for other in each[1:]) >= k for each in level):
        moved = set()
        for each in level:
            for source, target in product(range(len(each)), repeat=2):
                if each[source]:
                    after = list(each)
                    after[source] -= 1
                    after[target] += 1
                    moved.add(tuple(after))
        level, changes = moved - seen, changes + 1
        seen |= level
    return changes


def test_the_exact_radius_is_what_a_search_through_all_changes_finds():
    rng = np.random.default_rng(6)
    for _ in range(30):
        votes = rng.multinomial(9, rng.dirichlet([2.0, 1, 1, 1]))
        for k in (1, 2, 3):
            lead = exact_lead(votes[None, :1], np.sort(votes[1:])[None, ::-1][:, :k])
            fewest = fewest_changes(tuple(votes.tolist()), k)
            assert (lead > 0) == (fewest > 0)
            assert max((int(lead[0, 0]) - 1) // 2, -1) == fewest - 1
            if k == 1:
                assert lead[0, 0] == votes[0] - votes[1:].max()


@pytest.mark.parametrize("noise", [SubspaceSmoothing(np.eye(12)[:, None]), Splitting(6 / 255, deterministic=True)])
def test_exact_certificates(noise):
    n = noise.evaluations
    where = rsfast.Provenance(noise, seed=0, stream="estimation", samples=range(n), input_ids=[0, 1])
    tally = Tally(2, 4, provenance=where)
    tally.n[:], tally.counts[:, :4] = n, torch.tensor([[5, 4, 2, 1], [4, 4, 4, 0]])
    first, tied = exact_certificates(tally, top_k=2)
    assert (first.prediction, first.top_k, first.alpha) == (0, 2, 0.0)
    unit = 1.0 if isinstance(noise, SubspaceSmoothing) else 1 / 255
    assert first.radius == pytest.approx(unit, rel=1e-12)  # one change leaves 4, 4, 3; two 3, 4, 4
    assert first.p_upper == pytest.approx(2 / 12)
    assert exact_certificates(tally)[0].radius == 0
    assert (tied.prediction, tied.radius) == (ABSTAIN, 0.0)
    assert [each.prediction for each in exact_certificates(tally, top_k=3)] == [0, 0]
    with pytest.raises(ValueError, match="top_k must be less than num_classes, which is 4, got 4; every class is among"):
        exact_certificates(tally, top_k=4)


# How often they are wrong.


def tally_of(votes):
    votes = torch.as_tensor(np.asarray(votes))
    tally = Tally(*votes.shape)
    tally.counts[:, :-1], tally.n[:] = votes, votes.sum(1)
    return tally


P = np.array([0.42, 0.19, 0.18, 0.18, 0.03])
TRUE = {k: radius_at(NOISE, P[0], P[1:], k) for k in (2, 3)}


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("rule", ["auto", "one_vs_rest", "top_two", "bonferroni"])
def test_certificates_err_within_alpha(rule, k):
    """4,000 seeded samples of 400 votes, in which others nearly tie: more failures than allowed have a chance of 1e-9."""
    rng, inputs = np.random.default_rng(7), 4000
    first, second = (tally_of(rng.multinomial(n, P, size=inputs)) for n in (60, 400))
    found = certificates(first, second, NOISE, alpha=ALPHA, rule=rule, top_k=k, seed=0, assume_independent=True)
    chosen = np.array([each.prediction for each in found])
    radii = np.array([each.radius for each in found])
    truth = np.array([radius_at(NOISE, P[i], np.sort(np.delete(P, i))[::-1], k) for i in range(5)])
    wrong = (chosen != ABSTAIN) & (radii > truth[chosen])
    assert (radii > 0).mean() > 0.2
    assert wrong.sum() <= binom.isf(1e-9, inputs, ALPHA)


@pytest.mark.parametrize("bound", ["betting", "empirical_bernstein", "hoeffding"])
def test_certificates_of_scores_err_within_alpha(bound):
    """150 inputs with 400 scores each, of classes that tie for second: more failures than allowed have a chance of 1e-9."""
    rng, inputs, n, p, head = np.random.default_rng(12), 150, 400, np.array([0.5, 0.2, 0.2, 0.1]), Softmax(1.0)
    logits = torch.from_numpy(np.log(rng.dirichlet(3 * p, size=(inputs, n + 60)) + 1e-30)).float()
    first, start, ranges = Tally(inputs, 4, [head]), 60, []
    accumulate(logits[:, :60].reshape(-1, 4), first, rows=torch.arange(inputs).repeat_interleave(60))
    for end in BOUNDS[bound].sample_ranges(n):
        ranges.append(Tally(inputs, 4, [head], tracked_classes=leading_classes(first)))
        part = logits[:, start : 60 + end]
        accumulate(part.reshape(-1, 4), ranges[-1], rows=torch.arange(inputs).repeat_interleave(part.shape[1]))
        start = 60 + end
    how = {"alpha": ALPHA, "bound": bound, "rule": "top_two", "top_k": 2, "seed": 0, "assume_independent": True}
    found = certificates(first, ranges, NOISE, head=head, **how)
    truth = radius_at(NOISE, p[0], p[1:], 2)
    radii = np.array([each.radius for each in found if each.prediction == 0])
    assert (radii > 0.4 * truth).mean() > 0.9
    assert (radii > truth).sum() <= binom.isf(1e-9, inputs, ALPHA)


def test_alpha_that_is_not_divided_by_k_would_not_do():
    """Two classes tie for second: the second largest of two ups fails twice as often as one of them, so k shares are due."""
    rng, inputs, p = np.random.default_rng(8), 20_000, np.array([0.5, 0.25, 0.25])
    votes = rng.multinomial(100, p, size=inputs)
    rate = {}
    for share in (1, 2):
        upper = rsfast.bounds.clopper_pearson_upper(votes[:, 1:], 100, 0.2 / share).min(axis=1)
        rate[share] = (upper < 0.25).mean()
    assert rate[2] <= 0.2 < rate[1]


def test_stopping_on_the_results_errs_within_alpha():
    """The radius asked for is just above the true one; 600 inputs, and a chance of 1e-9 that a valid rule shows more."""
    rng, asked = np.random.default_rng(9), TRUE[2] * (1 + 1e-9)

    def draw(which, samples, stream, tracked):
        return tally_of(rng.multinomial(len(samples), P, size=len(which)))

    spec = CertificationSpec(NOISE, ALPHA, early=True, top_k=2)
    plan = Certification([spec], StoppingRule(radius=asked), n0=100, n=3000, seed=1)
    found = [each for (each,) in follow(draw, plan, list(range(600)))]
    wrong = sum(each.radius >= asked and each.prediction == 0 for each in found)
    assert len({each.n for each in found}) > 5
    assert wrong <= binom.isf(1e-9, 600, ALPHA)


@pytest.mark.parametrize(
    ("bound", "head"), [("beta_binomial_sequence", Votes()), ("betting_sequence", Softmax(1.0))], ids=str
)
def test_what_is_not_evaluated_would_not_be_decided(bound, head):
    """`undecided` may be wrong only about inputs that go on."""
    how = CertificationSpec(NOISE, 0.001, head, bound, early=True, top_k=2)
    plan = Certification([how], StoppingRule(radius=0.4), n0=50, n=1500, seed=1)
    rng, size = np.random.default_rng(10), 12
    centers = rng.normal([3, 1.5, 1, 0], 1.5, size=(size, 1, 4))
    logits = torch.from_numpy(centers + 1.5 * rng.normal(size=(size, 1550, 4))).float()
    selection, total, active, ranges = Tally(size, 4, [head]), Tally(size, 4, [head]), np.arange(size), []
    accumulate(logits[:, :50].reshape(-1, 4), selection, rows=torch.arange(size).repeat_interleave(50))
    tracked, waited, decided = leading_classes(selection) if plan.tracks else None, 0, 0
    for _, samples in plan.stages[1:]:
        ranges.append(Tally(size, 4, [head], tracked_classes=tracked))
        part = logits[:, samples.start + 50 : samples.stop + 50].reshape(-1, 4)
        for tally in (ranges[-1], total):
            accumulate(part, tally, rows=torch.arange(size).repeat_interleave(len(samples)))
        waits = plan.undecided(selection, total, ranges[-1].select(active), active)
        parts = [tally.select(active) for tally in ranges]
        found = np.array([each is not None for each in plan.evaluate(selection.select(active), parts, active.tolist())])
        assert not (waits & found).any()
        waited, decided, active = waited + int(waits.sum()), decided + int(found.sum()), active[~found]
        if not len(active):
            break
    assert waited > 10
    assert decided == size


# Every way gives them.


def model(batch):
    """Five classes; three are near."""
    x = batch.flatten(1)
    return torch.stack([x[:, 0] + 0.1, x[:, 1] + 0.1, x[:, 2] + 0.05, x[:, 3] - 1, x[:, 4] - 1], dim=1)


X = torch.tensor([[0.3, 0.2, 0.2, 0.0, 0.0], [0.6, 0.5, -0.2, 0.0, 0.0], [0.0, 0.9, 0.0, 0.1, 0.0]])
OPTIONS = {"num_classes": 5, "n0": 100, "n": 2000, "seed": 3}


@pytest.mark.parametrize("head", [Votes(), Softmax(0.5), ClippedLogits(-2.0, 2.0)], ids=str)
@pytest.mark.parametrize("k", [2, 4])
def test_certify_gives_what_its_tallies_prove(head, k):
    noise, heads = Gaussian(0.5), [head]
    found = certify(model, X, noise, head=head, top_k=k, **OPTIONS)
    assert found == list(certify_each(model, X, noise, head=head, top_k=k, **OPTIONS))
    selection = sample(model, X, noise, n=100, stream="selection", heads=heads, num_classes=5, seed=3)
    tracked, start, ranges = leading_classes(selection), 0, []
    for end in BOUNDS[found[0].bound].sample_ranges(2000):
        tally = sample(
            model, X, noise, n=end - start, start=start, heads=heads, tracked_classes=tracked, num_classes=5, seed=3
        )
        ranges, start = [*ranges, tally], end
    most = 2000 if len(ranges) > 1 and BOUNDS[found[0].bound].sequence else None
    again = certificates(
        selection, ranges, noise, head=head, alpha=0.001, top_k=k, max_samples=most, backend=found[0].backend
    )
    assert [(each.prediction, each.radius, each.p_upper) for each in again] == [
        (each.prediction, each.radius, each.p_upper) for each in found
    ]
    alone = certify(model, X, noise, head=head, **OPTIONS)
    assert all(more.radius >= 0.95 * one.radius for more, one in zip(found, alone, strict=True))  # at less alpha each
    assert any(more.radius > 1.05 * one.radius for more, one in zip(found, alone, strict=True))
    assert all(each.prediction in (0, 1) and each.top_k == k for each in found)


def test_a_radius_without_a_majority():
    """The class has less than half of the votes: no radius alone, and one among the first two."""
    [alone], [two] = (certify(model, X[:1], Gaussian(0.5), rule="one_vs_rest", top_k=k, **OPTIONS) for k in (1, 2))
    assert alone.prediction == ABSTAIN
    assert 1 / 3 < two.p_lower < 1 / 2
    assert two.radius == pytest.approx(0.5 * (norm.ppf(two.p_lower) - norm.ppf(1 / 3)), rel=1e-9)
    assert two.p_upper == pytest.approx((1 - two.p_lower) / 2)


def test_top_two_of_k_takes_the_kth_largest_limit_at_its_share():
    first, second = tally_of([[8, 1, 1, 0]]), tally_of([[500, 300, 150, 50]])
    (found,) = certificates(first, second, NOISE, alpha=0.01, rule="top_two", top_k=2, seed=0, assume_independent=True)
    assert found.p_lower == rsfast.bounds.clopper_pearson_lower(500, 1000, 0.005)
    assert found.p_upper == pytest.approx(rsfast.bounds.clopper_pearson_upper(150, 1000, 0.0025), rel=1e-12)
    assert (found.alpha_upper, found.top_k, found.counts) == (0.005, 2, (500, 300))


def test_early_decisions_and_the_largest_radius():
    stopping, spec = {"radius": 0.3}, CertificationSpec(Gaussian(0.5), 0.001, early=True, top_k=2)
    found = certify(model, X, Gaussian(0.5), top_k=2, **stopping, **OPTIONS)
    assert [each.radius >= 0.3 for each in found] == [False, True, True]
    assert min(each.n for each in found) < 500
    largest = largest_radius(spec, StoppingRule(radius=0.3), n0=100, n=2000, num_classes=5)
    sure = partial(torch.full, (1, 5), 0.0)

    def unanimous(batch):
        return torch.tensor([[9.0, 0, 0, 0, 0]]).expand(len(batch), 5)

    more = OPTIONS | {"bound": spec.bound}
    [most] = certify(unanimous, sure(), Gaussian(0.5), top_k=2, **more)
    assert most.radius == largest


def test_several_heads_and_their_choice_take_k():
    heads = [Votes(), Softmax(0.5)]
    for found in certify(model, X, Gaussian(0.5), head=heads, top_k=3, **OPTIONS):
        assert [each.top_k for each in found] == [3, 3]
        assert {each.alpha for each in found} == {0.0005}
    labels = [0, 0, 1]
    scores = [rsfast.tune_head(model, X, labels, Gaussian(0.5), heads, top_k=k, **OPTIONS).scores[Votes()] for k in (1, 3)]
    assert scores[1] > 1.1 * scores[0] > 0


def test_certificates_keep_k_in_their_dicts_only_where_it_is_not_1():
    for k in (1, 3):
        (found, *_) = certify(model, X[1:2], Gaussian(0.5), top_k=k, **OPTIONS)
        written = json.loads(json.dumps(found.to_dict()))
        assert written.get("top_k", 1) == k == found.top_k
        assert ("top_k" in written) == (k == 3)
        assert Certificate.from_dict(written) == found


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"top_k": 5},
            ValueError,
            "top_k must be less than num_classes, which is 5, got 5; every class is among the first 5",
        ),
        ({"top_k": 0}, ValueError, "top_k must be from 1 to 8589934591, got 0"),
        ({"top_k": 2.0}, TypeError, "top_k must be an int, got 2.0"),
        ({"top_k": True}, TypeError, "top_k must be an int, got True"),
        (
            {"top_k": 2, "rule": "class_partitioning"},
            ValueError,
            "rule must be auto, one_vs_rest, top_two or bonferroni with top_k = 2, got 'class_partitioning'; it bounds",
        ),
    ],
)
def test_what_is_refused(options, error, message):
    def never(batch):
        raise AssertionError("nothing may be sampled")

    with pytest.raises(error, match=message):
        certify(never, X, Gaussian(0.5), **{**OPTIONS, **options})
    first, second = tally_of([[8, 1, 1, 0, 0]]), tally_of([[80, 10, 10, 0, 0]])
    with pytest.raises(error, match=message):
        certificates(first, second, NOISE, alpha=0.01, seed=0, assume_independent=True, **options)


# Run folders.


@pytest.fixture
def folder(workspace):
    workspace("top_k_nets", LINEAR_NETS, np.arange(6) % 4)


def run(command, options, capsys):
    capsys.readouterr()
    assert main(f"{command} {options}".split()) == 0
    return capsys.readouterr().out


CERTIFY = "certify --model top_k_nets:Net --data data.npz --num-classes 4 --sigma 0.5 --seed 11 --n0 20 --n 500"


@pytest.mark.parametrize("more", ["", "--radius 0.4", "--head softmax:0.5"])
@pytest.mark.usefixtures("folder")
def test_runs_and_runs_certified_again(more, capsys):
    run(CERTIFY, f"--out one {more}", capsys)
    told = run(CERTIFY, f"--top-k 2 --out two {more}", capsys)
    assert told.startswith("radii are those within which the class is one of the 2 with the largest scores\n")
    assert "top_k" not in sidecar("one")
    assert sidecar("two")["top_k"] == 2
    run("recertify two", "--out same", capsys)
    assert rows("same") == rows("two") != rows("one")
    if "radius" not in more:  # else other samples were drawn
        run("recertify one", "--top-k 2 --out again", capsys)
        assert rows("again") == rows("two")
        assert sidecar("again")["top_k"] == 2
        run("recertify two", "--top-k 1 --out back", capsys)
        assert rows("back") == rows("one")
        assert "top_k" not in sidecar("back")
    table = run("analyze", "two", capsys)
    assert "two: radii are those within which the class is one of the 2 with the largest scores." in table
    assert "runs differ in top_k: 1 in one, 2 in two" in results.caveats(
        {name: results.read(name) for name in ("one", "two")}
    )


@pytest.mark.usefixtures("folder")
def test_as_many_as_there_are_classes_are_refused_before_anything_is_written(capsys, tmp_path):
    run(CERTIFY, "--out one", capsys)
    for command in (f"{CERTIFY} --top-k 4 --out two", "recertify one --top-k 4 --out two"):
        with pytest.raises(SystemExit):
            main(command.split())
        assert "top_k must be less than num_classes, which is 4, got 4" in capsys.readouterr().err
        assert not (tmp_path / "two" / "results.tsv").exists()
