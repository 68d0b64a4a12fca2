"""`accumulate`: a batch of logits into a Tally, as a function, for a loop over batches, and as a torch operator."""

from __future__ import annotations

import os
from collections.abc import Sequence
from threading import Lock
from typing import Any

import torch
from torch.autograd.graph import increment_version

from .._check import MAX_SAMPLES
from .arguments import as_indices, check_range
from .calls import Accumulation, Accumulator
from .checks import TYPES, check_apart, require
from .registry import check_backend, find
from .tally import Tally


def accumulate(
    logits: torch.Tensor, tally: Tally, *, rows: torch.Tensor | Sequence[int] | None = None, backend: str = "auto"
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
    On a GPU nothing waits to see whether rows, and the tally's tracked_classes, lie in range and the tally has room. Where
    that is not so, the kernel marks the tally as void, and reading it on the host raises these errors: see `Tally`, n.
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
    _check_tally(tally, backend)
    _check_dense(logits, tally.num_classes)
    if rows is None:
        if tally.num_inputs != 1:
            raise ValueError(f"rows must name the input of each row, of the tally's {tally.num_inputs}, got None")
        rows = torch.zeros(logits.shape[:1], dtype=torch.int64, device=logits.device)
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


def accumulator(tally: Tally, *, backend: str = "auto") -> Accumulator:
    """Return `accumulate` into `tally`, for a loop over batches: what stays the same is checked once, here.

    Parameters
    ----------
    tally, backend
        As in `accumulate`, as are the errors raised.

    Returns
    -------
    callable
        ``add(logits, places)`` adds logits [B, K], which it checks, to the rows ``places[1]`` in [0, I) of the tally, which
        it does not check. `places` is int64 [3, B] on the tally's device, each row contiguous. Nobody else may add to the
        tally meanwhile, nor any of its rows pass 2^33 - 1 samples.

    Examples
    --------
    >>> from rsfast import Tally
    >>> tally = Tally(1, 3)
    >>> accumulator(tally)(torch.tensor([[0.0, 2.0, 1.0]]), torch.zeros(3, 1, dtype=torch.int64))
    >>> tally.counts.tolist()
    [[0, 1, 0, 0]]
    """
    _check_tally(tally, backend)
    device, classes = tally.n.device, tally.num_classes
    held = (tally.n, tally.counts, tally.sums, tally.squares, tally.tracked_classes, tally.bin_counts, tally.bin_sums)
    none = torch.empty(0, dtype=torch.int64, device=device)
    job = Accumulation(torch.empty(0, classes, dtype=torch.float32, device=device), none, tally.parameters, *held)
    job.check()
    add = find(check_backend(backend), device).accumulator(job)

    def checked(logits: torch.Tensor, places: torch.Tensor) -> None:
        _check_dense(logits, classes)
        require("logits", logits, TYPES, (places.shape[1], classes), device, layout=None)
        add(logits.resolve_neg(), places)

    return checked


def _check_dense(logits: object, classes: int) -> None:
    if not isinstance(logits, torch.Tensor) or logits.layout != torch.strided:
        what = f"a {type(logits).__name__}" if not isinstance(logits, torch.Tensor) else logits.layout
        raise TypeError(f"logits must be a dense tensor [B, {classes}], got {what}")


def _check_tally(tally: Tally, backend: str) -> None:
    if not isinstance(tally, Tally):
        raise TypeError(f"tally must be a Tally, got {tally!r}")
    if not tally.compiled and check_backend(backend) != "reference":
        raise ValueError(
            f"backend must be 'reference' for heads that kernels do not know, got {backend!r} and {tally.heads}"
        )


_turns = [Lock() for _ in range(64)]
"""By the address of n: calls on one Tally take turns. Two Tallies that share a lock wait for each other now and then."""
os.register_at_fork(after_in_child=lambda: _turns.__setitem__(slice(None), [Lock() for _ in _turns]))


def _accumulate(*arguments: Any) -> None:
    logits, rows, parameters, backend, *tally = arguments
    job = Accumulation(logits, rows, parameters, *tally)
    job.check()
    backend = find(backend, logits.device)
    if not len(rows):
        return
    written = [("n", job.n), ("counts", job.counts), ("sums", job.sums), ("squares", job.squares)]
    written += [("bin_counts", job.bin_counts), ("bin_sums", job.bin_sums)]
    check_apart(
        written, [("logits", logits), ("rows", rows), ("parameters", parameters), ("tracked_classes", job.tracked_classes)]
    )
    if backend.on_host:
        check_range("rows", rows, job.n.shape[0])
        check_range("tracked_classes", job.tracked_classes, logits.shape[1])
    with _turns[job.n.data_ptr() // 64 % len(_turns)]:
        if backend.on_host and (most := int(job.n.max())) + len(rows) > MAX_SAMPLES:
            raise OverflowError(f"a Tally must hold at most 2^33 - 1 samples of an input, got {most} and {len(rows)} more")
        increment_version([tensor for _, tensor in written])
        backend.kernels.accumulate(job)


def _check_accumulate(*arguments: Any) -> None:
    logits, rows, parameters, backend, *tally = arguments
    Accumulation(logits, rows, parameters, *tally).check()
    if logits.device.type == "meta":
        find(backend, logits.device)


_library: Any = torch.library.Library("rsfast", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define(
    "accumulate(Tensor logits, Tensor rows, Tensor parameters, str backend, Tensor(a!) n, Tensor(b!) counts, "
    "Tensor(c!) sums, Tensor(d!) squares, Tensor tracked_classes, Tensor(e!) bin_counts, Tensor(f!) bin_sums) -> ()"
)
_library.impl("accumulate", _accumulate, "CompositeExplicitAutograd")
torch.library.register_fake("rsfast::accumulate", _check_accumulate, lib=_library)
