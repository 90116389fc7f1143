"""What a message makes the master do: each effect is one order, carried out fully before the next.

An effect borrows the descriptors in it: they belong to the session, which closes them only when no
committed state refers to them any more. `Step.finish` takes one result for each effect: None, or
the value which the effect's text names, or `EffectFailed`.
"""

from __future__ import annotations

import msgspec

from vuproc.fd import Fd


class Region(msgspec.Struct, frozen=True):
    """One region of guest memory.

    `guest_addr` is guest-physical and `user_addr` the front-end's own address of the same bytes;
    `size` is in bytes; `mmap_offset` says where in the file `fd` the region begins.
    """

    guest_addr: int
    size: int
    user_addr: int
    mmap_offset: int
    fd: Fd


class Inflight(msgspec.Struct, frozen=True):
    """Where one ring's in-flight record lies in a region that the front-end keeps.

    `offset` is in bytes from the start of `fd`; the record has room for `queue_size` descriptors,
    at least as many as the ring has. What it holds comes from outside: nothing in it is trusted.
    """

    fd: Fd
    offset: int
    queue_size: int


class RingSetup(msgspec.Struct, frozen=True, kw_only=True):
    """All that a worker must know to run a ring.

    `size` is in descriptors; `desc`, `avail` and `used` are front-end user addresses; `base` is the
    next avail index (split ring). Without `kick` the ring is polled, without `call` the driver is
    not notified. `inflight` is the record of the front-end's region; None: it set none.
    """

    index: int
    size: int
    desc: int
    avail: int
    used: int
    base: int
    enabled: bool
    kick: Fd | None
    call: Fd | None
    err: Fd | None
    inflight: Inflight | None = None


class SetFeatures(msgspec.Struct, frozen=True):
    """The driver acknowledged these device feature bits."""

    features: int


class SetMemory(msgspec.Struct, frozen=True):
    """Replace the whole memory table."""

    regions: tuple[Region, ...]


class AddRegion(msgspec.Struct, frozen=True):
    """Add one region to the memory table; rings that run go on."""

    region: Region


class RemoveRegion(msgspec.Struct, frozen=True):
    """Remove one region from the memory table; a ring that lies in it breaks."""

    region: Region


class StartRing(msgspec.Struct, frozen=True):
    """Start a ring and pass over it once without waiting for a kick."""

    setup: RingSetup


class StopRing(msgspec.Struct, frozen=True):
    """Finish what is in flight and stop the ring. Result: its next avail index, an int."""

    index: int


class EnableRing(msgspec.Struct, frozen=True):
    """Let a started ring process requests (and pass over it once), or hold it."""

    index: int
    enabled: bool


class SetKick(msgspec.Struct, frozen=True):
    """Replace the kick descriptor of a started ring; None: poll."""

    index: int
    fd: Fd | None


class SetCall(msgspec.Struct, frozen=True):
    """Replace the call descriptor of a started ring and signal the new one once."""

    index: int
    fd: Fd | None


class SetErr(msgspec.Struct, frozen=True):
    """Replace the error descriptor of a started ring."""

    index: int
    fd: Fd | None


class ReadConfig(msgspec.Struct, frozen=True):
    """Read config space; the range lies inside it. Result: bytes, missing ones count as zero."""

    offset: int
    size: int


class WriteConfig(msgspec.Struct, frozen=True):
    """Write config space; the range lies inside it. `flags` as SET_CONFIG has them."""

    offset: int
    data: bytes
    flags: int


class SetBackendChannel(msgspec.Struct, frozen=True):
    """Use this socket for messages to the front-end, instead of any before it."""

    fd: Fd


class MakeInflight(msgspec.Struct, frozen=True):
    """Make a zeroed in-flight region for so many queues of so many descriptors each.

    Result: `tuple[Fd, int]`, the region's file and its size in bytes. The step owns the file: it
    goes with the answer and is closed by `Step.close_reply_fds`.
    """

    num_queues: int
    queue_size: int


class ResetDevice(msgspec.Struct, frozen=True):
    """Bring the device's own state and config space back to their beginning; no ring runs."""


Effect = (
    SetFeatures
    | SetMemory
    | AddRegion
    | RemoveRegion
    | StartRing
    | StopRing
    | EnableRing
    | SetKick
    | SetCall
    | SetErr
    | ReadConfig
    | WriteConfig
    | SetBackendChannel
    | MakeInflight
    | ResetDevice
)


class EffectFailed(msgspec.Struct, frozen=True):
    """The result of an effect that was not carried out; `reason` in words, for the log."""

    reason: str
