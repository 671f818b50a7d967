"""`torchrun -m i2vgen.train CONFIG.toml [section.key=value ...]`: the same as `i2vgen train`."""

from __future__ import annotations

import sys

from i2vgen.train.run import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
