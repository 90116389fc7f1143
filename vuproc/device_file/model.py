"""The device file as types: its keys, their defaults and what each is for."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from vuproc.options import KIND, METRICS, PERMISSIONS, FilePath
from vuproc.sandbox.needs import CAPABILITIES, Needs
from vuproc.sandbox.policy import Mode
from vuproc.unix_path import ADMIN_SUFFIX, MAX_ADDRESS

MAX_SOCKET_PATH = MAX_ADDRESS - len(ADMIN_SUFFIX)
"""Bytes of the socket's path, so that the admin socket's is one, too."""
MAX_STALL_TIMEOUT_S = 86_400
"""Seconds, a day: poll(2) takes milliseconds in 31 bits."""

MAX_HOOK_TIMEOUT = 3600.0
"""Seconds that a hook may be allowed: an hour."""

RELOAD = "reload"
"""In a key's `Meta.extra`: when a reload applies a change of it; the names of `changes.Scope`."""
NOW = {RELOAD: "NOW"}
RESTART = {RELOAD: "RESTART"}

Permissions = Annotated[
    int, Meta(ge=0, le=0o777, extra={KIND: PERMISSIONS}, extra_json_schema={"x-kind": PERMISSIONS})
]
"""File permissions, written in octal digits."""


LogLevel = Literal["debug", "info", "warning", "error"]

Id = Annotated[int, Meta(ge=0, le=0xFFFFFFFE)]
"""The number of a user or a group."""


class Socket(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Where the VMM is met."""

    path: Annotated[
        FilePath, Meta(extra=RESTART, description="Unix socket, at most 101 bytes when absolute.")
    ]
    mode: Annotated[
        Literal["server", "client"],
        Meta(
            extra=RESTART,
            description="server: listen, and the VMM connects. client: the VMM listens; connect "
            "and try again until it is there.",
        ),
    ] = "server"
    permissions: Annotated[
        Permissions, Meta(extra=NOW, description="Permissions of the socket that is made, octal.")
    ] = 0o600
    owner: Annotated[
        str | Id | None,
        Meta(
            extra=NOW, description="User that the socket is given to, by name or number: the VMM's."
        ),
    ] = None
    group: Annotated[
        str | Id | None,
        Meta(
            extra=NOW,
            description="Group that the socket is given to, by name or number; permissions: 0660 "
            "lets its members connect.",
        ),
    ] = None


class Sandbox(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What workers may do, beside what the device says that it needs."""

    mode: Annotated[
        Mode,
        Meta(
            description="standard: locked in after the device's setup. strict: before it, and "
            "without io_uring. off: not at all."
        ),
    ] = "standard"
    files: Annotated[
        tuple[FilePath, ...],
        Meta(description="Files and folders to read, write, make and remove, with all in them."),
    ] = ()
    readable: Annotated[
        tuple[FilePath, ...], Meta(description="Files and folders to read, with all in them.")
    ] = ()
    devices: Annotated[
        tuple[FilePath, ...], Meta(description="Device nodes to open and to control.")
    ] = ()
    network: Annotated[
        bool | Literal["unix"],
        Meta(description="Make sockets: of every kind, or unix: those of this machine alone."),
    ] = False
    capabilities: Annotated[
        tuple[Literal[CAPABILITIES], ...],  # type: ignore[valid-type]
        Meta(description="Of root's capabilities those to keep, such as CHOWN."),
    ] = ()

    def needs(self) -> Needs:
        """The same, as a device says it."""
        return Needs(
            files=self.files,
            readable=self.readable,
            devices=self.devices,
            network=self.network,
            capabilities=self.capabilities,
        )


class File(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A vuproc device file: a row a key. Checks, schema, manual, resolved form and reload follow.

    A change waits for the next front-end unless the row says otherwise.
    """

    socket: Annotated[
        FilePath | Socket, Meta(description="Path of the socket, or a mapping with more to say.")
    ]
    device: Annotated[
        dict[str, Any], Meta(description="The device: its type, and the options of that type.")
    ]
    exit_on_disconnect: Annotated[
        bool,
        Meta(
            extra=NOW,
            description="End when the VMM disconnects, rather than wait for the next one.",
        ),
    ] = False
    workers: (
        Annotated[
            list[list[Annotated[int, Meta(ge=0)]]],
            Meta(
                min_length=1,
                description="Queues that share a worker process, each queue once: "
                "[[0,1],[2,3]]. The default is a process a queue, as far as the device allows.",
            ),
        ]
        | None
    ) = None
    packed: Annotated[
        bool,
        Meta(
            description="Offer packed rings, which the driver takes or not: QEMU's does with "
            "packed=on. false: split rings alone.",
        ),
    ] = True
    inband_notifications: Annotated[
        bool,
        Meta(
            description="Offer kicks and calls as messages, for a VMM that has no descriptors for "
            "them (User-Mode Linux takes them). Each is a trip through the master.",
        ),
    ] = False
    iommu: Annotated[
        bool,
        Meta(
            description="Offer ACCESS_PLATFORM, for a VMM that has an IOMMU between guest and "
            "device and translates addresses for us: QEMU with iommu_platform=on.",
        ),
    ] = False
    postcopy: Annotated[
        bool,
        Meta(
            description="Offer migration by postcopy, for which one worker serves all queues, and "
            "memory slots are not offered.",
        ),
    ] = False
    xen: Annotated[
        Literal["off", "on", "auto"],
        Meta(
            description="Offer XEN_MMAP, for a front-end that shares the memory of a Xen domain; "
            "auto: where there is /dev/xen/gntdev or /dev/xen/privcmd.",
        ),
    ] = "off"
    sandbox: Annotated[
        Mode | Sandbox,
        Meta(
            description="What workers may do no more once they serve: a mode, or a mapping with "
            "more to say."
        ),
    ] = "standard"
    stall_timeout: Annotated[
        float,
        Meta(
            extra=NOW,
            ge=0,
            le=MAX_STALL_TIMEOUT_S,
            description="Seconds without progress after which a worker that is serving a request "
            "is replaced; 0: never.",
        ),
    ] = 30.0
    hook_timeout: Annotated[
        float,
        Meta(
            extra=NOW,
            ge=0.1,
            le=MAX_HOOK_TIMEOUT,
            description="Seconds that the device's own code may take outside of requests: to be "
            "imported and made, and for each hook such as setup. A worker past that is replaced.",
        ),
    ] = 30.0
    metrics: (
        Annotated[
            str,
            Meta(
                extra={**RESTART, KIND: METRICS},
                extra_json_schema={"x-kind": METRICS},
                description="Where metrics are to be had, by HTTP at /metrics: unix:PATH, or a "
                "loopback address with a port, 127.0.0.1:9123.",
            ),
        ]
        | None
    ) = None
    log_level: Annotated[
        LogLevel,
        Meta(extra=NOW, description="What is worth a line in the log."),
    ] = "info"
    log_format: Annotated[
        Literal["text", "json", "journald"],
        Meta(
            extra=RESTART,
            description="How a line of the log is written to standard error: text, or an object of "
            "JSON; journald: to systemd's log, with its fields.",
        ),
    ] = "text"

    def sandboxed(self) -> Sandbox:
        """`sandbox` as a mapping."""
        return self.sandbox if isinstance(self.sandbox, Sandbox) else Sandbox(mode=self.sandbox)
