"""The back-end's own channel to the front-end (SET_BACKEND_REQ_FD): messages that we start.

We never ask for a reply, so the front-end has nothing to say here. What does not fit into its queue
waits here until it does; losing the channel must not stop the data path.
"""

from __future__ import annotations

import logging
import selectors
import socket

from vuproc.errors import ConnectionBroken, Disconnected
from vuproc.fd import Fd
from vuproc.poll_set import PollSet
from vuproc.spec.vhost_user import VRING_STATE, BackendRequest
from vuproc.vhost_user.wire import encode, send_some

log = logging.getLogger("vuproc.master")


class BackendChannel:
    """Our use of the connected stream socket `fd`, whose owner is the session. Raises OSError if it
    is none.

    It is polled by `polls` from now on, and closes by itself when the front-end has ended it.
    """

    def __init__(self, fd: Fd, polls: PollSet) -> None:
        # O_NONBLOCK would change the front-end's end of the description too: each call says
        # MSG_DONTWAIT instead.
        copy = fd.dup()
        try:
            self._socket = socket.socket(fileno=copy.fileno())
        except OSError:
            copy.close()
            raise
        copy.take()
        self._closed = False
        self._polls = polls
        # Each at most once, so that there are never more than some for each ring.
        self._waiting: dict[bytes, BackendRequest] = {}
        polls.refresh()  # the number may be one that a dead worker had
        polls.add(self._socket.fileno(), self._ready)

    def config_changed(self) -> None:
        """Tell the front-end to read the configuration space and the status again."""
        self._send(BackendRequest.CONFIG_CHANGE_MSG)

    def call(self, ring: int) -> None:
        """Tell the front-end, in-band, that requests of a ring are completed."""
        self._send(BackendRequest.VRING_CALL, VRING_STATE.pack(index=ring, num=0))

    def err(self, ring: int) -> None:
        """Tell the front-end, in-band, that a ring is broken."""
        self._send(BackendRequest.VRING_ERR, VRING_STATE.pack(index=ring, num=0))

    def close(self) -> None:
        """End the channel: the peer sees it now, though the session still owns a descriptor."""
        if self._closed:
            return
        self._closed = True
        self._polls.selector.unregister(self._socket)
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the peer was quicker
        self._socket.close()

    def _send(self, request: BackendRequest, payload: bytes = b"") -> None:
        """Send a message, as soon as there is room. One that waits already counts for both."""
        if self._closed:
            return
        self._waiting[encode(request, payload)] = request
        self._flush()

    def _flush(self) -> None:
        """Send what waits. The kernel splits none so short: it takes a message whole or not."""
        try:
            for data, request in list(self._waiting.items()):
                if not send_some(self._socket, data):
                    break
                del self._waiting[data]
                log.debug("%s to the front-end", request.name)
        except (Disconnected, ConnectionBroken) as error:
            self._end(str(error), logging.WARNING)
            return
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._waiting else 0)
        key = self._polls.selector.get_key(self._socket)
        if key.events != events:
            self._polls.selector.modify(self._socket, events, key.data)

    def _ready(self) -> None:
        """There is room, or something to read."""
        try:
            data = self._socket.recv(4096, socket.MSG_DONTWAIT)
        except BlockingIOError:
            self._flush()
        except OSError as error:
            self._end(error.strerror or str(error), logging.WARNING)
        else:
            if data:
                self._end(f"{len(data)} bytes that answer nothing", logging.WARNING)
            else:
                # That is how a channel ends as a rule: not worth a warning.
                self._end("closed by the front-end", logging.DEBUG)

    def _end(self, reason: str, level: int) -> None:
        left = ", ".join(sorted({request.name for request in self._waiting.values()}))
        unsent = f"; not sent: {left}" if left else ""
        log.log(level, "back-end request channel ended: %s%s", reason, unsent)
        self.close()
