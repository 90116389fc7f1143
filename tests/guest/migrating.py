"""QEMU machines that a guest moves between, each with a vuproc of its own for the same image."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from tests.appearing import await_path
from tests.guest import load
from vuproc.testing.vms.ending import Ending
from vuproc.testing.vms.linux import LinuxGuest
from vuproc.testing.vms.process import GuestProcess
from vuproc.testing.vms.qmp import Qmp

MIGRATION_S = 60.0
END_S = 60.0
SLOW = 32 << 20
"""Bytes a second of the first pass over a guest's memory."""
ENDS = ("completed", "failed", "cancelled")


class Running(Protocol):
    """A QEMU that was started."""

    process: GuestProcess

    def kill(self) -> None:
        """End it."""


Guest = TypeVar("Guest", bound=Running)


class Machine(Ending, Generic[Guest]):
    """One QEMU with its monitor: the guest begins in it, or it waits for one to come, or it is
    given one with all its memory (`transfer_to`), and then has no monitor before.

    `boot` starts it with further options. A context manager: at its end QEMU is dead.
    """

    def __init__(
        self,
        home: Path,
        boot: Callable[[list[str]], Guest],
        *,
        waits: bool = False,
        is_given: bool = False,
    ) -> None:
        home.mkdir()
        self.qmp = Qmp(home / "qmp.sock")
        self.way = f"unix:{home / 'migration.sock'}"
        self.cue = home / "cue.sock"
        self.memory = home / "memory.sock"
        incoming = ["-incoming", "defer"] if waits else []
        if is_given:
            incoming = ["-incoming", self.way, "-incoming", json.dumps(channel("cpr", self.memory))]
        serial = ["-chardev", f"socket,id=cue,path={self.cue},server=on,wait=off"]
        try:
            self.guest = boot([*self.qmp.arguments, *incoming, *serial, "-serial", "chardev:cue"])
        except BaseException:
            self.qmp.close()
            raise
        try:
            if not is_given:
                self.qmp.attach(self.guest.process)
                self.set_capability("events")
        except BaseException:
            self.kill()
            raise

    def set_capability(self, name: str) -> None:
        """Of QEMU's migration."""
        capability = {"capability": name, "state": True}
        self.qmp.execute("migrate-set-capabilities", capabilities=[capability])

    def migrate_to(self, other: Machine[Guest]) -> None:
        """Move the guest while it runs.

        All its memory is copied slowly at first, so that much is written to what was copied, and
        then at once: with little bandwidth there would be no end.
        """
        self.qmp.execute("migrate-set-parameters", max_bandwidth=SLOW, downtime_limit=1000)
        self.begin_to(other)
        self.qmp.wait_event("MIGRATION_PASS", lambda data: data["pass"] > 1, MIGRATION_S)
        self.qmp.execute("migrate-set-parameters", max_bandwidth=1 << 34)
        self._await_ends(other)

    def finish_by_postcopy(self, other: Machine[Guest]) -> None:
        """Move the guest while it runs: it goes on in the other QEMU when a small part of its
        memory is there, and asks for the rest as it needs it.
        """
        for machine in (self, other):
            machine.set_capability("postcopy-ram")
        self.qmp.execute("migrate-set-parameters", max_bandwidth=SLOW // 4)
        self.qmp.execute("migrate-set-parameters", max_postcopy_bandwidth=SLOW)
        self.begin_to(other)
        self.qmp.wait_event("MIGRATION", lambda data: data["status"] == "active", MIGRATION_S)
        self.qmp.execute("migrate-start-postcopy")
        self._await_ends(other)

    def migrate_at_once(self, other: Machine[Guest]) -> None:
        """Move a guest that does nothing."""
        self.begin_to(other)
        self._await_ends(other)

    def begin_to(self, other: Machine[Guest]) -> None:
        """Begin to move the guest; does not wait."""
        other.qmp.execute("migrate-incoming", uri=other.way)
        self.qmp.execute("migrate", uri=other.way)

    def transfer_to(self, other: Machine[Guest]) -> None:
        """Give the guest to another QEMU of this host; its memory stays where it is."""
        await_path(other.memory, END_S, other.guest.process.pid)
        self.set_capability("events")  # one that was given its guest has not said so
        self.qmp.execute("migrate-set-parameters", mode="cpr-transfer")
        main = channel("main", Path(other.way.removeprefix("unix:")))
        self.qmp.execute("migrate", channels=[main, channel("cpr", other.memory)])
        other.qmp.attach(other.guest.process)
        self._await_end(self.qmp)

    def reboot_into(self, file: Path) -> None:
        """Have the guest written into a file, as before an update of QEMU or of the host."""
        self.qmp.execute("migrate-set-parameters", mode="cpr-reboot")
        self.qmp.execute("migrate", uri=f"file:{file}")
        self._await_end(self.qmp)

    def come_from(self, file: Path) -> None:
        """Go on from such a file."""
        self.qmp.execute("migrate-set-parameters", mode="cpr-reboot")
        self.qmp.execute("migrate-incoming", uri=f"file:{file}")
        self._await_end(self.qmp)

    def _await_ends(self, other: Machine[Guest]) -> None:
        self._await_end(self.qmp)
        self._await_end(other.qmp)

    def _await_end(self, qmp: Qmp) -> None:
        data = qmp.wait_event("MIGRATION", lambda data: data["status"] in ENDS, MIGRATION_S)
        found: dict[str, Any] = self.qmp.execute("query-migrate")
        assert data["status"] == "completed", found

    def kill(self) -> None:
        """End QEMU."""
        self.qmp.close()
        self.guest.kill()


def channel(kind: str, path: Path) -> dict[str, Any]:
    """One of the ways from QEMU to QEMU, as the monitor has it."""
    address = {"transport": "socket", "type": "unix", "path": str(path)}
    return {"channel-type": kind, "addr": address}


def tell(machine: Machine[LinuxGuest]) -> None:
    """Send a line to the guest's second serial port: its load is to end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as port:
        port.connect(str(machine.cue))
        port.sendall(b"enough\n")
        machine.guest.wait_for(load.ENDED, END_S)
