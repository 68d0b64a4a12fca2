"""Calls of one kernel for a tool that watches a process: compute-sanitizer takes small ones, Nsight Compute a large one.

    python -m benchmarks.gpu_small perturb|accumulate|"large perturb"|"large accumulate" cuda|triton|cpu

Every small result is compared with backend="cpu"; "all equal" is printed last.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable

import torch

from benchmarks.cases import IMAGES, noises
from benchmarks.gpu_cases import HEADS, Accumulate, Perturb
from benchmarks.gpu_checks import verify
from benchmarks.gpu_measure import arguments, call, check, output
from rsfast import ClippedLogits, Softmax, Sparsemax, Tally, Votes, ops

SHAPES = ((3, 8, 8), (3, 5, 7), (5, 3, 3))  # whole pieces of 16 bytes, none, and other than three channels
CLASSES = (10, 1000, 21_000, 70_000)  # accumulate's kernels: a row a warp, a block, more than shared memory holds
HEADS_OF_EACH_KIND = (Votes(), Softmax(), Softmax(0.25), Sparsemax(), ClippedLogits(-1.0, 1.0))


def small_perturb(backend: str, device: torch.device) -> None:
    """Every draw, both layouts, with and without the options."""
    generator = random.Random(0)
    for shape in SHAPES:
        for name, noise in noises(shape).items() if shape[0] == 3 else [("Gaussian", None)]:
            if noise is not None and noise.parameters(shape).shaper:
                continue
            for dtype, last in (("float32", False), ("bfloat16", False), ("bfloat16", True), ("float32", True)):
                options = {"scale": shape[0] == 3 and last, "clamp": shape == SHAPES[1]}
                case = Perturb("small", 3, shape, dtype, last, name, **options)
                check(case, generator, backend, device, "cpu")


def small_accumulate(backend: str, device: torch.device) -> None:
    """Every kind of head with histograms, few and many classes, rows of two inputs."""
    rows = torch.tensor([0, 1, 1, 0, 1])
    for classes in CLASSES:
        logits = torch.randn(5, classes, generator=torch.Generator().manual_seed(classes)) * 3
        logits[2, 1] = torch.nan
        tracked = torch.arange(2 * 4 * 2).view(2, 4, 2) % classes
        for dtype in (torch.float32, torch.bfloat16):
            found = [Tally(2, classes, HEADS_OF_EACH_KIND, tracked_classes=tracked, device=on) for on in (device, "cpu")]
            for tally, name in zip(found, (backend, "cpu"), strict=True):
                there = tally.n.device
                ops.accumulate(logits.to(there, dtype), tally, rows=rows.to(there), backend=name)
            verify(found[0], found[1], "cpu")


def large_perturb(backend: str, device: torch.device) -> None:
    batch, *shape = IMAGES["ImageNet"]
    case = Perturb("ImageNet", 8 * batch, tuple(shape), "bfloat16", channels_last=True)
    run = call(case, arguments(case, random.Random(0)), output(case, device), backend)
    for _ in range(4):
        run()


def large_accumulate(backend: str, device: torch.device) -> None:
    case = Accumulate(1000, 256, "204 soft heads")
    tally, logits = Tally(1, case.classes, HEADS[case.heads], device=device), torch.randn(case.batch, case.classes)
    for _ in range(4):
        ops.accumulate(logits.to(device), tally, backend=backend)


CALLS: dict[str, Callable[[str, torch.device], None]] = {
    "perturb": small_perturb,
    "accumulate": small_accumulate,
    "large perturb": large_perturb,
    "large accumulate": large_accumulate,
}


def main(what: str, backend: str) -> None:
    CALLS[what](backend, torch.device("cpu" if backend in ("cpu", "reference") else "cuda"))
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    print("all equal")


if __name__ == "__main__":
    main(*sys.argv[1:])
