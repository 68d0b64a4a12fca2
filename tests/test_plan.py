"""engine.plan: when sampling stops, that stopping on the results costs no more than alpha, and that nothing else shows."""

from functools import partial

import numpy as np
import pytest
import torch
from conftest import follow
from scipy.special import ndtri
from scipy.stats import binom

from rsfast import sequences
from rsfast.api import certify
from rsfast.engine.plan import Certification, StoppingRule, largest_radius, smallest_n
from rsfast.heads import ClippedLogits, Softmax, Sparsemax, Votes
from rsfast.noise import Gaussian, Laplace, Mask
from rsfast.ops import accumulate
from rsfast.ops.tally import Tally
from rsfast.stats.bounds.clopper_pearson import ClopperPearson
from rsfast.stats.common import fine_analysis_ends
from rsfast.stats.estimates import leading_classes
from rsfast.stats.proof import certificates, smallest_certifiable_n
from rsfast.stats.registry import BOUNDS
from rsfast.stats.rules import CertificationSpec

NOISE = Gaussian(1.0)
certificates = partial(certificates, assume_independent=True)  # Tallies here are made by hand
UNIT = 1 << 30


class Simulated:
    """Draws votes, or scores of classes 0 and 1 under Softmax(1), without a model; remembers what was drawn."""

    def __init__(self, inputs, p, seed=0, scores=None):
        self.inputs, self.p, self.scores = inputs, np.asarray(p, dtype=float), scores
        self.rng = np.random.default_rng(seed)
        self.drawn = np.zeros(inputs, dtype=int)
        self.calls = []

    def __call__(self, which, samples, stream, tracked):
        self.calls.append((stream, samples, len(which)))
        if stream == "estimation":
            assert (self.drawn[which] == samples.start).all()
            self.drawn[which] += len(samples)
        if self.scores is None:
            tally = Tally(len(which), len(self.p))
            tally.counts[:, :-1] = torch.from_numpy(self.rng.multinomial(len(samples), self.p, size=len(which)))
        else:
            tally = Tally(len(which), 2, [Softmax(1.0)], tracked_classes=tracked)
            q = np.floor(self.scores(self.rng, (len(which), len(samples))) * UNIT).astype(np.int64)
            q = np.stack([q, UNIT - q], axis=1)
            tally.counts[:, 0] = torch.from_numpy((q[:, 0] >= UNIT // 2).sum(-1))
            tally.counts[:, 1] = len(samples) - tally.counts[:, 0]
            tally.sums[:, 0] = torch.from_numpy(q.sum(-1))
            tally.squares[:, 0] = torch.from_numpy((-(-q * q // UNIT)).sum(-1))
            for i in range(0 if tracked is None else len(which)):
                for place, k in enumerate(tracked[i, 0]):
                    bins = sequences.bin_of(q[i, k])
                    counts, sums = np.zeros((2, sequences.BINS), dtype=np.int64)
                    np.add.at(counts, bins, 1)
                    np.add.at(sums, bins, q[i, k])
                    tally.bin_counts[i, 0, place], tally.bin_sums[i, 0, place] = map(torch.from_numpy, (counts, sums))
        tally.n += len(samples)
        return tally


def run(draw, *specs, n0=100, n=10_000, **stopping):
    plan = Certification(specs, StoppingRule(**stopping), n0=n0, n=n, seed=1)
    found = follow(draw, plan, list(range(draw.inputs)))
    return [of_input[0] for of_input in found] if len(specs) == 1 else found


def spec(**options):
    return CertificationSpec(NOISE, **{"alpha": 0.05, "early": True} | options)


# Peeking. The radius asked for is just above the true one, so every input that is certified at it is certified wrongly.

P = np.array([0.8, 0.15, 0.05])
TRUE_RADIUS = {"one_vs_rest": ndtri(0.8), "top_two": (ndtri(0.8) - ndtri(0.15)) / 2}


def wrongly_certified(inputs, how, p=P, scores=None):
    truth = TRUE_RADIUS.get(how.rule, TRUE_RADIUS["top_two"])
    found = run(Simulated(inputs, p, scores=scores), how, radius=truth * (1 + 1e-9), n=3000)
    return sum(certificate.radius > truth for certificate in found)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["one_vs_rest", "top_two", "bonferroni", "auto"])
@pytest.mark.parametrize("bound", ["beta_binomial_sequence", "betting_sequence"])
def test_stopping_on_the_results_errs_within_alpha(rule, bound):
    """3000 inputs, or 150 of the slower bound; a rule that errs with probability 0.05 shows more with chance 1e-9."""
    inputs = 3000 if bound.startswith("beta") else 150
    assert wrongly_certified(inputs, spec(rule=rule, bound=bound)) <= binom.isf(1e-9, inputs, 0.05)


def test_a_bound_for_one_analysis_would_fail_so(monkeypatch):
    class Eager(ClopperPearson):
        name = "eager"
        sequence = True

    monkeypatch.setitem(BOUNDS, "eager", Eager())
    how = spec(rule="one_vs_rest", bound="eager")
    assert wrongly_certified(3000, how) > binom.isf(1e-9, 3000, 0.05)


def test_scores_that_stop_on_the_results():
    """Scores 0.8 on average: the true radius is Q(0.8), whichever rule, with two classes."""

    def draw(rng, shape):
        return rng.beta(4, 1, shape)

    how = spec(head=Softmax(1.0), rule="one_vs_rest")
    assert how.bound == "betting_sequence"
    assert wrongly_certified(200, how, P[:2], draw) <= binom.isf(1e-9, 200, 0.05)
    half = TRUE_RADIUS["one_vs_rest"] / 2
    found = run(Simulated(20, P[:2], scores=draw), how, radius=half, n=3000)
    assert all(certificate.radius >= half and certificate.n < 1000 for certificate in found)


# When it stops.


def test_certified_declined_and_undecided():
    draw = Simulated(3, [0.9, 0.1])
    for certificate in run(draw, spec(), radius=0.5):  # the true radius is 1.28
        assert certificate.radius >= 0.5
        assert certificate.n < 200
    for certificate in run(Simulated(3, [0.9, 0.1]), spec(), radius=2.0):
        assert certificate.radius < 2.0
        assert certificate.n < 2000
    for certificate in run(Simulated(3, [0.9, 0.1]), spec(), radius=float(ndtri(0.9))):
        assert certificate.n in fine_analysis_ends(10_000)
        assert certificate.max_samples == 10_000
    assert draw.drawn.tolist() == [certificate.n for certificate in run(Simulated(3, [0.9, 0.1]), spec(), radius=0.5)]


def test_a_relative_precision():
    exact = float(ndtri(0.9))
    for rtol, most in ((0.5, 400), (0.2, 6000), (0.05, 80_000)):
        for certificate in run(Simulated(5, [0.9, 0.1]), spec(rule="one_vs_rest"), rtol=rtol, n=100_000):
            assert exact * (1 - rtol) * 0.8 <= certificate.radius <= exact
            assert certificate.n < most
    assert all(
        c.prediction == -1 and c.n < 10_000 for c in run(Simulated(5, [0.3, 0.3, 0.4]), spec(rule="one_vs_rest"), rtol=0.1)
    )


def test_analyses_are_at_the_schedule_and_nothing_is_drawn_in_vain():
    draw = Simulated(40, [0.6, 0.3, 0.1])
    found = run(draw, spec(), radius=0.3)
    ends = fine_analysis_ends(10_000)
    estimation = [samples for stream, samples, _ in draw.calls if stream == "estimation"]
    assert estimation == [range(a, b) for a, b in zip([0, *ends], ends, strict=False)][: len(estimation)]
    assert draw.drawn.tolist() == [certificate.n for certificate in found]
    assert len(set(draw.drawn)) > 3
    active = [count for stream, _, count in draw.calls if stream == "estimation"]
    assert active == [int((draw.drawn >= samples.stop).sum()) for samples in estimation]


def test_one_range_where_one_analysis_is_all():
    for how, ends in (
        (spec(early=False), [10_000]),
        (spec(early=False, bound="beta_binomial_sequence"), [10_000]),
        (spec(early=False, bound="betting"), sequences.range_ends(10_000)),
        (spec(early=False, bound="betting_sequence"), sequences.analysis_ends(10_000)),
    ):
        draw = Simulated(2, P)
        assert all(certificate.n == 10_000 for certificate in run(draw, how))
        assert [samples.stop for stream, samples, _ in draw.calls if stream == "estimation"] == ends


PROVED = [
    *((Votes(), "clopper_pearson", rule) for rule in ("auto", "one_vs_rest", "top_two", "class_partitioning", "bonferroni")),
    *((Votes(), bound, "auto") for bound in ("betting", "hoeffding", "beta_binomial_sequence", "betting_sequence")),
    *((Softmax(0.5), bound, "auto") for bound in ("betting", "empirical_bernstein", "betting_sequence")),
    (Sparsemax(1.0), "betting", "top_two"),
    (ClippedLogits(-1.0, 1.0), "betting", "auto"),
    (ClippedLogits(-1.0, 1.0), "hoeffding", "bonferroni"),
]


def sure(batch):
    """Three classes; whatever the noise, all votes and scores are for the first."""
    return torch.tensor([[99.0, -99.0, -99.0]]).expand(len(batch), 3)


@pytest.mark.parametrize(("head", "bound", "rule"), PROVED)
@pytest.mark.parametrize("n", [40, 700])
def test_the_largest_radius_is_what_unanimous_samples_prove(head, bound, rule, n):
    spec = CertificationSpec(Gaussian(0.25), 0.01, head, bound, rule)
    options = {"num_classes": 3, "n0": 30, "n": n, "alpha": 0.01, "head": head, "bound": bound, "rule": rule, "seed": 0}
    [found] = certify(sure, torch.zeros(1, 3), spec.noise, **options)
    assert largest_radius(spec, StoppingRule(), n0=30, n=n, num_classes=3) == found.radius > 0


@pytest.mark.parametrize("head", [Votes(), Softmax(0.5)])
def test_the_largest_radius_where_sampling_may_stop(head):
    """That of the last analysis, and no other than with a sequence that is asked for; a little less is within reach."""
    spec, stopping = CertificationSpec(Gaussian(0.25), 0.001, head, early=True), StoppingRule(radius=0.1)
    largest = largest_radius(spec, stopping, n0=30, n=500, num_classes=3)
    options = {"num_classes": 3, "n0": 30, "n": 500, "head": head, "seed": 0}
    [found] = certify(sure, torch.zeros(1, 3), spec.noise, bound=spec.bound, **options)
    assert found.radius == largest
    [found] = certify(sure, torch.zeros(1, 3), spec.noise, radius=0.9 * largest, **options)
    assert 0.9 * largest <= found.radius <= largest


def test_the_largest_radius_grows_with_the_lipschitz_potential():
    plain, smooth = (CertificationSpec(Gaussian(0.25), 0.001, Softmax(), lipschitz=each) for each in (None, 0.5))
    plain, smooth = (largest_radius(each, StoppingRule(), n0=30, n=500, num_classes=3) for each in (plain, smooth))
    assert smooth > 1.1 * plain


@pytest.mark.parametrize(("head", "bound", "rule"), PROVED)
@pytest.mark.parametrize("alpha", [0.3, 0.001])
def test_the_smallest_n_is_where_radii_begin(head, bound, rule, alpha):
    spec = CertificationSpec(Gaussian(0.25), alpha, head, bound, rule)
    least = smallest_n(spec, StoppingRule(), n0=30, num_classes=3)
    proved = [largest_radius(spec, StoppingRule(), n0=30, n=n, num_classes=3) > 0 for n in range(1, least + 20)]
    assert proved == [n >= least for n in range(1, least + 20)]


@pytest.mark.parametrize("alpha", [0.99, 0.5, 0.1, 0.001, 2.0**-20])
def test_the_smallest_n_by_clopper_and_pearson_is_known(alpha):
    spec = CertificationSpec(Gaussian(0.25), alpha)
    assert smallest_n(spec, StoppingRule(), n0=30, num_classes=3) == smallest_certifiable_n(alpha)


def test_a_randomized_bound_has_no_largest_radius():
    spec = CertificationSpec(Gaussian(0.25), 0.001, bound="randomized_clopper_pearson")
    assert largest_radius(spec, StoppingRule(), n0=30, n=1, num_classes=3) == np.inf


def test_a_goal_that_is_just_reached():
    """A radius that is asked for and proved is enough; one that is still possible is not given up."""
    for stopping, proved, ceiling, decided in (
        (StoppingRule(radius=0.5), 0.5, 0.9, True),
        (StoppingRule(radius=0.5), 0.4, 0.5, False),
        (StoppingRule(radius=0.5), 0.4, np.nextafter(0.5, 0), True),
        (StoppingRule(rtol=0.5), 0.25, 0.5, True),
        (StoppingRule(rtol=0.5), 0.25, np.nextafter(0.5, 1), False),
        (StoppingRule(rtol=0.5), 0.0, 0.0, True),
    ):
        assert stopping.reached(np.array([proved]), np.array([ceiling])).tolist() == [decided]


def test_what_is_proved_at_the_stop_is_what_the_counts_prove():
    draw, tallies = Simulated(1, [0.9, 0.1]), []

    def keep(*arguments):
        tallies.append(draw(*arguments))
        return tallies[-1]

    for bound in ("beta_binomial_sequence", "betting_sequence"):
        draw, tallies = Simulated(1, [0.9, 0.1]), []
        (found,) = follow(keep, Certification([spec(bound=bound)], StoppingRule(radius=1.0), n0=100, n=5000, seed=1), [7])
        options = {"alpha": 0.05, "bound": bound, "max_samples": 5000, "seed": 1, "input_ids": [7]}
        assert found == certificates(tallies[0], tallies[1:], NOISE, **options)
        assert found[0].radius >= 1.0
        assert len(tallies) > 3


def test_several_methods_stop_together():
    one, two = spec(), spec(rule="bonferroni", alpha=0.001)
    draw = Simulated(30, [0.7, 0.2, 0.1])
    found = run(draw, one, two, radius=0.5)
    for first, second in found:
        assert first.n == second.n
        assert first.rule != second.rule == "bonferroni"
    alone = run(Simulated(30, [0.7, 0.2, 0.1]), two, radius=0.5)
    assert np.mean([pair[0].n for pair in found]) >= np.mean([certificate.n for certificate in alone]) / 2


def test_a_single_stream_is_cut_in_two():
    draw = Simulated(1, P)
    follow(draw, Certification([spec()], StoppingRule(), n0=50, n=300, seed=1, streams=("training", "training")), [0])
    assert draw.calls == [("training", range(50), 1), ("training", range(50, 350), 1)]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"radius": 0.5, "rtol": 0.1}, ValueError, "rtol must be None where radius is given, got 0.1 and 0.5"),
        ({"radius": 0.0}, ValueError, "radius must be a finite number above 0, got 0.0"),
        ({"radius": float("inf")}, ValueError, "radius must be a finite number above 0, got inf"),
        ({"radius": float("nan")}, ValueError, "radius must be a finite number above 0, got nan"),
        ({"radius": "1"}, TypeError, "radius must be a number, got '1'"),
        ({"rtol": 1.0}, ValueError, "rtol must be a finite number above 0 and below 1, got 1.0"),
        ({"rtol": True}, TypeError, "rtol must be a number, got True"),
    ],
)
def test_goals_that_are_none(options, error, message):
    with pytest.raises(error, match=message):
        StoppingRule(**options)


@pytest.mark.parametrize("bound", [name for name, kind in BOUNDS.items() if not kind.sequence])
def test_a_bound_for_one_analysis_is_refused(bound):
    message = f"bound must be one of auto, beta_binomial_sequence.*, got '{bound}'; it holds for one analysis"
    with pytest.raises(ValueError, match=message):
        spec(head=Votes(), bound=bound)


@pytest.mark.parametrize("goal", [{"radius": 0.4}, {"rtol": 0.3}], ids=str)
@pytest.mark.parametrize("rule", ["auto", "one_vs_rest", "top_two", "bonferroni"])
@pytest.mark.parametrize("noise", [Gaussian(0.5), Laplace(0.5), Mask(0.9, 0.0)], ids=lambda noise: type(noise).__name__)
def test_what_is_not_evaluated_would_not_be_decided(noise, rule, goal):
    """`undecided` may be wrong only about inputs that go on, and is seldom: of those that it leaves most are decided."""
    if isinstance(noise, Mask) and "radius" in goal:
        goal = {"radius": 3}
    how = CertificationSpec(noise, 0.001, rule=rule, early=True)
    plan, left, decided = Certification([how], StoppingRule(**goal), n0=50, n=20_000, seed=1), 0, 0
    rng, shares = (
        np.random.default_rng(0),
        [[1, 0, 0], [0.99, 0.005, 0.005], [0.9, 0.08, 0.02], [0.75, 0.2, 0.05], [0.5, 0.4, 0.1]],
    )
    for n in (16, 48, 160, 1000, 4000, 20_000):
        selection, total = (Tally(100, 3), Tally(100, 3))
        for tally, size in ((selection, 50), (total, n)):
            votes = np.concatenate([rng.multinomial(size, p, size=20) for p in shares])
            tally.counts[:, :-1], tally.n[:] = torch.from_numpy(votes), size
        waits = plan.undecided(selection, total, total, np.arange(100))
        found = np.array([each is not None for each in plan.evaluate(selection, [total], range(100))])
        assert not (waits & found).any()
        left, decided = left + int((~waits).sum()), decided + int(found.sum())
    assert 0 < decided <= left <= 1.1 * decided


def test_undecided_is_a_function_of_an_inputs_own_votes():
    """Whatever else is in the call."""
    plan = Certification([spec()], StoppingRule(radius=1.0), n0=50, n=5000, seed=1)
    rng, (selection, total) = np.random.default_rng(0), (Tally(40, 3), Tally(40, 3))
    for tally, size in ((selection, 50), (total, 500)):
        tally.counts[:, :-1], tally.n[:] = torch.from_numpy(rng.multinomial(size, [0.86, 0.1, 0.04], size=40)), size
    together = plan.undecided(selection, total, total, np.arange(40))
    assert 0 < together.sum() < 40
    fresh = Certification([spec()], StoppingRule(radius=1.0), n0=50, n=5000, seed=1)
    assert together.tolist() == [
        fresh.undecided(selection, total, total.select([place]), np.array([place]))[0] for place in range(40)
    ]


@pytest.mark.parametrize("goal", [{"radius": 0.4}, {"rtol": 0.3}], ids=str)
@pytest.mark.parametrize("rule", ["one_vs_rest", "top_two", "auto"])
@pytest.mark.parametrize("head", [Votes(), Softmax(1.0)], ids=str)
def test_bettors_who_go_on_decide_as_those_who_see_all_ranges(head, rule, goal):
    """`undecided` may be wrong only about inputs that go on; rows, once more used by other inputs, begin anew."""
    how = CertificationSpec(Gaussian(0.5), 0.001, head=head, bound="betting_sequence", rule=rule, early=True)
    plan = Certification([how], StoppingRule(**goal), n0=50, n=1500, seed=1)
    rng, left, decided, waited = np.random.default_rng(0), 0, 0, 0
    for size in (12, 7):
        centers = rng.normal([3, 1, 0], 2, size=(size, 1, 3))
        centers = centers + rng.normal(size=(size, 1550, 3)) * rng.uniform(0.1, 2, (size, 1, 1))
        logits, rows, active = torch.from_numpy(centers).float(), rng.permutation(20)[:size], np.arange(size)
        selection, total = Tally(20, 3, [head]), Tally(20, 3, [head])
        accumulate(logits[:, :50].reshape(-1, 3), selection, rows=torch.from_numpy(rows.repeat(50)))
        tracked = leading_classes(selection)[rows] if plan.tracks else None
        ranges = []
        for _, samples in plan.stages[1:]:
            ranges.append(Tally(size, 3, [head], tracked_classes=tracked))
            part = logits[:, samples.start + 50 : samples.stop + 50].reshape(-1, 3)
            for tally, places in ((ranges[-1], np.arange(size)), (total, rows)):
                accumulate(part, tally, rows=torch.from_numpy(places.repeat(len(samples))))
            newest = ranges[-1].select(active)
            waits = plan.undecided(selection, total, newest, rows[active])
            parts = [tally.select(active) for tally in ranges]
            found = np.array(
                [each is not None for each in plan.evaluate(selection.select(rows[active]), parts, active.tolist())]
            )
            assert not (waits & found).any()
            left, decided, waited = left + int((~waits).sum()), decided + int(found.sum()), waited + int(waits.sum())
            active = active[~found]
            if not len(active):
                break
    assert waited > 20
    assert 0 < decided <= left <= 1.5 * decided
