"""Devices that are served by the batch, and what a handler may do with some of it."""

from __future__ import annotations

import os
import signal

import vuproc


class Mixed(vuproc.Device):
    """Each request says what is to become of it."""

    device_id = 42

    def handle_batch(self, batch: vuproc.Batch) -> None:
        raises = False
        for request in batch:
            said = request.read()
            raises |= said == b"raise"
            if said != b"raise":
                request.write(said)
            if said == b"finish":
                request.finish()
            elif said == b"defer":
                request.defer()
                self.call_soon(request.finish)
        if raises:
            raise ValueError("as it was told")

    def fail(self, request: vuproc.Request, error: BaseException) -> None:
        request.put(0, b"failed")
        request.finish(6)


class Deadly(vuproc.Device):
    """One request of a batch kills the worker, before anything is finished."""

    device_id = 42

    def handle_batch(self, batch: vuproc.Batch) -> None:
        said = [bytes(frame) for frame in batch.frames()]
        if b"die" in said:
            os.kill(os.getpid(), signal.SIGKILL)
        for request, text in zip(batch, said, strict=True):
            request.write(text)

    def fail(self, request: vuproc.Request, error: BaseException) -> None:
        request.put(0, b"failed")
        request.finish(6)
