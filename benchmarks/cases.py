"""What the benchmarks measure with: shapes, networks, and the PyTorch code that each kernel replaces."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from rsfast import Softmax, Sparsemax, Votes
from rsfast.noise import (
    AnisotropicGaussian,
    CorrelatedGaussian,
    Gaussian,
    GridGaussian,
    Laplace,
    Mask,
    Noise,
    Splitting,
    Uniform,
)

SIGMA = 0.25
NOISE = Gaussian(SIGMA)
TIMES_OF_GAUSSIAN = {"Laplace": 1, "Uniform": 1, "GridGaussian": 0.25}  # the least speed, as a part of Gaussian's
IMAGES = {"CIFAR": (1000, 3, 32, 32), "ImageNet": (64, 3, 224, 224)}  # batch, then one input

# The grid of LVM-RS (Delattre et al., "The Lipschitz-Variance-Margin Tradeoff", code of 2025): factors on the logits.
FACTORS = [1.0, *np.linspace(0.1, 50, 100).tolist(), 1e7]
GRID = (Votes(), *(head(1 / factor) for factor in FACTORS for head in (Softmax, Sparsemax)))


def noises(shape: Sequence[int]) -> dict[str, Noise]:
    """Return noises for images [3, H, W]: Gaussian, then one for each way in which the kernels make or apply noise."""
    return {
        "Gaussian": NOISE,
        "Laplace": Laplace(SIGMA),
        "Uniform": Uniform(SIGMA),
        "Splitting": Splitting(SIGMA),
        "GridGaussian": GridGaussian(SIGMA),
        "AnisotropicGaussian": AnisotropicGaussian([SIGMA / 2, SIGMA, 2 * SIGMA]),
        "Mask of elements": Mask(0.25),
        "Mask of patches": Mask(0.25, patch=4),
        "CorrelatedGaussian": CorrelatedGaussian.low_pass(shape, cutoff=0.125, sigma=SIGMA),
    }


def torch_perturb(x: torch.Tensor, batch: int) -> torch.Tensor:
    """Return the noisy batch as the 2019 loop makes it."""
    repeated = x.repeat((batch, 1, 1, 1))
    return repeated + torch.randn_like(repeated) * SIGMA


def torch_grid_perturb(x: torch.Tensor, batch: int, thresholds: Sequence[int]) -> torch.Tensor:
    """Return what GridGaussian makes, with one pass over all words for each level."""
    words = torch.randint(-(1 << 63), (1 << 63) - 1, (batch, *x.shape[1:]))
    magnitudes, levels = words & (1 << 63) - 1, torch.zeros(words.shape, dtype=torch.int16)
    for threshold in thresholds:
        levels += magnitudes < threshold
    return (torch.round(255 * x) + torch.where(words < 0, -levels, levels)) / 255


def torch_sparsemax(logits: torch.Tensor) -> torch.Tensor:
    """Return sparsemax of every row, by sorting (Martins and Astudillo 2016)."""
    logits = logits - logits.max(1, keepdim=True).values
    ordered = logits.sort(dim=1, descending=True).values
    total = ordered.cumsum(1) - 1
    place = torch.arange(1, logits.shape[1] + 1, device=logits.device)
    support = (place * ordered > total).sum(1, keepdim=True)
    return (logits - total.gather(1, support - 1) / support).clamp(min=0)


def torch_accumulate(logits: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return votes, and sums and sums of squares [204, K] of the grid's scores, one map at a time."""
    votes = torch.bincount(logits.argmax(1), minlength=logits.shape[1]).cpu().numpy()
    sums, squares = [], []
    for factor in FACTORS:
        scaled = logits * factor
        for scores in (scaled.softmax(1), torch_sparsemax(scaled)):
            sums.append(scores.sum(0).cpu().numpy())
            squares.append(scores.square().sum(0).cpu().numpy())
    return votes, np.array(sums), np.array(squares)


def torch_votes(model: nn.Module, x: torch.Tensor, n: int, num_classes: int, batch: int) -> torch.Tensor:
    """Return the votes [num_classes] of n noisy copies of x, as a plain loop counts them."""
    votes = torch.zeros(num_classes, dtype=torch.int64)
    for begin in range(0, n, batch):
        noise = torch.randn(min(batch, n - begin), *x.shape)
        votes += torch.bincount(model(x + noise * SIGMA).argmax(1), minlength=num_classes)
    return votes


def cifar_network(num_classes: int = 10, stride: int = 1) -> nn.Sequential:
    """Return an untrained network for images of 3 x 32 x 32: 2.8 million multiply-adds an image, or 0.7 with stride 2."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * (8 // stride) ** 2, num_classes),
    ).eval()


# By name, the stride of `cifar_network`. One thread takes some 65 and 16 us a sample.
STRIDES = {"conv net": 1, "small conv net": 2}
