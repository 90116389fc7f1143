"""The back-end's own channel to the front-end (SET_BACKEND_REQ_FD): messages that we start.

We never ask for a reply, so the front-end has nothing to say here, and a message that does not fit
into its queue is dropped: losing the channel must not stop the data path.
"""

from __future__ import annotations

import logging
import socket

from vuproc.fd import Fd
from vuproc.spec.vhost_user import BackendRequest
from vuproc.vhost_user.wire import encode

log = logging.getLogger("vuproc.master")


CLOSED = "closed by the front-end"
"""Why a channel ends as a rule: not worth a warning."""


class BackendChannel:
    """Our use of the connected stream socket `fd`, whose owner is the session. Raises OSError if it
    is none.
    """

    def __init__(self, fd: Fd) -> None:
        # O_NONBLOCK would change the front-end's end of the description too: each call says
        # MSG_DONTWAIT instead.
        copy = fd.dup()
        try:
            self._socket = socket.socket(fileno=copy.fileno())
        except OSError:
            copy.close()
            raise
        copy.take()

    def fileno(self) -> int:
        """The descriptor to poll for strays and for the peer's end."""
        return self._socket.fileno()

    def config_changed(self) -> None:
        """Tell the front-end to read the configuration space and the status again."""
        try:
            self._socket.send(
                encode(BackendRequest.CONFIG_CHANGE_MSG), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
            )
        except OSError as error:
            log.warning("config change not announced: %s", error.strerror)
        else:
            log.debug("%s to the front-end", BackendRequest.CONFIG_CHANGE_MSG.name)

    def stray(self) -> str | None:
        """Read what nobody asked for; the reason to close the channel, or None if there was
        nothing.
        """
        try:
            data = self._socket.recv(4096, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except OSError as error:
            return error.strerror or str(error)
        return f"{len(data)} bytes that answer nothing" if data else CLOSED

    def close(self) -> None:
        """End the channel: the peer sees it now, though the session still owns a descriptor."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the peer was quicker
        self._socket.close()
