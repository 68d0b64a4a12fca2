r"""
The heat equation: a step becomes smooth
========================================

Average a function over Gaussian noise, and you have let heat flow. With noise of variance :math:`t = \sigma^2` the average
:math:`u(t, x) = \mathbb{E} f(x + \mathcal{N}(0, t))` solves the heat equation :math:`\partial_t u = \frac12 \Delta u`,
and starts from :math:`u(0, x) = f(x)`. So even a step, the decision of a classifier, becomes smooth: it becomes
:math:`\Phi(x / \sigma)`, with the normal distribution function :math:`\Phi`.

Source: the encyclopedia article on randomized smoothing; the kernel is that of Fourier (1822) and Weierstrass (1885).
You will see the step at three times, then that two smoothings in a row are one, and last both sides of the equation.
"""

import warnings

import matplotlib.pyplot as plt
import numpy as np
import torch
from paper import QUICK, record
from scipy.special import ndtr  # the normal distribution function

import rsfast

warnings.filterwarnings("ignore", message="inputs hold values")  # of what is not an image in [0, 1]

# %%
# The classifier is the sign of one number: it votes for class 0 where :math:`x > 0`. The share of these votes under noise
# estimates the smoothed step. At every point we count the votes of n noisy samples.


def sign_classifier(x):
    return torch.stack([x[:, 0], -x[:, 0]], dim=1)


n = 10_000 if QUICK else 100_000
sigmas = [0.25, 0.5, 1.0]
x = np.linspace(-2, 2, 40)
points = torch.tensor(x, dtype=torch.float32)[:, None]


def votes(noise, seed):
    return rsfast.sample(sign_classifier, points, noise, num_classes=2, n=n, seed=seed).counts[:, 0].numpy()


smoothed = {sigma: votes(rsfast.Gaussian(sigma), seed) for seed, sigma in enumerate(sigmas)}

# %%
# An estimate alone proves little, so each gets a Clopper-Pearson interval. All intervals hold at once with probability
# :math:`1 - 10^{-6}`, as each of their ends may fail with :math:`10^{-6}` over the number of ends.
#
# The intervals must be able to tell smoothings apart. So we also smooth with uniform noise of the same variance, on
# :math:`[-\sqrt3 \sigma, \sqrt3 \sigma]`. It makes a ramp of the step, which does not solve the heat equation.

alpha = 1e-6 / (2 * len(sigmas) * len(x))


def within(counts, value):
    """Return at which points the interval of the counts holds the value."""
    return (rsfast.bounds.clopper_pearson_lower(counts, n, alpha) <= value) & (
        value <= rsfast.bounds.clopper_pearson_upper(counts, n, alpha)
    )


inside = sum(within(counts, ndtr(x / sigma)).sum() for sigma, counts in smoothed.items())
total = len(sigmas) * len(x)
error = max(np.abs(counts / n - ndtr(x / sigma)).max() for sigma, counts in smoothed.items())
ramp = votes(rsfast.Uniform(3**0.5 * 0.5), seed=len(sigmas))
ramp_outside = (~within(ramp, ndtr(x / 0.5))).sum()

record(
    "article",
    "a step under Gaussian noise, sigma .25, .5 and 1: points whose interval holds Phi(x / sigma)",
    f"{inside} of {total}",
    f"{total} of {total}",
    f"all intervals hold at once with probability 1 - 10^-6; the largest error is {error:.4f} at n = {n:,}",
)
record(
    "article",
    "the same step under uniform noise of equal variance, sigma .5: points whose interval excludes Phi(x / sigma)",
    f"{ramp_outside} of {len(x)}",
    note="the other side: only Gaussian noise is heat",
)

# %%
# Heat that flows for a time :math:`t_1` and then for :math:`t_2` has flowed for :math:`t_1 + t_2`. So smoothing with 0.3 and
# then with 0.4 is smoothing once with :math:`\sqrt{0.3^2 + 0.4^2} = 0.5`. The first smoothing makes :math:`\Phi(x / 0.3)`.
# `rsfast.smoothed` adds the second; it takes any function, and states a standard error with each mean.

pairs = 10_000 if QUICK else 100_000


def once_smoothed(x):
    return torch.special.ndtr(x[:, 0].double() / 0.3)


twice_smoothed = rsfast.smoothed(once_smoothed, rsfast.Gaussian(0.4), pairs, seed=1)
estimates = [twice_smoothed.value(point) for point in points[1::3]]
twice = np.array([estimate.mean.item() for estimate in estimates])
errors = np.array([estimate.standard_error.item() for estimate in estimates])
semigroup = np.abs((twice - ndtr(x[1::3] / 0.5)) / errors).max()
first_only = np.abs((twice - ndtr(x[1::3] / 0.3)) / errors).max()

record(
    "article",
    "sigma .3 then .4 against .5 at once, largest difference in standard errors",
    semigroup,
    "below 5",
    f"against .3 alone it is {first_only:.0f}; standard errors are {errors.min():.1e} to {errors.max():.1e}",
)

# %%
# Now the equation itself, at :math:`t = 1`. `curvature` estimates :math:`\Delta u` from values of the step only: it weighs
# them, and differentiates nothing. For :math:`\partial_t u` we take the difference of two times, :math:`t + h` and
# :math:`t - h`. The same standard normal z serves both, which makes the difference far less noisy than either value.
#
# A central difference is off by at most :math:`h^2 / 6` times the largest third derivative in between. For a function
# between 0 and 1 in d dimensions, Cauchy and Schwarz bound :math:`\partial_t^3 u = \Delta^3 u / 8` by
# :math:`\sqrt{4^3 \, 3! \, \frac d2 (\frac d2 + 1) (\frac d2 + 2)} / 16 t^3`. `bias` is this error.

t, h = 1.0, 0.025


def heat_equation(f, x, pairs, seed):
    """Return estimates of both sides at (t, x), the change with time and half of the Laplacian; and their standard error."""

    def change(z):
        return (f(x + (t + h) ** 0.5 * z).double() - f(x + (t - h) ** 0.5 * z).double()) / (2 * h)

    in_time = rsfast.smoothed(change, rsfast.Gaussian(1.0), pairs, seed=seed).value(torch.zeros_like(x))
    in_space = rsfast.smoothed(f, rsfast.Gaussian(t**0.5), pairs, seed=seed + 1).curvature(x)
    left, right = in_time.mean.item(), in_space.mean.item() / 2
    return left, right, float(np.hypot(in_time.standard_error.item(), in_space.standard_error.item() / 2))


def bias(d):
    return h**2 / 6 * (4**3 * 6 * d / 2 * (d / 2 + 1) * (d / 2 + 2)) ** 0.5 / (16 * (t - h) ** 3)


def step(x):
    return (x[:, 0] > 0).float()


places = np.linspace(-2.5, 2.5, 20)
sides = np.array([heat_equation(step, torch.tensor([place]).float(), pairs, 2 * i) for i, place in enumerate(places)])
exact = -places / 2 * np.exp(-(places**2) / 2) / np.sqrt(2 * np.pi)
equation = (np.abs(sides[:, 0] - sides[:, 1]) - bias(1)) / sides[:, 2]
correlation = np.corrcoef(sides[:, 0], sides[:, 1])[0, 1]

record(
    "article",
    "du/dt against u''/2 of a smoothed step, sigma 1, 20 points: largest difference in standard errors",
    equation.max(),
    "below 5",
    f"after {bias(1):.4f} for the finite difference; the sides reach {np.abs(exact).max():.3f}, with standard errors up to "
    f"{sides[:, 2].max():.4f}, and correlate by {correlation:.4f}",
)

# %%
# Nothing here depends on the step. The decision of a random network in ten dimensions obeys the same equation. Its Laplacian
# is a sum of ten second derivatives, and so harder to estimate: it takes more samples.

torch.manual_seed(0)
network = torch.nn.Sequential(torch.nn.Linear(10, 32), torch.nn.ReLU(), torch.nn.Linear(32, 1)).requires_grad_(False)
start = torch.zeros(10)
threshold = network(start).item() + 0.3


def decision(x):
    return (network(x)[:, 0] > threshold).float()


left, right, standard_error = heat_equation(decision, start, 20 * pairs, seed=100)

record(
    "article",
    "du/dt and half of the Laplacian, of a random network's decision in ten dimensions, sigma 1",
    f"{left:.4f}, {right:.4f}",
    "equal",
    f"the finite difference is off by at most {bias(10):.4f}, and the difference's standard error is {standard_error:.4f}",
)

# %%
# Left: the longer heat flows, the flatter the step. Right: where the smoothed step is convex it rises with time, where it is
# concave it falls.

fig, (left_axes, right_axes) = plt.subplots(1, 2, figsize=(6.4, 4), layout="constrained")
fine = np.linspace(-2, 2, 401)
left_axes.plot(fine, fine > 0, color="0.6", linewidth=1)
for color, (sigma, counts) in zip(["C0", "C1", "C2"], smoothed.items(), strict=True):
    left_axes.plot(fine, ndtr(fine / sigma), color=color, label=f"$\\sigma$ = {sigma}")
    left_axes.plot(x, counts / n, ".", color=color, markersize=5)
left_axes.set(title="A step becomes $\\Phi(x / \\sigma)$", xlabel="$x$", ylabel="share of votes (dots), $\\Phi$ (lines)")
left_axes.legend(loc="lower right", fontsize="small")
wide = np.linspace(-2.7, 2.7, 201)
right_axes.plot(wide, -wide / 2 * np.exp(-(wide**2) / 2) / np.sqrt(2 * np.pi), color="0.6", label="exact")
right_axes.plot(places, sides[:, 0], "o", color="C1", fillstyle="none", label="$\\partial u / \\partial t$")
right_axes.plot(places, sides[:, 1], "x", color="C0", label="$u'' / 2$")
right_axes.set(title="Both sides agree, $t$ = 1", xlabel="$x$", ylabel="change per unit of time")
right_axes.legend(fontsize="small")

# %%
# Means of so many samples are nearly normal, so each bound of 5 standard errors fails by chance with probability below
# :math:`10^{-6}`. Seeds are fixed. The assertions on the ramp, on 0.3 alone and on the correlation show that the others can
# fail.

assert inside == total
assert ramp_outside >= 4
assert semigroup < 5
assert first_only > 10
assert equation.max() < 5
assert correlation > 0.95
assert abs(left - right) < bias(10) + 5 * standard_error
assert abs(right) > 5 * standard_error
