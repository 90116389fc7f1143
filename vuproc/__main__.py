"""`python -m vuproc` is the command `vuproc`; so is this file."""

import os
import sys

_folder = os.path.dirname(os.path.abspath(__file__))
# As a file (not by -m), Python looks into the package first; what is to be found is the package.
if not __package__ and sys.path[:1] == [os.path.realpath(_folder)]:
    sys.path[0] = os.path.dirname(_folder)

from vuproc.cli.main import main  # noqa: E402

# Workers are forked from a server which imports this module under another name.
if __name__ == "__main__":
    sys.exit(main())
