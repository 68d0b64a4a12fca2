"""Twins of images: inputs of a few numbers that a trivial classifier votes on as the model votes on the images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from .. import _special
from ..bounds import clopper_pearson_lower
from ..noise import Gaussian
from ..ops.tally import Tally
from ..runs import results
from ..runs.layout import CERTIFY_COLUMNS, COUNTS, read_rows
from ..runs.results import Results
from ..stats.certificate import ABSTAIN

_CLASSES = 16  # of a twin, at most: the first half are the image's, over the others the rest is spread
_GOLDEN = (5**0.5 - 1) / 2  # whose multiples, modulo 1, fill (0, 1) evenly
_APART = 64.0  # standard deviations between the numbers of two twins, which noise so never confuses

Counts = NDArray[np.int64]


class Twins:
    """The twins of images under Gaussian noise, and the classifier that votes on them.

    A twin is an input of two numbers. The first says which twin it is. The second is 0, and where its noise lies decides the
    class: below sigma Phi^-1(p_1) it is class 0, below sigma Phi^-1(p_1 + p_2) class 1, and so on. So a vote for class k has
    probability p_k, as of the image. Of two classes it is the input x = sigma Phi^-1(p) and the sign of x + noise.

    Parameters
    ----------
    shares : float64 array [I, C]
        The probability of each class, at least 2; rows sum to 1.
    sigma : float
        Of the noise.

    Attributes
    ----------
    inputs : Tensor
        float32 [I, 2].
    num_classes : int

    Examples
    --------
    >>> from rsfast import Gaussian, certify
    >>> twins = Twins(np.array([[0.9, 0.1], [0.25, 0.75]]), sigma=0.5)
    >>> found = certify(twins, twins.inputs, Gaussian(0.5), num_classes=2, n=1000, seed=1)
    >>> [certificate.prediction for certificate in found]
    [0, 1]
    """

    def __init__(self, shares: NDArray[np.float64], sigma: float) -> None:
        self.num_classes = shares.shape[1]
        self._apart = _APART * sigma
        inner = np.clip(np.cumsum(shares, axis=1)[:, :-1], 0.0, 1.0)
        self._limits = torch.from_numpy((sigma * _special.ndtri(inner)).astype(np.float32))
        self.inputs = torch.zeros(len(shares), 2)
        self.inputs[:, 0] = self._apart * torch.arange(len(shares))

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        """Return logits [B, C]: 1 for the class, 0 for the others."""
        which = (batch[:, 0] / self._apart).round().long().clamp(0, len(self._limits) - 1)
        classes = (batch[:, 1:] >= self._limits[which]).sum(1)
        return torch.zeros(len(batch), self.num_classes).scatter_(1, classes[:, None], 1.0)


def counts_of(tally: Tally) -> Counts:
    """Return the votes [I, K] of a Tally."""
    return tally.to("cpu").counts[:, :-1].numpy().astype(np.int64)


def posterior(counts: Counts, copies: int) -> NDArray[np.float64]:
    """Return shares of `copies` twins of each image, spread over what its votes leave open.

    Few votes leave a share open, and the samples that a decision takes depend on it steeply. So the first class gets shares
    p from its Jeffreys posterior, Beta(votes + 1/2, others + 1/2): its quantiles at levels that fill (0, 1) evenly over all
    twins. The others divide 1 - p as their votes do; where they have none it goes to one class.

    Parameters
    ----------
    counts : int64 array [I, K]
        Votes, in any order of classes; at least one an image.
    copies : int

    Returns
    -------
    float64 array [I * copies, C]
        Copies of an image follow each other. C is at most 16: the smallest shares are spread evenly over the last classes.

    Examples
    --------
    >>> shares = posterior(np.array([[10, 90]]), 3)
    >>> shares.shape, bool(((shares[:, 0] > 0.75) & (shares[:, 0] < 1)).all())
    ((3, 2), True)
    """
    ordered = -np.sort(-np.asarray(counts, dtype=np.float64), axis=1)
    if ordered.shape[1] > _CLASSES:
        half = _CLASSES // 2
        rest = ordered[:, half:].sum(axis=1, keepdims=True)
        ordered = np.hstack([ordered[:, :half], np.repeat(rest / half, half, axis=1)])
    ordered = np.repeat(ordered, copies, axis=0)
    first, others = ordered[:, 0], ordered[:, 1:]
    total = others.sum(axis=1)
    levels = (np.arange(len(first)) + 0.5) * _GOLDEN % 1
    p = _special.betaincinv(first + 0.5, total + 0.5, levels)
    divided = np.where(total[:, None] > 0, others / np.maximum(total, 1)[:, None], np.eye(1, others.shape[1]))
    return np.hstack([p[:, None], (1 - p)[:, None] * divided])


def counts_from_run(path: str | Path, noise: Gaussian, num_classes: int, *, n: int, alpha: float) -> tuple[Counts, str]:
    """Return votes of the images of a run, and a sentence on where they came from.

    A run folder of rsfast holds them. Any other table has radii. A radius r means that the lower limit of p was
    Phi(r / sigma). The votes are those for which Clopper and Pearson's limit, with n samples and level alpha, is that.

    Parameters
    ----------
    path : path-like
        A run folder of ``rsfast certify``, or a table as `results.read` takes it.
    noise : Gaussian
        That of the run.
    num_classes : int
    n, alpha
        Those of a table that does not state them.

    Raises
    ------
    OSError, ValueError
        If there is no such run, or it has no radii, or other noise.
    """
    run = results.read(path)
    if not run.has_radius:
        raise ValueError(f"from_run {path} must be a run of certify, got one of predict, which has no radius")
    if run.norm not in (None, noise.norm) or run.noise is not None:
        raise ValueError(f"from_run {path} must be a run with Gaussian noise, got one with {run.noise or run.norm}")
    if run.sigma not in (None, noise.sigma):
        raise ValueError(f"from_run {path} must have sigma {noise.sigma}, got {run.sigma}; give --sigma {run.sigma}")
    folder = Path(path)
    if folder.is_dir() and (folder / COUNTS).exists():
        votes = [_votes(row.counts()) for row in read_rows(folder, CERTIFY_COLUMNS)]
        return np.array(votes, dtype=np.int64), f"the votes of {len(votes):,} images in {path}"
    if run.stopping:
        raise ValueError(f"from_run {path} must hold {COUNTS}, as it stopped sampling early and its radii say little of p")
    n, alpha = run.n or n, run.alpha or alpha
    text = f"the radii of {len(run.idx):,} images in {path}, taken to be of n = {n:,} and alpha = {alpha:g}"
    if abstained := int((run.predict == ABSTAIN).sum()):
        text += f" ({abstained:,} abstained: their p is taken to be spread evenly up to 1/2)"
    return _counts_of_radii(run, noise.sigma, num_classes, n, alpha), text


def _votes(counts: dict[str, object]) -> list[int]:
    """Return the votes of an image, over all its sample ranges."""
    ranges = counts["estimation"]
    of_ranges: Sequence[dict[str, list[int]]] = ranges if isinstance(ranges, list) else [ranges]  # type: ignore[list-item]
    return [int(votes) for votes in np.sum([each["counts"] for each in of_ranges], axis=0)[:-1]]


def _counts_of_radii(run: Results, sigma: float, num_classes: int, n: int, alpha: float) -> Counts:
    lower = _special.ndtr(run.radius / sigma)
    low, high = np.zeros(len(lower), dtype=np.int64), np.full(len(lower), n)
    while (low < high).any():  # the fewest votes that prove as much
        middle = (low + high) // 2
        enough = clopper_pearson_lower(middle, n, alpha) >= lower - 1e-9
        low, high = np.where(enough, low, np.minimum(middle + 1, high)), np.where(enough, middle, high)
    counts = np.zeros((len(lower), min(num_classes, _CLASSES)), dtype=np.int64)
    counts[:, 0], counts[:, 1] = low, n - low
    abstained = run.predict == ABSTAIN
    spread = np.linspace(1 / num_classes, 0.5, int(abstained.sum()) + 2)[1:-1]
    counts[abstained, 0] = np.round(spread * n)
    counts[abstained, 1:] = ((n - counts[abstained, 0]) // (counts.shape[1] - 1))[:, None]
    return counts
