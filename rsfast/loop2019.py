"""The certification loop of 2019, against which rsfast is timed."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

import numpy as np
import torch
from numpy.typing import NDArray

from .stats.certificate import ABSTAIN

BATCH = 1000
"""The default batch of Cohen et al.'s certify.py."""


class Loop2019:
    """The certification loop that people run today, after Cohen et al.'s core.py: the baseline of what is timed.

    Kept plain on purpose: a copy of x for every sample, a pass over the batch for the noise, one for its scale and one for
    the sum, a vote counted at a time on the host.
    """

    def __init__(self, base_classifier: Callable[[torch.Tensor], torch.Tensor], num_classes: int, sigma: float) -> None:
        from scipy.stats import beta, norm  # half a second, which only what is timed against this loop may cost

        self.base_classifier, self.num_classes, self.sigma = base_classifier, num_classes, sigma
        self.beta, self.norm = beta, norm

    def certify(self, x: torch.Tensor, n0: int, n: int, alpha: float, batch_size: int) -> tuple[int, float]:
        """Return (class, radius), or (ABSTAIN, 0.0)."""
        chosen = int(self.sample_noise(x, n0, batch_size).argmax())
        votes = int(self.sample_noise(x, n, batch_size)[chosen])
        p_lower = float(self.beta.ppf(alpha, votes, n - votes + 1))
        return (chosen, self.sigma * float(self.norm.ppf(p_lower))) if p_lower >= 0.5 else (ABSTAIN, 0.0)

    def sample_noise(self, x: torch.Tensor, num: int, batch_size: int) -> NDArray[np.int64]:
        """Return the votes [num_classes] of num noisy copies of x."""
        counts = np.zeros(self.num_classes, dtype=np.int64)
        with torch.no_grad():
            for _ in range(ceil(num / batch_size)):
                this_batch_size = min(batch_size, num)
                num -= this_batch_size
                batch = x.repeat((this_batch_size, *[1] * x.ndim))
                noise = torch.randn_like(batch) * self.sigma
                for label in self.base_classifier(batch + noise).argmax(1).cpu().numpy():
                    counts[label] += 1
        return counts
