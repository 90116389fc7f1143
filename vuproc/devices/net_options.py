"""The options of a network device."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta

from vuproc.devices.host_paths import why_not_there
from vuproc.options import FilePath, Options
from vuproc.shared import MAX_NAME
from vuproc.spec.net import MTU_MAX, MTU_MIN
from vuproc.unix_path import MAX_ADDRESS

MAX_PAIRS = 16
BackendName = Literal["null", "loopback", "tap", "stream", "datagram", "pcap"]
Engine = Literal["native", "python"]
SINGLE = ("stream", "datagram", "pcap")
"""Back-ends that have one pair of queues."""
_MULTICAST = 1
"""Bit of the first byte of a MAC address that no interface may have."""
_NAME = re.compile(r"(?!\.\.?$)[^/:\s]+")
"""Of an interface, as Linux takes it (dev_valid_name)."""


NEEDS = {
    "tap": ["interface"],
    "stream": ["path"],
    "datagram": ["path", "peer"],
    "pcap": ["path"],
}
"""What each back-end needs, and others have not."""


class NetOptions(Options, kw_only=True):
    """The options of `type: net`."""

    superseded: ClassVar[Mapping[str, str]] = {
        "queues": "pairs says how many queues this device has, two a pair"
    }
    json_schema: ClassVar[Mapping[str, Any]] = {
        "allOf": [
            {
                "if": {"properties": {"backend": {"const": name}}, "required": ["backend"]},
                "then": {"required": needed},
            }
            for name, needed in NEEDS.items()
        ]
    }

    pairs: Annotated[
        int,
        Meta(
            ge=1,
            le=MAX_PAIRS,
            description="Pairs of a receive and a transmit queue, a worker process each.",
        ),
    ] = 1
    backend: Annotated[
        BackendName,
        Meta(
            description="Where frames go. null: nowhere, each is dropped and counted. loopback: "
            "back to the receive queue of the pair that sent them. tap: a network interface of "
            "the host. stream, datagram: a program, by a Unix socket. pcap: the frames of a "
            "capture come to the guest, and what it sends is dropped.",
        ),
    ] = "null"
    interface: (
        Annotated[
            str,
            Meta(
                min_length=1,
                max_length=MAX_NAME,
                description="Of tap: the interface's name. It is made if it is not there.",
            ),
        ]
        | None
    ) = None
    path: (
        Annotated[
            FilePath,
            Meta(
                description="Of stream: the socket to connect to. Of datagram: our own socket. Of "
                "pcap: the capture."
            ),
        ]
        | None
    ) = None
    peer: (
        Annotated[FilePath, Meta(description="Of datagram: the other program's socket.")] | None
    ) = None
    capture: (
        Annotated[
            FilePath,
            Meta(
                description="A file in which all frames are recorded, both ways, for tcpdump and "
                "Wireshark (pcap)."
            ),
        ]
        | None
    ) = None
    engine: Annotated[
        Engine,
        Meta(
            description="What serves the queues: native code, if backend is null, loopback or tap "
            "and nothing is captured; python, the same in Python."
        ),
    ] = "native"
    mac: (
        Annotated[
            str,
            Meta(
                pattern="^([0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}$",
                description="The MAC address that the driver is to use, as 52:54:00:12:34:56; "
                "without one it makes one up.",
            ),
        ]
        | None
    ) = None
    mtu: (
        Annotated[
            int,
            Meta(
                ge=MTU_MIN,
                le=MTU_MAX,
                description="The MTU that the driver is to use, in bytes; without one it takes "
                "what it likes.",
            ),
        ]
        | None
    ) = None

    guest_announces: Annotated[
        bool,
        Meta(
            description="Have the driver tell the network where the guest is after a migration, "
            "if it can (GUEST_ANNOUNCE); otherwise this device does, by a RARP request. A "
            "front-end without a control queue cannot have it."
        ),
    ] = False

    def problems(self) -> Iterator[tuple[str, str]]:
        """Check that an interface may have the address, and that the back-end has what it needs."""
        yield from super().problems()
        address = self.address()
        if address is not None and (address[0] & _MULTICAST or not any(address)):
            yield "mac", f"{self.mac} is no address of a single interface"
        for name in ("interface", "path", "peer"):
            given, is_wanted = getattr(self, name), name in NEEDS.get(self.backend, ())
            if is_wanted and given is None:
                yield "backend", f"{self.backend} needs {name}"
            elif given is not None and not is_wanted:
                yield name, f"{self.backend} has no {name}"
            elif given is not None and name != "interface" and self.backend != "pcap":
                yield from _too_long(name, given)
        capture = self.path if self.backend == "pcap" else None
        if capture is not None and (problem := why_not_there(capture)):
            yield "path", problem
        if self.interface is not None and not _NAME.fullmatch(self.interface):
            yield "interface", f"no interface is called {self.interface!r}: no / and no spaces"
        if self.pairs > 1 and self.backend in SINGLE:
            yield "pairs", f"{self.backend} has one pair"

    def address(self) -> bytes | None:
        """The MAC address as 6 bytes; None: the driver makes one up."""
        return None if self.mac is None else bytes.fromhex(self.mac.replace(":", ""))


def _too_long(option: str, path: str) -> Iterator[tuple[str, str]]:
    if len(os.fsencode(path)) > MAX_ADDRESS:
        yield option, f"a socket's path has at most {MAX_ADDRESS} bytes"
