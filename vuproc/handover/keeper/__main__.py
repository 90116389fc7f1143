"""The keeper as a program: found by its folder, as it is run without vuproc's."""

import os
import sys

if not __package__:
    # Behind all others: nothing here is to be found in place of Python's own.
    sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    __package__ = "keeper"

from .keeper import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
