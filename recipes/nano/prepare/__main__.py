"""`python recipes/nano/prepare OUT_DIR`."""

import sys
from pathlib import Path

if not __package__:
    # Run as a folder: Python has put the folder itself first on the path, the package is one above.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from prepare.command import main

sys.exit(main())
