"""One-sided confidence bounds on a mean in [0, 1], rounded so that floating point never breaks the guarantee. No torch.

An alpha must be a normal float, at least 2.3e-308. The alpha of a certificate is divided and must be at least 1e-300.
"""

from .stats.bounds.clopper_pearson import (
    clopper_pearson_lower,
    clopper_pearson_upper,
    randomized_clopper_pearson_lower,
    randomized_clopper_pearson_upper,
)
from .stats.bounds.empirical_bernstein import empirical_bernstein_lower, empirical_bernstein_upper
from .stats.bounds.hoeffding import hoeffding_lower, hoeffding_upper
from .stats.common import MAX_TRIALS, SMALLEST_ALPHA, check_alpha, check_share, largest_safe, mirrored
from .stats.estimates import moments

__all__ = [
    "MAX_TRIALS",
    "SMALLEST_ALPHA",
    "check_alpha",
    "check_share",
    "clopper_pearson_lower",
    "clopper_pearson_upper",
    "empirical_bernstein_lower",
    "empirical_bernstein_upper",
    "hoeffding_lower",
    "hoeffding_upper",
    "largest_safe",
    "mirrored",
    "moments",
    "randomized_clopper_pearson_lower",
    "randomized_clopper_pearson_upper",
]
