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
METRICS = "metrics"

MAX_QUEUES = 256
"""Queues of one device: SET_VRING_KICK, CALL and ERR carry the index in 8 bits (vhost-user)."""
MAX_POLL_US = 10_000
"""Microseconds that a worker may look for work before it sleeps: commands wait for so long."""
MIN_QUEUE_SIZE = 2
MAX_TRACE = 4096
"""Requests that a queue's trace may have: 256 KiB of memory."""

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


MOST_A_SECOND = 1_000_000_000
"""The highest limit of requests a second, and of their burst."""
MOST_BYTES_A_SECOND = 1 << 40
BURST_S = 0.1
"""Seconds' worth of a limit that may come at once where no burst is said, as QEMU has it."""

Requests = Annotated[int, Meta(ge=1, le=MOST_A_SECOND)]
Bytes = Annotated[Size, Meta(ge=1, le=MOST_BYTES_A_SECOND)]


class Limits(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """What may pass a second: requests, and bytes both ways. None: any number.

    A burst is what may come at once after a time with less.
    """

    iops: Requests | None = None
    iops_burst: Requests | None = None
    bytes: Bytes | None = None
    bytes_burst: Bytes | None = None

    def problems(self) -> Iterator[str]:
        """What no single field can say is wrong."""
        for key in "iops", "bytes":
            if getattr(self, key) is None and getattr(self, f"{key}_burst") is not None:
                yield f"{key}_burst is that of {key}, which is not there"

    @property
    def requests(self) -> tuple[float, float] | None:
        """Requests a second, and their burst."""
        return _with_burst(self.iops, self.iops_burst)

    @property
    def transfer(self) -> tuple[float, float] | None:
        """Bytes a second, and their burst."""
        return _with_burst(self.bytes, self.bytes_burst)


def _with_burst(rate: float | None, burst: float | None) -> tuple[float, float] | None:
    return None if rate is None else (rate, burst or max(1.0, rate * BURST_S))


class Options(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The options that every device has."""

    # A device with more subclasses this. Annotate each field with Meta(description=...) and its
    # bounds; use Size and FilePath where they fit. Options travel to the workers as msgpack, so
    # fields are of types which msgspec knows.

    json_schema: ClassVar[Mapping[str, Any]] = {}
    """Keywords added to the JSON Schema of these options: what no single field can say."""
    live: ClassVar[frozenset[str]] = frozenset(
        {"poll", "cpus", "limits", "queue_limits", "io_priority", "trace"}
    )
    """Options that may change while a front-end is connected: workers started with the new value
    can go on with the rings of those that had the old one.
    """
    kept_in: ClassVar[tuple[str, ...]] = ()
    """Options that say where the device's content is, though they are no paths: a reload that finds
    it changed names them, and else the first path."""

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

    limits: Annotated[
        Limits | None,
        Meta(
            description="What the device serves at most: iops (requests a second) and bytes (a "
            "second, both ways), each with iops_burst or bytes_burst, which may come at once; a "
            "tenth of a second's worth by default. Queues that the device pulls from are exempt."
        ),
    ] = None
    queue_limits: Annotated[
        Limits | None, Meta(description="The same for each queue by itself.")
    ] = None
    io_priority: Annotated[
        Literal["idle"] | Annotated[str, Meta(pattern=r"^(best-effort|realtime)/[0-7]$")] | None,
        Meta(
            description="I/O priority of the workers (ioprio_set(2)), which the disk's scheduler "
            "may heed: idle, best-effort/0 (first) to /7, or realtime/0 to /7 with CAP_SYS_NICE."
        ),
    ] = None
    trace: Annotated[
        int,
        Meta(
            ge=0,
            le=MAX_TRACE,
            description="Requests of each queue that are remembered for vuproc trace and vuproc "
            "autopsy, the next power of two of them; 0: none.",
        ),
    ] = 0

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (field, message) for each thing wrong which no single field's type can say.

        Called when a device file is checked, with every field of the right type and paths
        absolute; it may look at files. `field` "" means the options as a whole. Call
        `super().problems()` first when overriding.
        """
        for field, limits in ("limits", self.limits), ("queue_limits", self.queue_limits):
            for problem in () if limits is None else limits.problems():
                yield field, problem
        absent = sorted(set(self.cpus or ()) - os.sched_getaffinity(0))
        if absent:
            yield "cpus", f"no such CPU here: {', '.join(map(str, absent))}"
