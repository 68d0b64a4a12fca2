"""The versions that a result may depend on."""

from __future__ import annotations

import platform

__version__ = "0.2.0.dev0"


def versions() -> dict[str, str]:
    """Return the versions of rsfast, Python and the libraries that compute, by name."""
    import numpy as np
    import scipy
    import torch

    return {
        "rsfast": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scipy": scipy.__version__,
    }
