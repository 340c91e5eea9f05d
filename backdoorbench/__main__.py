"""`python -m backdoorbench` is `bdx`."""

import sys

from backdoorbench.cli import main

sys.exit(main())
