r"""
What smoothing does to a function
=================================

Averaging over Gaussian noise, :math:`g(x) = E f(x + z)` with :math:`z \sim N(0, \sigma^2 I)`, is the heat equation run
for a time :math:`\sigma^2 / 2`. Three facts of the encyclopedia article follow from that.

- A convex function stays convex, and the Lipschitz constant of its gradient does not grow.
- The price is a bias of :math:`\sigma^2 f''(x) / 2`, up to terms in :math:`\sigma^4`.
- The gradient is low-pass filtered: that of :math:`\sin(\omega x)` is damped by :math:`\exp(-\sigma^2 \omega^2 / 2)`.

Each is measured here with `rsfast.smoothed`, which estimates values and gradients with their standard errors.
"""

import math

import matplotlib.pyplot as plt
import torch
from paper import QUICK, record
from sklearn.datasets import load_digits

import rsfast

N = 20_000 if QUICK else 100_000

# %%
# The bias
# --------
# ``g.value(x)`` is an estimate of :math:`g(x)`. For :math:`f(x) = x^2` the bias is exactly :math:`\sigma^2`, wherever
# :math:`x` is: the terms in :math:`\sigma^4` are 0.

SIGMA = 0.5
square = []
for x in (-2.0, 0.0, 3.0):
    mean, error = rsfast.smoothed(lambda x: x[:, 0].double().square(), rsfast.Gaussian(SIGMA), n=N, seed=1).value(
        torch.tensor([x])
    )
    square.append((float(mean) - x**2, float(error)))
record(
    "article",
    "bias of x^2 at x = 3, in units of sigma^2",
    square[-1][0] / SIGMA**2,
    1.0,
    f"standard error {square[-1][1] / SIGMA**2:.1g}",
)

# %%
# For :math:`x^4` and for softplus, :math:`\log(1 + e^x)`, something remains. We smooth what Taylor's second order leaves of
# the function at :math:`x = 1`: the smoothed remainder is the bias minus :math:`\sigma^2 f'' / 2`. It is far less noisy
# than the bias itself. If it is of fourth order, it falls 16 times when :math:`\sigma` is halved.

SIGMAS = (0.5, 0.25, 0.125)
FUNCTIONS = {
    "x^4": (lambda x: x**4, 12.0),
    "softplus": (torch.nn.functional.softplus, float(torch.sigmoid(torch.tensor(1.0)) * torch.sigmoid(torch.tensor(-1.0)))),
}
biases, orders = {}, {}
for name, (f, second) in FUNCTIONS.items():

    def remainder(x, f=f, second=second):
        x = x[:, 0].double()
        return f(x) - f(torch.ones_like(x)) - second * (x - 1) ** 2 / 2

    found = [rsfast.smoothed(remainder, rsfast.Gaussian(sigma), n=N, seed=2).value(torch.ones(1)) for sigma in SIGMAS]
    rest = [float(estimate.mean) for estimate in found]
    biases[name] = [second * sigma**2 / 2 + left for sigma, left in zip(SIGMAS, rest, strict=True)]
    orders[name] = math.log2(rest[0] / rest[-1]) / 2
    record(
        "article",
        f"bias of {name} minus sigma^2 f'' / 2: its order in sigma",
        orders[name],
        4.0,
        "at x = 1, sigma from 1/2 to 1/8",
    )

# %%
# The gradient of a wave
# ----------------------
# ``g.gradient(x)`` never differentiates :math:`f`. At :math:`x = 0` the gradient of :math:`\sin(\omega x)` is
# :math:`\omega`, and the smoothed one is :math:`\omega \exp(-\sigma^2 \omega^2 / 2)`: the fast waves are gone.

FREQUENCIES = (1, 2, 4, 6, 8)
damping = []
for frequency in FREQUENCIES:
    g = rsfast.smoothed(lambda x, w=frequency: torch.sin(w * x[:, 0].double()), rsfast.Gaussian(SIGMA), n=N, seed=3)
    mean, error = g.gradient(torch.zeros(1))
    damping.append((float(mean) / frequency, float(error) / frequency))
expected = [math.exp(-((SIGMA * frequency) ** 2) / 2) for frequency in FREQUENCIES]
record(
    "article",
    "gradient of sin(4 x) at 0: factor that sigma = 0.5 leaves",
    damping[2][0],
    expected[2],
    f"standard error {damping[2][1]:.1g}",
)

# %%
# A convex function
# -----------------
# Take the logistic loss that tells the digit 3 from the digit 8, as a function of three weights, for the first three
# principal components. It is convex. Its Hessian is largest at 0, where it is :math:`X^T X / 4`, over the number of images:
# the Lipschitz constant of its gradient is the largest eigenvalue of that. The Hessian of the smoothed loss comes from
# differences of its gradient, with the same noise at both points. Far from 0 the smoothed Hessian is larger than the loss's
# own there: it is an average over the neighbourhood. It never exceeds the largest anywhere.

digits = load_digits()
chosen = (digits.target == 3) | (digits.target == 8)
images = torch.tensor(digits.data[chosen] - digits.data[chosen].mean(axis=0))
X = images @ torch.linalg.svd(images, full_matrices=False)[2][:3].T / 10
y = torch.tensor(2.0 * (digits.target[chosen] == 8) - 1)
X = X[:100] if QUICK else X
y = y[: len(X)]


def loss(weights):  # [B, 3] to [B]
    return torch.nn.functional.softplus(-y * (weights.double() @ X.T)).mean(dim=1)


def eigenvalues(gradient, x, h=0.05):
    """Return those of the Hessian at x, in increasing order, from central differences of the gradient."""
    rows = [(gradient(x + step) - gradient(x - step)) / (2 * h) for step in h * torch.eye(3)]
    hessian = torch.stack(rows).double()
    return torch.linalg.eigvalsh((hessian + hessian.T) / 2).tolist()


def own_gradient(x):
    x = x[None].double().requires_grad_()
    return torch.autograd.grad(loss(x).sum(), x)[0][0]


g = rsfast.smoothed(loss, rsfast.Gaussian(1.0), n=N // 20, seed=4, common_random_numbers=True)
lipschitz = float(torch.linalg.eigvalsh(X.T @ X / 4 / len(X))[-1])
away = [0.0, 0.25, 0.5, 1.0, 2.0] if QUICK else [-4.0, -3.0, -2.0, -1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0, 2.0, 3.0, 4.0]
direction = torch.ones(3) / 3**0.5
original = [eigenvalues(own_gradient, t * direction) for t in away]
smooth = [eigenvalues(lambda x: g.gradient(x).mean, t * direction) for t in away]
least, largest = min(each[0] for each in smooth), max(each[-1] for each in smooth)
record(
    "article",
    "smoothed convex loss: smallest eigenvalue of the Hessian",
    least,
    ">= 0",
    f"logistic loss, {len(away)} points",
)
record(
    "article",
    "smoothed convex loss: largest eigenvalue of the Hessian",
    largest,
    f"<= {lipschitz:.4g}",
    "the right side is the loss's own",
)

# %%
# All three in one figure
# -----------------------

fig, axes = plt.subplots(1, 3, figsize=(11, 4), layout="constrained")
for colour, (name, (_, second)) in zip(("C0", "C1"), FUNCTIONS.items(), strict=True):
    axes[0].loglog(SIGMAS, biases[name], f"{colour}o", label=f"{name}; line: sigma^2 f'' / 2")
    axes[0].loglog(SIGMAS, [second * sigma**2 / 2 for sigma in SIGMAS], colour)
axes[0].set(title="The bias is sigma^2 f'' / 2", xlabel="sigma", ylabel="smoothed value minus value, at x = 1")
axes[0].set_xticks(SIGMAS, [str(sigma) for sigma in SIGMAS])
axes[0].minorticks_off()
axes[0].set_ylim(1e-3, 20)
axes[0].legend()
axes[1].plot(FREQUENCIES, [factor for factor, _ in damping], "C0o", label="measured")
curve = torch.linspace(0, 9, 91)
axes[1].plot(curve, torch.exp(-((SIGMA * curve) ** 2) / 2), "C1", label="exp(-sigma^2 w^2 / 2)")
axes[1].set(
    title="Smoothing is a low-pass filter", xlabel="frequency w of sin(w x), radians", ylabel="factor on the gradient at 0"
)
axes[1].legend()
axes[2].axhline(lipschitz, color="0.5", linestyle=":", label="the loss's Lipschitz constant")
for colour, found, name in (("C1", original, "loss"), ("C0", smooth, "smoothed loss")):
    axes[2].fill_between(
        away, [each[0] for each in found], [each[-1] for each in found], color=colour, alpha=0.4, label=name
    )
axes[2].set(
    title="A convex loss stays convex", xlabel="distance from 0 in weight space", ylabel="eigenvalues of the Hessian", ylim=0
)
axes[2].set_ylim(0, 1.5 * lipschitz)
axes[2].legend()

# %%
# Checks
# ------
# Estimates lie within 5 standard errors of the exact values: each fails with probability 6e-7 at other seeds.

for bias, error in square:
    assert abs(bias - SIGMA**2) < 5 * error
for order in orders.values():
    assert abs(order - 4) < 0.15
for (factor, error), exact in zip(damping, expected, strict=True):
    assert abs(factor - exact) < 5 * error
assert least > 0
assert largest <= lipschitz
