"""
Floating point can break a certificate
======================================

The theorem is about real numbers. In float32 the set of values that ``x + noise`` can take depends on x. A classifier that
is built to look at the last bits tells two neighbouring images apart from their noisy copies, which the theorem says nobody
can (Jin et al., 2022; Voracek and Hein, 2023).

You will see a photograph with a certified radius of 0.8, and another one at distance 0.03 where another class is certified.
Then you will see the same classifier with ``GridGaussian``, noise on the grid of 8-bit images, whose sums are exact.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from paper import QUICK, record
from skimage.data import chelsea

import rsfast

SIGMA = float(np.float32(0.25))  # as the kernels apply it
torch.set_num_threads(1)

# %%
# One pixel shows why. Its value is 128/255 or 127/255, and we look at the sums between -1/4 and -1/100. The noise is then
# between -1 and -1/2, where float32 numbers are multiples of :math:`2^{-24}`. So is 128/255, and so is its sum with noise.
# But 127/255 is below 1/2, and an odd multiple of :math:`2^{-25}`; its sum is one, too. Sums near 0 are exact, and so they
# keep these last bits.
remainders = {}
for level in (128, 127):
    pixel = torch.full((1, 1, 100, 100), level / 255)
    sums = rsfast.ops.perturb(pixel, rsfast.Gaussian(SIGMA), seed=level, samples=range(10)).double()
    near_zero = sums[(sums > -0.25) & (sums < -0.01)]
    remainders[level] = np.bincount((near_zero * 2.0**25).remainder(4).long(), minlength=4)
    assert (near_zero * 2.0**25 % 1 == 0).all(), "all are multiples of 2^-25"
shared = np.minimum(remainders[128] > 0, remainders[127] > 0).sum()
record("beyond", "remainders of float32 sums that 128/255 and 127/255 share near 0, of 4", int(shared), 0)


# %%
# The attack on a whole picture needs no such reasoning. Of each sum y it asks: is there a float32 number z such that x plus
# sigma z rounds to y? The nearest z and its two neighbours are tried, in float64.
def could_come_from(x, y):
    """Return for each element of y whether x + SIGMA z, rounded to float32, can be it."""
    x, y = x.double(), y.double()
    nearest = ((y - x) / SIGMA).float()
    possible = torch.zeros_like(y, dtype=torch.bool)
    for z in (nearest, nearest.nextafter(torch.tensor(torch.inf)), nearest.nextafter(torch.tensor(-torch.inf))):
        possible |= (x + SIGMA * z.double()).float() == y
    return possible


# %%
# The picture is a part of an 8-bit photograph. The attacker looks for elements which, changed by one level, often have sums
# that the original cannot have. They take the 64 best.
pixels = torch.from_numpy(chelsea()[100:132, 200:232].copy()).permute(2, 0, 1).contiguous()
x = pixels.float() / 255
steps = torch.tensor([-1, 1])[:, None, None, None]
neighbours = ((pixels.int() + steps).clamp(0, 255)).float() / 255
impossible = torch.zeros(neighbours.shape)
tries = 60 if QUICK else 400
for sample in range(tries):
    noisy = rsfast.ops.perturb(neighbours, rsfast.Gaussian(SIGMA), seed=3, samples=[sample, sample], stream="user")
    impossible += ~could_come_from(x, noisy)
best_step = impossible.argmax(dim=0)
ranked = impossible.amax(dim=0).flatten().argsort(descending=True)


def changed(count):
    """Return the picture with the `count` best elements changed by one level."""
    levels = pixels.int().flatten()
    levels[ranked[:count]] += 2 * best_step.flatten()[ranked[:count]].int() - 1
    return levels.reshape(pixels.shape).clamp(0, 255).float() / 255


# %%
# The classifier knows x: class 0 if all sums could come from it, and class 1 if not. We certify x and the changed picture.
def classifier(y):
    other = (~could_come_from(x, y)).flatten(1).any(dim=1).float()
    return torch.stack([1 - other, other], dim=1)


n = 500 if QUICK else 10_000
options = {"num_classes": 2, "alpha": 0.001, "seed": 1}
attacked = changed(64)
distance = float((attacked.double() - x.double()).norm())
at_x, at_attacked = rsfast.certify(classifier, torch.stack([x, attacked]), rsfast.Gaussian(SIGMA), n=n, **options)
record("beyond", "float32 Gaussian noise: certified radius at a photograph", at_x.radius)
record("beyond", "float32 Gaussian noise: distance of another photograph where the other class is certified", distance)

# %%
# The same classifier and the same pictures, with noise on the grid. Sums are whole numbers over 255, for x and for its
# neighbours alike, so that their last bits tell nothing.
grid = rsfast.GridGaussian(SIGMA)
grid_x, grid_attacked = rsfast.certify(classifier, torch.stack([x, attacked]), grid, n=n, **options)
grid_sums = rsfast.ops.perturb(torch.stack([x, attacked]), grid, seed=4, samples=[0, 0])

# %%
# Is that because the classifier looks for the wrong thing? The theorem's worst case is a half-space: here, pictures whose
# mean is above a threshold. From a grey picture it is 1.5 levels to that threshold, so the boundary lies at distance
# :math:`1.5 \sqrt{3072} / 255`. The certificate must stay below, and comes close. Two levels away the class is the other.
grey, lighter = torch.full(x.shape, 100 / 255), torch.full(x.shape, 102 / 255)
boundary = 1.5 * np.sqrt(grey.numel()) / 255


def darker(y):
    margin = 101.5 / 255 - y.double().flatten(1).mean(dim=1)
    return torch.stack([margin, -margin], dim=1)


at_grey, at_lighter = rsfast.certify(darker, torch.stack([grey, lighter]), grid, n=n, **options)
record("beyond", "GridGaussian: certified radius over the distance of a half-space", at_grey.radius / boundary, "at most 1")

# %%
# How the score of the class at x falls as more elements change, up to all of them. All these pictures lie within the
# certified radius of x.
counts = np.array([0, *(2**i for i in range(12)), 3072])
path = torch.stack([changed(int(count)) for count in counts])
distances = (path.double() - x.double()).flatten(1).norm(dim=1).numpy()
votes = 100 if QUICK else 500
shares = {}
for name, noise, found in (("float32 Gaussian noise", rsfast.Gaussian(SIGMA), at_x), ("GridGaussian", grid, grid_x)):
    tally = rsfast.sample(classifier, path, noise, num_classes=2, n=votes, seed=2)
    shares[name] = tally.counts[:, found.prediction].numpy() / votes
    lost = ((shares[name] < 0.5) & (distances < found.radius)).sum()
    record("beyond", f"{name}: pictures of 13 within the radius where the class gets less than half of the votes", int(lost))

# %%
# Left: the last bits of the sums tell the two values apart. Right: the certificate of float32 noise breaks well within its
# radius, and that of noise on the grid does not.
figure, (left, right) = plt.subplots(1, 2, figsize=(6.4, 4), layout="constrained")
for i, (level, numbers) in enumerate(remainders.items()):
    left.bar(range(4), numbers / numbers.sum(), color=f"C{i}", label=f"x = {level}/255")
left.set(xlabel="x + noise, in units of $2^{-25}$, modulo 4", ylabel="share of the sums", xticks=range(4), ylim=(0, 0.75))
left.legend(frameon=False)
left.set_title("The last bits tell x")
for (name, values), style in zip(shares.items(), ("oC3-", "sC2-"), strict=True):
    right.plot(distances[1:], values[1:], style, label=name)
right.axvspan(distances[1] / 1.2, at_x.radius, color="0.9")
right.annotate("certified", (at_x.radius, 0.5), xytext=(-4, 0), textcoords="offset points", ha="right", color="0.3")
right.set(xscale="log", xlabel="l2 distance from x", ylabel="share of votes of the class at x", ylim=(-0.03, 1.25))
right.legend(frameon=False, loc="upper left")
right.set_title("float32 breaks its radius")

# %%
# Certificates are wrong by chance with a probability of 0.001 each. The two of float32 noise contradict each other, and not
# by chance: at x no sum is ever one that x cannot have.
assert shared == 0
assert at_x.prediction == 0
assert at_x.counts == (n, 0)
assert at_attacked.prediction == 1
assert at_x.radius > (0.5 if QUICK else 0.75)
assert distance < 0.05, "a false certificate: another class is certified well within the radius"
assert grid_x.prediction == grid_attacked.prediction != rsfast.ABSTAIN
assert 0.5 < at_grey.radius / boundary <= 1
assert (at_grey.prediction, at_lighter.prediction) == (0, 1)
assert (grid_sums == (255 * grid_sums).round() / 255).all(), "whole numbers over 255, for both pictures"
assert distances[-1] < min(at_x.radius, grid_x.radius)
assert np.all(shares["float32 Gaussian noise"][:1] == 1)
assert np.all(shares["float32 Gaussian noise"][counts >= 64] < 0.1)
assert np.all(shares["GridGaussian"] > 0.5)
