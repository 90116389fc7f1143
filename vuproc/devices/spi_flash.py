"""A simulated NOR flash with the usual commands (JEDEC), whose content outlives workers."""

from __future__ import annotations

import ctypes
import os
from enum import IntEnum
from typing import ClassVar, NamedTuple

from vuproc.devices.spi_chip import Chip
from vuproc.fd import HasFileno

MIN_SIZE, MAX_SIZE = 64 << 10, 16 << 20
"""Bytes of a flash: a power of two, and what addresses of three bytes reach."""
PAGE = 256
"""Bytes that are programmed at once, and do not leave their page."""
ERASED = 0xFF
MANUFACTURER, MEMORY_TYPE = 0xEF, 0x40
"""What RDID says before the power of two of the size: a W25Q of Winbond's."""
SR_WEL = 1 << 1
"""Bit of the status register: the write enable latch. It is never busy."""
_BLOCK = bytes((ERASED,)) * (64 << 10)


class Opcode(IntEnum):
    """The commands, as Linux's spi-nor and the data sheets of W25Q have them."""

    WRSR = 0x01
    PP = 0x02
    READ = 0x03
    WRDI = 0x04
    RDSR = 0x05
    WREN = 0x06
    FAST_READ = 0x0B
    SE = 0x20
    BE_32K = 0x52
    RDSFDP = 0x5A
    CE_ALSO = 0x60
    RDID = 0x9F
    CE = 0xC7
    BE_64K = 0xD8


class _Command(NamedTuple):
    """How a command goes on after its opcode."""

    head: int
    """Bytes before its data: the opcode, three of an address, one that counts for nothing."""
    data: bool = False
    """Whether it has any; else it is carried out once its head is there."""
    gives: bool = False
    """Whether the data comes from the flash."""
    erases: int = 0
    """Bytes of an erased block."""


_COMMANDS = {
    Opcode.WRSR: _Command(1, data=True),
    Opcode.PP: _Command(4, data=True),
    Opcode.READ: _Command(4, data=True, gives=True),
    Opcode.WRDI: _Command(1),
    Opcode.RDSR: _Command(1, data=True, gives=True),
    Opcode.WREN: _Command(1),
    Opcode.FAST_READ: _Command(5, data=True, gives=True),
    Opcode.SE: _Command(4, erases=4 << 10),
    Opcode.BE_32K: _Command(4, erases=32 << 10),
    Opcode.RDSFDP: _Command(5, data=True, gives=True),
    Opcode.CE_ALSO: _Command(1, erases=MAX_SIZE),
    Opcode.RDID: _Command(1, data=True, gives=True),
    Opcode.CE: _Command(1, erases=MAX_SIZE),
    Opcode.BE_64K: _Command(4, erases=64 << 10),
}
_UNKNOWN = _Command(1, data=True)
_HEAD_MAX = 5


class _Between(ctypes.Structure):
    """What a flash remembers between two transfers."""

    _fields_: ClassVar = [
        ("count", ctypes.c_uint64),  # bytes of the head that have come; 0: no command is open
        ("given", ctypes.c_uint64),  # bytes of data of this command so far
        ("enabled", ctypes.c_uint64),  # the write enable latch
        ("head", ctypes.c_uint8 * 8),
    ]


class FlashState(ctypes.Structure):
    """What outlives a worker, beside the content: before and after the last transfer."""

    _fields_: ClassVar = [
        ("sides", _Between * 2),
        ("made", ctypes.c_uint64),  # transfers that were made; its last bit says which side holds
        ("begun", ctypes.c_uint64),  # `made` as it is to be after the transfer that was begun last
        ("request", ctypes.c_uint64),  # whose that is
    ]

    def valid(self) -> bool:
        """Whether it is one that a flash could have left."""
        return all(side.count <= _HEAD_MAX for side in self.sides)


class Flash(Chip):
    """A NOR flash of `size` bytes, in `file`.

    A transfer works out what is remembered after it, and has that hold by one store; its effect on
    the content is the same however often it is made from the same side. So the worker that follows
    can tell what was done, and repeat it.

    Transfers belong together as drivers make them, which do not say where a command ends: one that
    sends something, after a command that is complete, begins another.
    """

    def __init__(self, file: HasFileno, size: int, state: FlashState) -> None:
        self._file = file
        self._size = size
        self._state = state

    def transfer(self, tx: bytes, rx_length: int) -> bytes:
        """One transfer of a command, or all of it."""
        made = self._state.made
        after = self._state.sides[(made + 1) & 1]
        received = self._from(self._state.sides[made & 1], after, tx, rx_length)
        self._state.made = made + 1
        return received

    def deselect(self) -> None:
        """Whatever was begun is given up."""
        self._state.sides[self._state.made & 1].count = 0

    def begin(self, head: int) -> None:
        """Note whose transfer comes."""
        self._state.request = head
        self._state.begun = self._state.made + 1

    def again(self, head: int, tx: bytes, rx_length: int) -> bytes | None:
        """Of the last transfer it is known how far it had come, of others before it not."""
        state = self._state
        if state.request != head:
            return None
        if state.begun == state.made + 1:
            return self.transfer(tx, rx_length)
        before = state.sides[(state.made - 1) & 1]
        return self._from(before, _Between(), tx, rx_length)

    def _from(self, before: _Between, after: _Between, tx: bytes, rx_length: int) -> bytes:
        """What is received; `after` becomes what is remembered after it, `before` stays."""
        after.count, after.given = before.count, before.given
        after.enabled, after.head[:] = before.enabled, before.head[:]
        if tx and after.count and self._complete(after, sends=not rx_length):
            after.count = 0
        head = self._take_head(after, tx)
        if not after.count or after.count < self._command(after).head:
            return bytes((ERASED,)) * rx_length
        command = self._command(after)
        if not command.data:
            if head:
                self._carry_out(after, command)
            return bytes((ERASED,)) * rx_length
        sent, wanted = tx[head:], max(0, rx_length - head)
        data = self._data(after, sent, wanted) if sent or wanted else b""
        after.given += max(len(sent), wanted)
        return (bytes((ERASED,)) * min(head, rx_length) + data)[:rx_length]

    def _take_head(self, after: _Between, tx: bytes) -> int:
        """Take the bytes of the head that are in `tx`; how many."""
        taken = 0
        while taken < len(tx) and (not after.count or after.count < self._command(after).head):
            if not after.count:
                after.given = 0
            after.head[after.count] = tx[taken]
            after.count += 1
            taken += 1
        return taken

    def _command(self, side: _Between) -> _Command:
        return _COMMANDS.get(side.head[0], _UNKNOWN)

    def _complete(self, side: _Between, *, sends: bool) -> bool:
        """Whether what is sent now is no part of the command any more. `sends`: and nothing is
        received.
        """
        command = self._command(side)
        if side.count < command.head:
            return False
        return not command.data or side.given > 0 or (command.gives and sends)

    def _address(self, side: _Between) -> int:
        return int.from_bytes(bytes(side.head[1:4]), "big") & (self._size - 1)

    def _carry_out(self, side: _Between, command: _Command) -> None:
        """A command without data."""
        match side.head[0]:
            case Opcode.WREN:
                side.enabled = 1
            case Opcode.WRDI:
                side.enabled = 0
            case _ if command.erases and side.enabled:
                length = min(command.erases, self._size)
                start = (self._address(side) if command.head > 1 else 0) & ~(length - 1)
                for at in range(start, start + length, len(_BLOCK)):
                    os.pwrite(self._file.fileno(), _BLOCK[: start + length - at], at)
                side.enabled = 0

    def _data(self, side: _Between, sent: bytes, wanted: int) -> bytes:
        """What a command with data gives, or takes."""
        given = side.given
        match side.head[0]:
            case Opcode.READ | Opcode.FAST_READ:
                return self._read(self._address(side) + given, wanted)
            case Opcode.RDID:
                size = self._size.bit_length() - 1
                return bytes((MANUFACTURER, MEMORY_TYPE, size))[given:].ljust(wanted, b"\0")
            case Opcode.RDSR:
                return bytes((SR_WEL if side.enabled else 0,)) * wanted
            case Opcode.PP if side.enabled:
                self._program(self._address(side), sent)
                side.enabled = 0
            case Opcode.WRSR:
                side.enabled = 0  # nothing is protected, and nothing can be
        return bytes((ERASED,)) * wanted

    def _read(self, start: int, count: int) -> bytes:
        """After the last byte comes the first."""
        came = bytearray()
        while len(came) < count:
            at = (start + len(came)) % self._size
            part = os.pread(self._file.fileno(), min(count - len(came), self._size - at), at)
            if not part:
                raise OSError("the file of the flash has become shorter")
            came += part
        return bytes(came)

    def _program(self, start: int, data: bytes) -> None:
        """Bits are cleared and never set. What goes over the end of the page goes to its begin."""
        page = start & ~(PAGE - 1)
        content = bytearray(self._read(page, PAGE))
        for offset, byte in enumerate(data[-PAGE:], max(0, len(data) - PAGE)):
            content[(start + offset) % PAGE] &= byte
        os.pwrite(self._file.fileno(), content, page)


def new_content(size: int) -> int:
    """The descriptor of memory for an erased flash. Raises OSError."""
    number = os.memfd_create("flash", os.MFD_CLOEXEC)
    try:
        for at in range(0, size, len(_BLOCK)):
            os.pwrite(number, _BLOCK, at)
    except BaseException:
        os.close(number)
        raise
    return number
