"""The options of a CAN controller: which bus it is on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from msgspec import Meta

from vuproc.devices.can_bus import LOOPBACK, library_is_there
from vuproc.options import Options


class CanOptions(Options, kw_only=True):
    """The options of `type: can`."""

    interface: Annotated[
        str,
        Meta(
            min_length=1,
            description="The bus. loopback: each frame comes back to its sender. Else an interface "
            "of python-can, such as socketcan or udp_multicast.",
        ),
    ] = LOOPBACK
    channel: (
        Annotated[
            str,
            Meta(description="The channel of a python-can interface, such as can0 or vcan0."),
        ]
        | None
    ) = None
    bitrate: (
        Annotated[
            int,
            Meta(
                ge=1,
                le=10_000_000,
                description="Bits a second, for interfaces that set it; socketcan's is set by ip.",
            ),
        ]
        | None
    ) = None
    fd: Annotated[bool, Meta(description="Offer frames of CAN FD, of up to 64 bytes.")] = True

    def problems(self) -> Iterator[tuple[str, str]]:
        """Check that the bus can be had."""
        yield from super().problems()
        if self.interface == LOOPBACK:
            for name in ("channel", "bitrate"):
                if getattr(self, name) is not None:
                    yield name, f"{LOOPBACK} has none"
        elif not library_is_there():
            yield (
                "interface",
                f"{self.interface} needs python-can, which is not installed: "
                "pip install 'vuproc[can]'",
            )
