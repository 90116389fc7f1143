"""The keeper, a program of its own: `python -I -S __main__.py`, which runs as files of this folder.

Its modules import each other by relative imports, for they are a package of another name there, and
nothing else of vuproc: newly installed code can be no reason for its end. `error_output` and
`descriptors` are the master's as well.
"""

import os

PROGRAM = os.path.join(os.path.dirname(os.path.abspath(__file__)), "__main__.py")
"""The file to run."""
