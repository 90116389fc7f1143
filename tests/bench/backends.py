"""What serves the disk of a comparison: the interface of our side and of each peer."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.bench.work import Case

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0
LOOK_S = 0.005
"""Pause between two looks at the kernel's list of sockets: nothing announces a listener."""
_ACCEPTING = 0x10000  # __SO_ACCEPTCON in the flags of /proc/net/unix


class Missing(Exception):
    """A back-end or client cannot be had, or fails; says why."""


class Unfit(Missing):
    """It is not made for this case; nothing is missing."""


@dataclass(frozen=True, slots=True)
class Running:
    """A started back-end."""

    socket: Path
    pids: Callable[[], list[int]]
    """All processes that work for it at the moment."""


class Backend(Protocol):
    """One program in one configuration. `family`: which ones are the same program."""

    name: str
    family: str
    protocol: str
    """`vhost-user-blk` or `nbd`: which clients can talk to it."""

    def check(self, case: Case) -> None:
        """Raise Missing if it cannot be measured on this."""
        ...

    def start(
        self, case: Case, image: Path | None, directory: Path
    ) -> AbstractContextManager[Running]:
        """Serve `image` until the context's end. Sockets go into `directory`. Raises Missing."""
        ...


@contextmanager
def child(
    command: Sequence[str | Path], socket: Path, pass_fds: Sequence[int] = ()
) -> Iterator[Running]:
    """Run a server in the foreground until the end of the context; it must listen by then."""
    log = socket.with_suffix(".log")
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=pass_fds,
        )
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not listens(socket):
            if process.poll() is not None or time.monotonic() > deadline:
                said = log.read_text(errors="replace").strip().splitlines()[-3:]
                raise Missing(f"{Path(command[0]).name} does not start: {' '.join(said)}")
            time.sleep(LOOK_S)
        yield Running(socket, lambda: [process.pid])
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def listens(socket: Path) -> bool:
    """Whether somebody accepts connections there; unlike a connection, looking changes nothing."""
    with open("/proc/net/unix", encoding="utf-8", errors="surrogateescape") as table:
        for line in table:
            fields = line.rstrip("\n").split(None, 7)
            named = len(fields) == 8 and fields[7] == str(socket)
            if named and int(fields[3], 16) & _ACCEPTING:
                return True
    return False
