"""The part of a master's loop that a server inside it needs, in a thread."""

from __future__ import annotations

import selectors
import socket
import threading
import time

from vuproc.ops.admin import AdminServer
from vuproc.ops.metrics_server import MetricsServer

BOUND_S = 20.0


class ServerLoop:
    """Runs `server` in `selector` until it is closed. `longest_s`: CPU time of its longest turn."""

    def __init__(
        self, server: AdminServer | MetricsServer, selector: selectors.BaseSelector
    ) -> None:
        self.server = server
        self.selector = selector
        self.longest_s = 0.0
        self._wake, self._waker = socket.socketpair()
        selector.register(self._wake, selectors.EVENT_READ, lambda: None)
        self._ended = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended:
            ready = self.selector.select(self.server.due())
            begun = time.thread_time()
            for key, _ in ready:
                now = self.selector.get_map().get(key.fd)
                if now is not None and now.data is key.data:
                    key.data()
            self.server.tend()
            self.longest_s = max(self.longest_s, time.thread_time() - begun)

    def close(self) -> None:
        self._ended = True
        self._waker.send(b"x")
        self._thread.join(BOUND_S)
        self.server.close()
        self.selector.close()
        self._wake.close()
        self._waker.close()
