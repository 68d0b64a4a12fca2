"""The two fused operations: `perturb` makes a batch of noisy inputs, `accumulate` adds a batch of logits to a Tally.

Here arguments become tensors; then each is one call of a torch operator, ``torch.ops.rsfast.perturb`` or ``accumulate``
(perturbation.py, accumulation.py), which checks them as far as that needs no look at a tensor's values, and picks a backend.
So torch.compile sees one node, a call of the operator itself is checked as well, and a GPU is never waited for.

Operators mutate what they fill and return nothing, so torch.compile, CUDA graphs and fake tensors need to know no more. They
are defined through torch.library.Library: its custom_op decorator costs 50 microseconds a call, as much as a small kernel,
where this costs 4. What a loop over batches calls is past the operator: `perturber` and `accumulator` check once what
`perturb` and `accumulate` check every time.
"""

from ..noise import check_seed
from .accumulation import accumulate, accumulator
from .arguments import affine, as_floats, check_clamp, check_inputs, check_range, check_stream, indices
from .calls import Accumulator, Perturber
from .changes import changed
from .checks import TYPES, as_dtype, memory_format
from .perturbation import perturb, perturber
from .registry import BACKENDS, backend_for

__all__ = [
    "BACKENDS",
    "TYPES",
    "Accumulator",
    "Perturber",
    "accumulate",
    "accumulator",
    "affine",
    "as_dtype",
    "as_floats",
    "backend_for",
    "changed",
    "check_clamp",
    "check_inputs",
    "check_range",
    "check_seed",
    "check_stream",
    "indices",
    "memory_format",
    "perturb",
    "perturber",
]
