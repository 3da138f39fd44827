"""``python -m diptych``: the command line without its script, as ``accelerate launch -m diptych`` needs it."""

import sys

from diptych.cli.main import main

sys.exit(main())
