"""Ending so that another master takes our place, started by whoever keeps the descriptors: systemd
does that for `systemctl restart`.

What is stored stays stored, and the front-end's connection with it. Workers finish what is in
flight first, so that nothing is run twice.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import NoReturn

from vuproc.fd import Fd
from vuproc.handover.fd_store import CHANNEL, WORKER
from vuproc.handover.keeper.keeper import EXIT_MAKES_WAY
from vuproc.pool.orphans import channel_name, retire
from vuproc.pool.process import WorkerProcess


def make_way(workers: Iterable[WorkerProcess]) -> NoReturn:
    """End the workers in order, and then ourselves at once: nothing is taken apart."""
    pidfds, channels = [], []
    for worker in workers:
        pidfds.append((f"{WORKER}{worker.pid}", worker.pidfd.dup()))
        name = f"{CHANNEL}{channel_name(worker.pid, worker.queues)}"
        channels.append((name, Fd(os.dup(worker.fileno()))))
    try:
        retire(pidfds, channels)
    finally:
        os._exit(EXIT_MAKES_WAY)
