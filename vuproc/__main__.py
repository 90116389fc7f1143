"""`python -m vuproc` is the command `vuproc`; so is this file."""

import gc
import os
import sys

_folder = os.path.dirname(os.path.abspath(__file__))
# As a file (not by -m), Python looks into the package first; what is to be found is the package.
if not __package__ and sys.path[:1] == [os.path.realpath(_folder)]:
    sys.path[0] = os.path.dirname(_folder)

# Imports make no garbage that would be worth a search.
gc.disable()
from vuproc.cli.main import main  # noqa: E402

gc.enable()

if __name__ == "__main__":
    sys.exit(main())
