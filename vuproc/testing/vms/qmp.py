"""QEMU's monitor: commands and events as JSON, over a socket that QEMU connects to."""

from __future__ import annotations

import json
import select
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vuproc.testing.vms.errors import GuestFailed
from vuproc.testing.vms.process import GuestProcess

CHUNK = 1 << 16
ANSWER_TIMEOUT_S = 30.0


class Qmp:
    """The monitor of one QEMU, which is to be started with `arguments`; then call `attach`.

    `path` is where the socket is made. Every wait is bounded and ends with `GuestFailed`, which has
    what QEMU said.
    """

    def __init__(self, path: Path) -> None:
        self.arguments = ["-qmp", f"unix:{path}"]
        self.events: list[dict[str, Any]] = []
        """Those that nobody has waited for yet."""
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self._socket: socket.socket | None = None
        self._process: GuestProcess | None = None
        self._pending = b""

    def attach(self, process: GuestProcess) -> None:
        """Take QEMU's connection, and its greeting."""
        self._process = process
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        with process.watch() as ended:
            poll.register(ended, select.POLLIN)
            ready = [fd for fd, _ in poll.poll(ANSWER_TIMEOUT_S * 1000)]
        if self._listener.fileno() not in ready:
            raise self._failed("QEMU did not open its monitor")
        self._socket, _ = self._listener.accept()
        self._next(time.monotonic() + ANSWER_TIMEOUT_S)
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: object) -> Any:
        """Carry out a command; what it returns. In names `_` stands for `-`."""
        assert self._socket is not None, "attach comes first"
        words = {name.replace("_", "-"): value for name, value in arguments.items()}
        line = json.dumps({"execute": command, "arguments": words})
        self._socket.sendall(line.encode() + b"\n")
        deadline = time.monotonic() + ANSWER_TIMEOUT_S
        while True:
            message = self._next(deadline)
            if "return" in message:
                return message["return"]
            if "error" in message:
                raise self._failed(f"{command}: {message['error']['desc']}")
            self.events.append(message)

    def wait_event(
        self, name: str, wanted: Callable[[dict[str, Any]], bool], timeout_s: float
    ) -> dict[str, Any]:
        """The data of the next event of this name for which `wanted` holds."""
        deadline = time.monotonic() + timeout_s
        while True:
            while self.events:
                event = self.events.pop(0)
                if event.get("event") == name and wanted(event["data"]):
                    data: dict[str, Any] = event["data"]
                    return data
            self.events.append(self._next(deadline))

    def close(self) -> None:
        """Close our end."""
        self._listener.close()
        if self._socket is not None:
            self._socket.close()

    def _next(self, deadline: float) -> dict[str, Any]:
        assert self._socket is not None
        while b"\n" not in self._pending:
            self._socket.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                data = self._socket.recv(CHUNK)
            except TimeoutError:
                raise self._failed("QEMU's monitor said nothing in time") from None
            if not data:
                raise self._failed("QEMU closed its monitor")
            self._pending += data
        line, _, self._pending = self._pending.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def _failed(self, what: str) -> GuestFailed:
        if self._process is None:
            return GuestFailed(what)
        self._process.take_in()
        return GuestFailed(what, self._process.lines)
