"""`python -m weightguard`."""

import sys

from weightguard.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
