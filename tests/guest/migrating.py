"""QEMU machines that a guest moves between, each with a vuproc of its own for the same image."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.guest import load
from vuproc.testing.vms.linux import LinuxGuest
from vuproc.testing.vms.qmp import Qmp

MIGRATION_S = 60.0
END_S = 60.0
SLOW = 32 << 20
"""Bytes a second of the first pass over a guest's memory."""
ENDS = ("completed", "failed", "cancelled")


class Machine:
    """One QEMU with its monitor: the guest begins in it, or it waits for one to come.

    `boot` starts it with further options. A context manager: at its end QEMU is dead.
    """

    def __init__(
        self, home: Path, boot: Callable[[list[str]], LinuxGuest], *, waits: bool = False
    ) -> None:
        home.mkdir()
        self.qmp = Qmp(home / "qmp.sock")
        self._way = f"unix:{home / 'migration.sock'}"
        self._cue = home / "cue.sock"
        incoming = ["-incoming", "defer"] if waits else []
        serial = ["-chardev", f"socket,id=cue,path={self._cue},server=on,wait=off"]
        try:
            self.guest = boot([*self.qmp.arguments, *incoming, *serial, "-serial", "chardev:cue"])
        except BaseException:
            self.qmp.close()
            raise
        try:
            self.qmp.attach(self.guest.process)
            self.set_capability("events")
            if waits:
                self.qmp.execute("migrate-incoming", uri=self._way)
        except BaseException:
            self.kill()
            raise

    def set_capability(self, name: str) -> None:
        """Of QEMU's migration."""
        capability = {"capability": name, "state": True}
        self.qmp.execute("migrate-set-capabilities", capabilities=[capability])

    def migrate_to(self, other: Machine) -> dict[str, Any]:
        """Move the guest while it runs; what QEMU says of it.

        All its memory is copied slowly at first, so that much is written to what was copied, and
        then at once: with little bandwidth there would be no end.
        """
        self.qmp.execute("migrate-set-parameters", max_bandwidth=SLOW, downtime_limit=1000)
        self.qmp.execute("migrate", uri=other._way)
        self.qmp.wait_event("MIGRATION_PASS", lambda data: data["pass"] > 1, MIGRATION_S)
        self.qmp.execute("migrate-set-parameters", max_bandwidth=1 << 34)
        self._await_end(self.qmp)
        self._await_end(other.qmp)
        found: dict[str, Any] = self.qmp.execute("query-migrate")
        return found

    def _await_end(self, qmp: Qmp) -> None:
        data = qmp.wait_event("MIGRATION", lambda data: data["status"] in ENDS, MIGRATION_S)
        assert data["status"] == "completed", self.qmp.execute("query-migrate")

    def tell(self) -> None:
        """Send a line to the guest's second serial port."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as port:
            port.connect(str(self._cue))
            port.sendall(b"enough\n")
            self.guest.wait_for(load.ENDED, END_S)

    def kill(self) -> None:
        """End QEMU."""
        self.qmp.close()
        self.guest.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()
