"""The typed options of a device: what its part of a device file may say.

A struct of options is the one description: the checker, the JSON Schema, `vuproc devices` and the
reference page all come from its annotations.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from vuproc.spec.virtio import QUEUE_SIZE_MAX

KIND = "vuproc"
"""The key of `Meta(extra=...)` under which a field says that its text needs more than its type."""
SIZE = "size"
PATH = "path"
POWER_OF_TWO = "power-of-two"
PERMISSIONS = "permissions"

MAX_QUEUES = 256
"""Queues of one device: SET_VRING_KICK, CALL and ERR carry the index in 8 bits (vhost-user)."""
MAX_POLL_US = 10_000
"""Microseconds that a worker may look for work before it sleeps: commands wait for so long."""
MIN_QUEUE_SIZE = 2

Size = Annotated[int, Meta(extra={KIND: SIZE}, extra_json_schema={"x-kind": SIZE})]
"""A number of bytes. A device file may write 64MiB (KiB to TiB); the struct holds an int."""

FilePath = Annotated[str, Meta(extra={KIND: PATH}, extra_json_schema={"x-kind": PATH})]
"""A path. A relative one is relative to the device file; the struct holds it absolute. In what a
program gives its `vuproc.Daemon`, it is relative to the program's folder, and becomes absolute in
the copy that the device's processes get.
"""

QueueSize = Annotated[
    int,
    Meta(
        ge=MIN_QUEUE_SIZE,
        le=QUEUE_SIZE_MAX,
        description="Largest queue the driver may choose, in entries; a power of two.",
        extra={KIND: POWER_OF_TWO},
        extra_json_schema={"x-kind": POWER_OF_TWO},
    ),
]


class Options(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The options that every device has."""

    # A device with more subclasses this. Annotate each field with Meta(description=...) and its
    # bounds; use Size and FilePath where they fit. Options travel to the workers as msgpack, so
    # fields are of types which msgspec knows.

    json_schema: ClassVar[Mapping[str, Any]] = {}
    """Keywords added to the JSON Schema of these options: what no single field can say."""
    live: ClassVar[frozenset[str]] = frozenset({"poll", "cpus"})
    """Options that may change while a front-end is connected: workers started with the new value
    can go on with the rings of those that had the old one.
    """

    superseded: ClassVar[Mapping[str, str]] = {}
    """Options of this class that a subclass says in another way, and how, in words: a device file
    that has one of them is wrong in that line.
    """

    queues: Annotated[
        int, Meta(ge=1, le=MAX_QUEUES, description="Number of virtqueues, a worker process each.")
    ] = 1
    queue_size: QueueSize = 256
    poll: Annotated[
        Literal["auto", "off"] | Annotated[int, Meta(ge=1, le=MAX_POLL_US)],
        Meta(
            description="How long a worker looks for more work before it sleeps: auto, as long as "
            "that has paid of late; off, not at all; or so many microseconds. Never while more "
            "workers are awake than there are CPUs."
        ),
    ] = "auto"
    cpus: (
        Annotated[
            tuple[Annotated[int, Meta(ge=0)], ...],
            Meta(
                min_length=1,
                description="CPUs to pin the workers to: the one of queue 0 to the first, of queue "
                "1 to the second, and so on, in a circle.",
            ),
        ]
        | None
    ) = None

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (field, message) for each thing wrong which no single field's type can say.

        Called when a device file is checked, with every field of the right type and paths
        absolute; it may look at files. `field` "" means the options as a whole. Call
        `super().problems()` first when overriding.
        """
        absent = sorted(set(self.cpus or ()) - os.sched_getaffinity(0))
        if absent:
            yield "cpus", f"no such CPU here: {', '.join(map(str, absent))}"
