r"""
The empirical Bernstein bound against betting
=============================================

"The Lipschitz-Variance-Margin Tradeoff for Enhanced Randomized Smoothing" (Delattre, Araujo, Barthélemy and Allauzen, 2024)
bounds a mean score by the empirical Bernstein bound of Maurer and Pontil (2009, Theorem 4): with probability :math:`1 - a`
the mean lies above the sample's mean minus

.. math:: s \sqrt{\frac{2 \ln(2 / a)}{n}} + \frac{7 \ln(2 / a)}{3 (n - 1)},

where :math:`s^2` is the sample variance, and :math:`a = \alpha / K` with :math:`K` classes. It gains over Hoeffding's bound,
:math:`\sqrt{\ln(1 / a) / 2n}`, where scores vary little.

Betting (Waudby-Smith and Ramdas, 2023), which ``rsfast`` uses for scores, adapts to the variance, too, and has no such
constants. This example gives the same scores to all three and compares lower limits and radii.
"""

# %%
# Scores with a given mean and variance
# -------------------------------------
# A score of mean 0.6 can have any variance up to :math:`0.6 \cdot 0.4 = 0.24`, which is that of a vote. Beta distributions
# have all of them. The rest of the score goes to a second class, and the other eight get 0.

import math

import matplotlib.pyplot as plt
import numpy as np
import torch
from paper import QUICK, record

import rsfast

N0, N, CLASSES, ALPHA, MEAN = 100, 10_000 if not QUICK else 2000, 10, 0.001, 0.6
variances = np.array([1e-5, 1e-4, 1e-3, 1e-2, 3e-2, 1e-1, 0.15, 0.19, 0.22])
noise, head = rsfast.Gaussian(0.5), rsfast.Softmax(1.0)

rng = np.random.default_rng(0)
concentration = MEAN * (1 - MEAN) / variances - 1


def draw(n):
    """Return scores [variances, n] of the first class."""
    columns = [rng.beta(MEAN * each, (1 - MEAN) * each, n) for each in concentration]
    return torch.from_numpy(np.stack(columns)).float()


def tally_of(scores, tracked_classes=None):
    """Return the Tally of rows of logits whose softmax is the scores, an input for each variance."""
    inputs, n = scores.shape
    logits = torch.full((inputs * n, CLASSES), -math.inf)
    logits[:, 0], logits[:, 1] = scores.flatten().log(), (1 - scores).flatten().log()
    tally = rsfast.Tally(inputs, CLASSES, [head], tracked_classes=tracked_classes)
    rsfast.ops.accumulate(logits, tally, rows=torch.arange(inputs).repeat_interleave(n))
    return tally


# %%
# The same samples for all bounds
# -------------------------------
# Betting takes the sample in ranges, and sets its bets before each of them. All three bounds hold at the same level
# :math:`a = \alpha / K` (``rule="bonferroni"``). A fourth column is betting as ``rsfast`` uses it by default: top-two or
# one-vs-rest needs no division by :math:`K`.

scores = draw(N)
selection = tally_of(draw(N0))
tracked = torch.from_numpy(rsfast.leading_classes(selection))
sizes = np.diff([0, *rsfast.sequences.range_ends(N)]).tolist()
ranges = [tally_of(part, tracked) for part in scores.split(sizes, dim=1)]

found = {
    name: rsfast.certificates(
        selection, ranges, noise, head=head, alpha=ALPHA, bound=bound, rule=rule, seed=0, assume_independent=True
    )
    for name, bound, rule in (
        ("Hoeffding", "hoeffding", "bonferroni"),
        ("empirical Bernstein", "empirical_bernstein", "bonferroni"),
        ("betting", "betting", "bonferroni"),
        ("betting, rsfast's default", "betting", "auto"),
    )
}
lower = {name: np.array([each.p_lower for each in certificates]) for name, certificates in found.items()}
radii = {name: np.array([each.radius for each in certificates]) for name, certificates in found.items()}

# %%
# The formula, written out
# ------------------------
# :func:`rsfast.bounds.empirical_bernstein_lower` is the formula, and the certificate holds the same limit, apart from scores
# that a Tally rounds down to units of :math:`2^{-30}`.

a = ALPHA / CLASSES
exact = scores.double().numpy()
means, spreads = exact.mean(1), exact.std(1, ddof=1)
formula = means - spreads * math.sqrt(2 * math.log(2 / a) / N) - 7 * math.log(2 / a) / (3 * (N - 1))
in_rsfast = rsfast.bounds.empirical_bernstein_lower(means, spreads**2, N, a)

# %%
# Result
# ------
# How far the limit lies below the sample's mean: at small variances the empirical Bernstein bound is left with its second
# term, which no variance makes smaller.

fig, axes = plt.subplots(1, 2, figsize=(6.4, 4), layout="constrained", sharex=True)
for place, name in enumerate(found):
    axes[0].loglog(variances, means - lower[name], f"C{place}", label=name)
    axes[1].semilogx(variances, radii[name] / noise.potential(means), f"C{place}")
axes[0].set(ylabel="sample mean minus lower limit", title="Betting is the tightest")
axes[1].set(ylabel="share of the radius at the sample mean", title="and certifies the most")
for ax in axes:
    ax.set_xlabel("variance of the score")
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)

place = list(variances).index(0.01)
widths = {name: float((means - lower[name])[place]) for name in found}
least = {name: float((means - lower[name])[0]) for name in found}
worse = variances[lower["empirical Bernstein"] < lower["Hoeffding"]]
record(
    "margin",
    "empirical Bernstein: width of the limit at variance 0.01, a = alpha / K = 1e-4",
    widths["empirical Bernstein"],
    float((means - formula)[place]),
    f"n = {N}; variance {spreads[place] ** 2:.4f} in the sample; published: the formula",
)
record(
    "margin",
    "betting on the same scores: width over that of empirical Bernstein, variance 0.01",
    widths["betting"] / widths["empirical Bernstein"],
    None,
    f"{least['betting'] / least['empirical Bernstein']:.2f} at variance {variances[0]:.1e}; n = {N}, the same a",
)
record(
    "margin",
    "Hoeffding on the same scores: width over that of empirical Bernstein, variance 0.01",
    widths["Hoeffding"] / widths["empirical Bernstein"],
    None,
    f"below 1 at {len(worse)} of {len(variances)} variances, from {min(worse, default=math.nan):.2f} on; n = {N}",
)
gain = radii["betting, rsfast's default"] / radii["empirical Bernstein"]
record(
    "margin",
    "radius of betting, undivided, over that of empirical Bernstein at alpha / K, same scores",
    f"{gain.min():.3f} to {gain.max():.3f}",
    None,
    f"n = {N}, K = {CLASSES}, alpha = {ALPHA}, mean score {MEAN}",
)

# %%
# All samples are the same for all bounds. That betting is the tighter one at each variance is no theorem; it is what these
# samples show. A bound that is tight because it is wrong would be above the true mean here: one that holds is so for a given
# variance with probability :math:`\alpha` at most.

np.testing.assert_allclose(in_rsfast, formula, rtol=0, atol=1e-12)
np.testing.assert_allclose(lower["empirical Bernstein"], formula, rtol=0, atol=1e-6)
assert (in_rsfast <= formula + 1e-15).all()
assert all((limits < MEAN).all() for limits in lower.values()), "no limit is above the true mean"
assert (lower["betting"] > lower["empirical Bernstein"]).all(), "betting is tighter at every variance"
assert (radii["betting"] > radii["empirical Bernstein"]).all()
assert (radii["betting, rsfast's default"] > radii["betting"]).all(), "dividing alpha by K costs radius"
assert (lower["betting"] > lower["Hoeffding"]).all()
assert widths["Hoeffding"] > 2 * widths["empirical Bernstein"], "a small variance pays"
assert lower["empirical Bernstein"][-1] < lower["Hoeffding"][-1], "a large variance does not"
