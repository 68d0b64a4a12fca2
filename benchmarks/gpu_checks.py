"""What is right: bits that are equal to another backend's, the self-test's checksums, and those of all 2^32 words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.gpu_sections import Job
from benchmarks.report import FAILED, PASSED, Row
from rsfast import Tally, doctor
from rsfast.ops import words


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """Return the bits of a tensor of floats as integers."""
    return tensor.view({2: torch.int16, 4: torch.int32}[tensor.element_size()])


def difference(found: Any, expected: Any) -> str:
    """Return how two tensors differ in their bits, or two Tallies in their integers; "" if they do not."""
    if isinstance(expected, Tally):
        names = ("n", "counts", "sums", "squares", "bin_counts", "bin_sums")
        return ", ".join(
            name for name in names if not torch.equal(getattr(found, name).cpu(), getattr(expected, name).cpu())
        )
    if (found.dtype, found.shape, found.stride()) != (expected.dtype, expected.shape, expected.stride()):
        return f"{found.dtype} {list(found.shape)} of strides {found.stride()}"
    wrong = bits(found) != bits(expected.to(found.device))
    count = int(wrong.sum())
    place = int(wrong.flatten().to(torch.uint8).argmax())
    return f"{count} elements, such as {place}; {int(found.isnan().sum())} are NaN" if count else ""


def verify(found: Any, expected: Any, oracle: str) -> None:
    """Raise if the result is another than the oracle's."""
    if wrong := difference(found, expected):
        raise ArithmeticError(f"differs from backend={oracle!r}: {wrong}")


def checksums(job: Job) -> None:
    """The self-test, and all 2^32 words of every draw that is a function of single words; a slice in a dry run."""
    device = "cpu" if job.dry else "cuda"

    def self_test() -> Iterator[Row]:
        text, healthy = doctor.report()
        print(text)
        yield Row(
            "doctor", status=PASSED if healthy else FAILED, note=next((x for x in text.split("\n") if "FAIL" in x), "")
        )

    def all_words() -> Iterator[Row]:
        for name in words.SWEEPS:
            if job.dry:
                wrong = words.first_difference(name, 0, 1 << 12, backend="reference", device=device)
                note = "" if wrong is None else f"first wrong: {wrong}"
                yield Row(f"words of {name}", status=FAILED if note else PASSED, note=note)
            else:
                equal = words.sweep(name, backend=job.backend, device=device) == words.SWEEPS[name].checksum
                where = "" if equal else words.first_difference(name, 0, 1 << 24, backend=job.backend, device=device)
                note = "" if equal else f"first wrong of 2^24: {where}"
                yield Row(f"all 2^32 words of {name}", status=PASSED if equal else FAILED, note=note)

    if job.backend != "triton":  # the doctor tests every backend
        job.run("doctor", self_test)
    job.run("all words", all_words)
