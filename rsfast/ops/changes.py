"""`changed`: how many evaluations of deterministic noise differ between two inputs, in any bit that the classifier sees."""

from __future__ import annotations

from typing import Any

import torch

from ..noise import Noise, check_noise
from .arguments import check_inputs
from .perturbation import perturb

_ELEMENTS = 1 << 22  # of a batch


def changed(x: torch.Tensor, other: torch.Tensor, noise: Noise, *, seed: int = 0, **preparation: Any) -> int:
    """Return how many evaluations of deterministic noise show the classifier another input, in any bit.

    An exact certificate of x with the votes ``a, b = certificate.counts`` holds at `other` if ``a - b > 2 changed``. The
    norm of the noise plays no part: the votes of all other evaluations are the same. With `SubspaceSmoothing` that is
    ``changed <= certificate.radius``. This compares what is computed, and `Noise.size` is about real numbers.

    Parameters
    ----------
    x, other : float32 tensor ``[*shape]``
        The input that is certified, and the one that is compared.
    noise : Noise
        Deterministic: its `evaluations` is a number.
    seed : int
        That of the certificate.
    **preparation
        ``scale``, ``shift``, ``clamp``, ``dtype`` and so on, as in `perturb`, and as they were for the certificate.

    Returns
    -------
    int
        From 0 to ``noise.evaluations``.

    Raises
    ------
    TypeError, ValueError
        If noise is random, or x and other are not two inputs of one shape.

    Examples
    --------
    >>> from rsfast import SubspaceSmoothing
    >>> halves = SubspaceSmoothing(torch.eye(4).view(2, 2, 4).numpy())
    >>> changed(torch.zeros(4), torch.tensor([0.0, 0.0, 7.0, 0.0]), halves)
    1
    """
    x, other = check_inputs("x", x, single=True), check_inputs("other", other, single=True)
    if x.shape != other.shape:
        raise ValueError(f"other must have the shape of x, {list(x.shape)}, got {list(other.shape)}")
    if (n := check_noise("noise", noise).evaluations) is None:
        raise ValueError(f"noise must be deterministic, got {noise!r:.100}")
    step, found = max(1, _ELEMENTS // x.numel()), 0
    for start in range(0, n, step):
        samples = torch.arange(start, min(start + step, n), device=x.device)
        given: dict[str, Any] = {"seed": seed, "samples": samples, "input_ids": [0], **preparation}
        ours, theirs = (perturb(each[None], noise, **given).flatten(1).view(torch.uint8) for each in (x, other))
        found += int((ours != theirs).any(dim=1).sum())
    return found
