"""A device whose requests are served by threads of its own."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

from vuproc import Device, Request


class Threaded(Device):
    """Each request is a word: how another thread serves it."""

    device_id = 42

    def setup(self, queue: int) -> None:
        self.threads = ThreadPoolExecutor(8)
        self.main = threading.get_ident()

    def handle(self, request: Request) -> None:
        request.defer()
        self.threads.submit(self.serve, request)
        if request.readable_total % 2:
            # The thread may well be done before this returns.
            time.sleep(0.001)

    def serve(self, request: Request) -> None:
        word, _, rest = request.read().partition(b" ")
        if word == b"slow":
            time.sleep(float(rest))
        if word == b"release":
            try:
                request.release()
            except RuntimeError as error:
                rest = str(error).encode()
        if word == b"soon":
            self.call_soon(lambda: self.soon(request))
            return
        request.write(rest)
        request.finish()

    def soon(self, request: Request) -> None:
        request.write(b"worker" if threading.get_ident() == self.main else b"another")
        request.finish()
