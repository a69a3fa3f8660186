"""``python -m regagents``: the command ``regagents``."""

import sys

from regagents.cli import main

if __name__ == "__main__":
    sys.exit(main())
