"""A front-end and a master in one object, to talk with a session without sockets or workers."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vuproc.errors import CloseConnection
from vuproc.fd import Fd
from vuproc.spec.vhost_user import FRONT_END, HEADER, U64, VERSION, ProtocolFeature
from vuproc.spec.virtio import Feature
from vuproc.vhost_user.effects import (
    Bells,
    Effect,
    MakeBells,
    MakeInflight,
    OpenUserfault,
    ReadConfig,
    StageMemory,
    StopRing,
)
from vuproc.vhost_user.session import Offer, Session, State
from vuproc.vhost_user.snapshot import Part
from vuproc.vhost_user.wire import Message

P = ProtocolFeature

PROTOCOL_FEATURES = (
    P.MQ
    | P.REPLY_ACK
    | P.BACKEND_REQ
    | P.CONFIG
    | P.INFLIGHT_SHMFD
    | P.RESET_DEVICE
    | P.CONFIGURE_MEM_SLOTS
    | P.STATUS
    | P.LOG_SHMFD
)
FEATURES = (
    Feature.VERSION_1
    | Feature.INDIRECT_DESC
    | Feature.EVENT_IDX
    | Feature.PROTOCOL_FEATURES
    | Feature.LOG_ALL
)
OFFER = Offer(
    features=FEATURES,
    protocol_features=PROTOCOL_FEATURES,
    num_queues=4,
    queue_size=256,
    config_size=60,
)

RAM = 1 << 20
"""Bytes of the one region that `Dialogue.remember` makes."""
GUEST = 0x4000_0000
USER = 0x7F00_0000_0000
CONFIG = bytes(range(1, 61))
MAPPED = 0x7A00_0000_0000
"""Where the worker has the first region of a table that is staged."""


def memory(size: int = RAM) -> Fd:
    fd = Fd(os.memfd_create("guest"))
    os.ftruncate(fd.fileno(), size)
    return fd


def eventfd() -> Fd:
    return Fd(os.eventfd(0))


def stream() -> Fd:
    """One end of a socket pair whose other end is gone."""
    one, other = socket.socketpair()
    other.close()
    return Fd(one.detach())


def copied(parts: Mapping[int, Part]) -> dict[int, Part]:
    """Parts of a snapshot as a store gives them back: with other descriptors of the same files, the
    same one wherever the same one was.
    """
    copies = {fd: fd.dup() for fd in {fd for part in parts.values() for fd in part.fds}}
    return {
        number: Part(part.data, tuple(copies[fd] for fd in part.fds))
        for number, part in parts.items()
    }


Fields = dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What became of one message. `closed`: why the connection had to end, None if it went on."""

    effects: tuple[Effect, ...] = ()
    payload: bytes | None = None
    fields: Fields | None = None
    refused: str | None = None
    closed: str | None = None
    reply_sizes: tuple[int, ...] = ()
    """Bytes of each file that came with the answer."""

    @property
    def ok(self) -> bool:
        return self.refused is None and self.closed is None

    @property
    def failed(self) -> bool:
        """Refused with an answer that says so; the connection goes on."""
        return self.refused is not None and self.closed is None and self.payload is not None


class Dialogue:
    """Sends messages by name and carries out effects as a flawless master would.

    `result` decides what an effect gives; the default stops rings at `positions[index]` and reads
    CONFIG. On leaving, the session is closed and released.
    """

    def __init__(self, offer: Offer = OFFER, *, protocol: int = PROTOCOL_FEATURES) -> None:
        self.session = Session(offer)
        self.positions: dict[int, int] = {}
        self.result: Callable[[Effect], object] = self.perform
        if protocol:
            assert self.tell("SET_PROTOCOL_FEATURES", value=protocol).ok

    def __enter__(self) -> Dialogue:
        return self

    def __exit__(self, *exception: object) -> None:
        self.session.close()
        self.session.release()

    @property
    def state(self) -> State:
        return self.session.state

    def perform(self, effect: Effect) -> object:
        if isinstance(effect, StopRing):
            return self.positions.get(effect.index, 0)
        if isinstance(effect, ReadConfig):
            return CONFIG[effect.offset : effect.offset + effect.size]
        if isinstance(effect, MakeInflight):
            size = effect.num_queues * effect.record_bytes
            return memory(size), size
        if isinstance(effect, MakeBells):
            return tuple(Bells(eventfd(), eventfd()) for _ in range(effect.num_queues))
        if isinstance(effect, OpenUserfault):
            return eventfd()
        if isinstance(effect, StageMemory):
            return tuple(MAPPED + (number << 32) for number in range(len(effect.regions)))
        return None

    def tell(
        self,
        name: str,
        fds: Iterable[Fd] = (),
        *,
        need_reply: bool = True,
        payload: bytes | None = None,
        **fields: Any,
    ) -> Outcome:
        """One message from the first byte to the answer; the session owns `fds` from here on."""
        row = FRONT_END.named(name)
        body = row.payload.encode(**fields) if payload is None else payload
        return self.deliver(row.number, body, fds, need_reply=need_reply)

    def deliver(
        self, number: int, payload: bytes, fds: Iterable[Fd] = (), *, need_reply: bool = True
    ) -> Outcome:
        flags = 0x9 if need_reply else VERSION
        message = Message(number, flags, payload, tuple(fds))
        effects: tuple[Effect, ...] = ()
        step = None
        try:
            step = self.session.handle(message)
            effects = step.effects
            answer = step.finish([self.result(effect) for effect in effects])
        except CloseConnection as error:
            return Outcome(effects, refused=step.refused if step else None, closed=str(error))
        sizes = tuple(fd.size for fd in step.reply_fds)
        step.close_reply_fds()
        return replace(self._outcome(number, effects, answer, step.refused), reply_sizes=sizes)

    def _outcome(
        self, number: int, effects: tuple[Effect, ...], answer: bytes | None, refused: str | None
    ) -> Outcome:
        if answer is None:
            return Outcome(effects, refused=refused)
        header = HEADER.unpack(answer)
        payload = answer[HEADER.size :]
        assert header == {"request": number, "flags": 0x5, "size": len(payload)}
        row = FRONT_END.get(number)
        layout = U64
        fields: Fields | None
        if row is not None and row.name == "SET_MEM_TABLE" and len(payload) != U64.size:
            fields = row.payload.decode(payload)  # the table once more, as in postcopy
        elif row is None or not row.replies(self.session.state.protocol_features):
            fields = layout.unpack(payload)
            assert (fields["value"] == 0) == (refused is None)
        else:
            fields = row.reply_payload.decode(payload)
        return Outcome(effects, payload, fields, refused)

    # ---- what front-ends say ---------------------------------------------------------------------

    def remember(self, size: int = RAM) -> Outcome:
        """A memory table of one region: guest GUEST, user USER."""
        item = {"guest_addr": GUEST, "size": size, "user_addr": USER, "mmap_offset": 0}
        return self.tell("SET_MEM_TABLE", [memory(size)], items=[item])

    def region(self, number: int, size: int = 0x10000, **changes: int) -> Fields:
        """The fields of one of many regions that lie side by side."""
        fields = {
            "guest_addr": GUEST + number * 0x10000,
            "size": size,
            "user_addr": USER + number * 0x10000,
            "mmap_offset": 0,
        }
        return {**fields, **changes}

    def address(self, index: int = 0, at: int | None = None, **changes: int) -> Outcome:
        """SET_VRING_ADDR with the three areas at `at`, 64 KiB a ring by default."""
        start = USER + index * 0x10000 if at is None else at
        fields: Fields = {"desc": start, "avail": start + 0x4000, "used": start + 0x8000}
        fields.update(changes)
        return self.tell("SET_VRING_ADDR", index=index, **fields)

    def start(self, index: int = 0, *, base: int = 0, size: int = 128) -> Outcome:
        """A whole set-up in QEMU's order; the outcome of the kick."""
        assert self.tell("SET_VRING_NUM", index=index, num=size).ok
        assert self.tell("SET_VRING_BASE", index=index, num=base).ok
        assert self.address(index).ok
        assert self.tell("SET_VRING_CALL", [eventfd()], value=index).ok
        return self.tell("SET_VRING_KICK", [eventfd()], value=index)


def kinds(effects: Sequence[Effect]) -> list[str]:
    """The names of some effects."""
    return [type(effect).__name__ for effect in effects]
