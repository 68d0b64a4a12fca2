"""``python -m rsfast``."""

import sys

from .cli import main

sys.exit(main())
