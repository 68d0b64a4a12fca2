"""The noise of given words as a kernel that Triton compiles, so that a test can compare every word on the device itself."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# The kernels are in Triton's language, which has types of its own.

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .triton_base import OPTIONS, deinterleave, interleave, on
from .triton_noise import words_to_noise

_BLOCKS = 256


@triton.jit
def words_kernel(words_ptr, out_ptr, size, DRAW: tl.constexpr, BLOCKS: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * (4 * BLOCKS) + tl.arange(0, 4 * BLOCKS)
    words = tl.load(words_ptr + place, mask=place < size).to(tl.uint32, bitcast=True)
    z = interleave(words_to_noise(deinterleave(words, 4), DRAW))
    tl.store(out_ptr + place, z, mask=place < size)


def noise_of_words(draw: str, words: torch.Tensor, out: torch.Tensor) -> None:
    """Fill `out`, float32, with the standard noise of the words, int32, of which four are a Philox block.

    Raises
    ------
    triton.CompilationError
        If the draw needs more than the words.
    """
    with on(words.device):
        grid = (triton.cdiv(words.numel(), 4 * _BLOCKS),)
        words_kernel[grid](words, out, words.numel(), DRAW=draw, BLOCKS=_BLOCKS, **OPTIONS)
