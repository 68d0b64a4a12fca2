"""
A margin of Lipschitz scores is a certificate
=============================================

If every score of a classifier is :math:`L`-Lipschitz, so is every smoothed score: an average of shifted copies is no
steeper than the copies. So a class that leads by a margin :math:`m` of smoothed scores leads within :math:`m / 2L`. That is
the margin certificate of the encyclopedia article.

It forgets the noise. The exact potential of an :math:`L`-Lipschitz score under Gaussian noise, which ``certify`` uses when
it is given ``lipschitz=L``, knows both and is never smaller. We check the constant by finite differences, compare the two
radii and the one of Cohen et al. on digits, and attack each input at the radius that is certified.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from paper import QUICK, record
from scipy.stats import norm
from sklearn.datasets import load_digits

import rsfast

SIGMA, N, TEST = 0.25, 10_000, 10 if QUICK else 40

# %%
# A network with a small Lipschitz constant
# -----------------------------------------
# Weight decay keeps the layers' norms small, and the training noise fits the noise of the certificates. `lipschitz_bound`
# proves the constant of the network with its softmax, from the weights: it holds for every input.

torch.manual_seed(0)
digits = load_digits()
x = torch.tensor(digits.images[:, None] / 16, dtype=torch.float32)
y = torch.tensor(digits.target)
shuffled = torch.randperm(len(x))
train, test = shuffled[TEST:], shuffled[:TEST]

network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
noisy = torch.nn.Sequential(rsfast.nn.GaussianNoise(SIGMA, seed=1), network)
optimizer = torch.optim.AdamW(noisy.parameters(), lr=3e-3, weight_decay=1.0)
for _ in range(200 if QUICK else 1000):
    batch = train[torch.randint(len(train), (128,))]
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(noisy(x[batch]), y[batch]).backward()
    optimizer.step()
network.eval().requires_grad_(False)
L = rsfast.lipschitz_bound(torch.nn.Sequential(network, torch.nn.Softmax(dim=1)).eval(), (1, 8, 8))
product = float(
    torch.linalg.matrix_norm(network[1].weight.double(), 2) * torch.linalg.matrix_norm(network[3].weight.double(), 2)
)

# %%
# Finite differences of smoothed scores
# -------------------------------------
# ``g`` is the smoothed score of the class that leads. ``common_random_numbers`` makes it one fixed function, so differences
# are free of sampling noise. Directions at random would look tame in any network; we take the one in which the score is
# steepest, its gradient at the input, and steps from 0.02 to 2.


def score(label):
    return lambda batch: network(batch).softmax(dim=1)[:, label]


def steepest(image, label):
    """Return the unit vector along the gradient of the score, averaged over a few noisy copies of the image."""
    copies = (image + SIGMA * torch.randn(64, *image.shape)).requires_grad_()
    score(label)(copies).sum().backward()
    direction = copies.grad.mean(dim=0)
    return direction / direction.norm()


STEPS = [0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0]
own, smooth = [], []
for image in x[test]:
    label = int(network(image[None]).argmax())
    g = rsfast.smoothed(score(label), rsfast.Gaussian(SIGMA), n=200, seed=1, common_random_numbers=True)
    direction = steepest(image, label)
    for h in STEPS:
        own.append(
            float((score(label)((image + h * direction)[None]) - score(label)((image - h * direction)[None])) / (2 * h))
        )
        smooth.append(float(g(image + h * direction) - g(image - h * direction)) / (2 * h))
note = f"L = {L:.3g}; {max(own) / L:.3g} L without smoothing"
record("article", "smoothed scores: largest finite difference, over L", max(smooth) / L, "<= 1", note)

# %%
# Three radii from the same samples
# ---------------------------------
# The scores of the two leading classes are bounded on the same samples. From these bounds follow the margin certificate,
# Cohen et al.'s radius, which needs no :math:`L`, and the radius of the exact potential. A softmax at temperature :math:`t`
# divides both :math:`L` and the margins, more or less, by :math:`t`. So the margin certificate hardly depends on it.
#
# The potential of a score is the place on a smoothed ramp of slope :math:`L` where the ramp has that score. The ramp's
# formula is written out, to check it.


def smoothed_ramp(place, lipschitz):
    def integral(t):  # of the normal distribution function
        return t * norm.cdf(t / SIGMA) + SIGMA * norm.pdf(t / SIGMA)

    return lipschitz * (integral(place + 1 / (2 * lipschitz)) - integral(place - 1 / (2 * lipschitz)))


TEMPERATURES = [0.5, 1.0, 8.0] if QUICK else [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0]
options = {"num_classes": 10, "n": N, "alpha": 0.001, "rule": "top_two"}
means, of_input = {}, {}
for t in TEMPERATURES:
    head = rsfast.Softmax(t)
    certificates = rsfast.certify(network, x[test], rsfast.Gaussian(SIGMA), head=head, lipschitz=L / t, seed=2, **options)
    found = of_input[t] = [(place, each) for place, each in enumerate(certificates) if each.prediction != rsfast.ABSTAIN]
    lower, upper = (np.array([getattr(each, name) for _, each in found]) for name in ("p_lower", "p_upper"))
    potential = np.array([each.radius for _, each in found])
    margin = (lower - upper) / (2 * L / t)
    quantiles = SIGMA * (norm.ppf(lower) - norm.ppf(upper)) / 2
    assert (potential >= (1 - 1e-6) * np.maximum(margin, quantiles)).all()
    places = [rsfast.Gaussian(SIGMA).potential(p, L / t) for p in (lower, upper)]
    np.testing.assert_allclose(potential, (places[0] - places[1]) / 2, rtol=1e-6)
    np.testing.assert_allclose([smoothed_ramp(place, L / t) for place in places], [lower, upper], atol=1e-6)
    means[t] = [radii.sum() / TEST for radii in (margin, quantiles, potential)]
for t in (1.0, 8.0):
    record(
        "article",
        f"digits, temperature {t:g}: mean radius of the margin certificate, margin / 2L",
        means[t][0],
        note=f"sigma = {SIGMA}, n = {N:,}",
    )
    record("article", f"digits, temperature {t:g}: mean radius without L, sigma (quantile difference) / 2", means[t][1])
    record(
        "beyond",
        f"digits, temperature {t:g}: mean radius of the exact potential",
        means[t][2],
        note="not below the others, on any input",
    )

# %%
# An attack at the certified radius
# ---------------------------------
# Each input moves by its radius in the direction in which the lead shrinks fastest, stays within
# [0, 1], and is certified anew. Four times the radius shows that the attack can succeed.


def attacked(image, prediction, radius):
    start = image
    for _ in range(10):
        copies = (image + SIGMA * torch.randn(64, *image.shape)).requires_grad_()
        scores = network(copies).softmax(dim=1).mean(dim=0)
        others = scores.clone()
        others[prediction] = 0
        (others.max() - scores[prediction]).backward()
        image = image + radius / 4 * torch.nn.functional.normalize(copies.grad.sum(dim=0).flatten(), dim=0).view_as(image)
        shift = image - start
        image = (start + shift * min(1.0, radius / float(shift.norm()))).clamp(0, 1)
    return image


changed = {}
for times in (1, 4):
    moved = torch.stack([attacked(x[test[place]], each.prediction, times * each.radius) for place, each in of_input[1.0]])
    after = rsfast.certify(network, moved, rsfast.Gaussian(SIGMA), head=rsfast.Softmax(1.0), seed=3, **options)
    changed[times] = sum(
        new.prediction not in (rsfast.ABSTAIN, old.prediction) for new, (_, old) in zip(after, of_input[1.0], strict=True)
    )
attempts = len(of_input[1.0])
record("article", "digits moved by their certified radius: predictions that change", f"{changed[1]} of {attempts}", "0")
record("article", "digits moved by 4 times their certified radius: predictions that change", f"{changed[4]} of {attempts}")

# %%
# The three radii at a glance
# ---------------------------
# Where the softmax is steep, the margin certificate loses to the quantiles, which know the noise. Where it is flat, it wins:
# the quantiles do not know how slowly the scores change. The exact potential knows both.

fig, ax = plt.subplots(figsize=(6.4, 4), layout="constrained")
for label, radii in zip(
    ("margin / 2L", "quantiles, without L", "exact potential"), zip(*means.values(), strict=True), strict=True
):
    ax.semilogx(TEMPERATURES, radii, "o-", base=2, label=label)
ax.set(
    title="The exact potential certifies more than either radius",
    xlabel="temperature of the softmax",
    ylabel="mean certified l2 radius",
)
ax.set(ylim=0)
ax.legend()

# %%
# Checks
# ------
# The slopes are those of sample means, which are L-Lipschitz as the smoothed scores are. A certificate is
# wrong with probability 0.001, and so is that at the moved input.

assert max(smooth) <= max(own) <= L
assert 0.999 < product / 2 / L <= 1, "the layers' norms, and 1/2 for the softmax"
assert means[0.5][0] < means[0.5][1], "where L is large, the margin certificate is the smaller"
assert means[8.0][0] > means[8.0][1], "where L is small, it is the larger"
assert changed[1] == 0
assert changed[4] > 0, "the attack succeeds where nothing is certified"
