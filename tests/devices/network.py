"""Network devices that say what the front-end asks of them, in their log."""

from __future__ import annotations

from vuproc import Device, Request
from vuproc.spec.net import NetFeature

LARGEST = 9000


class Plain(Device):
    """One that cannot be asked for anything."""

    device_id = 1
    features = NetFeature.MTU
    queues = 2

    def handle(self, request: Request) -> None:
        request.finish(0)


class Asked(Plain):
    """One that can."""

    def setup(self, queue: int) -> None:
        self.queue = queue

    def mtu_changed(self, mtu: int) -> None:
        if mtu > LARGEST:
            raise ValueError(f"{mtu} bytes are too many")
        self.log.info("queue %d has MTU %d", self.queue, mtu)

    def announce(self, mac: bytes) -> None:
        self.log.info("queue %d announces %s", self.queue, mac.hex(":"))
