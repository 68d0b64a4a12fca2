"""Loops as other projects write them, run with their class and with ours: one import line apart; and what they find.

Votes of two independent samples of n differ by a number of standard deviation ``sqrt(2 n p (1 - p))``; a normal variable is
beyond 5.5 standard deviations with chance 4e-8, and p is taken from the votes themselves, a hundred of each kind or more.
"""

import itertools
import secrets
import sys
from types import ModuleType

import numpy as np
import torch
from scipy import stats
from torch import nn

from rsfast.bounds import clopper_pearson_lower

WITHIN = 5.5
NEAR = torch.tensor([0.35, 0.15, 0.0]).view(3, 1, 1).expand(3, 2, 2).contiguous()  # all get votes
EVEN = torch.full((3, 2, 2), 0.2)  # no class is ahead


class ChannelMeans(nn.Module):
    """Three classes, that of an image its brightest channel."""

    def forward(self, x):
        return x.mean((2, 3))


def run(loop, peer, module, **names):
    """Run a loop's text, in which ``from PEER import`` becomes an import of `module`; return its names."""
    line = f"from {peer} import"
    assert loop.count(line) == 1
    exec(loop.replace(line, f"from {module} import"), names)
    return names


def both(monkeypatch, loop, peer, module, theirs, **names):
    """Return the names of a loop that was run with their module's names, and with ours; each object has another seed."""
    stand_in, seeds = ModuleType(peer), itertools.count(8)
    vars(stand_in).update(theirs)
    monkeypatch.setitem(sys.modules, peer, stand_in)
    monkeypatch.setattr(secrets, "randbits", lambda bits: next(seeds))
    torch.manual_seed(0)
    return run(loop, peer, peer, **names, answers=[]), run(loop, peer, module, **names, answers=[])


def assert_alike(ours, theirs, least=10):
    """The Kolmogorov-Smirnov test does not reject, at 1e-6, that numbers are from one distribution; they do vary."""
    assert len({*ours}) > least
    assert stats.ks_2samp(ours, theirs).pvalue > 1e-6


def votes_of(p_lower, n, alpha):
    """The votes of n whose Clopper-Pearson bound is `p_lower`, to within rounding."""
    table = clopper_pearson_lower(np.arange(n + 1), n, alpha)
    return np.searchsorted(table, np.asarray(p_lower, dtype=np.float64) - 1e-6)


def votes_of_radii(radii, sigma, n, alpha):
    return votes_of(stats.norm.cdf(np.asarray(radii) / sigma), n, alpha)


def assert_same_votes(mine, theirs, n):
    """Two samples of n have as many votes, within sampling error; none is so near to 0 or n that this says little."""
    mine, theirs = np.asarray(mine, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    p = (mine + theirs) / (2 * n)
    spread = np.sqrt(2 * n * p * (1 - p))
    assert bool((n * p * (1 - p) > 50).all()), (mine, theirs)
    assert bool((np.abs(mine - theirs) <= WITHIN * spread + 1).all()), (mine, theirs, spread)


def lower(votes, n, alpha):
    """Clopper and Pearson's limits, as statsmodels gives them."""
    return np.nan_to_num(stats.beta.ppf(alpha, votes, n - votes + 1))


def upper(votes, n, alpha):
    return float(stats.beta.ppf(1 - alpha, votes + 1, n - votes)) if votes < n else 1.0


def bernstein(variance, n, alpha):
    """The width of Maurer and Pontil's bound."""
    return np.sqrt(2 * variance * np.log(2 / alpha) / n) + 7 * np.log(2 / alpha) / (3 * (n - 1))


def count(labels, length):
    """Votes, counted one by one."""
    counts = np.zeros(length, dtype=int)
    for label in labels:
        counts[label] += 1
    return counts
