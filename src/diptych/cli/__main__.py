"""``python -m diptych.cli``: the command line without its script, as ``accelerate launch -m diptych.cli`` needs it."""

import sys

from diptych.cli.main import main

sys.exit(main())
