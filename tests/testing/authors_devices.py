"""Devices as somebody writes them who has read the README."""

from __future__ import annotations

import os

from vuproc import Device, Request


class Entropy(Device):
    """virtio-rng."""

    device_id = 4

    def handle(self, request: Request) -> None:
        request.write(os.urandom(request.writable))


class Echo(Device):
    """Writes back what it reads."""

    device_id = 42

    def handle(self, request: Request) -> None:
        data = request.read()
        if data == b"raise":
            raise RuntimeError("on demand")
        request.write(data)


class Never(Device):
    """Takes requests and never finishes them."""

    device_id = 42

    def handle(self, request: Request) -> None:
        request.defer()
