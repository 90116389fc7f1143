"""Signals a call or error descriptor of the front-end without ever blocking on it."""

from __future__ import annotations

import os
import select

from vuproc.fd import Fd

_ONE = (1).to_bytes(8, "little")


def ring_bell(fd: Fd) -> bool:
    """Add one to an eventfd, or write eight bytes to a pipe or socket; False if it takes none now.

    A saturated or closed descriptor must not block or end us, and O_NONBLOCK is not ours to set: it
    belongs to the open file, which the front-end shares.
    """
    poller = select.poll()
    poller.register(fd.fileno(), select.POLLOUT)
    if not any(event & select.POLLOUT for _, event in poller.poll(0)):
        return False
    try:
        os.write(fd.fileno(), _ONE)
    except OSError:
        return False
    return True
