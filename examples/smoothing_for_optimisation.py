"""
Smoothing for optimisation
==========================

A jagged function has a gradient that leads into the nearest wave, or no gradient of use. Its smoothed version,
:math:`g(x) = E f(x + z)` with Gaussian noise :math:`z`, is smooth, and its gradient points down the whole bowl. It needs
only values of :math:`f` (Stein, 1981; Nesterov and Spokoiny, 2017).

Here `rsfast.smoothed` gives that gradient to ``torch.optim``. Less and less noise lets the waves back in. Plain gradient
descent gets stuck at every learning rate that is tried; on the smoothed function it reaches the bottom.
"""

import matplotlib.pyplot as plt
import torch
from paper import QUICK, record

import rsfast

# %%
# The function
# ------------
# It is a bowl with waves and steps on it: 0 at :math:`x = 0`, and positive elsewhere. It takes a batch [B, D] and returns
# a number for each row. The gradient of a step is 0, so the steps are invisible to ``backward``.

DIM = 10
START = torch.linspace(-3.0, 4.0, DIM)


def jagged(x):
    waves, steps = 1 - torch.cos(12 * x), (4 * x.abs()).floor() / 4
    return (x.square() + waves + steps).mean(dim=1)


def value(x):
    return float(jagged(x[None]))


# %%
# Gradient descent on the function itself
# ---------------------------------------
# Both optimisers take the best of four learning rates, which favours them: the smoothed run below gets a single one.

STEPS = 150 if QUICK else 300


def descend(kind, rate, function_at):
    """Return f where the optimiser ends, and at each step; function_at(step) is the function that it follows there."""
    x = START.clone().requires_grad_()
    optimizer, path = kind([x], lr=rate), []
    for step in range(STEPS):
        path.append(value(x.detach()))
        optimizer.zero_grad()
        function_at(step)(x).backward()
        optimizer.step()
    return value(x.detach()), path


OPTIMISERS = {"SGD": torch.optim.SGD, "Adam": torch.optim.Adam}
RATES = (0.03, 0.1, 0.3, 1.0)
plain = {
    name: min((descend(kind, rate, lambda step: lambda x: jagged(x[None]).sum()) for rate in RATES), key=lambda run: run[0])
    for name, kind in OPTIMISERS.items()
}

# %%
# Gradient descent on the smoothed function
# -----------------------------------------
# ``g(x)`` draws 100 pairs of samples; its backward pass is the gradient that these samples give. The noise is 0.5,
# then 0.2, then 0.05, for a third of the steps each.

SIGMAS = (0.5, 0.2, 0.05)


def smoothed_descent(kind):
    stages = [rsfast.smoothed(jagged, rsfast.Gaussian(sigma), n=100, seed=seed) for seed, sigma in enumerate(SIGMAS)]
    return descend(kind, 0.1, lambda step: stages[step * len(SIGMAS) // STEPS])


smoothed = {name: smoothed_descent(kind) for name, kind in OPTIMISERS.items()}
for name in OPTIMISERS:
    note = f"from {value(START):.3g}; {plain[name][0]:.3g} on the function itself, at the best of four learning rates"
    record("beyond", f"jagged function: value that {name} reaches on the smoothed function", smoothed[name][0], note=note)

# %%
# What the optimiser sees
# -----------------------
# On the left is one coordinate of the function, with its smoothed versions. At a standard deviation of 0.5 the waves are
# gone; at 0.05 they are back. On the right is the value of the function, never of the smoothed one, at each step.

fig, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
grid = torch.linspace(-3, 3, 241)
left.plot(grid, jagged(grid[:, None]), color="0.7", label="f")
for colour, sigma in zip(("C0", "C1", "C2"), SIGMAS, strict=True):
    g = rsfast.smoothed(jagged, rsfast.Gaussian(sigma), n=2000, seed=1, common_random_numbers=True)
    left.plot(grid, [float(g(x)) for x in grid[:, None]], color=colour, label=f"smoothed, sigma = {sigma}")
left.set(title="Noise of 0.5 removes the waves", xlabel="x", ylabel="value")
left.legend()
for name, line in (("SGD", "-"), ("Adam", "--")):
    right.plot(plain[name][1], f"C3{line}", label=f"{name} on f")
    right.plot(smoothed[name][1], f"C0{line}", label=f"{name}, smoothed")
right.set(title="Plain gradient descent gets stuck", xlabel="step", ylabel="f(x)", yscale="log")
right.legend()

# %%
# Checks
# ------
# Smoothing reaches a tenth of what plain gradient descent does, for both optimisers.

for name in OPTIMISERS:
    assert smoothed[name][0] < plain[name][0] / 10, name
