"""``python -m journey`` is the command line."""

import sys

from journey.cli.main import main

sys.exit(main())
