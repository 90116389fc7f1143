"""Translates every module in Cython below ./vuproc to C, by several processes:

    PYTHON translate.py PROCESSES

So does setuptools, but by one. What is there and newer than its source is left as it is.
"""

from __future__ import annotations

import sys

from Cython.Build import cythonize


def main() -> None:
    """Fails with an exception of Cython's."""
    cythonize(["vuproc/**/*.pyx"], nthreads=int(sys.argv[1]), quiet=True)


if __name__ == "__main__":
    main()
