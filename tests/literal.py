"""What tests of the drop-ins share: a text that runs with either import line, and the votes that radii rest on.

Votes of two independent samples of n differ by a number of standard deviation ``sqrt(2 n p (1 - p))``; a normal variable is
beyond 5.5 standard deviations with chance 4e-8, and p is taken from the votes themselves, a hundred of each kind or more.
"""

import numpy as np
from scipy.stats import norm

from rsfast.bounds import clopper_pearson_lower

WITHIN = 5.5


def run(text, peer, module, **names):
    """Run a script, in which ``from PEER import`` becomes an import of `module`; return its globals."""
    line = f"from {peer} import"
    assert text.count(line) == 1
    exec(text.replace(line, f"from {module} import"), names)
    return names


def votes_of(p_lower, n, alpha):
    """The votes of n whose Clopper-Pearson bound is `p_lower`, to within rounding."""
    table = clopper_pearson_lower(np.arange(n + 1), n, alpha)
    return np.searchsorted(table, np.asarray(p_lower, dtype=np.float64) - 1e-6)


def votes_of_radii(radii, sigma, n, alpha):
    return votes_of(norm.cdf(np.asarray(radii) / sigma), n, alpha)


def assert_same_votes(mine, theirs, n):
    """Two samples of n have as many votes, within sampling error; none is so near to 0 or n that this says little."""
    mine, theirs = np.asarray(mine, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    p = (mine + theirs) / (2 * n)
    spread = np.sqrt(2 * n * p * (1 - p))
    assert bool((n * p * (1 - p) > 50).all()), (mine, theirs)
    assert bool((np.abs(mine - theirs) <= WITHIN * spread + 1).all()), (mine, theirs, spread)
