"""The eventfds through which in-band notifications go between the master and its workers."""

from __future__ import annotations

import os

from vuproc.fd import Fd
from vuproc.vhost_user.effects import Bells


def make_bells(num_queues: int) -> tuple[Bells, ...]:
    """Bells for each of so many rings. Raises OSError, and then has made none.

    They never block: a worker's call is not to wait for the master, nor a kick for the worker.
    """
    made: list[Bells] = []
    try:
        for _ in range(num_queues):
            kick = _eventfd()
            try:
                made.append(Bells(kick, _eventfd()))
            except BaseException:
                kick.close()
                raise
    except BaseException:
        for bells in made:
            bells.kick.close()
            bells.call.close()
        raise
    return tuple(made)


def _eventfd() -> Fd:
    return Fd(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
