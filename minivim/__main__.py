"""`python -m minivim` is `minivim`."""

import sys

from minivim.cli import main

if __name__ == "__main__":
    sys.exit(main())
