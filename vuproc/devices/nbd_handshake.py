"""How a connection to an NBD server begins: greeting, and one export by NBD_OPT_GO.

Servers have that since 2016 (qemu-nbd 2.9, nbdkit 1.2, nbd-server 3.17).
"""

from __future__ import annotations

import socket
import struct
import time
from dataclasses import dataclass

from vuproc import texts
from vuproc.devices.nbd_address import Address
from vuproc.spec import nbd
from vuproc.spec.nbd import ExportFlag, Info, Option, OptionError, Reply

CONNECT_S = 5.0
"""Seconds that each step of a connection may take."""
MOST_SAID = 200
"""Bytes of a server's own words."""
MOST_REPLIES = 64
"""Replies to one option; a server sends one for each thing that it tells, and an end."""
DEFAULT_MOST = 32 << 20
"""Bytes of a command that every server takes."""


class NbdError(Exception):
    """The server refuses, or does not speak the protocol; the text says what it did."""


@dataclass(frozen=True, slots=True)
class Export:
    """What a server says of an export: bytes of it, what it can do, and the smallest and largest
    number of bytes of a command.
    """

    size: int
    flags: ExportFlag
    least: int = 1
    most: int = DEFAULT_MOST

    _PACKED = struct.Struct("<QIII")
    PACKED_BYTES = _PACKED.size

    def pack(self) -> bytes:
        """As bytes, for `unpack` in another process."""
        return self._PACKED.pack(self.size, self.flags, self.least, self.most)

    @classmethod
    def unpack(cls, data: bytes) -> Export:
        """Raises struct.error for other bytes."""
        size, flags, least, most = cls._PACKED.unpack(data)
        return cls(size, ExportFlag(flags), least, most)

    def can(self, flag: ExportFlag) -> bool:
        """Whether it has that flag."""
        return bool(self.flags & flag)


def open_export(address: Address, timeout_s: float) -> tuple[socket.socket, Export]:
    """A connection on which commands may follow, and the export; `timeout_s` is for connecting, and
    for all that follows. Raises NbdError, OSError.
    """
    connected = address.connect(timeout_s)
    try:
        export = _Handshake(connected, time.monotonic() + timeout_s).go(address.export)
        if not 0 < export.least <= export.most or export.size >= 1 << 63:
            raise NbdError("the server says of the export what cannot be")
        return connected, export
    except struct.error as error:
        connected.close()
        raise NbdError("the server tells something of the wrong length") from error
    except BaseException:
        connected.close()
        raise


def leave(connected: socket.socket) -> None:
    """Tell the server that this is the end, and hang up."""
    with connected:
        try:
            connected.sendall(nbd.COMMAND.pack(nbd.COMMAND_MAGIC, 0, nbd.Command.DISC, 0, 0, 0))
        except OSError:
            pass  # then it knows


def reason_of(error: Exception) -> str:
    """In words, without the number of an error of the system."""
    return getattr(error, "strerror", None) or str(error)


class _Handshake:
    def __init__(self, connected: socket.socket, deadline: float) -> None:
        self._socket = connected
        self._deadline = deadline

    def go(self, name: str) -> Export:
        init, magic, flags = nbd.GREETING.unpack(self._read(nbd.GREETING.size))
        if init != nbd.INIT:
            raise NbdError("this is no NBD server")
        if magic != nbd.OPTION_MAGIC or not flags & nbd.FIXED_NEWSTYLE:
            raise NbdError("the server has only a handshake of before 2011")
        self._socket.sendall(nbd.CLIENT_FLAGS.pack(nbd.FIXED_NEWSTYLE))
        encoded = name.encode()
        wanted = nbd.NAME_LENGTH.pack(len(encoded)) + encoded
        wanted += nbd.INFO_COUNT.pack(1) + nbd.INFO_KIND.pack(Info.BLOCK_SIZE)
        self._socket.sendall(nbd.OPTION.pack(nbd.OPTION_MAGIC, Option.GO, len(wanted)) + wanted)
        size, flags, sizes = None, 0, (1, 1, DEFAULT_MOST)
        for _ in range(MOST_REPLIES):
            kind, data = self._reply()
            if kind == Reply.ACK:
                if size is None:
                    raise NbdError("the server does not say how large the export is")
                return Export(size, ExportFlag(flags), sizes[0], sizes[2])
            if kind != Reply.INFO:
                raise NbdError(_refusal(kind, data))
            (info,) = nbd.INFO_KIND.unpack_from(data)
            rest = data[nbd.INFO_KIND.size :]
            if info == Info.EXPORT:
                size, flags = nbd.INFO_EXPORT.unpack(rest)
            elif info == Info.BLOCK_SIZE:
                sizes = nbd.INFO_BLOCK_SIZE.unpack(rest)
        raise NbdError("the server does not come to an end of what it says of the export")

    def _reply(self) -> tuple[int, bytes]:
        magic, option, kind, length = nbd.OPTION_REPLY.unpack(self._read(nbd.OPTION_REPLY.size))
        if (magic, option) != (nbd.REPLY_MAGIC, Option.GO) or length > nbd.MAX_OPTION_REPLY:
            raise NbdError("the server answers something else than it was asked")
        data = self._read(length)
        if kind == Reply.INFO and length < nbd.INFO_KIND.size:
            raise NbdError("the server tells something without saying what")
        return kind, data

    def _read(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            # A server that sends a byte now and then does not get on either.
            left_s = self._deadline - time.monotonic()
            if left_s <= 0:
                raise NbdError("the server takes too long")
            self._socket.settimeout(left_s)
            part = self._socket.recv(length - len(data))
            if not part:
                raise NbdError("the server hung up in the handshake")
            data += part
        return data


def _refusal(kind: int, data: bytes) -> str:
    text = texts.line(data.decode("utf-8", "replace"), MOST_SAID)
    said = f" ({text})" if text else ""
    if kind == OptionError.TLS_REQD:
        return "the server wants TLS, which is not to be had"
    if kind == OptionError.UNKNOWN:
        return f"the server has no such export{said}"
    name = OptionError(kind).name if kind in set(OptionError) else f"reply {kind:#x}"
    return f"the server refuses the export: {name}{said}"
