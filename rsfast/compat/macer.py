"""MACER's class `Smooth`, which certifies votes, softmax scores or both: change the import line of an existing loop."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from typing_extensions import Unpack

from .._check import as_real, check_choice
from ..engine.forward import Model
from ..engine.inputs import warn_of_units
from ..engine.options import SmoothOptions
from ..heads import Softmax, Votes
from ..heads.bins import UNIT
from ..noise import Noise
from ..stats.rules import CertificationSpec
from . import cohen

MODES = ("hard", "soft", "both")


class Smooth(cohen.Smooth):
    """MACER's class: change the import line of an existing loop, and it draws, counts and bounds here.

    Parameters
    ----------
    base_classifier, num_classes, sigma, seed, **options
        As in `cohen.Smooth`.
    device : torch.device or str
        As there; not used, as noise is made where x is.
    mode : str
        What is averaged: "hard", votes; "soft", ``softmax(beta * logits)``; "both", each for
        itself, from the same samples.
    beta : float
        Inverse temperature of the softmax, positive. The logits are left as they are: the original
        multiplies them in place.
    legacy : bool
        Take the original's bound for soft scores, and its one-vs-rest radius. Its radii are
        smaller, so this warns.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong.

    Notes
    -----
    Soft scores get the betting bound and the rule "auto" of `rsfast.certify`. The original takes
    ``mean - sqrt(2 V ln(2 / alpha) / n) - 7 ln(2 / alpha) / (3 (n - 1))``, V the sample variance.
    That is the one-sided bound of Maurer and Pontil at level alpha: the 2 in its logarithm pays for
    V, and for no second side. `legacy` differs from the original by rounding only, which here goes
    the safe way: the original sums scores in float32.

    In mode "both" each of the two certificates is wrong with probability at most alpha, as in the
    original. They are about two smoothed classifiers. Whoever quotes the better of the two needs
    each at ``alpha / 2``.

    References
    ----------
    Zhai et al., "MACER: Attack-free and Scalable Robust Training via Maximizing Certified Radius",
    2020; github.com/RuntianZ/macer. Maurer and Pontil, "Empirical Bernstein Bounds and Sample
    Variance Penalization", 2009, Theorem 4.

    Examples
    --------
    >>> model = lambda x: torch.stack([x.mean((1, 2, 3)), -x.mean((1, 2, 3))], dim=1)
    >>> smooth = Smooth(model, 2, 0.25, "cpu", mode="both", beta=16.0, seed=1)
    >>> c_hard, r_hard, c_soft, r_soft = smooth.certify(torch.full((1, 2, 2), 0.2), 100, 1000, 0.001, 100)
    >>> c_hard, c_soft, 0 < r_hard <= 0.4, 0 < r_soft <= 0.4
    (0, 0, True, True)
    """

    def __init__(
        self,
        base_classifier: Model,
        num_classes: int,
        sigma: float | Noise,
        device: torch.device | str | None = None,
        mode: str = "hard",
        beta: float = 1.0,
        *,
        legacy: bool = False,
        seed: int | None = None,
        **options: Unpack[SmoothOptions],
    ) -> None:
        super().__init__(base_classifier, num_classes, sigma, seed=seed, **options)
        self.device, self.mode, self.legacy = device, check_choice("mode", mode, MODES), legacy
        self.beta = as_real("beta", beta, above=0)
        if legacy and mode != "hard":
            text = (
                "legacy=True takes MACER's own bound for soft scores: it holds, but its radii are smaller than the default's"
            )
            warnings.warn(text, UserWarning, stacklevel=2)

    @property
    def head(self) -> Softmax:
        """The score of modes "soft" and "both"."""
        return Softmax(1 / self.beta)

    def certify(  # type: ignore[override]
        self, x: torch.Tensor, n0: int, n: int, alpha: float, batch_size: int
    ) -> tuple[int, float] | tuple[int, float, int, float]:
        """Return (class, radius in the noise's norm) at x, with (ABSTAIN, 0.0) where nothing is proved; of "both", four.

        Parameters as in `cohen.Smooth.certify`. Each pair is wrong with probability at most alpha.
        """
        hard = CertificationSpec(self.noise, alpha, Votes(), "clopper_pearson", "one_vs_rest")
        bound, rule = ("empirical_bernstein", "one_vs_rest") if self.legacy else ("auto", "auto")
        soft = CertificationSpec(self.noise, alpha, self.head, bound, rule)
        specs = {"hard": [hard], "soft": [soft], "both": [hard, soft]}[self.mode]
        n0, n = self._check(x, specs[0], n0, n)
        with self._call() as call:
            found = call.certificates(x, specs, n0, n, batch_size)
        first, last = found[0], found[-1]
        if self.mode == "both":
            return first.prediction, first.radius, last.prediction, last.radius
        return first.prediction, first.radius

    def predict(  # type: ignore[override]
        self, x: torch.Tensor, n: int, batch_size: int
    ) -> int | tuple[int, int]:
        """Return the class with the largest score in n samples of x, of "both" (by votes, by softmax); nothing is proved."""
        warn_of_units(x, self.noise, stacklevel=2)
        with self._call() as call:
            call.stream = "estimation"
            found = self._sample_noise(x, n, batch_size)
        if isinstance(found, tuple):
            return int(found[0].argmax()), int(found[1].argmax())
        return int(found.argmax())

    def _sample_noise(  # type: ignore[override]
        self, x: torch.Tensor, num: int, batch_size: int
    ) -> NDArray[Any] | tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the votes or the sums of scores [num_classes] of num further samples, or both."""
        if self.mode == "hard":
            return super()._sample_noise(x, num, batch_size)
        tally = self._tally(x, num, batch_size, (self.head,)).to("cpu")
        votes: NDArray[np.int64] = tally.counts[0, :-1].numpy()
        scores: NDArray[np.float64] = tally.sums[0, 0].numpy() / float(UNIT)
        return scores if self.mode == "soft" else (votes, scores)
