"""The end of a master whose program is gone, in whatever way: it must not outlive it.

A thread waits for that, since the master may be at anything then: inside the device's own code, or
at a start that does not get on. It does what an operator would: SIGTERM, once more for what is
urgent, and SIGKILL at last.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import threading
import time

from vuproc.fd import HasFileno

log = logging.getLogger("vuproc.master")

URGENT_S = 10.0
"""Seconds that the master has to end in order, before it is asked not to wait for any worker."""
KILL_S = 10.0
"""Seconds that it has then."""


def end_with(life: HasFileno, channel: HasFileno) -> None:
    """Have this process end once a program has ended, or has closed its end of a channel.

    `life` is the pidfd of the program.
    """
    # Of its own: a number that is closed elsewhere may be another file's by now.
    numbers = os.dup(life.fileno()), os.dup(channel.fileno())
    threading.Thread(target=_watch, args=numbers, name="vuproc-life", daemon=True).start()


def _watch(life: int, channel: int) -> None:
    poller = select.poll()
    poller.register(life, select.POLLIN)
    poller.register(channel, 0)  # its end alone: what comes in is read by the loop
    while not poller.poll():
        pass
    log.info("the program that has started this device is gone: stopping")
    for number, pause in ((signal.SIGTERM, URGENT_S), (signal.SIGTERM, KILL_S)):
        os.kill(os.getpid(), number)
        time.sleep(pause)
    log.critical("this process does not end, and is killed")
    os.kill(os.getpid(), signal.SIGKILL)
