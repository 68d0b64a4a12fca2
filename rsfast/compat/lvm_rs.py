"""LVM-RS's class `Smooth`, which tries temperatures and maps: change the import line of an existing loop."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from typing_extensions import Unpack

from .._check import check_count
from ..engine.forward import Model
from ..engine.inputs import warn_of_units
from ..engine.options import SmoothOptions
from ..heads import Head, Softmax, Sparsemax, Votes
from ..noise import Noise
from ..ops.tally import check_heads
from ..stats import rules
from ..stats.bounds.clopper_pearson import clopper_pearson_lower, clopper_pearson_upper
from ..stats.bounds.empirical_bernstein import empirical_bernstein_lower, empirical_bernstein_upper
from ..stats.certificate import ABSTAIN
from ..stats.common import check_alpha
from ..stats.estimates import Scores
from ..stats.rules import CertificationSpec
from . import denoised

FACTORS = (1.0, *np.linspace(0.1, 50, 100).tolist(), 1e7)
"""What the original multiplies logits by."""

HEADS: tuple[Head, ...] = (Votes(), *(head(1 / factor) for head in (Sparsemax, Softmax) for factor in FACTORS))
"""What the original averages: votes, and Sparsemax and Softmax at 102 temperatures."""


class Smooth(denoised.Smooth):
    """LVM-RS's class: change the import line of an existing loop, and it draws, counts and bounds here.

    Parameters
    ----------
    base_classifier, num_classes, sigma, noisy, seed, **options
        As in `denoised.Smooth`.
    t : object
        The time, if the base classifier is called with one and draws its noise itself, as the
        original's diffusion models do. None: it is called with a batch only, and noise is added
        here.
    heads : sequence of Head
        To choose from; by default those of the original, `HEADS`. To deploy one head, choose it
        with `rsfast.tune_head` and pass a list of that one.
    legacy : bool
        Return the original's number: the largest of all radii from one sample. **It is no
        certificate**, and warns so.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong.

    Warns
    -----
    UserWarning
        With `legacy`, when the object is made.

    Notes
    -----
    `certify_ours` chooses the head on the n0 selection samples: the one for which they forecast the
    largest radius. Class and radius then come from n other samples, once, at level alpha. The
    certificate is about the classifier that is smoothed with that head. The original ignores n0 and
    takes the largest of 409 radii on the n samples, each at level alpha. Nothing keeps the error of
    the largest below alpha, and it is about another classifier for each input.

    The 409 are one of votes (Clopper-Pearson at ``alpha / num_classes`` for each class), and two of
    each of 204 scores (empirical Bernstein, likewise): ``sigma / 2 (Phi^-1(pA) - Phi^-1(pB))`` and
    ``sigma sqrt(pi / 2) (pA - pB)``. The second is never the larger where it is positive, as Phi^-1
    is nowhere flatter than sqrt(2 pi); so `legacy` leaves it out. It takes one sample variance,
    where the original averages those of batches, and keeps limits in [0, 1].

    References
    ----------
    Delattre, Araujo, Barthélemy and Allauzen, "The Lipschitz-Variance-Margin Tradeoff for Enhanced
    Randomized Smoothing", 2024.

    Examples
    --------
    >>> model = lambda x: torch.stack([x.mean((1, 2, 3)), -x.mean((1, 2, 3))], dim=1)
    >>> smooth = Smooth(model, 2, 0.25, t=None, seed=1)
    >>> prediction, radius = smooth.certify_ours(torch.full((1, 2, 2), 0.2), 100, 1000, 0.001, 100)
    >>> prediction, 0 < radius <= 0.4
    (0, True)
    """

    def __init__(
        self,
        base_classifier: denoised.TimedModel | Model,
        num_classes: int,
        sigma: float | Noise,
        t: Any = None,
        *,
        heads: Sequence[Head] = HEADS,
        legacy: bool = False,
        noisy: denoised.TimedModel | None = None,
        seed: int | None = None,
        **options: Unpack[SmoothOptions],
    ) -> None:
        super().__init__(base_classifier, num_classes, sigma, t, noisy=noisy, seed=seed, **options)
        self.heads, self.legacy = check_heads(heads), legacy
        if legacy:
            warnings.warn(
                "legacy=True returns the largest of many radii from one sample, as LVM-RS does: that is no certificate, as "
                "nothing keeps its error below alpha; leave legacy out for one that holds",
                UserWarning,
                stacklevel=2,
            )

    def certify_ours(self, x: torch.Tensor, n0: int, n: int, alpha: float, batch_size: int) -> tuple[int, float]:
        """Return (class, radius in the noise's norm) at x, or (ABSTAIN, 0.0); wrong with probability at most alpha.

        Parameters as in `cohen.Smooth.certify`. With `legacy` n0 is ignored, and alpha bounds
        nothing.
        """
        if self.legacy:
            return self._largest(x, n, alpha, batch_size)
        specs = [CertificationSpec(self.noise, alpha, head) for head in self.heads]
        n0, n = self._check(x, specs[0], n0, n)
        with self._call() as call:
            call.stream = "selection"
            selection = self._tally(x, n0, batch_size, self.heads)
            best = rules.predicted_radii(selection, specs, n)[:, 0].argmax()
            [found] = call.certificates(x, [specs[best]], n0, n, batch_size)
        return found.prediction, found.radius

    def predict_ours(self, x: torch.Tensor, n: int, alpha: float, batch_size: int) -> int:
        """Return the class at x by votes, as `predict` does; with `legacy` that of the largest radius, or ABSTAIN."""
        return self._largest(x, n, alpha, batch_size)[0] if self.legacy else self._predicted(x, n, alpha, batch_size)

    def _largest(self, x: torch.Tensor, n: int, alpha: float, batch_size: int) -> tuple[int, float]:
        """Return the class and the largest radius of all heads, all from the same n samples."""
        n, share = check_count("n", n), check_alpha(alpha) / self.num_classes
        warn_of_units(x, self.noise, stacklevel=3)
        with self._call() as call:
            call.stream = "estimation"
            tally = self._tally(x, n, batch_size, self.heads)
        votes = Scores.of(tally, Votes()).sums
        lower, upper = clopper_pearson_lower(votes, n, share), clopper_pearson_upper(votes, n, share)
        if tally.soft_heads:
            low, high, variance = Scores.of(tally, *tally.soft_heads).moments()
            lower = np.vstack([lower, empirical_bernstein_lower(low, variance, n, share)])
            upper = np.vstack([upper, empirical_bernstein_upper(high, variance, n, share)])
        radii = rules.radius(self.noise, lower.max(axis=1), np.sort(upper, axis=1)[:, -2])
        best = radii.argmax()
        return (int(lower[best].argmax()), float(radii[best])) if radii[best] >= 0 else (ABSTAIN, 0.0)
