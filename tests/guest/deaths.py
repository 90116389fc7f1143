"""Death for the processes of a served disk: of its workers now and then, or of all at once."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vuproc.admin import Request, ask
from vuproc.testing.guests.process import family

PERIOD_S = 0.2
LOOK_S = 0.005
LOOKS = 10
END_TIMEOUT_S = 10.0


class WorkerKiller:
    """Kills every queue's worker each 200 ms, in the middle of a request if one comes in time.

    `kills` counts them by queue, `in_service` those which were serving a request just before.
    """

    def __init__(self, socket: Path) -> None:
        self.kills: Counter[int] = Counter()
        self.in_service: Counter[int] = Counter()
        self._socket = socket
        self._over = threading.Event()
        self._killed: set[int] = set()

    def run(self) -> None:
        """Until `stop`."""
        while not self._over.wait(PERIOD_S - LOOKS * LOOK_S):
            spared = {queue["queue"] for queue in self._queues()}
            for look in range(LOOKS + 1):
                for queue in self._queues():
                    ripe = queue["in_service"] is not None or look == LOOKS
                    if queue["queue"] in spared and ripe:
                        self._kill(queue)
                        spared.remove(queue["queue"])
                if not spared or self._over.wait(LOOK_S):
                    break

    def _queues(self) -> list[dict[str, Any]]:
        queues: list[dict[str, Any]] = ask(self._socket, Request("status"))["queues"]
        return queues

    def _kill(self, queue: Mapping[str, Any]) -> None:
        pid = queue["pid"]
        if pid is None or pid in self._killed:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            self._killed.add(pid)
            self.kills[queue["queue"]] += 1
            self.in_service[queue["queue"]] += queue["in_service"] is not None

    def stop(self) -> None:
        """End `run`."""
        self._over.set()


@contextlib.contextmanager
def workers_die(socket: Path) -> Iterator[WorkerKiller]:
    """Has every queue's worker killed again and again."""
    killer = WorkerKiller(socket)
    failures: list[Exception] = []

    def run() -> None:
        try:
            killer.run()
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=run, name="killer")
    thread.start()
    try:
        yield killer
    finally:
        killer.stop()
        thread.join()
    if failures:
        raise failures[0]


def kill_all(master: int) -> None:
    """SIGKILL to a master, its workers and helpers, all at once; returns when they are gone."""
    pidfds = []
    try:
        for pid in (master, *family(master)):
            with contextlib.suppress(ProcessLookupError):
                pidfds.append(os.pidfd_open(pid))
        for pidfd in pidfds:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        for pidfd in pidfds:
            poller = select.poll()
            poller.register(pidfd, select.POLLIN)
            assert poller.poll(END_TIMEOUT_S * 1000), "a killed process is still there"
    finally:
        for pidfd in pidfds:
            os.close(pidfd)
