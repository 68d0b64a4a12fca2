"""
A smoothed critic has tame gradients
====================================

The generator of a generative adversarial network follows the gradients of its critic. Where the critic becomes steep,
training becomes erratic, so Wasserstein networks bound its gradients (Arjovsky, Chintala and Bottou, "Wasserstein GAN",
2017). Smoothing is another way: the gradient of :math:`E f(x + z)` is the mean of the critic's gradients over noise
:math:`z`, and a mean has no spikes.

Here a small generator learns eight Gaussians on a circle, with a critic as it is, with dropout in the critic, and with
the smoothed critic. The claim is that the largest norm of the critic's gradient falls, and that training is steadier over
seeds. It has a condition: with the clipped weights of the first Wasserstein networks the gradients are tame already, and
smoothing shows no gain.
"""

import matplotlib.pyplot as plt
import torch
from paper import QUICK, record
from torch import nn

import rsfast

# %%
# The data are eight narrow Gaussians. The energy distance says how far a generator is from them; it is 0 for the same
# distribution.

SIGMA, COPIES, BATCH = 0.8, 4, 128
STEPS, EVERY, SEEDS = (100, 20, 1) if QUICK else (240, 20, 4)


def draw_mixture(count, generator):
    angle = torch.randint(8, (count,), generator=generator) * torch.pi / 4
    return 2 * torch.stack([angle.cos(), angle.sin()], dim=1) + 0.05 * torch.randn(count, 2, generator=generator)


def energy_distance(a, b):
    return float(2 * torch.cdist(a, b).mean() - torch.cdist(a, a).mean() - torch.cdist(b, b).mean())


# %%
# The largest norm of the gradient is taken over a grid. :class:`rsfast.nn.SmoothedCritic` averages over few noisy copies
# while it trains, and over 64 where its gradient is measured.

grid = torch.cartesian_prod(torch.linspace(-3, 3, 21), torch.linspace(-3, 3, 21))


def largest_gradient(critic):
    points = grid.clone().requires_grad_()
    return float(torch.autograd.grad(critic(points).sum(), points)[0].norm(dim=1).max())


# %%
# One training. Without clipping the loss is the usual logistic one; with clipping, that of Wasserstein networks.


def train(kind, seed, clip=None):
    """Return the generator's distance, and the critic's largest gradient, after every 20 steps."""
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)
    generator = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
    drop = nn.Dropout(0.3) if kind == "dropout" else nn.Identity()
    network = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), drop, nn.Linear(64, 64), nn.ReLU(), drop, nn.Linear(64, 1))
    critic, measured = network, network
    if kind == "smoothed":
        critic = rsfast.nn.SmoothedCritic(network, SIGMA, COPIES, seed=seed)
        measured = rsfast.nn.SmoothedCritic(network, SIGMA, 64, seed=seed)
    loss = nn.functional.softplus if clip is None else nn.Identity()
    of_generator = torch.optim.Adam(generator.parameters(), lr=0.002, betas=(0.5, 0.9))
    of_critic = torch.optim.Adam(network.parameters(), lr=0.002, betas=(0.5, 0.9))
    distances, gradients = [], []
    for step in range(1, STEPS + 1):
        for _ in range(2):
            fake = generator(torch.randn(BATCH, 2)).detach()
            of_critic.zero_grad()
            (loss(critic(fake)).mean() + loss(-critic(draw_mixture(BATCH, random))).mean()).backward()
            of_critic.step()
            if clip is not None:
                with torch.no_grad():
                    for parameter in network.parameters():
                        parameter.clamp_(-clip, clip)
        of_generator.zero_grad()
        loss(-critic(generator(torch.randn(BATCH, 2)))).mean().backward()
        of_generator.step()
        if step % EVERY == 0:
            network.eval()  # no dropout where the gradient is measured
            gradients.append(largest_gradient(measured))
            network.train()
            with torch.no_grad():
                distances.append(energy_distance(generator(torch.randn(500, 2)), draw_mixture(500, random)))
    return distances, gradients


# %%
# The same seeds for each kind of critic. The spread is the standard deviation of the distance over all seeds, and over
# the steps of the second half of training.

KINDS = ("plain", "dropout", "smoothed")
runs = {kind: torch.tensor([train(kind, seed) for seed in range(SEEDS)]) for kind in KINDS}  # [seed, 2, step]
clipped = {
    kind: torch.tensor([train(kind, seed, clip=0.1) for seed in range(min(SEEDS, 2))]) for kind in ("plain", "smoothed")
}


def summary(runs):
    """Return the largest gradient, and mean and spread of the distance, in the second half of training."""
    distance, gradient = runs[:, :, runs.shape[2] // 2 :].unbind(1)
    return float(gradient.max()), float(distance.mean()), float(distance.std())


found = {kind: summary(runs[kind]) for kind in KINDS}
found |= {f"{kind}, clipped weights": summary(clipped[kind]) for kind in clipped}
for kind, (gradient, distance, spread) in found.items():
    note = f"distance {distance:.3f} on average"
    if "clipped" in kind:
        note += "; clipping by itself tames the gradients"
    if kind == "dropout":
        note += "; dropout smooths over the critic's own units, not over its input"
    record("article", f"critic of a GAN, {kind}: largest norm of its gradient", gradient)
    record("article", f"critic of a GAN, {kind}: spread of the generator's distance over seeds and steps", spread, note=note)
record(
    "article",
    "critic of a GAN: largest gradient of the smoothed one, as a share of the plain one's",
    found["smoothed"][0] / found["plain"][0],
    "below 1",
)
record(
    "article",
    "critic of a GAN: spread over seeds and steps with the smoothed one, as a share of the plain one's",
    found["smoothed"][2] / found["plain"][2],
    "below 1",
)
record(
    "article",
    "Critic of a GAN, clipped weights: spread with the smoothed one, as a share of the plain one's",
    found["smoothed, clipped weights"][2] / found["plain, clipped weights"][2],
    note="the other side, from two seeds: where gradients are tame already, no gain shows",
)

# %%
# Each line is a seed.

fig, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
steps = torch.arange(1, STEPS // EVERY + 1) * EVERY
for color, kind in enumerate(KINDS):
    for seed, (distances, gradients) in enumerate(runs[kind]):
        left.plot(steps, gradients, color=f"C{color}", label=kind if seed == 0 else None)
        right.plot(steps, distances, color=f"C{color}")
left.set(title="A smoothed critic has tame gradients", xlabel="step of the generator", yscale="log")
left.set_ylabel("largest norm of the critic's gradient")
right.set(title="and trains steadily", xlabel="step of the generator", yscale="log")
right.set_ylabel("energy distance of the generator")
fig.legend(loc="outside lower center", ncols=3, title="critic")

# %%
# Smoothing tames the gradients, and the spread shrinks with them. Clipping tames them by itself. Training differs in its
# last bits between machines, so the margins are wide; quick mode ends before training settles, and asks for the gradients
# only.

share = 1 if QUICK else 0.5
assert found["smoothed"][0] < share * found["plain"][0]
assert found["plain, clipped weights"][0] < share * found["plain"][0]
if not QUICK:
    assert found["smoothed"][2] < 0.5 * found["plain"][2]
