"""Where a soak takes place: a supervised disk, and one front-end after the other."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import TypeVar

from tests.crash.blocks import BLOCK_SIZE, Blocks
from tests.crash.verified import Findings
from tests.field.running import children, descendants
from tests.soak.clock import Clock
from tests.soak.connection import Connection, Stuck
from tests.soak.room import Room
from vuproc.ops.admin import AdminError
from vuproc.ops.status import Status
from vuproc.testing import workers
from vuproc.testing.serve import Served

QUEUES = 2
BLOCKS = 256
"""A queue: few, so that each is written and read often."""
STALL_TIMEOUT_S = 1.0
LOOKS = 2000
PAUSE_S = 0.03
"""Between two looks for what nothing announces: a minute of them."""
PROGRESS = 4
STOP_S = 300.0
"""For the end in order. No measure: the machine may stand still in the middle of it."""

T = TypeVar("T")


class Stage:
    """The device, the connection that there is, and what they have found so far."""

    def __init__(self, served: Served, file: Path, room: Room, clock: Clock, seed: int) -> None:
        self.served = served
        self.room = room
        self.clock = clock
        self.chance = random.Random(seed)
        self.findings = Findings()
        self.connections = 0
        self.writes_may_fail = False
        self._file = file
        self._blocks = [Blocks(number * BLOCKS, BLOCKS) for number in range(QUEUES)]
        self._connection: Connection | None = None

    # Its connection.

    @property
    def connection(self) -> Connection:
        """The one there is, or a new one."""
        if self._connection is None:
            connection = self._connection = Connection(
                self.served.socket, self._blocks, self.chance, lambda: self.writes_may_fail
            )
            self.connections += 1
            return connection
        return self._connection

    def hang_up(self) -> None:
        """End the connection there is, in one of several ways."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        way = self.chance.random()
        if way < 0.4:
            found = connection.cut()
        else:
            found = connection.end(look=way > 0.95, stop=way > 0.7)
        self._note(found)

    def progress(self, count: int = PROGRESS) -> None:
        """Each queue gets on. Raises Stuck, also for what was found to be wrong meanwhile."""
        self.connection.progress(count)
        for queue in self.connection.queues:
            found = queue.findings
            if found.lost or found.doubled or found.wrong:
                raise Stuck(str(found))

    def take_stall(self) -> float:
        """As that of the connection."""
        return 0.0 if self._connection is None else self._connection.take_stall()

    def finish(self) -> None:
        """End the connection with a look at every block."""
        connection, self._connection = self.connection, None
        self._note(connection.end(look=True, stop=True))

    # Its processes.

    def status(self) -> Status:
        """What the device says of itself, once a master says it."""

        def ask() -> Status | None:
            try:
                return workers.status_of(self.served.socket)
            except (AdminError, OSError):
                return None

        return self.wait_for(ask, "a status")

    @property
    def keeper(self) -> int:
        """The process that outlives all others."""
        return self.served.pid

    def workers(self) -> list[int]:
        """Of the queues that have one."""
        return [queue.pid for queue in self.status().queues if queue.pid is not None]

    def processes(self) -> list[int]:
        """All of the device's."""
        try:
            return [self.keeper, *descendants(self.keeper)]
        except (FileNotFoundError, ProcessLookupError):
            return self.processes()  # one has ended meanwhile

    def forkserver(self) -> int | None:
        """The process that starts the workers of the present master."""
        return next(iter(children(self.status().pid)), None)

    def kill(self, pid: int) -> None:
        """SIGKILL; nothing happens if it has ended."""
        signal_to(pid, signal.SIGKILL)

    def settle(self) -> Status:
        """Wait until every process is there that is to be. Raises Stuck."""

        def settled() -> Status | None:
            status = self.status()
            there = status.connected and status.standby and status.standby_master
            return status if there and all(queue.pid for queue in status.queues) else None

        return self.wait_for(settled, "every worker, the standby and the standby master")

    def describe(self, **more: object) -> None:
        """Write the device file, with other options than it had."""
        write_file(self._file, self.room, **more)

    def wait_for(self, look: Callable[[], T | None], what: str) -> T:
        """Look until there is one. Raises Stuck."""
        pause = Event()
        for _ in range(LOOKS):
            found = look()
            if found is not None:
                return found
            pause.wait(PAUSE_S)
        raise Stuck(f"there is no {what}")

    def close(self) -> None:
        """Hang up, whatever comes of it."""
        if self._connection is not None:
            self._connection.close()

    def _note(self, found: list[Findings]) -> None:
        mine = self.findings
        for each in found:
            mine.requests += each.requests
            mine.refused += each.refused
            mine.lost += each.lost
            mine.doubled += each.doubled
            mine.wrong += each.wrong
            if each.lost or each.doubled or each.wrong:
                raise Stuck(str(each))


def signal_to(pid: int, number: int) -> None:
    """Send a signal to a process, if it is there."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def write_file(file: Path, room: Room, **more: object) -> None:
    """The device file, in one step."""
    device = {"type": "blk", "image": str(room.disk / "image"), "queues": QUEUES, **more}
    keys = {"socket": "./disk.sock", "stall_timeout": STALL_TIMEOUT_S, "device": device}
    new = file.with_suffix(".new")
    new.write_text(json.dumps(keys), encoding="utf-8")
    new.rename(file)


@contextmanager
def staged(room: Room, seed: int) -> Iterator[Stage]:
    """Serve the disk, and end it in order."""
    file = room.folder / "disk.yaml"
    clock = Clock(room.folder)
    with (room.disk / "image").open("wb") as image:
        image.truncate(QUEUES * BLOCKS * BLOCK_SIZE)
    write_file(file, room)
    preloaded = [f"{name}={value}" for name, value in clock.environment.items()]
    command = [sys.executable, "-m", "vuproc", "run", "--supervised", str(file)]
    served = Served(["env", *preloaded, *command], room.folder / "disk.sock")
    try:
        served._await_start()
        stage = Stage(served, file, room, clock, seed)
        try:
            yield stage
        finally:
            stage.close()
        code = served.stop(STOP_S)
        if code != 0:
            raise Stuck(f"vuproc run ended with exit code {code}")
    finally:
        served.end()
