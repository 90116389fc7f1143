"""Standard input, output and error: open in every process, whatever it was started with.

A number from 0 to 2 that is closed would be given to the next file that is opened, and what is
printed would end up there. Children have them by inheritance.
"""

from __future__ import annotations

import os
import sys


def open_closed() -> None:
    """Let /dev/null take the place of each that is closed. Before any other file is opened."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is this one, for those below are open by now.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    # Python has None for those that it found closed.
    sys.stdin = sys.stdin or os.fdopen(0, "r", encoding="utf-8", closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", encoding="utf-8", closefd=False)


def flush_errors() -> None:
    """Write out what was said on standard error, if anybody is there to read it."""
    try:
        sys.stderr.flush()
    except OSError:
        silence(2)


def silence(number: int) -> None:
    """Let /dev/null take the place of a stream that cannot be written to any more.

    What waits in it for being written is lost there, rather than an error while Python exits.
    """
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, number)
    os.close(null)
