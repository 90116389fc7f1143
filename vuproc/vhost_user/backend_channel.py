"""The back-end's own channel to the front-end (SET_BACKEND_REQ_FD): messages that we start.

Nothing here waits. What does not fit into the front-end's queue stays here until it does, and of
what it is asked, the answers come by and by, in the order of the questions. Losing the channel must
not stop the data path.
"""

from __future__ import annotations

import logging
import selectors
import socket
from collections import deque
from collections.abc import Callable, Sequence
from enum import Enum

from msgspec import Struct

from vuproc.errors import ConnectionBroken, Disconnected, FramingError, MessageRefused
from vuproc.fd import Fd
from vuproc.poll_set import PollSet
from vuproc.spec.vhost_user import (
    BACK_END,
    FLAG_NEED_REPLY,
    VERSION,
    VRING_STATE,
    BackendRequest,
    Reply,
)
from vuproc.vhost_user.wire import Message, Receiver, encode, send_some

log = logging.getLogger("vuproc.master")

MESSAGES_PER_TURN = 64
"""Answers that are read before others have their turn."""


class Answered(Enum):
    """How a question was answered."""

    DONE = "done"
    REFUSED = "refused"
    NEVER = "the channel ended before that"


OnAnswer = Callable[[Answered, Fd | None], None]
"""Takes the answer, and its descriptor, if there is one, which is its own from then on."""


class _Waiting(Struct, frozen=True):
    """A message that has not been sent."""

    request: BackendRequest
    on_answer: OnAnswer | None
    fds: Sequence[Fd] = ()


class BackendChannel:
    """Our use of the connected stream socket `fd`, whose owner is the session. Raises OSError if it
    is none.

    It is polled by `polls` from now on, and closes by itself when the front-end has ended it.
    `resumed`: a predecessor has used it, and may have been owed answers.
    """

    def __init__(self, fd: Fd, polls: PollSet, *, resumed: bool = False) -> None:
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
        self._resumed = resumed
        self._polls = polls
        self._receiver = Receiver(self._socket, table=BACK_END, replies=True)
        # Each at most once, so that there are never more than some for each ring, object and
        # translation.
        self._waiting: dict[bytes, _Waiting] = {}
        self._asked: deque[tuple[BackendRequest, OnAnswer]] = deque()
        polls.refresh()  # the number may be one that a dead worker had
        polls.add(self._socket.fileno(), self._ready)

    @property
    def closed(self) -> bool:
        """Whether it has ended; then nothing is sent any more."""
        return self._closed

    def config_changed(self) -> None:
        """Tell the front-end to read the configuration space and the status again."""
        self.post(BackendRequest.CONFIG_CHANGE_MSG)

    def call(self, ring: int) -> None:
        """Tell the front-end, in-band, that requests of a ring are completed."""
        self.post(BackendRequest.VRING_CALL, VRING_STATE.pack(index=ring, num=0))

    def err(self, ring: int) -> None:
        """Tell the front-end, in-band, that a ring is broken."""
        self.post(BackendRequest.VRING_ERR, VRING_STATE.pack(index=ring, num=0))

    def post(self, request: BackendRequest, payload: bytes = b"") -> None:
        """Send a message, as soon as there is room. One that waits already counts for both."""
        self._send(encode(request, payload), _Waiting(request, None))

    def ask(self, request: BackendRequest, payload: bytes, on_answer: OnAnswer) -> bool:
        """As `request`; whether it is going to be told. Not on a channel that a predecessor has
        used: whose an acknowledgement is could not be known.
        """
        if self._resumed:
            self.post(request, payload)
            return False
        if self._closed:
            return False
        self.request(request, payload, on_answer)
        return True

    def request(
        self,
        request: BackendRequest,
        payload: bytes,
        on_answer: OnAnswer,
        fds: Sequence[Fd] = (),
    ) -> None:
        """The same for one that has an answer, or an acknowledgement. It is called once, at the
        latest when the channel ends. The same question, if it is not sent yet, has one answer, for
        who asked last. The descriptors stay the caller's, who keeps them until then.
        """
        if self._closed:
            on_answer(Answered.NEVER, None)
            return
        row = BACK_END.named(request.name)
        flags = VERSION | (FLAG_NEED_REPLY if row.reply is Reply.ACK else 0)
        self._send(encode(request, payload, flags=flags), _Waiting(request, on_answer, fds))

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
        self._receiver.close()
        self._socket.close()
        unanswered = [on_answer for _, on_answer in self._asked]
        unanswered += [w.on_answer for w in self._waiting.values() if w.on_answer is not None]
        self._asked.clear()
        self._waiting.clear()
        for on_answer in unanswered:
            on_answer(Answered.NEVER, None)

    # Out.

    def _send(self, data: bytes, message: _Waiting) -> None:
        if not self._closed:
            self._waiting[data] = message
            self._flush()

    def _flush(self) -> None:
        """Send what waits. The kernel splits none so short: it takes a message whole or not."""
        try:
            for data, message in list(self._waiting.items()):
                if not send_some(self._socket, data, message.fds):
                    break
                del self._waiting[data]
                if message.on_answer is not None:
                    self._asked.append((message.request, message.on_answer))
                log.debug("%s to the front-end", message.request.name)
        except (Disconnected, ConnectionBroken) as error:
            self._end(str(error), logging.WARNING)
            return
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._waiting else 0)
        key = self._polls.selector.get_key(self._socket)
        if key.events != events:
            self._polls.selector.modify(self._socket, events, key.data)

    # In.

    def _ready(self) -> None:
        """There is room, or an answer, or the end."""
        for _ in range(MESSAGES_PER_TURN):
            try:
                message = self._receiver.receive()
            except Disconnected:
                # That is how a channel ends as a rule: not worth a warning.
                self._end("closed by the front-end", logging.DEBUG)
                return
            except (ConnectionBroken, FramingError) as error:
                self._end(str(error), logging.WARNING)
                return
            if message is None:
                self._flush()
                return
            self._answered(message)
            if self._closed:
                return

    def _answered(self, message: Message) -> None:
        if not self._asked or message.request != self._asked[0][0]:
            message.close()
            if self._resumed and message.request == BackendRequest.IOTLB_MSG:
                return  # the predecessor's
            self._end(f"{message.name} answers nothing", logging.WARNING)
            return
        _, on_answer = self._asked.popleft()
        try:
            failed = bool(message.fields()["value"])
        except MessageRefused as refusal:
            log.warning("answer to %s: %s", message.name, refusal.reason)
            failed = True
        found = message.fds[:1] if not failed else ()
        for fd in message.fds[len(found) :]:
            fd.close()
        on_answer(Answered.REFUSED if failed else Answered.DONE, found[0] if found else None)

    def _end(self, reason: str, level: int) -> None:
        left = ", ".join(sorted({waiting.request.name for waiting in self._waiting.values()}))
        unsent = f"; not sent: {left}" if left else ""
        log.log(level, "back-end request channel ended: %s%s", reason, unsent)
        self.close()
