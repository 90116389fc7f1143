"""The back-end channel as a front-end has it, and how messages are waited for."""

from __future__ import annotations

import select
import socket
import time
from collections import Counter, deque
from collections.abc import Callable
from uuid import UUID

from vuproc.fd import Fd
from vuproc.spec.vhost_user import BACK_END, U64, BackendRequest
from vuproc.testing.shmem import SharedRegions
from vuproc.vhost_user.wire import Message, Receiver, reply, send

REPLY_TIMEOUT = 30.0
"""Seconds a reply may take. No real front-end has such a bound; a test needs one."""


class BackEndChannel:
    """The front-end's end of the back-end channel: requests come in, acks go out."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.calls: Counter[int] = Counter()
        """VRING_CALL messages that have come, by ring; whoever waits for them takes them out."""
        self.objects: dict[UUID, Fd] = {}
        """What SHARED_OBJECT_LOOKUP finds; the descriptors stay the caller's."""
        self.regions = SharedRegions()
        """Where SHMEM_MAP maps; `FrontEnd.get_shmem_config` says how large they are."""
        self.on_miss: Callable[[BackEndChannel, Message], None] | None = None
        """Takes each IOTLB_MSG, and answers it; None: they are as all others."""
        self._receiver = Receiver(sock, REPLY_TIMEOUT, table=BACK_END)
        self._others: deque[Message] = deque()

    def receive(self, timeout_s: float = REPLY_TIMEOUT) -> Message | None:
        """The next request of the back-end but VRING_CALL, acknowledged if it asks; None if none
        comes.
        """
        deadline = time.monotonic() + timeout_s
        while not self._others and self.read(deadline - time.monotonic()):
            pass
        return self._others.popleft() if self._others else None

    def read(self, timeout_s: float) -> bool:
        """Take one request, for `calls` or for `receive`; False if none comes."""
        message = receive_from(self.socket, self._receiver, timeout_s)
        if message is None:
            return False
        if message.request == BackendRequest.IOTLB_MSG and self.on_miss is not None:
            self.on_miss(self, message)
            return True
        if message.request == BackendRequest.SHARED_OBJECT_LOOKUP:
            self._look_up(message)
        else:
            done = self._carry_out(message)
            if message.need_reply:
                send(self.socket, reply(message, U64.pack(value=int(not done))))
        if message.request == BackendRequest.VRING_CALL:
            self.calls[message.fields()["index"]] += 1
        else:
            self._others.append(message)
        return True

    def _carry_out(self, message: Message) -> bool:
        match message.request:
            case BackendRequest.SHMEM_MAP:
                done = len(message.fds) == 1 and self.regions.map(message.fields(), message.fds[0])
                message.close()
                return done
            case BackendRequest.SHMEM_UNMAP:
                return self.regions.unmap(message.fields())
        return True

    def _look_up(self, message: Message) -> None:
        found = self.objects.get(UUID(bytes=message.fields()["uuid"]))
        answer = reply(message, U64.pack(value=int(found is None)))
        send(self.socket, answer, () if found is None else (found,))

    def close(self) -> None:
        """Close our end."""
        for message in self._others:
            message.close()
        self._receiver.close()
        self.regions.clear()
        self.socket.close()


def receive_from(sock: socket.socket, receiver: Receiver, timeout_s: float) -> Message | None:
    """The next message of a socket; None if none comes within so many seconds."""
    deadline = time.monotonic() + timeout_s
    while True:
        message = receiver.receive()
        if message is not None:
            return message
        if not wait_readable(sock, deadline):
            return None


def wait_readable(sock: socket.socket, deadline: float) -> bool:
    """Wait until there is something to read; False at the deadline (time.monotonic)."""
    poller = select.poll()
    poller.register(sock, select.POLLIN)
    left = deadline - time.monotonic()
    return left > 0 and bool(poller.poll(left * 1000))
