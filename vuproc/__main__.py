"""`python -m vuproc` is the command `vuproc`."""

import sys

from vuproc.cli import main

# Workers are forked from a server which imports this module under another name.
if __name__ == "__main__":
    sys.exit(main())
