"""How often each bound and rule is wrong: exactly where that can be computed, else over samples of hostile distributions.

Run as ``python -m benchmarks.coverage``; it writes coverage.md and coverage.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
from scipy.special import gammaln, ndtr, ndtri, xlogy
from scipy.stats import binom

from rsfast import bounds, sequences
from rsfast.noise import Gaussian
from rsfast.ops.tally import Tally
from rsfast.stats import incremental
from rsfast.stats.proof import certificates
from rsfast.stats.rules import RULES

RESULTS = Path(__file__).resolve().parent / "results"
UNIT = 1 << 30
BATCH = 250  # samples at once: they fit the cache
CHANCE = 1e-9
"""Probability that a simulated row of a bound that errs exactly as often as alpha says shows more failures than allowed."""

HEAD = f"""# How often each bound and rule is wrong

`python -m benchmarks.coverage` writes this page.

Wrong is a lower bound above the mean, an upper bound below it, or a radius above the true one; of a sequence, at any of its
looks. The column "wrong" is the probability of that, exact or as the share of so many seeded samples; a row holds if it is
at most alpha, or with samples no more than a bound that errs as often as alpha says exceeds once in {1 / CHANCE:,.0f}.

"""


@dataclass
class Row:
    """A line of the table: how often one bound or rule was wrong."""

    bound: str
    scores: str
    n: int
    alpha: float
    rate: float
    samples: int = 0  # 0: the rate is exact

    @property
    def allowed(self) -> float:
        """The largest rate of a bound that holds."""
        if not self.samples:
            return self.alpha * (1 + 1e-9)
        return float(binom.isf(CHANCE, self.samples, self.alpha)) / self.samples

    @property
    def holds(self) -> bool:
        """Whether the rate is one of a bound that holds."""
        return self.rate <= self.allowed


def line(row: Row) -> str:
    """Return the row in Markdown."""
    margin = f"{row.alpha / row.rate:.3g}" if row.rate else ""
    how = f"{row.samples} samples" if row.samples else "exact"
    cells = (row.bound, row.scores, row.n, row.alpha, how, f"{row.rate:.4g}", margin, "yes" if row.holds else "NO")
    return "| " + " | ".join(map(str, cells)) + " |"


def table(rows: Sequence[Row]) -> str:
    """Return the rows in Markdown."""
    head = ("bound or rule", "scores", "n", "alpha", "how", "wrong", "alpha / wrong", "holds")
    return "\n".join(["| " + " | ".join(head) + " |", "|---" * len(head) + "|", *map(line, rows)]) + "\n"


# Exactly, for counts.


def enumerated(lower: np.ndarray, n: int, p: np.ndarray) -> np.ndarray:
    """Return, for each p, the probability that the lower bound [n + 1] of a Bin(n, p) count is above p."""
    wrong = lower[None, :] > p[:, None]
    return np.asarray(np.sum(np.where(wrong, binom.pmf(np.arange(n + 1), n, p[:, None]), 0), axis=1))


def randomized(limit: Callable[[np.ndarray, float | np.ndarray], np.ndarray], n: int, p: np.ndarray) -> np.ndarray:
    """Return, for each p, the probability, over count and uniform, that the randomized lower limit is above p.

    The limit falls as the uniform rises and rises with the count: all counts above one are wrong whatever the uniform, all
    below it right, and of that one the uniforms up to a point, which is bisected with the bound itself.
    """
    counts = np.arange(n + 1)
    least, most = limit(counts, 1.0), limit(counts, 0.0)
    if np.any(np.diff(least) < 0) or np.any(np.diff(most) < 0) or np.any(least[1:] > most[1:]):
        raise ArithmeticError("the limits are not in order")
    k = np.minimum(np.searchsorted(most, p, side="right"), n)  # the first count that may be wrong
    if np.any(least[np.minimum(k + 1, n)][k < n] <= p[k < n]):
        raise ArithmeticError("two counts are right or wrong, as the uniform has it")
    low, high = np.zeros(p.shape), np.ones(p.shape)
    for _ in range(50):
        u = (low + high) / 2
        wrong = limit(k, u) > p
        low, high = np.where(wrong, u, low), np.where(wrong, high, u)
    return np.asarray(binom.sf(k, n, p) + low * binom.pmf(k, n, p))


def thresholds(lower: Callable[[np.ndarray, np.ndarray], np.ndarray], n: int, p: np.ndarray) -> np.ndarray:
    """Return [n, p]: the least count of 1 ... n trials whose lower bound is above p, or one more than the trials."""
    trials = np.arange(1, n + 1)[:, None]
    right, wrong = np.full((n, p.size), -1), np.broadcast_to(trials + 1, (n, p.size))
    while np.any(wrong - right > 1):
        k = (right + wrong) // 2
        fails = lower(np.clip(k, 0, trials), np.broadcast_to(trials, k.shape)) > p
        right, wrong = np.where(fails, right, k), np.where(fails, k, wrong)
    return wrong


def crossing(lower: Callable[[np.ndarray, np.ndarray], np.ndarray], n: int, p: np.ndarray) -> np.ndarray:
    """Return, for each p, the probability that the lower bound is above p after any of the first n trials."""
    first = thresholds(lower, n, p)
    alive = np.zeros((p.size, n + 2))
    alive[:, 0] = 1
    crossed = np.zeros(p.size)
    for t, wrong in enumerate(first, 1):
        alive[:, 1 : t + 1] = alive[:, 1 : t + 1] * (1 - p)[:, None] + alive[:, :t] * p[:, None]
        alive[:, 0] *= 1 - p
        for i, k in enumerate(wrong):
            if k <= t:
                crossed[i] += alive[i, k : t + 1].sum()
                alive[i, k : t + 1] = 0
    return crossed


# Exactly, for rules.

NOISE = Gaussian(1.0)

SELECTIONS = ([90, 6, 4], [50, 26, 24], [40, 30, 30], [99, 1, 0], [34, 33, 33], [5, 50, 45])
"""They lead to every partition of three classes, and to a class that is not the largest."""


def tally_of(votes: np.ndarray) -> Tally:
    """Return a Tally of votes [inputs, classes], all of them for a class."""
    counts = torch.as_tensor(np.asarray(votes))
    tally = Tally(*counts.shape)
    tally.counts[:, :-1] = counts
    tally.n.copy_(counts.sum(1))
    return tally


def radii(selection: Sequence[int] | np.ndarray, votes: np.ndarray, rule: str, alpha: float, top_k: int = 1) -> np.ndarray:
    """Return the radius of each row of votes [inputs, classes] after one selection [classes]."""
    first, second = tally_of(np.tile(selection, (len(votes), 1))), tally_of(votes)
    found = certificates(first, second, NOISE, alpha=alpha, rule=rule, top_k=top_k, seed=0, assume_independent=True)
    return np.array([certificate.radius for certificate in found])


def outcomes(n: int) -> np.ndarray:
    """Return all votes [outcomes, 3] of n draws."""
    return np.array([(a, b, n - a - b) for a in range(n + 1) for b in range(n + 1 - a)])


def trinomials() -> np.ndarray:
    """Return a grid of probabilities [trinomials, 3]: corners, edges, near ties and the middle."""
    grid = np.linspace(0, 1, 15)
    points = [(a, b, 1 - a - b) for a in grid for b in grid if a + b <= 1 + 1e-12]
    points += [(1 - 2 * e, e, e) for e in (1e-6, 1e-3, 0.01, 0.2)] + [(0.5 + e, 0.5 - e, 0.0) for e in (1e-9, 1e-3, 0.05)]
    return np.clip(points, 0, 1)


def chances(votes: np.ndarray, p: np.ndarray) -> np.ndarray:
    """Return the probability [trinomials, outcomes] of each row of votes under each row of p."""
    ways = gammaln(votes.sum(axis=1) + 1) - gammaln(votes + 1).sum(axis=1)
    return np.exp(ways + xlogy(votes, p[:, None]).sum(axis=2))


def true_radii(p: np.ndarray, label: int, top_k: int) -> np.ndarray:
    """Return the largest radius [points] that holds whatever the classifier is whose scores are p [points, classes].

    The class is among the top_k up to it; with more than one they are bisected, and a little above the true ones.
    """
    ours, others = p[:, label], -np.sort(-np.delete(p, label, axis=1), axis=1)[:, :top_k]
    if top_k == 1:
        ahead = ours > others[:, 0]
        truth = np.zeros(len(p))
        truth[ahead] = (ndtri(ours[ahead]) - ndtri(others[ahead, 0])) / 2
        return truth
    sums = np.minimum(others[:, ::-1].cumsum(axis=1), 1)
    low, high = np.zeros(len(p)), np.full(len(p), 40.0)
    for _ in range(60):
        r = (low + high) / 2
        kept = ndtr(ndtri(ours) - r)
        most = (ndtr(ndtri(sums) + r[:, None]) / np.arange(1, top_k + 1)).min(axis=1)
        holds = (kept > most) | (kept * (top_k + 1) > 1)
        low, high = np.where(holds, r, low), np.where(holds, high, r)
    return np.where(low > 0, high, 0) * (1 + 1e-12)


def overclaimed(rule: str, n: int, alpha: float, top_k: int = 1) -> np.ndarray:
    """Return the probability [selections, trinomials] that n votes give a radius above the true one."""
    votes, p = outcomes(n), trinomials()
    chance = chances(votes, p)
    rates = []
    for selection in SELECTIONS:
        truth = true_radii(p, int(np.argmax(selection)), top_k)
        found = radii(selection, votes, rule, alpha, top_k)
        rates.append(np.sum(np.where(found > truth[:, None], chance, 0), axis=1))
    return np.array(rates)


# By simulation, for changed models.

CHANGES = {
    "nothing changes": ((0.8, 0, 0), (0, 0.15, 0), (0, 0, 0.05)),
    "a little is lost": ((0.88, 0.01, 0), (0, 0.08, 0.01), (0.01, 0, 0.01)),
    "all that is lost goes to one": ((0.5, 0.05, 0), (0, 0.4, 0), (0, 0, 0.05)),
    "lost and gained": ((0.55, 0.03, 0.03), (0.03, 0.25, 0.01), (0.03, 0.01, 0.06)),
    "nearly certain": ((0.995, 0.002, 0), (0, 0.002, 0), (0, 0, 0.001)),
}
"""Chances of each vote of the first model (rows) and of the changed one (columns); class 0 is certified."""


def changed(rule: str, n: int, alpha: float, samples: int, seed: int = 1) -> Iterator[Row]:
    """Yield the rows of incremental certificates read after every tenth of n pairs, on the noise of the votes before."""
    for index, (name, chances_of_change) in enumerate(CHANGES.items()):
        p = np.array(chances_of_change)
        after = p.sum(axis=0)
        truth = float(ndtri(after[0])) if rule == "one_vs_rest" else float(ndtri(after[0]) - ndtri(after[1:].max())) / 2
        rng = np.random.default_rng([seed, n, index])
        wrong = 0
        for start in range(0, samples, BATCH):
            size = min(BATCH, samples - start)
            votes = rng.multinomial(n // 10, p.ravel(), (size, 10)).reshape(size, 10, 3, 3).cumsum(axis=1)
            of_first = votes[:, -1].sum(axis=2)
            before = [incremental.Before((a, max(b, c)), n, rule, "clopper_pearson", NOISE) for a, b, c in of_first.tolist()]
            failed = np.zeros(size, dtype=bool)
            for drawn, each in enumerate(np.moveaxis(votes, 1, 0), start=1):
                agreed = np.einsum("nii->ni", each)
                triples = np.stack([each.sum(axis=2), each.sum(axis=1), agreed], axis=1)
                trials = np.full(size, drawn * (n // 10))
                pairs = incremental.Pairs.of(triples, trials, np.zeros(size, dtype=np.int64))
                failed |= incremental.proved(before, pairs, alpha).radius > truth
            wrong += int(failed.sum())
        yield Row(f"incremental, {rule}", name, n, alpha, wrong / samples, samples)


# By simulation, for many classes.

TOP_K_RULES = ("one_vs_rest", "top_two", "bonferroni", "auto")
NEAR_TIES = {  # the class's number, and the scores of all
    "three others share the rest": (0, [0.4, 0.2, 0.2, 0.2, 0.0, 0.0]),
    "five others nearly tie": (0, [0.4, 0.121, 0.12, 0.12, 0.12, 0.119]),
    "the class is the third of six": (2, [0.3, 0.24, 0.2, 0.13, 0.12, 0.01]),
}


def near_ties(rule: str, alpha: float, samples: int, top_k: int = 3, n: int = 300, seed: int = 1) -> Iterator[Row]:
    """Yield the rows of a rule for a class among the first three of six."""
    for index, (name, (label, shares)) in enumerate(NEAR_TIES.items()):
        p, wrong = np.array(shares), 0
        selection = np.where(np.arange(len(p)) == label, 50, np.round(50 * p))
        truth = true_radii(p[None], label, top_k)[0]
        rng = np.random.default_rng([seed, index])
        for start in range(0, samples, 2000):
            votes = rng.multinomial(n, p, size=min(2000, samples - start))
            wrong += int((radii(selection.astype(int), votes, rule, alpha, top_k) > truth).sum())
        yield Row(f"{rule}, top_k = {top_k}", name, n, alpha, wrong / samples, samples)


# By simulation, for scores.

Scores = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]


def distributions(n: int) -> Iterator[tuple[str, float, Scores]]:
    """Yield the name, the mean and the sampler of each distribution."""
    yield "Bernoulli(1/n)", 1 / n, lambda rng, shape: (rng.random(shape) < 1 / n).astype(float)
    yield "Bernoulli(1 - 1/n)", 1 - 1 / n, lambda rng, shape: (rng.random(shape) >= 1 / n).astype(float)
    yield "0.1, rarely 1", 0.1 + 0.9 * 3 / n, lambda rng, shape: np.where(rng.random(shape) < 3 / n, 1.0, 0.1)
    yield "0.999, rarely 0", 0.999 * (1 - 3 / n), lambda rng, shape: np.where(rng.random(shape) < 3 / n, 0.0, 0.999)
    yield "Bernoulli(1/2)", 0.5, lambda rng, shape: rng.integers(0, 2, shape).astype(float)
    yield "uniform", 0.5, lambda rng, shape: rng.random(shape)
    yield "Beta(0.1, 0.9)", 0.1, lambda rng, shape: rng.beta(0.1, 0.9, shape)
    yield "Beta(30, 10)", 0.75, lambda rng, shape: rng.beta(30, 10, shape)
    yield "always 0.7", 0.7, lambda rng, shape: np.full(shape, 0.7)


def histograms(q: np.ndarray, ends: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return counts and sums [samples, ranges, BINS] of integer scores [samples, n]."""
    samples, n = q.shape
    place = np.searchsorted(ends, np.arange(n), side="right") + len(ends) * np.arange(samples)[:, None]
    key = (place * sequences.BINS + sequences.bin_of(q)).ravel()
    shape = (samples, len(ends), sequences.BINS)
    counts = np.bincount(key, minlength=np.prod(shape)).reshape(shape)
    sums = np.bincount(key, weights=q.ravel(), minlength=np.prod(shape)).reshape(shape)  # exact: below 2^53
    return counts, sums.astype(np.int64)


def limits(q: np.ndarray, alpha: float) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return every kind's lower and upper bound on the mean of integer scores [samples, n]; of a sequence, the last.

    A sequence's lower bound is the largest so far, its upper one the smallest: the last is wrong if any was.
    """
    n = q.shape[1]
    low, high, variance = bounds.moments(q.sum(axis=1), (-(-q * q // UNIT)).sum(axis=1), n)
    counts, sums = histograms(q, sequences.range_ends(n))
    looks, totals = histograms(q, sequences.analysis_ends(n))
    return {
        "hoeffding": (bounds.hoeffding_lower(low, n, alpha), bounds.hoeffding_upper(high, n, alpha)),
        "empirical_bernstein": (
            bounds.empirical_bernstein_lower(low, variance, n, alpha),
            bounds.empirical_bernstein_upper(high, variance, n, alpha),
        ),
        "betting": (sequences.betting_lower(counts, alpha, sums=sums), sequences.betting_upper(counts, alpha, sums=sums)),
        "betting_sequence": (
            sequences.betting_sequence_lower(looks, alpha, n, sums=totals)[:, -1],
            sequences.betting_sequence_upper(looks, alpha, n, sums=totals)[:, -1],
        ),
    }


def simulated(n: int, alpha: float, samples: int, seed: int = 1) -> Iterator[Row]:
    """Yield the rows of all bounds on means, over samples of n scores of every distribution."""
    for index, (name, mean, draw) in enumerate(distributions(n)):
        rng = np.random.default_rng([seed, n, index])
        wrong: dict[str, int] = {}
        for start in range(0, samples, BATCH):
            scores = draw(rng, (min(BATCH, samples - start), n))
            for bound, (lower, upper) in limits(np.floor(scores * UNIT).astype(np.int64), alpha).items():
                for side, failures in ((f"{bound}_lower", lower > mean), (f"{bound}_upper", upper < mean)):
                    wrong[side] = wrong.get(side, 0) + int(failures.sum())
        yield from (Row(bound, name, n, alpha, count / samples, samples) for bound, count in wrong.items())


def counted(n: int, alpha: float, p: np.ndarray) -> Iterator[Row]:
    """Yield the rows of the limits for n trials; an upper one is wrong at 1 - p where its mirror image is at p."""
    name, k = f"Bernoulli, the worst of {p.size}", np.arange(n + 1)
    for bound, lower in (
        ("clopper_pearson_lower", bounds.clopper_pearson_lower(k, n, alpha)),
        ("clopper_pearson_upper", 1 - bounds.clopper_pearson_upper(n - k, n, alpha)),
    ):
        yield Row(bound, name, n, alpha, float(enumerated(lower, n, p).max()))
    for bound, limit in (
        ("randomized_clopper_pearson_lower", lambda k, u: bounds.randomized_clopper_pearson_lower(k, n, alpha, u)),
        ("randomized_clopper_pearson_upper", lambda k, u: 1 - bounds.randomized_clopper_pearson_upper(n - k, n, alpha, u)),
    ):
        yield Row(bound, name, n, alpha, float(randomized(limit, n, p).max()))


def watched(n: int, alpha: float, p: np.ndarray) -> Iterator[Row]:
    """Yield the rows of the limits that may be read after every trial up to n; the upper one by its mirror image."""
    for bound, lower in (
        ("beta_binomial_sequence_lower", lambda k, t: sequences.beta_binomial_sequence_lower(k, t, alpha)),
        ("beta_binomial_sequence_upper", lambda k, t: 1 - sequences.beta_binomial_sequence_upper(t - k, t, alpha)),
    ):
        yield Row(bound, f"Bernoulli, the worst of {p.size}", n, alpha, float(crossing(lower, n, p).max()))


def rows(quick: bool) -> Iterator[Row]:
    """Yield the whole table, or a small one."""
    levels = (0.001, 0.05)
    for n in (10, 30) if quick else (10, 30, 100, 300):
        for alpha in levels:
            yield from counted(n, alpha, np.linspace(0, 1, 52 if quick else 502)[1:-1])
    for alpha in levels:
        yield from watched(300 if quick else 10_000, alpha, np.linspace(0, 1, 7 if quick else 52)[1:-1])
    n = 20 if quick else 60
    for rule in (*RULES, "auto"):
        for alpha in levels:
            rates = overclaimed(rule, n, alpha)
            yield Row(rule, f"trinomials and selections, the worst of {rates.size}", n, alpha, float(rates.max()))
    for rule in ("one_vs_rest", "top_two"):
        yield from changed(rule, 200, 0.05, 250 if quick else 20_000)
    for rule, alpha in product(TOP_K_RULES, levels):
        rates = overclaimed(rule, n, alpha, top_k=2)
        yield Row(
            f"{rule}, top_k = 2", f"trinomials and selections, the worst of {rates.size}", n, alpha, float(rates.max())
        )
    for rule, alpha in product(TOP_K_RULES, levels):
        yield from near_ties(rule, alpha, 2000 if quick else 100_000)
    for n in (100,) if quick else (100, 1000):
        yield from simulated(n, 0.05, 300 if quick else 100_000)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table as it comes and write it; return 1 if a row does not hold."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer samples, in seconds")
    parser.add_argument("--out", type=Path, help="where coverage.md and coverage.json go")
    options = parser.parse_args(arguments)
    found = []
    for row in rows(options.quick):
        print(line(row), flush=True)
        found.append(row)
    out = options.out or (None if options.quick else RESULTS)
    if out:
        out.mkdir(parents=True, exist_ok=True)
        (out / "coverage.md").write_text(HEAD + table(found))
        (out / "coverage.json").write_text(json.dumps([asdict(row) for row in found], indent=1) + "\n")
    return 0 if all(row.holds for row in found) else 1


if __name__ == "__main__":
    raise SystemExit(main())
