"""What of a sandbox this machine has: tried in a process of its own, which is gone afterwards."""

from __future__ import annotations

import os

import msgspec

from vuproc.fd import Fd
from vuproc.sandbox.lockdown import Lockdown
from vuproc.sandbox.master_lock import lock_master
from vuproc.sandbox.policy import Policy

MAX_BYTES = 16 << 10


def lacks_of(policy: Policy) -> list[str]:
    """What a master and a worker of such a policy would have to do without, in words. Raises
    OSError. For a process without threads.
    """
    ours, theirs = map(Fd, os.pipe2(os.O_CLOEXEC))
    with ours, theirs:
        pid = os.fork()
        if pid == 0:
            _try(policy, theirs)
        theirs.close()
        try:
            with open(ours.take(), "rb") as reader:
                said = reader.read(MAX_BYTES)
        finally:
            os.waitpid(pid, 0)
    return msgspec.msgpack.decode(said, type=list[str])


def _try(policy: Policy, answer: Fd) -> None:
    """Does not return."""
    try:
        lacks = [*lock_master(), *Lockdown(policy).close()]
        os.write(answer.fileno(), msgspec.msgpack.encode(lacks))
    finally:
        os._exit(0)
