"""One-sided confidence bounds on a mean in [0, 1], rounded so that floating point never breaks the guarantee. No torch.

An alpha must be a normal float, at least 2.3e-308. The alpha of a certificate is divided and must be at least 1e-300.
"""

from .stats.bounds.clopper_pearson import clopper_pearson_lower as clopper_pearson_lower
from .stats.bounds.clopper_pearson import clopper_pearson_upper as clopper_pearson_upper
from .stats.bounds.clopper_pearson import randomized_clopper_pearson_lower as randomized_clopper_pearson_lower
from .stats.bounds.clopper_pearson import randomized_clopper_pearson_upper as randomized_clopper_pearson_upper
from .stats.bounds.empirical_bernstein import empirical_bernstein_lower as empirical_bernstein_lower
from .stats.bounds.empirical_bernstein import empirical_bernstein_upper as empirical_bernstein_upper
from .stats.bounds.hoeffding import hoeffding_lower as hoeffding_lower
from .stats.bounds.hoeffding import hoeffding_upper as hoeffding_upper
from .stats.common import MAX_TRIALS as MAX_TRIALS
from .stats.common import SMALLEST_ALPHA as SMALLEST_ALPHA
from .stats.common import check_alpha as check_alpha
from .stats.common import check_share as check_share
from .stats.common import largest_safe as largest_safe
from .stats.common import mirrored as mirrored
from .stats.estimates import moments as moments
