"""stats.bounds.bettors: those who go on from range to range win what those win who see all ranges, in test_sequences.py."""

import math

import numpy as np

from benchmarks.coverage import histograms
from rsfast import sequences
from rsfast.stats.bounds.bettors import LOWER, Bettors, known_growth, weights_of

UNIT = 2**30


def test_bettors_who_go_on_range_by_range():
    """Inputs at different ranges, in any order, in rows that others had: limits never below the bound's, and close to it."""
    rng, alpha, most, ends = np.random.default_rng(0), 0.001, 2000, sequences.analysis_ends(2000)[:8]
    bettors, held = Bettors(most), {}
    for _ in range(60):
        rows = np.flatnonzero(rng.random(6) < 0.6)
        if not len(rows):
            continue
        for row in rows.tolist():
            if row not in held or held[row][1] == len(ends):
                mean, draws = rng.uniform(0.05, 0.95), int(rng.integers(1, 50))
                scores = (UNIT * rng.beta(20 * mean, 20 * (1 - mean), size=(1, ends[-1]))).astype(np.int64)
                held[row] = [np.stack(histograms(scores, ends))[:, 0], 0, (mean, 0.01, draws)]
                known, drawn = known_growth(tuple(np.array([each]) for each in held[row][2]))
                bettors.begin(np.array([row]), known, drawn)
            held[row][1] += 1
        counts, sums = (np.stack([held[row][0][which][held[row][1] - 1] for row in rows]) for which in (0, 1))
        weights = weights_of(counts, sums - counts * LOWER)[:, None]
        rough = bettors.rough_limits(rows, weights, counts.sum(axis=1), -math.log(alpha))
        for row, found in zip(rows, rough, strict=True):
            (counts, sums), ranges, prior = held[row]
            limit = sequences.betting_sequence_lower(
                counts[:ranges], alpha, most, sums=sums[:ranges], prior=prior, every=False
            )
            assert limit <= found <= limit * (1 + 1e-5)
