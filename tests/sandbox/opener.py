"""A device that opens what a request names."""

from __future__ import annotations

from vuproc import Device, Request


class Opener(Device):
    device_id = 42

    def handle(self, request: Request) -> None:
        with open(request.read().decode(), "rb") as file:
            request.write(file.read(request.writable))
