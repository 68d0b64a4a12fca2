"""rsfast: randomized-smoothing certificates as fast as the classifier runs. docs/quickstart.md is the place to begin."""

from __future__ import annotations

import sys

if (
    sys.argv[:1] == ["-m"]
    and sys.orig_argv[-len(sys.argv)].removeprefix("-m") == __name__
    and not getattr(sys.flags, "safe_path", sys.flags.isolated)  # Python 3.10 has no -P, only -I
):
    # `python -m rsfast` puts the working directory first, where a user's profile.py or random.py would hide the standard
    # library's from NumPy, PyTorch and us. The command `rsfast` does not; for --model it is then appended, with either.
    del sys.path[0]

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import bounds, heads, noise, sequences
from ._versions import __version__ as __version__
from .heads import ClippedLogits, Softmax, Sparsemax, Votes
from .noise import (
    STREAM_VERSION,
    AnisotropicGaussian,
    CorrelatedGaussian,
    Gaussian,
    GridGaussian,
    HaarSubspaces,
    Laplace,
    Mask,
    Splitting,
    SubspaceGaussian,
    SubspaceSmoothing,
    Uniform,
)
from .noise.provenance import Provenance
from .stats.certificate import ABSTAIN, Certificate, Execution, to_frame
from .stats.estimates import leading_classes
from .stats.prediction import predictions
from .stats.proof import certificates, exact_certificates

if TYPE_CHECKING:
    from . import nn, ops, results
    from .api import certify, certify_each, predict, sample, tune_head
    from .compat.cohen import Smooth
    from .engine.inputs import Unreadable
    from .incremental import compare
    from .lipschitz import lipschitz_bound
    from .loading.data import load_data
    from .loading.models import load_model
    from .ops.tally import Tally
    from .runs.run import Run
    from .smoothing import smoothed

__all__ = [
    "ABSTAIN",
    "STREAM_VERSION",
    "AnisotropicGaussian",
    "Certificate",
    "ClippedLogits",
    "CorrelatedGaussian",
    "Execution",
    "Gaussian",
    "GridGaussian",
    "HaarSubspaces",
    "Laplace",
    "Mask",
    "Provenance",
    "Run",
    "Smooth",
    "Softmax",
    "Sparsemax",
    "Splitting",
    "SubspaceGaussian",
    "SubspaceSmoothing",
    "Tally",
    "Uniform",
    "Unreadable",
    "Votes",
    "bounds",
    "certificates",
    "certify",
    "certify_each",
    "compare",
    "exact_certificates",
    "heads",
    "leading_classes",
    "lipschitz_bound",
    "load_data",
    "load_model",
    "nn",
    "noise",
    "ops",
    "predict",
    "predictions",
    "results",
    "sample",
    "sequences",
    "smoothed",
    "to_frame",
    "tune_head",
]

# What needs torch, or reads files, is imported when it is first used, so that rsfast.bounds and others do without it.
_NEEDS_TORCH = {
    "Run": "runs.run",
    "Smooth": "compat.cohen",
    "Tally": "ops.tally",
    "Unreadable": "engine.inputs",
    "certify": "api",
    "certify_each": "api",
    "compare": "incremental",
    "lipschitz_bound": "lipschitz",
    "load_data": "loading.data",
    "load_model": "loading.models",
    "nn": "nn",
    "ops": "ops",
    "predict": "api",
    "results": "results",
    "sample": "api",
    "smoothed": "smoothing",
    "tune_head": "api",
}


def __getattr__(name: str) -> Any:
    if name not in _NEEDS_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f".{_NEEDS_TORCH[name]}", __name__)
    return module if name == _NEEDS_TORCH[name] else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
