"""The standby master's own end: it waits for its turn, and is the master from then on.

The keeper has started it with a socket by which it gets all that is stored, once the master has
died (`vuproc/handover/keeper/standby.py`). Until then it holds nothing of a session, and does
nothing. What it has prepared by then is its own matter.
"""

from __future__ import annotations

import array
import contextlib
import os
import signal
import socket
import sys
from collections.abc import MutableMapping
from pathlib import Path

from vuproc.errors import VuprocError
from vuproc.fd import Fd
from vuproc.handover.fd_store import DEVICE_FILE, content_of
from vuproc.handover.keeper.descriptors import FDS_A_MESSAGE
from vuproc.handover.keeper.keeper import NOT_FOR_A_STANDBY
from vuproc.handover.keeper.processes import PASSED_ON, end_with_parent
from vuproc.handover.keeper.standby import NAME
from vuproc.handover.sd_notify import MAX_NAME, Notifier, inherit

PROCESS_NAME = "vuproc-standby"
"""What a standby master that is ready is called (/proc/PID/comm), at most 15 bytes."""

_FDS_MISSING = int(socket.MSG_CTRUNC)
_FD_SIZE = array.array("i").itemsize
_MAX_TEXT = (MAX_NAME + 1) * (FDS_A_MESSAGE + 1)


class NotHandedOver(VuprocError):
    """What the keeper has sent did not arrive as a whole."""

    def __init__(self) -> None:
        super().__init__("the keeper's descriptors did not arrive: are there too few open files?")


class StandbyMaster:
    """This process, which is to wait."""

    def __init__(self, inherited: dict[str, tuple[Fd, ...]], environ: MutableMapping[str, str]):
        """`inherited` are the descriptors of a standby, which are its own from now on."""
        self._environ = environ
        # Nothing that is started meanwhile is to speak in our place.
        self._notifier = Notifier.from_environment(environ)
        self._channel = socket.socket(fileno=inherited.pop(NAME)[0].take())
        self.device_file = content_of(inherited, DEVICE_FILE)
        """What the device file says that is in force as we are started; b"" if nobody knows."""
        for fds in inherited.values():
            for fd in fds:
                fd.close()

    @classmethod
    def from_environment(
        cls, environ: MutableMapping[str, str] = os.environ
    ) -> StandbyMaster | None:
        """If this process was started as one. Raises InheritError."""
        if NAME not in environ.get("LISTEN_FDNAMES", "").split(":"):
            return None
        if environ.get("LISTEN_PID") != str(os.getpid()):
            return None
        return cls(inherit(environ), environ)

    def wait(self) -> dict[str, tuple[Fd, ...]]:
        """Say that we are ready, wait, and be the master: the descriptors that are stored, by name.

        Ends the process if the keeper ends, or has no use for it. Raises NotHandedOver.
        """
        before = renamed(PROCESS_NAME)
        self._notifier.standby("ready")
        with self._channel:
            stored = received(self._channel)
        renamed(before)
        self._become_master()
        return stored

    def _become_master(self) -> None:
        """From now on a signal is for us: what came before was for the last master."""
        end_with_parent(signal.SIGTERM)
        for number in NOT_FOR_A_STANDBY:
            signal.signal(number, signal.SIG_DFL)
        while signal.sigtimedwait(PASSED_ON, 0) is not None:
            pass
        if self._notifier.keeper is None:
            # It has ended since, and we are to end as well, like any master; it waits until then.
            os.kill(os.getpid(), signal.SIGTERM)
        self._notifier.standby("taken")
        self._notifier.close()
        self._environ.update(self._notifier.environment)


def received(channel: socket.socket) -> dict[str, tuple[Fd, ...]]:
    """The descriptors that the keeper hands over, by name. Ends the process if there are none any
    more. Raises NotHandedOver.
    """
    stored: dict[str, tuple[Fd, ...]] = {}
    left = 1
    while left:
        text, ancillary, flags, _ = channel.recvmsg(
            _MAX_TEXT, socket.CMSG_SPACE(FDS_A_MESSAGE * _FD_SIZE), socket.MSG_CMSG_CLOEXEC
        )
        if not text:
            sys.exit()
        numbers = array.array("i")
        for _, _, block in ancillary:
            numbers.frombytes(block[: len(block) - len(block) % _FD_SIZE])
        count, *names = text.decode().split(":")
        if flags & _FDS_MISSING or len(names) != len(numbers):
            raise NotHandedOver
        for name, number in zip(names, numbers, strict=True):
            stored[name] = (*stored.get(name, ()), Fd(number))
        left = int(count)
    return stored


def ready_standby(keeper: int) -> int | None:
    """The standby master of a keeper, if it has one that is ready."""
    # No `Path`: it interns what it is made of, and whoever asks for the status asks again.
    try:
        with open(f"/proc/{keeper}/task/{keeper}/children", encoding="ascii") as file:
            children = file.read().split()
    except OSError:
        return None  # a kernel without that list
    for child in children:
        with contextlib.suppress(OSError), open(f"/proc/{child}/comm", "rb") as file:
            if file.read().rstrip(b"\n") == PROCESS_NAME.encode():
                return int(child)
    return None


def renamed(name: str) -> str:
    """Give this process another name; the one that it had."""
    comm = Path("/proc/self/comm")
    before = comm.read_text().rstrip("\n")
    with contextlib.suppress(OSError):  # where /proc is read-only it is not shown, and as good
        comm.write_text(name)
    return before
