"""Results of runs and of certificates in memory: read, compared, in tables and plots. No torch.

>>> import numpy as np
>>> from rsfast import results
>>> three = np.arange(3)
>>> run = results.Results(three, three, three, np.array([0.5, 0.25, 0.5]), np.array([True, True, False]))
>>> results.average_certified_radius(run)
0.25
"""

from .runs.certificates import from_certificates as from_certificates
from .runs.plot import plot as plot
from .runs.results import Results as Results
from .runs.results import abstention_rate as abstention_rate
from .runs.results import average_certified_radius as average_certified_radius
from .runs.results import caveats as caveats
from .runs.results import certified_accuracy as certified_accuracy
from .runs.results import clean_accuracy as clean_accuracy
from .runs.results import notes as notes
from .runs.results import read as read
from .runs.results import share_decided as share_decided
from .runs.summary import envelope as envelope
from .runs.summary import round_radii as round_radii
from .runs.summary import table as table
