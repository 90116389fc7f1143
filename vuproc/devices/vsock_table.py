"""What a socket device knows, in memory that outlives its workers.

All of it is 64-bit words. A step of the device changes several of them, by `commit`, and a death
comes between any two stores; so what a step stores is first written down, then their number, and
then carried out. The store of the number is the one that decides: before it the step was not made,
after it the next worker carries it out again (`recover`), which changes nothing of what was done
already, for the values are absolute. A worker's steps follow each other, so there is one such list.

A step that belongs to a request of the driver's is made if, and only if, the driver has seen the
end of that request (`finish`): the number that is stored says which request it is. Then the request
is finished and published, and then the step is carried out. Whoever comes after a worker that died
in between asks whether the request is among those left unfinished (`Device.unfinished`). If it is
the step was not made, and the request comes again, as a new one.

Beside the words each connection has two areas of bytes, what came from its guest and what came from
its program on the host. Bytes are written where no position counts them yet, and then counted.
"""

from __future__ import annotations

import ctypes
from collections.abc import Container, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from vuproc import shared
from vuproc.device import Device
from vuproc.devices.vsock_area import Area
from vuproc.devices.vsock_native import HEAD_WORDS, WORDS, NativeVsock
from vuproc.fd import Fd, HasFileno

if TYPE_CHECKING:
    from vuproc.shm.request import Request

COMMITTED_MOST = 64
"""Words that one step may change: those of a connection, and a few of the table."""
CONNECTIONS_MOST = 64
"""Connections of a device: each takes a descriptor, in the worker and in the kernel's hands."""
RESETS_MOST = 64 + 2 * CONNECTIONS_MOST
"""RST packets that may wait: for whom there is no connection, and as many as there can be."""
FRAME = 5
"""Bytes that a byte of a SEQPACKET connection may take: each packet has its length before it."""
PAGE = 4096
MADV_REMOVE = 9
"""Linux, mman-common.h."""
_COUNT = (1 << 16) - 1
_HEAD, _QUEUE = 16, 48
"""Above the number of words: the head of the request that a step belongs to, and its queue + 1."""

_libc = ctypes.CDLL(None, use_errno=True)


class Stored(ctypes.Structure):
    """Words in shared memory, each a field. `at` is the number of the first of them, `words` has
    the others by name, from there.
    """

    at: int
    words: ClassVar[Mapping[str, int]]


def _places(kind: type[Stored]) -> dict[str, int]:
    return {
        field[0]: getattr(kind, field[0]).offset // 8
        for field in kind._fields_
        if field[1] is ctypes.c_uint64
    }


def _words(*names: str) -> list[tuple[str, type[ctypes.c_uint64]]]:
    return [(name, ctypes.c_uint64) for name in names]


class Head(Stored):
    """What is not of one connection."""

    _fields_: ClassVar = [
        ("committing", ctypes.c_uint64),
        ("commits", ctypes.c_uint64 * (2 * COMMITTED_MOST)),
        # The last number that a connection has had, and the last port of ours.
        *_words("serial", "port"),
        # RST packets: those that were called for, and those that were sent.
        *_words("resets", "resets_sent"),
        # 1: the driver is to be told that it comes from another device, whose connections are lost.
        *_words("interrupted"),
        # What is asked of a connection's socket at the moment, and of what it is the end.
        *_words("moving", "slot", "base", "end"),
        ("message", ctypes.c_uint64 * 8),
    ]


Head.words = _places(Head)


class Reset(ctypes.Structure):
    """The header of an RST packet."""

    _fields_: ClassVar = [("header", ctypes.c_ubyte * 48)]
    header: ctypes.Array[ctypes.c_ubyte]


class Record(Stored):
    """One connection. Positions count the bytes of an area since the connection's beginning, as it
    lies there; `got`, `passed` and `given` those that credit is for.
    """

    _fields_: ClassVar = _words(
        "state",
        "serial",
        "kind",
        "guest_port",
        "host_port",
        "owes",
        # From the guest: written to the area, sent on, how much of it was ours ("OK"), and how many
        # whole messages are there.
        "out_end",
        "out_begin",
        "preamble",
        "messages",
        "got",
        "passed",
        "told",
        "guest_shut",
        # Bytes of the next packets that have gone already, straight from the guest's memory, when a
        # worker died.
        "skip",
        # From the host: written to the area, and sent to the guest; what is left of the message
        # that is being sent.
        "in_end",
        "in_begin",
        "in_left",
        "given",
        "ended",
        "deaf",
        "told_shut",
        "peer_alloc",
        "peer_fwd",
    )
    state: int
    serial: int
    kind: int
    guest_port: int
    host_port: int
    owes: int
    out_end: int
    out_begin: int
    preamble: int
    messages: int
    got: int
    passed: int
    told: int
    guest_shut: int
    skip: int
    in_end: int
    in_begin: int
    in_left: int
    given: int
    ended: int
    deaf: int
    told_shut: int
    peer_alloc: int
    peer_fwd: int


Record.words = _places(Record)


class Table:
    """The table of a device with so many `connections`, and `buffer` bytes for each direction."""

    def __init__(self, file: HasFileno, connections: int, buffer: int) -> None:
        kind = _layout(connections, buffer)
        self._memory: Any = shared.struct(kind, file)
        self._address = ctypes.addressof(self._memory)
        octets = ctypes.c_ubyte * ctypes.sizeof(kind)
        whole = memoryview(octets.from_buffer(self._memory)).cast("B")
        self._whole = whole
        self._words = whole[: kind.areas.offset].cast("Q")
        self.head: Any = self._memory.head
        self.head.at = 0
        self.resets: list[Reset] = list(self._memory.resets)
        self.records: list[Record] = list(self._memory.records)
        for record in self.records:
            record.at = (ctypes.addressof(record) - self._address) // 8
        stride, first = (FRAME + 1) * buffer, kind.areas.offset
        self._stride, self._areas = stride, first
        self.from_guest: list[Area] = []
        self.from_host: list[Area] = []
        for begin in range(first, first + connections * stride, stride):
            self.from_host.append(Area(whole, self._address, begin, buffer))
            self.from_guest.append(Area(whole, self._address, begin + buffer, FRAME * buffer))
        self._commits = Head.commits.offset // 8

    def streams(self, cid: int) -> NativeVsock:
        """What serves the streams of a guest with this CID in native code."""
        records, stride = len(self.records), self._stride
        begins = [self._areas + slot * stride for slot in range(records)]
        size = stride // (FRAME + 1)
        return NativeVsock(
            self._whole,
            places=[Record.words[name] for name in WORDS],
            head_places=[getattr(Head, name).offset // 8 for name in HEAD_WORDS],
            commits=self._commits,
            records=[record.at for record in self.records],
            to_guest=[(begin, size) for begin in begins],
            to_host=[(begin + size, FRAME * size) for begin in begins],
            cid=cid,
            buffer=size,
        )

    @property
    def message(self) -> int:
        """The address of the words that the kernel stores to (`vsock_transfer`)."""
        return self._address + int(Head.message.offset)

    def commit(self, *changes: tuple[Stored, Mapping[str, int]]) -> None:
        """Store all of this, or none of it, whenever the worker dies."""
        self._words[0] = self._noted(changes)  # this store decides
        self._carry_out()

    def finish(
        self, device: Device, request: Request, *changes: tuple[Stored, Mapping[str, int]]
    ) -> None:
        """Finish a request and store all of this, or neither, whenever the worker dies."""
        noted = self._noted(changes)
        self._words[0] = noted | request.head << _HEAD | request.queue + 1 << _QUEUE
        try:
            request.finish()
            device.publish(request.queue)
        except Exception:
            self._words[0] = 0  # the ring is gone: the driver has not seen it
            raise
        self._carry_out()

    @property
    def depends_on(self) -> int | None:
        """The queue of the request that the step of a dead worker belongs to, if it does."""
        queue = int(self._words[0]) >> _QUEUE
        return queue - 1 if queue else None

    def recover(self, unfinished: Container[int]) -> None:
        """Carry out what was decided on: nothing if it belongs to one of the requests with these
        heads, of the queue that it `depends_on`.
        """
        noted = int(self._words[0])
        if noted >> _QUEUE and noted >> _HEAD & 0xFFFFFFFF in unfinished:
            self._words[0] = 0
        self._carry_out()

    def _noted(self, changes: Sequence[tuple[Stored, Mapping[str, int]]]) -> int:
        """Write down what is to be stored; how many words that is."""
        words, first = self._words, self._commits
        at = first
        if sum(len(values) for _, values in changes) > COMMITTED_MOST:
            raise ValueError("too many words for one step")
        for stored, values in changes:
            places, base = stored.words, stored.at
            for name, value in values.items():
                words[at] = base + places[name]
                words[at + 1] = value
                at += 2
        return (at - first) // 2

    def _carry_out(self) -> None:
        words, first = self._words, self._commits
        for at in range(first, first + 2 * (words[0] & _COUNT), 2):
            words[words[at]] = words[at + 1]
        words[0] = 0

    def forget(self, slot: int) -> None:
        """Give the memory of a slot's areas back; they read as zeros then."""
        begin, size = self._areas + slot * self._stride, self._stride
        # SAFETY: a part of the mapping, which is of whole pages.
        _libc.madvise(ctypes.c_void_p(self._address + begin), ctypes.c_size_t(size), MADV_REMOVE)


def table_file(connections: int, buffer: int) -> Fd:
    """The memory of a new table."""
    return shared.struct_file(_layout(connections, buffer))


def _layout(connections: int, buffer: int) -> Any:
    members: list[tuple[str, Any]] = [
        ("head", Head),
        ("resets", Reset * RESETS_MOST),
        ("records", Record * connections),
    ]
    words = sum(ctypes.sizeof(kind) for _, kind in members)
    members += [
        ("unused", ctypes.c_ubyte * (-words % PAGE)),
        ("areas", ctypes.c_ubyte * (connections * (FRAME + 1) * buffer)),
    ]
    return type("VsockTable", (ctypes.Structure,), {"_fields_": members})
