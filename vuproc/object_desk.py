"""Carries out what a device asks about shared objects: the front-end hears of them, and answers."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable

from vuproc.fd import Fd
from vuproc.pool.pool import WorkerPool
from vuproc.sharing import LookUpObject, ObjectAsk, ShareFile, ShareObject, UnshareObject
from vuproc.spec.vhost_user import SHARED, BackendRequest, ProtocolFeature
from vuproc.vhost_user.backend_channel import Answered, BackendChannel
from vuproc.vhost_user.state import State
from vuproc.workers.control import ObjectFound

log = logging.getLogger("vuproc.master")

NEEDED = ProtocolFeature.BACKEND_REQ | ProtocolFeature.SHARED_OBJECT
LOOKUPS_MAX = 64
"""Objects that are looked up at a time; a device that asks for more gets no answer for those."""


class ObjectDesk:
    """The objects of one session. `channel` gives the back-end channel, if there is one.

    Nothing here waits for the front-end: it may itself be waiting for us, with a message that has
    not been read yet. And nothing is sent while no ring runs ("a suspended device ... must not send
    messages on the back-end channel"): what the device asks by then is put off.
    """

    def __init__(self, pool: WorkerPool, channel: Callable[[], BackendChannel | None]) -> None:
        self._pool = pool
        self._channel = channel
        self._told: set[bytes] = set()
        """The objects that the front-end knows of."""
        self._lookups: deque[bytes] = deque()
        """Those that are to be looked up."""
        self._under_way: dict[int, bytes] = {}
        self._serial = 0
        self._answers: deque[ObjectFound] = deque()
        self._lent: list[Fd] = []
        """In an answer that the worker may not have yet."""

    def ask(self, ask: ObjectAsk, state: State) -> None:
        """The device asks; what it shares is in the pool's state already."""
        match ask:
            case LookUpObject(uuid=uuid):
                self._lookups.append(uuid)
                if len(self._lookups) + len(self._under_way) + len(self._answers) > LOOKUPS_MAX:
                    log.warning("more than %d objects are looked up at a time", LOOKUPS_MAX)
                    self._lookups.pop()
            case ShareObject(uuid=uuid) | ShareFile(uuid=uuid):
                self._told.discard(uuid)  # it may be another file by now
            case UnshareObject():
                pass
        self.follow(state)

    def channel_changed(self) -> None:
        """Who is at its other end has been told of nothing."""
        self._told.clear()

    def follow(self, state: State) -> None:
        """Tell the front-end what it does not know, as soon as that may be."""
        if state.protocol_features & NEEDED != NEEDED:
            self._give_up()
            return
        channel = self._channel()
        objects = set(self._pool.history.objects)
        if channel is None or (objects == self._told and not self._lookups):
            return
        if not state.any_started:
            return
        for uuid in self._told - objects:
            channel.post(BackendRequest.SHARED_OBJECT_REMOVE, SHARED.pack(uuid=uuid))
        for uuid in objects - self._told:
            channel.post(BackendRequest.SHARED_OBJECT_ADD, SHARED.pack(uuid=uuid))
        self._told = objects
        while self._lookups:
            self._look_up(channel, self._lookups.popleft())

    def close(self) -> None:
        """The session is over."""
        left = [answer.file for answer in self._answers if answer.file is not None]
        for fd in (*self._lent, *left):
            fd.close()
        self._lent.clear()
        self._answers.clear()
        self._lookups.clear()
        self._under_way.clear()

    def _look_up(self, channel: BackendChannel, uuid: bytes) -> None:
        self._serial += 1
        serial = self._serial
        self._under_way[serial] = uuid

        def answered(_how: Answered, fd: Fd | None) -> None:
            if self._under_way.pop(serial, None) is not None:
                self._found(uuid, fd)
            elif fd is not None:
                fd.close()

        channel.request(BackendRequest.SHARED_OBJECT_LOOKUP, SHARED.pack(uuid=uuid), answered)

    def deliver(self) -> None:
        """Hand answers on, one after the other, as the worker takes them."""
        while (self._answers or self._lent) and self._pool.speaker_is_ready:
            for fd in self._lent:
                fd.close()
            self._lent.clear()
            if self._answers:
                answer = self._answers.popleft()
                if answer.file is not None:
                    self._lent.append(answer.file)
                self._pool.post(answer)

    def _found(self, uuid: bytes, fd: Fd | None) -> None:
        self._answers.append(ObjectFound(uuid, fd))
        self.deliver()

    def _give_up(self) -> None:
        """There is nobody to ask."""
        while self._lookups:
            self._found(self._lookups.popleft(), None)
