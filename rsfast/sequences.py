"""Confidence bounds by betting against every candidate mean, most of them valid at every sample size at once. No torch."""

from .heads.bins import BINS, bin_edges, bin_of
from .stats.bounds.beta_binomial import beta_binomial_sequence_lower, beta_binomial_sequence_upper
from .stats.bounds.betting import (
    MAX_RANGES,
    Prior,
    betting_lower,
    betting_sequence_lower,
    betting_sequence_upper,
    betting_upper,
    typical_betting_lower,
)
from .stats.common import analysis_ends, range_ends

__all__ = [
    "BINS",
    "MAX_RANGES",
    "Prior",
    "analysis_ends",
    "beta_binomial_sequence_lower",
    "beta_binomial_sequence_upper",
    "betting_lower",
    "betting_sequence_lower",
    "betting_sequence_upper",
    "betting_upper",
    "bin_edges",
    "bin_of",
    "range_ends",
    "typical_betting_lower",
]
