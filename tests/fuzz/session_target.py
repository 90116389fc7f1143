"""A session that hears any conversation, with workers that notice an effect which is not due.

What always holds, whatever is said: a message that fails leaves the state as it was; each
descriptor is kept by the state or closed; the workers are where the state says, and so would be
fresh ones, and a successor that has the snapshot.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from msgspec.structs import replace

from tests.fuzz.grammar import PROTOCOL, Kind, Sent, Shape, conversation
from tests.vhost_user.dialogue import (
    FEATURES,
    OFFER,
    Dialogue,
    Outcome,
    copied,
    eventfd,
    memory,
    stream,
)
from tests.vhost_user.session_model import Workers
from vuproc.fd import Fd
from vuproc.spec.net import NetFeature
from vuproc.spec.ring_layout import layout_of
from vuproc.spec.virtio import Feature
from vuproc.vhost_user import effects as fx
from vuproc.vhost_user.effects import Effect, EffectFailed
from vuproc.vhost_user.replay import replay
from vuproc.vhost_user.session import Session, State
from vuproc.vhost_user.snapshot import Part

ALL = replace(
    OFFER,
    features=int(FEATURES | Feature.RING_PACKED | Feature.ACCESS_PLATFORM | NetFeature.MTU),
    protocol_features=int(PROTOCOL),
    shared_memory={0: 0x10000, 3: 0x1000},
    display=True,
)
"""More than a device has at once, so that each message finds its handler."""


class LayoutWorkers(Workers):
    """Workers of a session with rings of either layout."""

    def covers(self, setup: fx.RingSetup) -> bool:
        if (self.features or 0) & Feature.ACCESS_PLATFORM:
            return True  # where its addresses lead is not known before they are used
        layout = layout_of(self.features or 0)
        areas = (setup.desc, layout.desc), (setup.avail, layout.avail), (setup.used, layout.used)
        return all(
            any(
                region.user_addr <= at
                and at + area.length(setup.size) <= region.user_addr + region.size
                for region in self.regions
            )
            for at, area in areas
        )


class Conversation:
    """One front-end and one session."""

    def __init__(self) -> None:
        self.before = _open_fds()
        self.dialogue = Dialogue(ALL, protocol=0)
        self.dialogue.result = self._carry_out
        self.workers: Workers = LayoutWorkers()
        self.left: int | None = None
        """Effects that succeed before one fails; None: all do."""
        self.broke = False
        self.known: State | None = None
        self.parts: dict[int, Part] = {}
        """What was written of each part last, and of which state."""
        self.outcome = Outcome()
        """Of the last message."""

    def hear(self, sent: Sent) -> bool:
        """One message, and whether the connection goes on after it."""
        if sent.shape & Shape.BREAKS:
            self._break(sent.chance % ALL.num_queues)
        before = self.dialogue.state
        self.left = sent.chance % 3 if sent.shape & Shape.FAILS else None
        self.broke = False
        self.dialogue.positions = dict.fromkeys(range(ALL.num_queues), sent.chance)
        fds = [_made(kind) for kind in sent.fds]
        need_reply = bool(sent.shape & Shape.NEED_REPLY)
        outcome = self.dialogue.deliver(sent.number, sent.payload, fds, need_reply=need_reply)
        self.outcome = outcome
        self._check(outcome, before)
        return outcome.closed is None

    def end(self) -> None:
        """The front-end is gone: no ring runs, and no descriptor is left."""
        for effect in self.dialogue.session.close():
            self.workers.carry_out(effect)
        assert self.workers.rings == {}
        self.dialogue.session.release()
        assert _open_fds() == self.before

    def _carry_out(self, effect: Effect) -> object:
        if self.left is not None:
            if self.left == 0:
                return EffectFailed("as the bytes have it")
            self.left -= 1
        self.workers.carry_out(effect)
        for index in self.workers.bereft():
            self.broke = True
            self.dialogue.session.ring_broken(index, "its memory is gone")
        return self.dialogue.perform(effect)

    def _break(self, index: int) -> None:
        self.dialogue.session.ring_broken(index, "as the bytes have it")
        if index in self.workers.rings:
            self.workers.broken.add(index)

    def _check(self, outcome: Outcome, before: State) -> None:
        state = self.dialogue.state
        if not outcome.ok:
            assert self.broke or state is before
        if not outcome.ok and outcome.effects:
            # The workers are ahead of the state: fresh ones take their place.
            self.workers = _fresh(state)
        self.workers.check(state)
        _fresh(state)
        kept = state.fds()
        assert not any(fd.closed for fd in kept)
        assert _open_fds() == self.before + len(kept)
        self._check_snapshot(state)

    def _check_snapshot(self, state: State) -> None:
        session = self.dialogue.session
        for number, part in session.snapshot(self.known).items():
            # As a successor finds them: each as it was written last.
            self.parts[number] = part
        self.known = state
        assert self.parts == session.snapshot()
        with _copies(self.parts) as copies:
            successor = Session.restore(ALL, copies)
            assert len(successor.state.fds()) == len(state.fds())
            assert successor.running() == session.running()
            _fresh(successor.state)
            assert contents(successor.snapshot()) == contents(self.parts)


def session_target(data: bytes) -> None:
    """Runs one conversation; AssertionError, or whatever else is raised, is a fault."""
    talk = Conversation()
    try:
        for sent in conversation(data):
            if not talk.hear(sent):
                break
    finally:
        talk.end()


def _fresh(state: State) -> Workers:
    workers = LayoutWorkers(ring.index for ring in state.rings if ring.broken)
    for effect in list(replay(state)):
        workers.carry_out(effect)
    workers.check(state)
    return workers


def contents(parts: Mapping[int, Part]) -> dict[int, tuple[bytes, int]]:
    """What parts say, and how many descriptors each needs."""
    return {number: (part.data, len(part.fds)) for number, part in parts.items()}


@contextmanager
def _copies(parts: Mapping[int, Part]) -> Iterator[dict[int, Part]]:
    copies = copied(parts)
    try:
        yield copies
    finally:
        for part in copies.values():
            for fd in part.fds:
                fd.close()


def _made(kind: Kind) -> Fd:
    match kind:
        case Kind.EVENTFD:
            return eventfd()
        case Kind.MEMORY:
            return memory()
        case Kind.STREAM:
            return stream()
        case Kind.EMPTY:
            return memory(0)
        case Kind.PIPE:
            reader, writer = os.pipe()
            os.close(reader)
            return Fd(writer)


def _open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))
