"""Tells that a worker runs no more, before the kernel has taken it apart.

A pidfd is readable once all of a process is gone, and most of that time goes into its page tables.
What a successor has to wait for is over long before: the last thread is in the kernel, on its way
out, and never returns to its program. Then the kernel lets go of the thread's filter of system
calls, and the filter's *listener* hangs up (seccomp_unotify(2); since Linux 6.11 that early, before
that later than the pidfd). It counts every thread, since a filter of ours is that of all of them.

What a process has open is still being closed at that moment, io_uring included.
"""

from __future__ import annotations

import os
import select

from vuproc.fd import Fd

LINK = "anon_inode:seccomp notify"
"""What such a descriptor is called in /proc."""


def is_listener(fd: Fd) -> bool:
    """Whether it is the listener of some filter: a worker that was taken over cannot make one, or
    let go of its own, and live.
    """
    try:
        return os.readlink(f"/proc/self/fd/{fd.fileno()}") == LINK
    except (OSError, ValueError):  # it is closed
        return False


def has_hung_up(listener: Fd) -> bool:
    """Whether no thread with its filter runs any more."""
    poller = select.poll()
    poller.register(listener.fileno(), 0)
    return any(events & select.POLLHUP for _, events in poller.poll(0))
