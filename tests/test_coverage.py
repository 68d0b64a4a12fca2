"""benchmarks.coverage: its exact computations are right, its table is written, and it sees a bound that does not hold."""

import json

import numpy as np
import pytest
from scipy.stats import binom, norm

from benchmarks import coverage
from rsfast import bounds, sequences


@pytest.mark.slow
@pytest.mark.parametrize("n", [10, 30, 100, 300])
@pytest.mark.parametrize("alpha", [0.001, 0.05])
def test_clopper_pearson_by_enumeration(n, alpha):
    """At 500 proportions: Clopper-Pearson errs at most, its randomized kin exactly, as often as alpha says."""
    p = np.linspace(0, 1, 502)[1:-1]
    assert np.all(coverage.enumerated(bounds.clopper_pearson_lower(np.arange(n + 1), n, alpha), n, p) <= alpha)

    def limit(k, u):
        return bounds.randomized_clopper_pearson_lower(k, n, alpha, u)

    np.testing.assert_allclose(coverage.randomized(limit, n, p), alpha, rtol=0, atol=1e-11)


def test_a_sequence_by_dynamic_programming():
    """Read after each of 2000 trials: the sequence errs within alpha, Clopper-Pearson far beyond it."""
    p, alpha = np.array([0.005, 0.1, 0.5, 0.8, 0.99, 0.9995]), 0.05

    def sequence(k, n):
        return sequences.beta_binomial_sequence_lower(k, n, alpha)

    def other(k, n):
        return sequences.beta_binomial_sequence_lower(k, n, alpha, a=20, b=1)

    def fixed(k, n):
        return bounds.clopper_pearson_lower(k, n, alpha)

    rates = coverage.crossing(sequence, 2000, p)
    assert np.all(rates[:5] > 0)
    assert np.all(rates <= alpha)
    assert np.all(coverage.crossing(other, 2000, p) <= alpha)
    assert np.all(coverage.crossing(fixed, 300, p[1:4]) > 2 * alpha)


def test_the_dynamic_program_against_every_path():
    """Ten trials, all 1024 paths."""

    def lower(k, n):
        return bounds.clopper_pearson_lower(k, n, 0.2)

    p = np.array([0.3, 0.62, 0.9])
    paths = (np.arange(1024)[:, None] >> np.arange(10)) & 1
    counts = paths.cumsum(axis=1)
    limits = lower(counts, np.broadcast_to(np.arange(1, 11), counts.shape))
    for chance, rate in zip(p, coverage.crossing(lower, 10, p), strict=True):
        weight = chance ** counts[:, -1] * (1 - chance) ** (10 - counts[:, -1])
        assert rate == pytest.approx(weight[np.any(limits > chance, axis=1)].sum(), abs=1e-14)


@pytest.mark.slow
def test_simulated_rows_hold():
    """500 samples of 100 scores of every distribution, alpha = 0.05: a row of a bound that holds fails with chance 1e-9.

    Of the 72 rows those of empirical Bernstein and Hoeffding are far from it; 18 of betting are near enough to count.
    """
    rows = list(coverage.simulated(100, 0.05, 500))
    assert len(rows) == 72
    assert [row for row in rows if not row.holds] == []
    assert max(row.rate for row in rows) > 0.005  # and it would show


@pytest.mark.slow
def test_a_bound_that_does_not_hold_is_seen(monkeypatch):
    """A bound that knows the outcome: the sample mean, barely lowered."""
    honest = sequences.betting_lower

    def eager(counts, alpha, *, sums, prior=None):
        q = sums.sum((-2, -1)) / counts.sum((-2, -1)) / coverage.UNIT
        return np.where(q > 0.5, q - 0.01, honest(counts, alpha, sums=sums))

    monkeypatch.setattr(sequences, "betting_lower", eager)
    bad = [(row.bound, row.scores) for row in coverage.simulated(100, 0.05, 500) if not row.holds]
    assert ("betting_lower", "uniform") in bad
    assert {bound for bound, _ in bad} == {"betting_lower"}


@pytest.mark.parametrize("rule", ["one_vs_rest", "top_two"])
def test_incremental_certificates_hold(rule):
    """500 samples of every change, alpha = 0.05: a row of a bound that errs that often fails with chance 1e-9."""
    rows = list(coverage.changed(rule, 200, 0.05, 500))
    assert [row for row in rows if not row.holds] == []
    assert len(rows) == len(coverage.CHANGES)


def test_incremental_certificates_without_the_lost_mass_do_not_hold(monkeypatch):
    """A limit that forgets what the change loses is seen."""
    honest = coverage.incremental.Pairs.of

    def forgetful(*arguments):
        pairs = honest(*arguments)
        return pairs._replace(lost=0 * pairs.lost)

    monkeypatch.setattr(coverage.incremental.Pairs, "of", forgetful)
    assert not all(row.holds for row in coverage.changed("one_vs_rest", 1000, 0.05, 250))


@pytest.mark.parametrize("index", range(9))
def test_the_means_of_the_distributions(index):
    """4e5 scores: their average is within 6 standard errors, which fails with chance 2e-9."""
    name, mean, draw = list(coverage.distributions(100))[index]
    scores = draw(np.random.default_rng(5), (400, 1000))
    assert scores.min() >= 0
    assert scores.max() <= 1
    assert abs(scores.mean() - mean) <= 6 * scores.std() / 400_000**0.5 + 1e-9, name


def test_histograms():
    q = np.random.default_rng(2).integers(0, coverage.UNIT + 1, (3, 70))
    ends = [18, 35, 70]
    counts, sums = coverage.histograms(q, ends)
    np.testing.assert_array_equal(sums.sum(-1), np.stack([q[:, :18].sum(1), q[:, 18:35].sum(1), q[:, 35:].sum(1)], 1))
    np.testing.assert_array_equal(counts.sum(-1), [[18, 17, 35]] * 3)
    assert counts[1, 2, sequences.bin_of(q[1, 50])] > 0


def test_what_is_allowed():
    assert coverage.Row("b", "s", 10, 0.05, 0.05).holds
    assert not coverage.Row("b", "s", 10, 0.05, 0.0501).holds
    row = coverage.Row("b", "s", 10, 0.05, 0.07, samples=10_000)
    assert not row.holds
    assert binom.sf(row.allowed * 10_000, 10_000, 0.05) <= 1e-9
    assert row.allowed < 0.065


@pytest.mark.slow
def test_the_command(tmp_path, capsys):
    assert coverage.main(["--quick", "--out", str(tmp_path)]) == 0
    table = (tmp_path / "coverage.md").read_text().splitlines()
    data = json.loads((tmp_path / "coverage.json").read_text())
    assert len(data) == 144
    assert table[-144:] == capsys.readouterr().out.splitlines()
    assert table[-145].startswith("|---")
    assert " NO " not in "".join(table)


def test_true_radii_among_the_first_k():
    """Two classes of three: with the rest in equal parts it is Q(p) - Q(1/3), else by hand; and it sees a rule that errs."""
    p = np.array([[0.5, 0.25, 0.25], [0.4, 0.6, 0.0], [0.2, 0.4, 0.4]])
    found = coverage.true_radii(p, 0, 2)
    assert found[0] == pytest.approx(norm.ppf(0.5) - norm.ppf(1 / 3), rel=1e-9)
    assert found[1] > 30  # the third class has no score, and would need all of a shift
    assert found[2] == 0
    assert coverage.overclaimed("top_two", 12, 0.05, top_k=2).max() <= 0.05
    (row, *_) = coverage.near_ties("one_vs_rest", 0.05, 2000)
    assert row.holds
    assert row.rate > 0.02
