"""Death for the processes of a served disk, again and again while a guest is under load."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from vuproc.ops.admin import AdminError, Request, ask
from vuproc.testing.vms.process import family

WORKERS_PERIOD_S = 0.2
MASTER_PERIOD_S = 2.0
SERVES_S = 1.0
"""At least, however long its start took: or a guest on a slow machine would not get far."""
LOOK_S = 0.005
LOOKS = 10
ENOUGH = 3
"""So many deaths of workers make a load one that was survived, where a test does not say."""
DEATH_BOUND_S = 20.0
"""For one of them."""
BOUND_S = 60.0
"""For a master to serve its guest, and for anything else that must come."""


class Fate(Protocol):
    """Something that befalls a device until `over` is set."""

    def run(self, over: threading.Event) -> None: ...


@contextlib.contextmanager
def meanwhile(fate: Fate) -> Iterator[None]:
    """Has `fate` run in a thread of its own; raises what it raised."""
    over = threading.Event()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            fate.run(over)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run, name="fate")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        # Also instead of what the guest met with: this is the cause.
        if failures:
            raise failures[0]


class WorkerKiller:
    """Kills every queue's worker each 200 ms, in the middle of a request if one comes in time.

    A queue has completed something between two kills: the third death inside of one request would
    make that a poison. `kills` counts them by queue, `in_service` those which were serving a
    request just before.
    """

    def __init__(self, socket: Path) -> None:
        self.kills: Counter[int] = Counter()
        self.in_service: Counter[int] = Counter()
        self._socket = socket
        self._killed: set[int] = set()
        self._requests: Counter[int] = Counter()
        self._news = threading.Condition()

    def run(self, over: threading.Event) -> None:
        """Until `over`."""
        while not over.wait(WORKERS_PERIOD_S - LOOKS * LOOK_S):
            spared = {queue["queue"] for queue in self._queues()}
            for look in range(LOOKS + 1):
                for queue in self._queues():
                    ripe = queue["in_service"] is not None or look == LOOKS
                    if queue["queue"] in spared and ripe:
                        self._kill(queue)
                        spared.remove(queue["queue"])
                if not spared or over.wait(LOOK_S):
                    break

    def await_deaths(self, count: int = ENOUGH) -> None:
        """Returns once there were so many; what the guest does must last until then."""
        with self._news:
            came = self._news.wait_for(lambda: self.kills.total() >= count, count * DEATH_BOUND_S)
            assert came, f"too few deaths: {self.kills}"

    def _queues(self) -> list[dict[str, Any]]:
        queues: list[dict[str, Any]] = ask(self._socket, Request("status"), BOUND_S)["queues"]
        return queues

    def _kill(self, queue: Mapping[str, Any]) -> None:
        pid = queue["pid"]
        progress = queue["requests"] > self._requests[queue["queue"]]
        if pid is None or pid in self._killed or not progress:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            self._killed.add(pid)
            self._requests[queue["queue"]] = queue["requests"]
            self.in_service[queue["queue"]] += queue["in_service"] is not None
            with self._news:
                self.kills[queue["queue"]] += 1
                self._news.notify_all()


class Gate:
    """A file which a guest of User-Mode Linux sees once `open` was called: a script which works
    until then works neither too short for a fast machine nor in vain for a slow one.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "gate"
        self._folder.mkdir()

    def script(self, text: str) -> str:
        """The script, in which UNTIL is the file."""
        mount = f"mkdir -p /gate && mount -t hostfs -o {self._folder} none /gate\n"
        return mount + text.replace("UNTIL", "/gate/open")

    def open(self) -> None:
        """Lets the guest go on."""
        (self._folder / "open").touch()


class MasterKiller:
    """Kills the master of a supervised device every two seconds; each has served the guest before.

    `kills` counts them, `slowest_s` is the longest time from a death to the first requests which
    the next master's workers completed on each queue.
    """

    def __init__(self, socket: Path) -> None:
        self.kills = 0
        self.slowest_s = 0.0
        self._socket = socket

    def run(self, over: threading.Event) -> None:
        """Until `over`."""
        last = 0
        begun = time.monotonic()
        while (status := await_service(self._socket, over, other_than=last)) is not None:
            now = time.monotonic()
            if last:
                self.slowest_s = max(self.slowest_s, now - begun)
                if over.wait(max(SERVES_S, begun + MASTER_PERIOD_S - now)):
                    return
            last, begun = int(status["pid"]), time.monotonic()
            os.kill(last, signal.SIGKILL)
            self.kills += 1


class Upgrader:
    """Runs `vuproc upgrade` every two seconds, once the program before has served the guest.

    `upgrades` counts them; `slowest_s` as above, from the command's start.
    """

    def __init__(self, socket: Path) -> None:
        self.upgrades = 0
        self.slowest_s = 0.0
        self._socket = socket

    def run(self, over: threading.Event) -> None:
        """Until `over`."""
        status = await_service(self._socket, over)
        command = [sys.executable, "-m", "vuproc", "upgrade", str(self._socket)]
        while status is not None:
            begun = time.monotonic()
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=BOUND_S, check=False
            )
            assert done.returncode == 0, done.stderr
            self.upgrades += 1
            before = status
            status = await_service(self._socket, over)
            if status is not None:
                assert status["started"] != before["started"], "the old program still runs"
                self.slowest_s = max(self.slowest_s, time.monotonic() - begun)
            if over.wait(max(SERVES_S, begun + MASTER_PERIOD_S - time.monotonic())):
                return


def await_service(
    socket: Path, over: threading.Event, *, other_than: int = 0
) -> dict[str, Any] | None:
    """The status once a master other than process `other_than` has completed requests of each
    queue; None if `over` comes first.
    """
    deadline = time.monotonic() + BOUND_S
    status: dict[str, Any] = {}
    while not over.wait(LOOK_S):
        assert time.monotonic() < deadline, f"no master serves the guest: {status}"
        # There may be nobody to answer at the moment, or one who dies over it.
        with contextlib.suppress(AdminError):
            status = ask(socket, Request("status"), BOUND_S)
            if status["pid"] != other_than and all(each["requests"] for each in status["queues"]):
                return status
    return None


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
            assert poller.poll(BOUND_S * 1000), "a killed process is still there"
    finally:
        for pidfd in pidfds:
            os.close(pidfd)
