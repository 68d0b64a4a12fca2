"""Input-specific sampling (ISS): an input gets as many samples as a small loss of radius allows.

The functions of its script, `_sample_noise`, `_lower_confidence_bound`, `generate_iss` and `find_opt_batchnum`, are imported
from here instead of defined there. `certify` is a call instead of the script's loop, with fewer samples.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from typing_extensions import Unpack

from .. import api
from .._check import as_int, as_real, check_choice, check_count
from ..engine.forward import Model
from ..engine.options import SmoothOptions
from ..noise import Gaussian
from ..ops.tally import check_classes
from ..stats import rules
from ..stats.bounds.beta_binomial import beta_binomial_sequence_lower
from ..stats.bounds.clopper_pearson import clopper_pearson_lower, clopper_pearson_upper
from ..stats.certificate import ABSTAIN
from ..stats.common import check_alpha
from ._shared import seed_or_random
from .cohen import one_input

LOSS_TYPES = ("absolute", "relative")

_SHARES = np.arange(501) * 0.001 + 0.5
"""Shares of votes that samples are planned for."""


def certify(
    base_classifier: Model,
    num_classes: int,
    x: torch.Tensor,
    sigma: float,
    n0: int,
    max_size: int,
    batch_size: int,
    alpha: float,
    max_loss: float,
    loss_type: str,
    *,
    seed: int | None = None,
    input_id: int = 0,
    **options: Unpack[SmoothOptions],
) -> tuple[int, float, int, float]:
    """Return (class, lower bound on its probability, samples, l2 radius) at x, or -1 and radius 0 where nothing is proved.

    What the script of ISS writes into the columns predict, pA, samplesize and radius.

    Parameters
    ----------
    base_classifier : callable
        From a batch ``[B, *shape]`` to logits [B, num_classes].
    x : float32 tensor [C, H, W], [1, C, H, W], [H, W] or [D]
    sigma : float
        Standard deviation of the noise, in the units of x.
    n0 : int
        Samples that choose the class.
    max_size : int
        The most samples that bound it.
    batch_size : int
    alpha : float
        Failure probability, in (0, 1).
    max_loss : float
        How much smaller the radius may be than with all samples: in the units of x, or as a share of it, below 1.
    loss_type : str
        "absolute" or "relative".
    seed : int, optional
        In [0, 2^64); drawn from the operating system if left out.
    input_id : int
        Place in the noise stream, in [0, 2^32): another for each input, where the seed is the same.
    **options
        scale, shift, clamp, dtype, channels_last, backend and progress, as in `rsfast.sample`.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong.

    Notes
    -----
    It is `rsfast.certify` with ``rtol=``: a relative loss as it is, an absolute one over the largest radius that the
    selection sample leaves likely. A confidence sequence says when the loss is small enough, so no plan is needed. The
    samples that are returned are those that chose the class and those that bound it.

    References
    ----------
    Chen, Li, Yan, Li and Sheng, "Input-Specific Robustness Certification for Randomized Smoothing", 2022;
    github.com/roy-ch/Input-Specific-Certification.

    Examples
    --------
    >>> model = lambda x: torch.stack([x.mean((1, 2, 3)), -x.mean((1, 2, 3))], dim=1)
    >>> x, sizes = torch.full((1, 2, 2), 0.2), {"n0": 200, "max_size": 100_000, "batch_size": 200}
    >>> found = certify(model, 2, x, 0.25, **sizes, alpha=0.001, max_loss=0.1, loss_type="relative", seed=1)
    >>> prediction, p_lower, samples, radius = found
    >>> prediction, 0.8 < p_lower < 0.95, samples < 10_000, 0.3 < radius < 0.4
    (0, True, True, True)
    """
    check_choice("loss_type", loss_type, LOSS_TYPES)
    below = 1 if loss_type == "relative" else None
    n0, max_size, batch_size = (
        check_count(name, size) for name, size in (("n0", n0), ("max_size", max_size), ("batch_size", batch_size))
    )
    alpha, max_loss, noise = check_alpha(alpha), as_real("max_loss", max_loss, above=0, below=below), Gaussian(sigma)
    row = one_input(x, noise)
    shared: dict[str, Any] = {"model": base_classifier, "inputs": row, "noise": noise, "num_classes": num_classes, **options}
    shared |= {"seed": seed_or_random(seed), "batch_size": batch_size, "input_ids": [input_id]}
    rtol = max_loss
    if loss_type == "absolute":
        selected = int(api.sample(**shared, n=n0, stream="selection").to("cpu").counts[0, :-1].max())
        likely = float(clopper_pearson_upper(selected, n0, alpha / 2))
        most = float(_radii(sigma, likely, max_size, alpha))
        if most <= max_loss:
            # The votes that choose the class also bound it, so that each class must have its share of alpha.
            return ABSTAIN, float(clopper_pearson_lower(selected, n0, alpha / num_classes)), n0, 0.0
        rtol = max_loss / most
    [found] = api.certify(**shared, n0=n0, n=max_size, alpha=alpha, rtol=rtol, rule="one_vs_rest")
    return found.prediction, found.p_lower, n0 + found.n, found.radius


def _radii(sigma: float, share: Any, size: Any, alpha: float) -> NDArray[np.float64]:
    """Return the radii that follow where the class gets this share of the votes, rounded down; 0 where there is none."""
    size = np.asarray(size, dtype=np.int64)
    votes = np.floor(np.minimum(share, 1.0) * size + 1e-6).astype(np.int64)
    lower = np.where(size > 0, clopper_pearson_lower(votes, np.maximum(size, 1), alpha), 0.0)
    return np.maximum(rules.radius(Gaussian(sigma), lower, 1 - lower), 0.0)


def generate_iss(
    loss: float, batch_size: int, upper: int, sigma: float, alpha: float, loss_type: str
) -> Mapping[float, int]:
    """Return, by the share of votes, the fewest batches whose radius is at most `loss` smaller than that of `upper` batches.

    Parameters
    ----------
    loss : float
        In the units of x, or a share of the radius.
    batch_size, upper : int
        Samples in a batch, and the most batches.
    sigma, alpha : float
        As in `certify`.
    loss_type : str
        "absolute" or "relative".

    Returns
    -------
    mapping of float to int
        For the shares 0.5, 0.501 ... 1: batches, and 0 where no radius is left.

    Examples
    --------
    >>> plan = generate_iss(0.05, 200, 500, 0.25, 0.001, "absolute")
    >>> plan[0.5], 0 < plan[0.9] < 50, len(plan)
    (0, True, 501)
    """
    check_choice("loss_type", loss_type, LOSS_TYPES)
    batch_size, upper = check_count("batch_size", batch_size), check_count("upper", upper)
    return _plan(float(loss), batch_size, upper, float(sigma), check_alpha(alpha), loss_type)


@lru_cache(maxsize=16)
def _plan(loss: float, batch_size: int, upper: int, sigma: float, alpha: float, loss_type: str) -> Mapping[float, int]:
    most = _radii(sigma, _SHARES, upper * batch_size, alpha)
    wanted = most - loss if loss_type == "absolute" else most * (1 - loss)
    low, high = np.zeros(len(_SHARES), dtype=np.int64), np.full(len(_SHARES), upper)  # high is enough, low is not
    while (high - low > 1).any():
        middle = (low + high) // 2
        enough = _radii(sigma, _SHARES, middle * batch_size, alpha) >= wanted
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return dict(zip(_SHARES.tolist(), np.where(wanted > 0, high, 0).tolist(), strict=True))


def find_opt_batchnum(iss: Mapping[float, int], pa_lower: float, pa_upper: float) -> int:
    """Return the most batches that are planned for a share next to an end of this interval.

    Examples
    --------
    >>> find_opt_batchnum({0.5: 0, 0.75: 9, 1.0: 2}, 0.6, 0.9)
    9
    """
    shares, batches = np.array(list(iss)), list(iss.values())
    found = 0
    for end in (pa_lower, pa_upper):
        place = int(np.searchsorted(shares, min(max(end, 0.0), float(shares[-1]))))
        found = max(found, batches[max(0, place - 1)], batches[place])
    return found


def _sample_noise(
    base_classifier: Model,
    num_classes: int,
    x: torch.Tensor,
    sigma: float,
    batchnum: int,
    batch_size: int,
    *,
    seed: int | None = None,
    input_id: int = 0,
    start: int = 0,
    **options: Unpack[SmoothOptions],
) -> NDArray[np.int64]:
    """Return the votes [num_classes] of ``batchnum * batch_size`` samples of x.

    Parameters
    ----------
    batchnum : int
        At least 0.
    seed, input_id, start : int
        Place in the noise stream; the seed is drawn from the operating system if left out.
    base_classifier, num_classes, x, sigma, batch_size, **options
        As in `certify`.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong. The script asks for a negative number of batches where the first sample had more than are
        planned for all.

    Examples
    --------
    >>> model = lambda x: torch.stack([x.mean((1, 2, 3)), -x.mean((1, 2, 3))], dim=1)
    >>> _sample_noise(model, 2, torch.full((1, 2, 2), 0.5), 0.25, 3, 100).sum()
    np.int64(300)
    """
    if (batchnum := as_int("batchnum", batchnum)) < 0:
        raise ValueError(
            f"batchnum must be at least 0, got {batchnum}; where fewer batches are planned than chose the class, take a "
            "smaller n0"
        )
    noise = Gaussian(sigma)
    row, batch_size = one_input(x, noise), check_count("batch_size", batch_size)
    if not batchnum:
        return np.zeros(check_classes(num_classes), dtype=np.int64)
    where: dict[str, Any] = {"seed": seed_or_random(seed), "input_ids": [input_id], "start": start, **options}
    tally = api.sample(
        base_classifier, row, noise, num_classes=num_classes, n=batchnum * batch_size, batch_size=batch_size, **where
    )
    votes: NDArray[np.int64] = tally.to("cpu").counts[0, :-1].numpy()
    return votes


def _lower_confidence_bound(NA: int, N: int, alpha: float, *, legacy: bool = False) -> float:
    """Return a lower bound on the probability of a class with NA votes of N, for a class and an N that the votes may choose.

    A radius that the script derives from it is wrong with probability at most alpha, although the script chooses the class
    and plans N on votes that it counts again.

    Parameters
    ----------
    NA, N : int
    alpha : float
        In (0, 1).
    legacy : bool
        Return the Clopper-Pearson bound at alpha, as the script does, and warn: the radius is then no certificate.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong.

    Notes
    -----
    It is `sequences.beta_binomial_sequence_lower` at alpha / 3, which holds for every N at once. Only bounds above 1/2 give
    a radius. If a class A has probability 1/2 or more, votes for another class are at most those not for A. So a bound on A
    and one on another class are wrong only if a side of one martingale is, with probability alpha / 3. If no class has, all
    classes fall into three groups of probability at most 1/2: add classes to a group as long as that holds, then take one
    class, then the rest. A bound above 1/2 on a class is one on its group, and three are wrong with probability alpha.

    Examples
    --------
    >>> 0.85 < _lower_confidence_bound(960, 1000, 0.001) < 0.96
    True
    """
    if not legacy:
        return float(beta_binomial_sequence_lower(NA, N, check_alpha(alpha) / 3))
    warnings.warn(
        "legacy is True: the bound holds for a class and a number of samples that were fixed before, so the radius is no "
        "certificate; leave it False for one",
        UserWarning,
        stacklevel=2,
    )
    return float(clopper_pearson_lower(NA, N, alpha))
