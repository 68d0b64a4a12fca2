"""The Triton backend: the operations as GPU kernels that Triton compiles, for NVIDIA and AMD alike.

The arithmetic is that of csrc/noise.h, perturb.h and accumulate.h, under the same names and in the same order of
operations: `tl.fma` stands where the C++ says `fused`, and the compiler may contract nothing else (triton_base.OPTIONS).
Nothing here looks at a tensor's values from the host, allocates or waits, so calls may be captured in a CUDA graph.
"""

from .triton_accumulate import accumulate
from .triton_perturb import perturb
from .triton_words import noise_of_words

__all__ = ["accumulate", "noise_of_words", "perturb"]
