"""``python -m regenv``: the command ``regenv``."""

import sys

from regenv.cli import main

if __name__ == "__main__":
    sys.exit(main())
