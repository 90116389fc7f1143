"""Numbers and layouts of the network block device protocol (doc/proto.md), as a client has them.

All numbers are big-endian.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag

PORT = 10809
"""Of TCP, where a URI names none."""

# The handshake, in its fixed newstyle form.

GREETING = struct.Struct(">8s8sH")
"""INIT, OPTION_MAGIC and the server's handshake flags."""
INIT = b"NBDMAGIC"
OPTION_MAGIC = b"IHAVEOPT"
FIXED_NEWSTYLE = 1
CLIENT_FLAGS = struct.Struct(">I")

OPTION = struct.Struct(">8sII")
"""OPTION_MAGIC, the option and the length of what follows."""
OPTION_REPLY = struct.Struct(">QIII")
"""REPLY_MAGIC, the option, the type of the reply and the length of what follows."""
REPLY_MAGIC = 0x0003E889045565A9
NAME_LENGTH = struct.Struct(">I")
INFO_COUNT = struct.Struct(">H")
INFO_KIND = struct.Struct(">H")
INFO_EXPORT = struct.Struct(">QH")
"""Size in bytes and the transmission flags."""
INFO_BLOCK_SIZE = struct.Struct(">III")
"""Smallest, preferred and largest number of bytes of a command."""
MAX_OPTION_REPLY = 1 << 16
"""Bytes of a reply to an option that a client takes; texts are up to 4096 bytes."""
MAX_NAME = 4096


class Option(IntEnum):
    """What a client asks for."""

    GO = 7


class Reply(IntEnum):
    """How a server answers an option."""

    ACK = 1
    INFO = 3


class OptionError(IntEnum):
    """The types of those replies that are errors."""

    UNSUP = 0x80000001
    POLICY = 0x80000002
    INVALID = 0x80000003
    PLATFORM = 0x80000004
    TLS_REQD = 0x80000005
    UNKNOWN = 0x80000006
    SHUTDOWN = 0x80000007
    BLOCK_SIZE_REQD = 0x80000008
    TOO_BIG = 0x80000009


class Info(IntEnum):
    """What a server tells of an export."""

    EXPORT = 0
    BLOCK_SIZE = 3


class ExportFlag(IntFlag):
    """What an export can do: the transmission flags."""

    HAS_FLAGS = 1 << 0
    READ_ONLY = 1 << 1
    SEND_FLUSH = 1 << 2
    SEND_FUA = 1 << 3
    SEND_TRIM = 1 << 5
    SEND_WRITE_ZEROES = 1 << 6
    CAN_MULTI_CONN = 1 << 8


# The commands.

COMMAND = struct.Struct(">IHHQQI")
"""COMMAND_MAGIC, flags, kind, the client's cookie, offset and length in bytes."""
COMMAND_MAGIC = 0x25609513
SIMPLE_REPLY = struct.Struct(">IIQ")
"""SIMPLE_REPLY_MAGIC, the error or 0, and the cookie; the bytes follow that were read."""
SIMPLE_REPLY_MAGIC = 0x67446698


class Command(IntEnum):
    """What a client has done to an export."""

    READ = 0
    WRITE = 1
    DISC = 2
    FLUSH = 3
    TRIM = 4
    WRITE_ZEROES = 6


class CommandFlag(IntFlag):
    """How."""

    FUA = 1 << 0
    NO_HOLE = 1 << 1


ESHUTDOWN = 108
"""The error of a server that is about to end: the command may be sent to the next one."""
ERRORS = {1: "EPERM", 5: "EIO", 12: "ENOMEM", 22: "EINVAL", 28: "ENOSPC", 75: "EOVERFLOW"}
ERRORS |= {95: "ENOTSUP", ESHUTDOWN: "ESHUTDOWN"}
"""The numbers of errors, which are the protocol's own and the same on every system."""
