"""How many open files a device takes, and whether this process may have so many."""

from __future__ import annotations

import resource

from vuproc.errors import HostLacks
from vuproc.spec.vhost_user import MEM_SLOTS_MAX

BASE = 64
"""Descriptors of a master beside its queues': sockets, locks, the session's own, a small memory
table.
"""
PER_QUEUE = 12
"""Descriptors a queue: kick, call and err; its worker's channel, pidfd, stack and listener; the
same but the stack of its old worker, in an upgrade or until that is gone; two more for what is
under way. The keeper has fewer.
"""
ROOM = 4096
"""Descriptors beyond those, for the device's own code."""


def needed(queues: int) -> int:
    """The fewest with which so many queues can be served, and replaced."""
    return BASE + PER_QUEUE * queues


def make_room(queues: int) -> None:
    """Raise the soft limit as far as it may be of use. Raises HostLacks if that is not enough.

    A memory region is a file, though few front-ends have more than ten. Workers inherit the limit.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = needed(queues) + 2 * MEM_SLOTS_MAX + ROOM
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft != resource.RLIM_INFINITY and soft < needed(queues):
        raise HostLacks(
            f"{needed(queues)} open files for {queues} queue{'s' * (queues > 1)}",
            f"{soft} are allowed",
            "raise the hard limit (ulimit -Hn, LimitNOFILE= of a service, docker --ulimit nofile)",
        )
