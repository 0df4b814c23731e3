"""Run the command line with `python -m vox`."""

import sys

from vox.cli import main

sys.exit(main())
