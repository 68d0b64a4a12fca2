"""Confidence bounds on a mean in [0, 1], one family a file, rounded so that floating point never breaks the guarantee.

A lower bound is never above the exact real-number value of its formula, an upper bound never below.
"""

from ..registry import register
from .beta_binomial import BetaBinomialSequence
from .betting import Betting, BettingSequence
from .clopper_pearson import ClopperPearson, RandomizedClopperPearson
from .empirical_bernstein import EmpiricalBernstein
from .hoeffding import Hoeffding

# In the order in which they are listed, and "auto" tries them.
register(ClopperPearson(), RandomizedClopperPearson(), Hoeffding(), EmpiricalBernstein(), Betting())
register(BetaBinomialSequence(), BettingSequence())
