"""`python -m i2vgen`, the same as the `i2vgen` command."""

import sys

from i2vgen.cli import main

sys.exit(main())
