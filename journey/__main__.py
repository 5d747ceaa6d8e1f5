"""``python -m journey`` is the command line."""

import sys

from journey.cli import main

sys.exit(main())
