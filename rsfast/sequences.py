"""Confidence bounds by betting against every candidate mean, most of them valid at every sample size at once. No torch."""

from .heads.bins import BINS as BINS
from .heads.bins import bin_edges as bin_edges
from .heads.bins import bin_of as bin_of
from .stats.bounds.beta_binomial import beta_binomial_sequence_lower as beta_binomial_sequence_lower
from .stats.bounds.beta_binomial import beta_binomial_sequence_upper as beta_binomial_sequence_upper
from .stats.bounds.betting import betting_lower as betting_lower
from .stats.bounds.betting import betting_sequence_lower as betting_sequence_lower
from .stats.bounds.betting import betting_sequence_upper as betting_sequence_upper
from .stats.bounds.betting import betting_upper as betting_upper
from .stats.bounds.betting import typical_betting_lower as typical_betting_lower
from .stats.bounds.bettors import MAX_RANGES as MAX_RANGES
from .stats.bounds.bettors import Prior as Prior
from .stats.common import analysis_ends as analysis_ends
from .stats.common import fine_analysis_ends as fine_analysis_ends
from .stats.common import range_ends as range_ends
