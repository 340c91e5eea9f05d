"""`python -m backdoorbench` is `bdx`."""

import sys

from backdoorbench.cli.main import main

sys.exit(main())
