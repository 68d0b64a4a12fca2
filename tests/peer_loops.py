"""Loops as other projects write them, run with their class and with ours: one import line apart."""

import itertools
import secrets
import sys
from types import ModuleType

import numpy as np
import torch
from scipy import stats
from torch import nn

NEAR = torch.tensor([0.35, 0.15, 0.0]).view(3, 1, 1).expand(3, 2, 2).contiguous()  # all get votes
EVEN = torch.full((3, 2, 2), 0.2)  # no class is ahead


class ChannelMeans(nn.Module):
    """Three classes, that of an image its brightest channel."""

    def forward(self, x):
        return x.mean((2, 3))


def run(loop, import_line=None, **names):
    """Run a loop's text, with its first line, an import, replaced; return its names."""
    first, rest = loop.strip().split("\n", 1)
    assert first.startswith("from ")
    exec(f"{import_line or first}\n{rest}", names)
    return names


def both(monkeypatch, loop, module, import_line, theirs, **names):
    """Return the names of a loop that was run with their module's names, and with ours; each object has another seed."""
    peer, seeds = ModuleType(module), itertools.count(8)
    vars(peer).update(theirs)
    monkeypatch.setitem(sys.modules, module, peer)
    monkeypatch.setattr(secrets, "randbits", lambda bits: next(seeds))
    torch.manual_seed(0)
    return run(loop, **names, answers=[]), run(loop, import_line, **names, answers=[])


def assert_alike(ours, theirs, least=10):
    """The Kolmogorov-Smirnov test does not reject, at 1e-6, that numbers are from one distribution; they do vary."""
    assert len({*ours}) > least
    assert stats.ks_2samp(ours, theirs).pvalue > 1e-6


def lower(votes, n, alpha):
    """Clopper and Pearson's limit, as statsmodels gives it."""
    return float(stats.beta.ppf(alpha, votes, n - votes + 1)) if votes else 0.0


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
