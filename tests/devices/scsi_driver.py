"""A driver of a SCSI host: commands, functions and events, as bytes."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from vuproc.spec.scsi import (
    AN_REQUEST,
    AN_RESPONSE,
    CDB_SIZE,
    CONTROL,
    EVENT,
    EVENT_INFO,
    FIRST_REQUEST,
    REQUEST,
    RESPONSE,
    SENSE_SIZE,
    TMF_REQUEST,
    ControlType,
)
from vuproc.spec.scsi_commands import CHECK_CONDITION, Op
from vuproc.testing import Guest


@dataclass(frozen=True)
class Answer:
    """What came of a command."""

    response: int
    status: int
    sense: bytes
    residual: int
    data: bytes
    used: int

    @property
    def good(self) -> bool:
        return self.response == 0 and self.status == 0

    @property
    def why(self) -> tuple[int, int]:
        """Sense key and code with qualifier, of a command that ended so."""
        assert (self.response, self.status) == (0, CHECK_CONDITION), self
        assert self.sense[0] & 0x7F == 0x70 and len(self.sense) == 18
        return self.sense[2], self.sense[12] << 8 | self.sense[13]


def lun(target: int, number: int = 0) -> bytes:
    return bytes((1, target, 0x40 | number >> 8, number & 0xFF)) + bytes(4)


class Driver:
    """Commands on one queue of a guest."""

    def __init__(
        self,
        guest: Guest,
        queue: int = FIRST_REQUEST,
        *,
        sense_size: int = SENSE_SIZE,
        cdb_size: int = CDB_SIZE,
    ) -> None:
        self.guest = guest
        self.queue = queue
        self.sense_size = sense_size
        self.cdb_size = cdb_size

    def header(self, cdb: bytes, to: bytes) -> bytes:
        return REQUEST.pack(lun=to, id=7) + cdb.ljust(self.cdb_size, b"\0")

    def submit(
        self, cdb: bytes, out: Sequence[bytes] = (), room: int = 0, *, to: bytes = lun(0)
    ) -> tuple[int, int]:
        answer = RESPONSE.size + self.sense_size
        sizes = [answer, room] if room else [answer]
        return self.guest.submit(self.queue, [self.header(cdb, to), *out], sizes)

    def wait(self, token: tuple[int, int]) -> Answer:
        done = self.guest.wait(token)
        content = done.content
        head = RESPONSE.unpack(content)
        sense = content[RESPONSE.size :][: head["sense_len"]]
        data = content[RESPONSE.size + self.sense_size :]
        return Answer(head["response"], head["status"], sense, head["residual"], data, done.written)

    def do(
        self, cdb: bytes, out: Sequence[bytes] = (), room: int = 0, *, to: bytes = lun(0)
    ) -> Answer:
        return self.wait(self.submit(cdb, out, room, to=to))

    # Commands.

    def read(self, lba: int, count: int, room: int, *, to: bytes = lun(0)) -> Answer:
        return self.do(struct.pack(">BBIBHB", Op.READ_10, 0, lba, 0, count, 0), (), room, to=to)

    def write(
        self, lba: int, data: bytes, count: int, *, flags: int = 0, to: bytes = lun(0)
    ) -> Answer:
        return self.do(struct.pack(">BBIBHB", Op.WRITE_10, flags, lba, 0, count, 0), [data], to=to)

    def inquiry(self, page: int | None = None, *, to: bytes = lun(0), room: int = 255) -> Answer:
        cdb = struct.pack(">BBBHB", Op.INQUIRY, page is not None, page or 0, room, 0)
        return self.do(cdb, (), room, to=to)

    def ready(self, *, to: bytes = lun(0)) -> Answer:
        return self.do(bytes(6), to=to)

    def blocks(self, *, to: bytes = lun(0)) -> tuple[int, int]:
        """Number of blocks, and bytes of each."""
        cdb = struct.pack(">BBQIBB", Op.SERVICE_ACTION_IN_16, 0x10, 0, 32, 0, 0)
        last, size = struct.unpack(">QI", self.do(cdb, (), 32, to=to).data[:12])
        return last + 1, size

    # The other queues.

    def manage(self, subtype: int, to: bytes = lun(0)) -> int:
        """A task management function; its response."""
        done = self.guest.do(
            CONTROL,
            [TMF_REQUEST.pack(type=ControlType.TMF, subtype=subtype, lun=to, id=7)],
            [1],
        )
        return done.content[0]

    def notification(self, kind: int) -> tuple[int, int]:
        """An AN_QUERY or AN_SUBSCRIBE: the events, and the response."""
        done = self.guest.do(
            CONTROL, [AN_REQUEST.pack(type=kind, lun=lun(0), event_requested=0x3F)], [5]
        )
        said = AN_RESPONSE.unpack(done.content)
        return said["event_actual"], said["response"]

    def event(self) -> tuple[int, bytes, int]:
        """The next event: its number, the eight bytes of a LUN, and why."""
        said = EVENT_INFO.unpack(self.guest.receive(EVENT))
        return said["event"], said["lun"], said["reason"]
