"""virtio-rng in native code, from the kernel's generator or, for tests, from a seed."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from fast_entropy.server import Server
from vuproc import Device, Options, Request


class EntropyOptions(Options, kw_only=True):
    """The options of `type: fast-entropy`."""

    seed: Annotated[
        int,
        Meta(ge=0, le=1 << 62, description="The same bytes in each run; 0: the kernel's, for use."),
    ] = 0


class Entropy(Device):
    """virtio-rng (virtio 1.3, 5.4): fills whatever the driver gives it."""

    device_id = 4
    options_type = EntropyOptions
    options: EntropyOptions

    def native(self, queue: int) -> Server:
        """What serves the queue."""
        return Server(self.options.seed)

    def fail(self, request: Request, error: BaseException) -> None:
        """A request over which too many workers have died."""
        request.finish(0)
