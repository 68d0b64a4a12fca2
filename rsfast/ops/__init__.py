"""The two fused operations: `perturb` makes a batch of noisy inputs, `accumulate` adds a batch of logits to a Tally.

Here arguments become tensors; then each is one call of a torch operator, ``torch.ops.rsfast.perturb`` or ``accumulate``
(perturbation.py, backends.py), which checks them as far as that needs no look at a tensor's values, and picks a backend. So
torch.compile sees one node, a call of the operator itself is checked as well, and a GPU is never waited for.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..noise import check_seed
from . import backends  # noqa: F401  (which defines the operator)
from .arguments import affine, as_indices, check_clamp, check_inputs, check_stream, indices
from .checks import TYPES, as_dtype, memory_format
from .perturbation import perturb
from .registry import BACKENDS, backend_for, check_backend
from .tally import Tally, check_range

__all__ = [
    "BACKENDS",
    "TYPES",
    "accumulate",
    "affine",
    "as_dtype",
    "backend_for",
    "check_clamp",
    "check_inputs",
    "check_range",
    "check_seed",
    "check_stream",
    "indices",
    "memory_format",
    "perturb",
]


def accumulate(
    logits: torch.Tensor,
    tally: Tally,
    *,
    rows: torch.Tensor | Sequence[int] | None = None,
    backend: str = "auto",
) -> None:
    """Add a batch of logits to `tally`: one vote a row, and the scores of every soft head, in one pass.

    Where the tally tracks classes, their scores go into its histograms, too.

    Parameters
    ----------
    logits : tensor [B, K], float32, float16, bfloat16 or float64, any strides
        K is tally.num_classes. Never modified.
    tally : Tally
        Updated in place. On the device of the logits.
    rows : int64 tensor [B], optional
        Which input of the tally each row belongs to. May be left out where the tally has one input.
    backend : str
        "auto", "cuda", "triton", "cpu" or "reference".

    Raises
    ------
    TypeError, ValueError
        Naming the argument, what it was and what it must be.
    OverflowError
        If an input could pass 2^33 - 1 samples, where its sums could overflow.

    Notes
    -----
    On a GPU as `perturb`: rows out of range, and a tally that is full, stop the program with a device-side assertion.
    Threads may add to one tally: their calls, also of the operator itself, take turns. Reading it meanwhile is not safe.

    Numerics: logits become float32 first, which makes infinities of float64 values beyond it. A row votes if it holds no NaN
    and its maximum is finite: a logit of -inf masks its class, which gets no vote and a score of 0. Any other row counts in
    n and in the last of counts, votes for no class and adds no score (in histograms one of 0). Ties go to the lowest class.
    Scores are integers in units of 2^-30, rounded down; squares are rounded up. Within a row sums are of integers in units
    of 2^-40, so every backend gives the same Tally.

    Examples
    --------
    >>> from rsfast import Tally
    >>> tally = Tally(1, 3)
    >>> accumulate(torch.tensor([[0.0, 2.0, 1.0], [5.0, 2.0, 1.0]]), tally)
    >>> tally.counts.tolist()
    [[1, 1, 0, 0]]
    """
    if not isinstance(tally, Tally):
        raise TypeError(f"tally must be a Tally, got {tally!r}")
    if not isinstance(logits, torch.Tensor) or logits.layout != torch.strided:
        what = f"a {type(logits).__name__}" if not isinstance(logits, torch.Tensor) else logits.layout
        raise TypeError(f"logits must be a dense tensor [B, {tally.num_classes}], got {what}")
    if rows is None:
        if tally.num_inputs != 1:
            raise ValueError(f"rows must name the input of each row, of the tally's {tally.num_inputs}, got None")
        rows = torch.zeros(logits.shape[:1], dtype=torch.int64, device=logits.device)
    if not tally.compiled and check_backend(backend) != "reference":
        raise ValueError(
            f"backend must be 'reference' for heads that kernels do not know, got {backend!r} and {tally.heads}"
        )
    torch.ops.rsfast.accumulate(
        logits.detach().resolve_neg(),
        as_indices("rows", rows, tally.num_inputs, logits.device),
        tally.parameters,
        check_backend(backend),
        tally.n,
        tally.counts,
        tally.sums,
        tally.squares,
        tally.tracked_classes,
        tally.bin_counts,
        tally.bin_sums,
    )
