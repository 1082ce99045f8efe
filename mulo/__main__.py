"""`python -m mulo` is the command `mulo`."""

import sys

from mulo._cli import main

if __name__ == "__main__":
  sys.exit(main.main())
