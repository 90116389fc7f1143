"""One connection of a socket device: its packets, its credit, its end, all of it in a `Record`.

What a packet from the guest changes comes back as words to be committed; so does what a packet for
the guest changes, with the packet. Nothing here has a state of its own that a death could take.

Credit (virtio 1.3 section 5.10.6.3) bounds both areas: the guest sends no more than `buf_alloc`
bytes that no program on the host has taken yet, and gets no more than it says itself.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from vuproc.devices.vsock_area import Area
from vuproc.devices.vsock_table import Record, Table
from vuproc.devices.vsock_transfer import DIRECT, RECEIVING
from vuproc.spec.vsock import BOTH, HEADER, HOST_CID, Op, SeqFlag, Shutdown, VsockType

FREE, GREETING, CALLING, OPEN, ENDING = range(5)
"""States: there is none; a program has connected and is to say to which port; the guest was asked;
open; the guest is done, and what it has sent is on its way to the program.
"""
OWES_REQUEST, OWES_RESPONSE, OWES_CREDIT = 1, 2, 4
PACKET_MOST = 64 << 10
"""Bytes of one packet for the guest; Linux sends as many."""

M32 = 0xFFFFFFFF
LENGTH = struct.Struct("<I")
"""Before each packet of a SEQPACKET connection in its area, with its flags above."""
EOM_BIT, EOR_BIT = 1 << 31, 1 << 30
LENGTH_MASK = EOR_BIT - 1

Changes = dict[str, int]


class Violation(Exception):
    """The guest has broken a rule of the connection, which is reset."""


class Incoming(NamedTuple):
    """The header of a packet from the guest."""

    src_cid: int
    dst_cid: int
    src_port: int
    dst_port: int
    length: int
    kind: int
    op: int
    flags: int
    buf_alloc: int
    fwd_cnt: int


class Packet(NamedTuple):
    """A packet for the guest: its header and its bytes, which lie in the area of the host's, and
    what its sending changes.
    """

    header: bytes
    data: Sequence[memoryview]
    changes: Mapping[str, int]


def blank(**known: int) -> Changes:
    """The words of a new connection."""
    return dict.fromkeys(Record.words, 0) | known


class Connection:
    """The connection in a slot of `table`, of a guest with this CID."""

    def __init__(self, table: Table, slot: int, cid: int) -> None:
        self.slot = slot
        self.record: Record = table.records[slot]
        self.from_guest: Area = table.from_guest[slot]
        self.from_host: Area = table.from_host[slot]
        self._cid = cid
        self._asked = False
        """For credit, since the guest last said something. A successor may ask again."""

    @property
    def ports(self) -> tuple[int, int]:
        """The guest's and ours: what tells this connection from the others."""
        return self.record.guest_port, self.record.host_port

    @property
    def stream(self) -> bool:
        """Whether it is of bytes; else of messages."""
        return self.record.kind == VsockType.STREAM

    @property
    def buf_alloc(self) -> int:
        """Bytes of the guest's that there is room for."""
        return self.from_host.size

    @property
    def room(self) -> int:
        """Bytes of the host's that there is room for."""
        return self.from_host.size - (self.record.in_end - self.record.in_begin)

    @property
    def unsent(self) -> bool:
        """Whether something of the guest's can be sent on."""
        record = self.record
        return record.out_begin < record.out_end if self.stream else record.messages > 0

    # From the guest.

    def take(self, packet: Incoming, data: bytes) -> Changes:
        """What a packet changes that is none of REQUEST, RESPONSE and RST. Raises Violation."""
        record = self.record
        self._asked = False
        changes = {"peer_alloc": packet.buf_alloc, "peer_fwd": packet.fwd_cnt}
        match packet.op:
            case Op.RW:
                changes |= self._take_bytes(packet, data)
            case Op.SHUTDOWN:
                changes["guest_shut"] = record.guest_shut | packet.flags & BOTH
            case Op.CREDIT_REQUEST:
                changes["owes"] = record.owes | OWES_CREDIT
        return changes

    def _take_bytes(self, packet: Incoming, data: bytes) -> Changes:
        record, count = self.record, len(data)
        if record.guest_shut & Shutdown.SEND or count < packet.length:
            raise Violation
        got = record.got + count
        if got - record.told > self.buf_alloc:
            raise Violation  # of 5.10.6.3.1: more than there is credit for
        # Those that have gone already, from a worker that died: nothing was in the area then.
        gone = min(record.skip, count)
        skipped = {"skip": record.skip - gone} if gone else {}
        if record.deaf:
            return {"got": got, "passed": got, **skipped}
        end = record.out_end
        if self.stream:
            self.from_guest.put(end + gone, data[gone:])
            if gone:
                begin = record.out_begin + gone
                passed = max(record.passed, begin - record.preamble)
                skipped |= {"out_begin": begin, "passed": passed}
            return {"got": got, "out_end": end + count, **skipped}
        last = bool(packet.flags & SeqFlag.EOM)
        if not count and not last:
            return {}
        if end + LENGTH.size + count - record.out_begin > self.from_guest.size:
            raise Violation  # by packets without a byte, which no credit bounds
        eor = EOR_BIT if packet.flags & SeqFlag.EOR else 0
        self.from_guest.put(end, LENGTH.pack(count | eor | (EOM_BIT if last else 0)))
        self.from_guest.put(end + LENGTH.size, data)
        end += LENGTH.size + count
        return {"got": got, "out_end": end, "messages": record.messages + last}

    def message(self) -> tuple[bytes, int, bool]:
        """The first whole message from the guest, where it ends, and whether it ends a record."""
        position, pieces = self.record.out_begin, []
        while True:
            length = LENGTH.unpack(self.from_guest.get(position, LENGTH.size))[0]
            position += LENGTH.size
            pieces += self.from_guest.pieces(position, length & LENGTH_MASK)
            position += length & LENGTH_MASK
            if length & EOM_BIT:
                return b"".join(pieces), position, bool(length & EOR_BIT)

    def heard(self) -> None:
        """The guest has said something, which native code has taken."""
        self._asked = False

    def deafened(self) -> Changes:
        """The program takes nothing any more: what is for it goes nowhere."""
        record = self.record
        changes = {"deaf": 1, "out_begin": record.out_end, "messages": 0}
        return changes | {"passed": record.got}

    # For the guest.

    def packet(self, op: Op, changes: Changes, flags: int = 0) -> Packet:
        """One without data."""
        return self._packet(op, flags, 0, 0, changes)

    def next_packet(self, room: int) -> Packet | None:
        """What the guest is to be told next, with at most `room` bytes of data; None: nothing."""
        record = self.record
        owes = record.owes
        if owes & OWES_REQUEST:
            return self.packet(Op.REQUEST, {"owes": owes & ~OWES_REQUEST})
        if record.state != OPEN:
            return None
        if owes & OWES_RESPONSE:
            return self.packet(Op.RESPONSE, {"owes": owes & ~OWES_RESPONSE})
        waits = record.in_begin < record.in_end and not record.guest_shut & Shutdown.RECEIVE
        if waits and (data := self._data(room)) is not None:
            return data
        shut = int(Shutdown.RECEIVE) if record.deaf else 0
        if record.ended and not waits:
            shut |= Shutdown.SEND
        if shut & ~record.told_shut:
            return self.packet(Op.SHUTDOWN, {"told_shut": shut | record.told_shut}, shut)
        if owes & OWES_CREDIT or self._credit_is_due():
            return self.packet(Op.CREDIT_UPDATE, {"owes": owes & ~OWES_CREDIT})
        if waits and not self._asked:
            self._asked = True
            return self.packet(Op.CREDIT_REQUEST, {})
        return None

    def _credit_is_due(self) -> bool:
        """Whether the guest, as far as it knows, has little room, and has more."""
        record, little = self.record, self.buf_alloc // 4
        if record.passed == record.told:
            return False
        known = self.buf_alloc - (record.got - record.told)
        return record.passed - record.told >= little or known < little

    def _data(self, room: int) -> Packet | None:
        """The next bytes for the guest, as far as its credit goes."""
        record = self.record
        position, left = record.in_begin, record.in_end - record.in_begin
        if not self.stream:
            left = record.in_left
            if not left:
                left = LENGTH.unpack(self.from_host.get(position, LENGTH.size))[0]
                position += LENGTH.size
        credit = record.peer_alloc - ((record.given - record.peer_fwd) & M32)
        count = min(left, credit, room, PACKET_MOST)
        if count <= 0:
            return None
        left -= count
        changes = {"in_begin": position + count, "given": record.given + count}
        flags = 0
        if not self.stream:
            changes["in_left"] = left
            flags = 0 if left else SeqFlag.EOM
        return self._packet(Op.RW, flags, position, count, changes)

    def _packet(self, op: Op, flags: int, position: int, length: int, changes: Changes) -> Packet:
        record = self.record
        header = HEADER.pack(
            src_cid=HOST_CID,
            dst_cid=self._cid,
            src_port=record.host_port,
            dst_port=record.guest_port,
            len=length,
            type=record.kind,
            op=op,
            flags=flags,
            buf_alloc=self.buf_alloc,
            fwd_cnt=record.passed & M32,
        )
        data = self.from_host.pieces(position, length) if length else ()
        return Packet(header, data, changes | {"told": record.passed})


def moved(table: Table, slot: int, moving: int, base: int, end: int, count: int) -> Changes:
    """What a transfer of `count` bytes from or to the host changes (`vsock_transfer.Transfer`)."""
    record = table.records[slot]
    stream = record.kind == VsockType.STREAM
    if moving == DIRECT:
        return {"skip": record.skip + count}
    if moving == RECEIVING:
        if stream or not count:
            return {"in_end": base + count}
        table.from_host[slot].put(base, LENGTH.pack(count))
        return {"in_end": base + LENGTH.size + count}
    if stream:
        begin = base + count
        return {"out_begin": begin, "passed": max(record.passed, begin - record.preamble, 0)}
    if not count:
        return {}
    return {"out_begin": end, "passed": record.passed + count, "messages": record.messages - 1}
