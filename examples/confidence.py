r"""
The share of votes is only an estimate
======================================

A class gets k of n votes. Its share k/n estimates the probability p that the radius :math:`\sigma \Phi^{-1}(p)` needs. Take
the share as if it were p, and the radius is too large about half of the time. A certificate takes a lower confidence bound
instead, that of Clopper and Pearson (1934): it is above p with probability :math:`\alpha` at most. The price is small. A
radius of 0.5 becomes 0.48.

Source: the encyclopedia article on randomized smoothing; the bound is that of Cohen, Rosenfeld and Kolter (2019).
You will see 2,000 certificates with both radii, and how often each is too large: counted, and computed exactly.
"""

import warnings

import matplotlib.pyplot as plt
import numpy as np
import torch
from paper import QUICK, record
from scipy.special import ndtr, ndtri  # the normal distribution function, and its inverse
from scipy.stats import binom

import rsfast

warnings.filterwarnings("ignore", message="inputs hold values")  # of what is not an image in [0, 1]

# %%
# **0.5 becomes 0.48.** With n = 10,000 votes, take the number k of votes whose share gives a radius nearest to 0.5. The
# lower bound at 99.9 % gives a radius that depends on sigma. With more noise the same radius needs a smaller p. Nearer to
# 1/2 the share varies more, and so the bound costs more.
#
# At sigma 0.5 we find .4765, the article .4766. The value is .4765497. Rounded to five digits first, then to four, it would
# be .4766.

n, alpha = 10_000, 0.001
published = {0.25: ".4786", 0.5: ".4766", 1.0: ".4595"}
becomes = {}
for sigma, value in published.items():
    k = round(n * ndtr(0.5 / sigma))
    noise = rsfast.Gaussian(sigma)
    plain = float(noise.potential(k / n))
    becomes[sigma] = float(noise.potential(rsfast.bounds.clopper_pearson_lower(k, n, alpha)))
    record(
        "article",
        f"what a radius of 0.5 becomes at n = 10,000 and 99.9 %, sigma {sigma}",
        f"{becomes[sigma]:.4f}".removeprefix("0"),
        value,
        f"k = {k:,}, whose share itself has radius {plain:.4f}; in seven digits it becomes {becomes[sigma]:.7f}",
    )

# %%
# **The same classifier many times.** The sign of a number votes for class 0 at :math:`x = 0.5` with probability
# :math:`\Phi(0.5 / \sigma)`, so the true radius is 0.5. We certify this input anew, with new noise each time, and compare
# both radii with the truth.


def sign_classifier(x):
    return torch.stack([x[:, 0], -x[:, 0]], dim=1)


sigma, runs = 0.5, 200 if QUICK else 2_000
certificates = rsfast.certify(
    sign_classifier,
    torch.full((runs, 1), 0.5),
    rsfast.Gaussian(sigma),
    num_classes=2,
    n=n,
    alpha=alpha,
    rule="one_vs_rest",
    seed=1,
)
shares = np.array([certificate.counts[0] / certificate.n for certificate in certificates])
plain_radii = sigma * ndtri(shares)
radii = np.array([certificate.radius for certificate in certificates])
plain_above, above = (plain_radii > 0.5).mean(), (radii > 0.5).mean()

record(
    "article",
    "share of runs whose radius is above the truth, sigma .5, n = 10,000: from k/n, and certified at 99.9 %",
    f"{plain_above:.3f}, {above:.4f}",
    "about 1/2, at most .001",
    f"{runs:,} runs; the mean certified radius is {radii.mean():.4f}",
)

# %%
# **Exactly.** How often a radius is above the truth follows from the binomial distribution, without sampling. Both radii
# grow with k, so it is the probability of at least as many votes as the smallest k whose radius is too large. We compute it
# for 200 values of p and three n.

p = np.linspace(0.5, 0.999, 200)
sizes = [100, 1_000, 10_000]
plain_rate, rate = {}, {}
for size in sizes:
    counts = np.arange(size + 1)
    lower = rsfast.bounds.clopper_pearson_lower(counts, size, alpha)
    plain_rate[size] = binom.sf(np.searchsorted(counts / size, p, side="right") - 1, size, p)
    rate[size] = binom.sf(np.searchsorted(lower, p, side="right") - 1, size, p)
truth = binom.sf(np.searchsorted(np.arange(n + 1) / n, ndtr(0.5 / sigma), side="right") - 1, n, ndtr(0.5 / sigma))

middle = p <= 0.9
record(
    "article",
    "exact probability that the radius from k/n is above the truth, n = 10,000, p from .5 to .9",
    f"{plain_rate[n][middle].min():.3f} to {plain_rate[n][middle].max():.3f}",
    "about 1/2",
    f"up to p = .999 it is {plain_rate[n].min():.3f} to {plain_rate[n].max():.3f}",
)
record(
    "article",
    "exact probability that the certified radius is above the truth, alpha = .001, p from .5 to .999: the largest",
    f"{max(values.max() for values in rate.values()):.6f}",
    "at most .001",
    "; ".join(f"n = {size:,}: {values.max():.6f}" for size, values in rate.items()),
)

# %%
# Where p is near 1 and n is small, it is worse than half. Then all votes agree, k/n is 1, and its radius is infinite. The
# lower bound is then :math:`\alpha^{1/n}`, and finite.

infinite = float(binom.pmf(100, 100, 0.999))
highest = float(rsfast.Gaussian(1.0).potential(rsfast.bounds.clopper_pearson_lower(100, 100, alpha)))
record(
    "article",
    "p = .999, n = 100: probability that k/n = 1, whose radius is infinite",
    f"{infinite:.4f}",
    f"{0.999**100:.4f}",
    f"the certified radius is {highest:.3f} sigma, the true radius {ndtri(0.999):.3f} sigma",
)

# %%
# Left: half of the radii from k/n are above the truth. The certified ones have the same spread, a little lower. Right: the
# exact probabilities, to the power of ten.

fig, (left, right) = plt.subplots(1, 2, figsize=(6.4, 4), layout="constrained")
bins = np.linspace(0.455, 0.525, 57)
left.hist(radii, bins, color="C0", label="certified")
left.hist(plain_radii, bins, color="C1", alpha=0.8, label="from k/n")
left.axvline(0.5, color="k", linewidth=1)
left.annotate("truth", (0.5, 0.97), xytext=(3, 0), xycoords=("data", "axes fraction"), textcoords="offset points", va="top")
left.set(title="Half from k/n are too large", xlabel="radius ($\\ell_2$)", ylabel="runs")
left.set_ylim(top=1.25 * left.get_ylim()[1])
left.legend(loc="upper left", fontsize="small")
for size, style in [(100, ":"), (10_000, "-")]:
    right.semilogy(p, plain_rate[size], style, color="C1", linewidth=1, label=f"from k/n, n = {size:,}")
    right.semilogy(p, rate[size], style, color="C0", linewidth=1, label=f"certified, n = {size:,}")
right.axhline(alpha, color="k", linewidth=1)
right.annotate("$\\alpha$", (0.5, alpha), xytext=(0, 3), textcoords="offset points")
right.set(title="Certificates keep to alpha", xlabel="$p$", ylabel="P(radius above the truth)", ylim=(1e-5, 3))
right.legend(loc=(0.1, 0.56), fontsize="small")

# %%
# The counted shares must be within their intervals, which fail with probability :math:`10^{-6}` together; seeds are fixed.

assert all(abs(becomes[sigma] - float(value)) < 1e-4 for sigma, value in published.items())
assert f"{becomes[0.5]:.7f}" == "0.4765497"
assert rsfast.bounds.clopper_pearson_lower(int((plain_radii > 0.5).sum()), runs, 2.5e-7) <= truth
assert rsfast.bounds.clopper_pearson_upper(int((plain_radii > 0.5).sum()), runs, 2.5e-7) >= truth
assert binom.sf((radii > 0.5).sum() - 1, runs, alpha) > 5e-7
assert (radii < plain_radii).all()
assert radii.mean() > 0.47
assert 0.45 < plain_rate[n][middle].min() <= plain_rate[n][middle].max() < 0.55
assert all(values.max() <= alpha * (1 + 1e-9) for values in rate.values())
assert rate[n].max() > 0.9 * alpha
assert abs(infinite - 0.999**100) < 1e-12
assert highest < ndtri(0.999)
