"""Unix sockets whose path is longer than their address can be.

A socket at a shorter path may have others beside it with longer
names; they are reached through their folder, by way of a descriptor of it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vuproc.fd import Fd

MAX_ADDRESS = 107
"""Bytes of a Unix socket's path: sun_path has 108 with the zero at its end (unix(7))."""

ADMIN_SUFFIX = ".admin"
"""What a device's admin socket is called, after the path of the device's own."""
LOCK_SUFFIX = ".lock"
"""And the lock of each socket, after that socket's."""


@contextmanager
def address_of(path: Path) -> Iterator[str]:
    """What to bind or connect to for the socket at `path`; of use inside of the `with` alone.

    Raises OSError if a longer one's folder cannot be opened.
    """
    if len(os.fsencode(path)) <= MAX_ADDRESS:
        yield str(path)
        return
    with Fd(os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as folder:
        yield f"/proc/self/fd/{folder.fileno()}/{path.name}"
