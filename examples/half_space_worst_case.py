r"""
The half-space is the worst case
================================

A class gets the share p of the votes at x. That is the mass of its decision region under :math:`\mathcal{N}(x, \sigma^2 I)`.
Move x by a distance s, and the region may lose mass. How much at most? Among all regions of mass p the half-space loses
most, by the lemma of Neyman and Pearson (1933). It keeps :math:`\Phi(\Phi^{-1}(p) - s / \sigma)`, which reaches 1/2 at the
radius :math:`R = \sigma \Phi^{-1}(p)`. This is Theorem 1 of Cohen, Rosenfeld and Kolter (2019), here as in the
encyclopedia article on randomized smoothing.

You will see hundreds of random regions lose less: balls, unions of slabs, unions of balls, and regions of random networks.
"""

import warnings

import matplotlib.pyplot as plt
import numpy as np
import torch
from paper import QUICK, record
from scipy.special import ndtr, ndtri  # the normal distribution function, and its inverse
from scipy.stats import ncx2

import rsfast

warnings.filterwarnings("ignore", message="inputs hold values")  # of what is not an image in [0, 1]

# %%
# Lengths are in units of sigma. We move x from the origin along the first axis, by these distances.

shifts = np.linspace(0, 3, 13)


def half_space(p):
    """Return what the half-space of mass p keeps at each shift, where it moves away from it."""
    return ndtr(ndtri(p) - shifts)


# %%
# **Balls.** The squared distance from a noisy x to a centre has a noncentral :math:`\chi^2` distribution. So we choose a
# random centre, then the radius that makes the mass exactly p, and know the mass after each shift. Half of these regions
# are the outside of a ball.

rng = np.random.default_rng(0)
count = 40 if QUICK else 200  # regions of each family, for each p


def balls(p, dim):
    distance = np.exp(rng.uniform(np.log(0.1), np.log(30), (count, 1)))  # of the centre from the origin
    along = distance * rng.choice([-1, 1], (count, 1)) * np.sqrt(rng.beta(0.5, (dim - 1) / 2, (count, 1)))
    squared = distance**2 - 2 * along * shifts + shifts**2  # of the centre from x, after each shift
    outside = np.arange(count)[:, None] % 2 == 1
    radius_squared = ncx2.ppf(np.where(outside, 1 - p, p), dim, distance**2)
    inside = ncx2.cdf(radius_squared, dim, squared)
    return np.where(outside, 1 - inside, inside)


# %%
# **Unions of slabs.** A slab is what lies between two parallel planes. Across them the noise is a single normal number. We
# cut its quantiles [0, 1] at random, so that the kept parts have total length p. One to five slabs lie at a random angle to
# the shift.


def slabs(p):
    masses = np.empty((count, len(shifts)))
    for i in range(count):
        parts = int(rng.integers(1, 6))
        lengths = np.empty(2 * parts + 1)
        lengths[0::2] = (1 - p) * rng.dirichlet(np.ones(parts + 1))
        lengths[1::2] = p * rng.dirichlet(np.ones(parts))
        ends = ndtri(np.clip(np.cumsum(lengths)[:-1], 0, 1)).reshape(parts, 2, 1)
        moved = ends - rng.uniform(-1, 1) * shifts
        masses[i] = (ndtr(moved[:, 1]) - ndtr(moved[:, 0])).sum(axis=0)
    return masses


levels = [0.6, 0.9, 0.99]
exact = {p: np.concatenate([balls(p, 2), balls(p, 10), balls(p, 100), slabs(p)]) for p in levels}
above = {p: masses - half_space(p) for p, masses in exact.items()}  # how far above the half-space each region stays
regions = sum(len(masses) for masses in exact.values())
lowest = min(gaps.min() for gaps in above.values())
nearest = min(gaps[:, 1:].max(axis=1).min() for gaps in above.values())  # the region that is nearest to a half-space

record(
    "article",
    "random balls, their outsides and unions of slabs, mass .6, .9 and .99: least mass above the half-space's, exact",
    f"{lowest:.1e}",
    "at least 0",
    f"{regions} regions, {len(shifts)} shifts up to 3 sigma; below 0 by rounding only; the region that is nearest to a "
    f"half-space keeps at most {nearest:.1e} more",
)

# %%
# **Regions without a formula.** Unions of balls in the plane, and regions of random networks in 2, 20 and 200 dimensions,
# need samples. A region is where a function exceeds a threshold, the one that gives it about the mass p. We move x against
# the gradient of the mass at the origin, the direction in which the region loses mass fastest.

n = 10_000 if QUICK else 50_000
sigma = 0.5


def union_of_balls(generator):
    centres = torch.randn(20, 2, generator=generator)
    return lambda x: -torch.cdist(x, centres).amin(dim=1)


def random_network(dim, generator):
    scale = 1 / dim**0.5
    first, bias = torch.randn(dim, 64, generator=generator) * scale, torch.randn(64, generator=generator)
    last = torch.randn(64, generator=generator)
    return lambda x: torch.tanh((x @ first + bias) * 3) @ last


def sampled(score, dim, p, seed):
    """Return the votes of n samples for the region where the score is large, at each shift."""
    noise, origin = rsfast.Gaussian(sigma), torch.zeros(1, dim)
    draws = rsfast.ops.perturb(origin, noise, seed=seed, samples=torch.arange(10_000), stream="selection")
    threshold = score(draws).quantile(1 - p)

    def classifier(x):
        margin = score(x) - threshold
        return torch.stack([margin, -margin], dim=1)

    mass = rsfast.smoothed(lambda x: (score(x) > threshold).float(), noise, 10_000, seed=seed)
    gradient = mass.gradient(origin[0]).mean.float()
    x = -gradient / gradient.norm() * torch.tensor(shifts * sigma, dtype=torch.float32)[:, None]
    return rsfast.sample(classifier, x, noise, num_classes=2, n=n, seed=seed).counts[:, 0].numpy()


repeats = 1 if QUICK else 5
found = {p: [] for p in levels}
for p in levels:
    for repeat in range(repeats):
        generator = torch.Generator().manual_seed(repeat)
        found[p].append(sampled(union_of_balls(generator), 2, p, seed=repeat))
        for dim in (2, 20, 200):
            found[p].append(sampled(random_network(dim, generator), dim, p, seed=repeat))
found = {p: np.array(counts) for p, counts in found.items()}

# %%
# The counts are compared through Clopper-Pearson bounds: the mass at the origin is at least `lower`, that after a shift at
# most `upper`. If the theorem holds, `upper` is below the half-space's mass for `lower` with probability
# :math:`10^{-6}` at most, all bounds together.

bounds = sum(counts.size for counts in found.values())
alpha = 1e-6 / bounds
violations, checks, kept = 0, 0, []
for counts in found.values():
    lower = rsfast.bounds.clopper_pearson_lower(counts[:, :1], n, alpha)
    upper = rsfast.bounds.clopper_pearson_upper(counts[:, 1:], n, alpha)
    violations += int((upper < ndtr(ndtri(lower) - shifts[1:])).sum())
    checks += upper.size
    kept.append(counts[:, 1:] / n - ndtr(ndtri(counts[:, :1] / n) - shifts[1:]))
kept = np.concatenate(kept)

record(
    "article",
    "unions of balls and random networks, moved against the gradient: shifts at which less is left than a half-space keeps",
    f"{violations} of {checks}",
    "0",
    f"bounds hold at once with probability 1 - 10^-6; estimates are {kept.min():.4f} to {kept.max():.4f} above, with "
    f"standard errors up to {0.5 / n**0.5:.4f}",
)

# %%
# **The half-space itself.** A linear classifier in 20 dimensions attains the bound: votes agree with it at every shift.

weights = torch.randn(20, generator=torch.Generator().manual_seed(0))
away = -weights / weights.norm() * torch.tensor(shifts * sigma, dtype=torch.float32)[:, None]


def linear_classifier(x):
    margin = x @ weights / weights.norm() + sigma * ndtri(0.9)
    return torch.stack([margin, -margin], dim=1)


linear = rsfast.sample(linear_classifier, away, rsfast.Gaussian(sigma), num_classes=2, n=n, seed=100).counts[:, 0].numpy()
lower = rsfast.bounds.clopper_pearson_lower(linear, n, 1e-6 / (2 * len(shifts)))
upper = rsfast.bounds.clopper_pearson_upper(linear, n, 1e-6 / (2 * len(shifts)))
attained = int(((lower <= half_space(0.9)) & (half_space(0.9) <= upper)).sum())

record(
    "article",
    "a linear classifier, p = .9: shifts at which Phi(Phi^-1 p - d / sigma) is within its interval",
    f"{attained} of {len(shifts)}",
    f"{len(shifts)} of {len(shifts)}",
    f"at once with probability 1 - 10^-6; the largest error is {np.abs(linear / n - half_space(0.9)).max():.4f}",
)

# %%
# **The radius.** The half-space reaches 1/2 at :math:`R = \sigma \Phi^{-1}(p_A)`, and `Gaussian.potential` is this function.
# With the share :math:`p_B` of the second class the radius is :math:`\sigma (\Phi^{-1}(p_A) - \Phi^{-1}(p_B)) / 2`. Both
# agree where :math:`p_B = 1 - p_A`, as then there are no other votes. The quantile is steep near 1, so confidence pays more
# than in proportion: 4 % more votes give a radius that is 41 % larger.

unit = rsfast.Gaussian(1.0)
one_class = float(unit.potential(0.99))
two_class = float(unit.radius(0.99, 0.01))
smaller = float(unit.potential(0.95))
record("article", "radius in sigma at pA = .99", f"{one_class:.4f}", "2.3263")
record("article", "radius in sigma at pA = .99, pB = .01, two-class form", f"{two_class:.4f}", "2.3263")
record(
    "article",
    "confidence pays more than proportionally: radius in sigma at p = .95 and at .99",
    f"{smaller:.4f}, {one_class:.4f}",
    "1.6449, 2.3263",
    f"p grows by {0.99 / 0.95 - 1:.1%}, the radius by {one_class / smaller - 1:.1%}",
)
at_radius = ndtr(ndtri(0.99) - one_class)  # what the half-space keeps there

# %%
# No curve goes below the half-space's. Where it crosses 1/2 every region still has the majority.

p = 0.9
fig, ax = plt.subplots(figsize=(6.4, 4), layout="constrained")
families = [
    ("balls and outsides of balls", exact[p][: 3 * count : max(1, count // 20)], "C0"),
    ("unions of slabs", exact[p][3 * count :: max(1, count // 40)], "C1"),
    ("networks and unions of balls", found[p] / n, "C2"),
]
for label, masses, color in families:
    ax.plot(shifts, masses.T, color=color, linewidth=0.6)
    ax.plot([], [], color=color, label=label)
ax.plot(shifts, half_space(p), "k", linewidth=3, label="half-space")
ax.axhline(0.5, color="0.5", linewidth=0.8, linestyle=":")
ax.axvline(ndtri(p), color="0.5", linewidth=0.8, linestyle=":")
ax.annotate("$R = \\sigma \\Phi^{-1}(0.9)$", (ndtri(p), 0.02), xytext=(4, 0), textcoords="offset points")
ax.set(title="Of all regions of mass 0.9 the half-space loses most", xlabel="shift ($\\sigma$)", ylabel="mass that is left")
ax.set_ylim(0, 1)
ax.legend(loc="lower left", fontsize="small")

# %%
# Would a wrong bound be caught? One with a sigma that is 5 % too large lies above the curves of some random regions.

wrong = min((exact[p] - ndtr(ndtri(p) - shifts / 1.05)).min() for p in levels)

assert lowest > -1e-9
assert nearest < 0.01
assert wrong < -0.005
assert violations == 0
assert kept.max() > 0.1
assert attained == len(shifts)
assert abs(at_radius - 0.5) < 1e-12
assert f"{one_class:.4f}" == f"{two_class:.4f}" == "2.3263"
assert f"{smaller:.4f}" == "1.6449"
assert one_class / smaller - 1 > 5 * (0.99 / 0.95 - 1)
