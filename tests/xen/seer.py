"""A device that shows what a handler may do with memory that is mapped for one request alone."""

from __future__ import annotations

import vuproc


class Seer(vuproc.Device):
    """Answers with what it was given, and keeps a slice of it for the next one."""

    device_id = 42

    def setup(self, queue: int) -> None:
        self.kept = memoryview(b"")

    def handle(self, request: vuproc.Request) -> None:
        before = bytes(self.kept)
        given = b"".join(bytes(view) for view in request.readable_segments)
        if request.readable_segments:
            self.kept = request.readable_segments[0][:4]
        request.write(before + given)
        request.finish()
