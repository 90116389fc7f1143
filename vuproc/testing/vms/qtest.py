"""QEMU with a halted processor: its memory and ports are ours, over its test socket."""

from __future__ import annotations

import base64
import select
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path

from vuproc.testing.vms.clients import Qemu
from vuproc.testing.vms.ending import Ending
from vuproc.testing.vms.errors import GuestFailed
from vuproc.testing.vms.process import GuestProcess
from vuproc.testing.vms.qemu import EMULATED, MEMORY_MIB, VhostUserDevice, machine_arguments

# A firmware that does nothing: 64 KiB of the instruction `hlt`. Interrupts are off at reset, so the
# processor never comes back from the first one.
FIRMWARE = b"\xf4" * 65536
START_TIMEOUT_S = 30.0
ANSWER_TIMEOUT_S = 30.0
# Guest memory below 1 MiB has holes and a firmware's shadow in it.
FIRST_FREE = 0x100000
PAGE = 4096


class HaltedQemu(Ending):
    """A machine without a guest. A context manager: at its end QEMU is dead.

    `read` and `write` reach guest memory and device registers by guest-physical address, `port_*`
    the ports. Each is one exchange on the socket, so QEMU has done it when it returns.
    """

    def __init__(
        self,
        devices: Sequence[VhostUserDevice],
        extra: Sequence[str] = (),
        *,
        qemu: Qemu = Qemu.INSTALLED,
        accel: str = EMULATED,
    ) -> None:
        self._free = FIRST_FREE
        self._pending = b""
        self._directory = tempfile.TemporaryDirectory(prefix="vuproc-qtest-")
        home = Path(self._directory.name)
        try:
            firmware = home / "halt.bin"
            firmware.write_bytes(FIRMWARE)
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
                listener.bind(str(home / "qtest.sock"))
                listener.listen(1)
                command = machine_arguments(devices, cpus=1, qemu=qemu, accel=accel)
                command += ["-bios", firmware, "-qtest", f"unix:{home / 'qtest.sock'}"]
                self.process = GuestProcess([*command, "-qtest-log", "none", *extra])
                try:
                    self._socket = self._accept(listener)
                except BaseException:
                    self.process.kill()
                    raise
        except BaseException:
            self._directory.cleanup()
            raise

    def _accept(self, listener: socket.socket) -> socket.socket:
        """QEMU opens its test socket before it makes devices, so its end is watched as well."""
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        with self.process.watch() as ended:
            poll.register(ended, select.POLLIN)
            ready = [fd for fd, _ in poll.poll(START_TIMEOUT_S * 1000)]
        if listener.fileno() not in ready:
            self.process.kill()
            raise GuestFailed("QEMU did not start", self.process.lines)
        connection, _ = listener.accept()
        connection.settimeout(ANSWER_TIMEOUT_S)
        return connection

    def kill(self) -> None:
        """Ends QEMU at once (SIGKILL)."""
        try:
            self._socket.close()
            self.process.kill()
        finally:
            self._directory.cleanup()

    def request(self, *words: str | int) -> list[str]:
        """One command and the words of its answer behind OK; `GuestFailed` on any other answer."""
        line = " ".join(f"{word:#x}" if isinstance(word, int) else word for word in words)
        try:
            self._socket.sendall(line.encode() + b"\n")
            while b"\n" not in self._pending:
                data = self._socket.recv(1 << 20)
                if not data:
                    raise ConnectionResetError("QEMU closed its test socket")
                self._pending += data
        except OSError as error:
            self.process.kill()
            raise GuestFailed(f"qtest {words[0]}: {error}", self.process.lines) from error
        answer, _, self._pending = self._pending.partition(b"\n")
        verdict, *rest = answer.decode().split()
        if verdict != "OK":
            raise GuestFailed(f"qtest {line[:80]}: {answer.decode()}")
        return rest

    def read(self, address: int, size: int) -> bytes:
        """Bytes of guest memory."""
        if size == 0:
            return b""
        return base64.b64decode(self.request("b64read", address, size)[0])

    def write(self, address: int, data: bytes) -> None:
        """Puts bytes into guest memory."""
        if data:
            self.request("b64write", address, len(data), base64.b64encode(data).decode())

    def read_register(self, address: int, size: int) -> int:
        """A device register of 1, 2, 4 or 8 bytes, in one access of that width."""
        return int(self.request(f"read{WIDTHS[size]}", address)[0], 16)

    def write_register(self, address: int, size: int, value: int) -> None:
        """Writes a device register in one access of that width."""
        self.request(f"write{WIDTHS[size]}", address, value)

    def port_read(self, port: int, size: int) -> int:
        """Reads a port of 1, 2 or 4 bytes."""
        return int(self.request(f"in{WIDTHS[size]}", port)[0], 16)

    def port_write(self, port: int, size: int, value: int) -> None:
        """Writes a port."""
        self.request(f"out{WIDTHS[size]}", port, value)

    def allocate(self, size: int, align: int = 16) -> int:
        """The guest-physical address of zeroed memory that nobody had before."""
        address = -(-self._free // align) * align
        if address + size > MEMORY_MIB << 20:
            raise GuestFailed(f"{size} bytes more do not fit into {MEMORY_MIB} MiB of guest memory")
        self._free = address + size
        return address


WIDTHS = {1: "b", 2: "w", 4: "l", 8: "q"}
