"""What a message makes the master do: each effect is one order, carried out fully before the next.

Most effects are what workers are told, as they stand here: the control channel carries them with
the descriptors in them (`vuproc.workers.channel`). The rest is not for workers.

An effect borrows the descriptors in it: they belong to the session, which closes them only when no
committed state refers to them any more. `Step.finish` takes one result for each effect: None, or
the value which the effect's text names, or `EffectFailed`.
"""

from __future__ import annotations

from enum import Enum
from typing import ClassVar

import msgspec

from vuproc.fd import Fd


class Idle(Enum):
    """Which rings of a worker must have nothing in flight before an order is carried out."""

    NONE = "none"
    ITS_RING = "its ring"
    EVERY_RING = "every ring"
    ITS_USERS = "rings that use its addresses"


class Order(msgspec.Struct, frozen=True, tag=True):
    """Something to be carried out; what is true of its kind stands in the class.

    `needs_idle`: the rings that must be idle first. `barrier`: the answer to the front-end waits
    until every worker concerned has confirmed the order. `keeps_fds`: a worker goes on with the
    descriptors after it has carried the order out. `repeatable`: what a master may have begun that
    died over it, its successor may do (again).
    """

    needs_idle: ClassVar[Idle] = Idle.NONE
    barrier: ClassVar[bool] = True
    keeps_fds: ClassVar[bool] = False
    repeatable: ClassVar[bool] = True


class XenKind(Enum):
    """How memory of a Xen domain is mapped: its frames, pages that it has granted, or such pages
    each time that a request needs them, and no longer.
    """

    FOREIGN = "foreign"
    GRANT = "grant"
    ON_DEMAND = "on demand"


class Xen(msgspec.Struct, frozen=True):
    """The memory is that of the Xen domain `domain`."""

    kind: XenKind
    domain: int


class Region(msgspec.Struct, frozen=True):
    """One region of guest memory.

    `guest_addr` is guest-physical and `user_addr` the front-end's own address of the same bytes;
    `size` is in bytes; `mmap_offset` says where in the file `fd` the region begins. With `xen` the
    file is a device of Xen's, and the guest address may be that of grants.
    """

    guest_addr: int
    size: int
    user_addr: int
    mmap_offset: int
    fd: Fd
    xen: Xen | None = None

    @property
    def on_demand(self) -> bool:
        """It is nowhere, but for the pages of requests; its user address means nothing."""
        return self.xen is not None and self.xen.kind is XenKind.ON_DEMAND


class Inflight(msgspec.Struct, frozen=True):
    """Where one ring's in-flight record lies in a region that outlives every worker.

    `offset` is in bytes from the start of `fd`; the record has room for `queue_size` descriptors,
    at least as many as the ring has. What it holds may come from outside: nothing in it is trusted.
    """

    fd: Fd
    offset: int
    queue_size: int


class Bells(msgspec.Struct, frozen=True):
    """Eventfds of ours that stand for a front-end's: in-band notifications go through them.

    The worker has them as its ring's kick and call descriptors. What it cannot tell is that the
    master writes `kick` for each VRING_KICK, and sends VRING_CALL for what it reads from `call`.
    """

    kick: Fd
    call: Fd


class LogArea(msgspec.Struct, frozen=True):
    """Where the dirty log of a live migration lies: `size` bytes of `fd` from `offset` on."""

    fd: Fd
    offset: int
    size: int


class RingSetup(msgspec.Struct, frozen=True, kw_only=True):
    """All that a worker must know to run a ring.

    `size` is in descriptors; `desc`, `avail` and `used` are front-end user addresses, or I/O
    virtual ones if ACCESS_PLATFORM is acknowledged. `base` is the position at which a ring begins
    whose record is empty, as the layout counts it (`RingLayout`); None: where the ring stopped.
    Without `kick` the ring is polled, without `call` the driver is not notified. `inflight` says
    where a worker that died had come to: the record in the front-end's region, or None if it set
    none; then the pool has one. `used_log` is the guest-physical address at which writes to the
    used ring are logged, as long as there is a dirty log; None: they are not.
    """

    index: int
    size: int
    desc: int
    avail: int
    used: int
    base: int | None
    enabled: bool
    kick: Fd | None
    call: Fd | None
    err: Fd | None
    inflight: Inflight | None = None
    used_log: int | None = None


class SetFeatures(Order, frozen=True, tag=True):
    """The driver acknowledged these device feature bits; they are for rings that start later.

    LOG_ALL is not among them: it is the front-end's affair, and comes and goes with `SetLog`.
    """

    features: int


class SetMemory(Order, frozen=True, tag=True):
    """Replace the whole memory table."""

    needs_idle = Idle.EVERY_RING

    regions: tuple[Region, ...]


class AddRegion(Order, frozen=True, tag=True):
    """Add one region to the memory table; rings that run go on."""

    region: Region


class RemoveRegion(Order, frozen=True, tag=True):
    """Remove one region from the memory table; a ring that lies in it breaks."""

    needs_idle = Idle.EVERY_RING

    region: Region


class OpenUserfault(Order, frozen=True, tag=True):
    """Make a userfaultfd of the worker's address space. Result: a copy of it, which is the step's.

    It replaces one from before. Only a device that is served by a single worker can do this.
    """


class StageMemory(Order, frozen=True, tag=True):
    """Map this table without touching it, beside the one that is in use, and have the rings wait
    for `GuardMemory`. Result: where each region is mapped in the worker, a tuple of int.
    """

    needs_idle = Idle.EVERY_RING

    regions: tuple[Region, ...]


class GuardMemory(Order, frozen=True, tag=True):
    """Use the table of `StageMemory`, and no other: the userfaultfd tells of the pages that its
    files lack, and whoever touches one waits for it.
    """

    needs_idle = Idle.EVERY_RING


class CloseUserfault(Order, frozen=True, tag=True):
    """All of guest memory is there: whoever waits for a page goes on, and nobody will again."""


class StartRing(Order, frozen=True, tag=True):
    """Start a ring and pass over it once without waiting for a kick."""

    keeps_fds = True

    setup: RingSetup

    @property
    def index(self) -> int:
        """The ring."""
        return self.setup.index


class StopRing(Order, frozen=True, tag=True):
    """Finish what is in flight and stop the ring. Result: its next base, an int.

    With `keeps_record` the in-flight record goes on saying where the ring is, though nothing of it
    is in flight: the front-end does not hear of the base, and may come back with the record alone.

    Without `drains` nobody waits for what the device has in its hands: it stays in the in-flight
    record, from which another ring goes on, perhaps on another host.
    """

    needs_idle = Idle.ITS_RING

    index: int
    keeps_record: bool = False
    drains: bool = True


class EnableRing(Order, frozen=True, tag=True):
    """Let a started ring process requests (and pass over it once), or hold it."""

    index: int
    enabled: bool


class SetKick(Order, frozen=True, tag=True):
    """Replace the kick descriptor of a started ring; None: poll."""

    keeps_fds = True

    index: int
    fd: Fd | None


class SetCall(Order, frozen=True, tag=True):
    """Replace the call descriptor of a started ring and signal the new one once."""

    keeps_fds = True

    index: int
    fd: Fd | None


class SetErr(Order, frozen=True, tag=True):
    """Replace the error descriptor of a started ring."""

    keeps_fds = True
    barrier = False

    index: int
    fd: Fd | None


class SetLog(Order, frozen=True, tag=True):
    """Mark in this dirty log what is written from now on, instead of any before it; None: in none.

    Rings go on. What is in flight is marked when it is finished. `call` is signalled after marks.
    """

    keeps_fds = True

    area: LogArea | None
    call: Fd | None = None


class LogUsedRing(Order, frozen=True, tag=True):
    """Log the writes to a started ring's used ring at another guest-physical address; None: not."""

    index: int
    address: int | None


class UpdateIotlb(Order, frozen=True, tag=True):
    """`size` bytes from the I/O virtual address `iova` on are those at the front-end's `user_addr`,
    from now on and for `access`, as `Access` has it. Whoever waits for them goes on.
    """

    iova: int
    size: int
    user_addr: int
    access: int


class InvalidateIotlb(Order, frozen=True, tag=True):
    """Forget what the I/O virtual addresses from `first` to `last` are, and use no memory by them
    any more: requests that do are finished, or given back by the device, first.
    """

    needs_idle = Idle.ITS_USERS

    first: int
    last: int


class ReadConfig(Order, frozen=True, tag=True):
    """Read config space; the range lies inside it. Result: bytes, missing ones count as zero."""

    barrier = False

    offset: int
    size: int


class WriteConfig(Order, frozen=True, tag=True):
    """Write config space; the range lies inside it. `flags` as SET_CONFIG has them.

    The device may refuse, and whoever asked is to hear of it.
    """

    offset: int
    data: bytes
    flags: int = 0


class SetMtu(Order, frozen=True, tag=True):
    """The guest's network interface has an MTU of so many bytes from now on; 0: nobody says.

    The device may refuse, and whoever asked is to hear of it.
    """

    mtu: int


class Announce(Order, frozen=True, tag=True):
    """Tell the network that the guest's interface with this address is reached by us."""

    mac: bytes


class SetDisplay(Order, frozen=True, tag=True):
    """Show on this socket, by the vhost-user-gpu protocol, instead of on any before it."""

    keeps_fds = True

    fd: Fd


class SetBackendChannel(Order, frozen=True, tag=True):
    """Use this socket for messages to the front-end, instead of any before it."""

    barrier = False

    fd: Fd


class MakeInflight(Order, frozen=True, tag=True):
    """Make a zeroed in-flight region for so many queues, with so many bytes for each.

    Result: `tuple[Fd, int]`, the region's file and its size in bytes. The step owns the file: it
    goes with the answer and is closed by `Step.close_reply_fds`.
    """

    barrier = False

    num_queues: int
    record_bytes: int


class MakeBells(Order, frozen=True, tag=True):
    """Make what in-band notifications go through, for each of so many rings.

    Result: a tuple of so many `Bells`, which are the session's from then on.
    """

    barrier = False

    num_queues: int


class FindObject(Order, frozen=True, tag=True):
    """Find an object that the device shares. Result: a descriptor of its file, which is the step's,
    or None if there is no such object.
    """

    barrier = False

    uuid: bytes


class KickRing(Order, frozen=True, tag=True):
    """Kick a started ring: its worker finds it in `fd`, whatever that one is doing."""

    index: int
    fd: Fd


class ResetDevice(Order, frozen=True, tag=True):
    """Forget what the driver has negotiated; no ring runs. And bring the device's own state and
    config space back to their beginning, unless `keeps_state`.
    """

    needs_idle = Idle.EVERY_RING

    keeps_state: bool = False


class SaveState(Order, frozen=True, tag=True):
    """Write the device's own state into this pipe, beside all else, and close it.

    Carried out once the state is there to be written: the device may fail to give it.
    """

    keeps_fds = True
    # Its reader may have had some bytes already, and must not get them twice.
    repeatable = False

    fd: Fd


class LoadState(Order, frozen=True, tag=True):
    """Read a state from this pipe until it ends, beside all else, for `CheckTransfer`."""

    keeps_fds = True
    # Some bytes may have been read already.
    repeatable = False

    fd: Fd


class CheckTransfer(Order, frozen=True, tag=True):
    """Wait for the end of what `SaveState` or `LoadState` began, and have the device load what
    came. Fails if the transfer has, or if the device does not take the state.
    """


class EndTransfer(Order, frozen=True, tag=True):
    """The device is about to run: give up what was not moved or checked by now."""


ForWorkers = (
    SetFeatures
    | SetMemory
    | AddRegion
    | RemoveRegion
    | OpenUserfault
    | StageMemory
    | GuardMemory
    | CloseUserfault
    | StartRing
    | StopRing
    | EnableRing
    | SetKick
    | SetCall
    | SetErr
    | SetLog
    | LogUsedRing
    | UpdateIotlb
    | InvalidateIotlb
    | WriteConfig
    | SetMtu
    | Announce
    | SetDisplay
    | ResetDevice
    | SaveState
    | LoadState
    | CheckTransfer
    | EndTransfer
)
"""What workers carry out."""

Effect = (
    ForWorkers | ReadConfig | SetBackendChannel | MakeInflight | MakeBells | FindObject | KickRing
)
"""All of them: the rest is carried out in the master."""


class EffectFailed(msgspec.Struct, frozen=True):
    """The result of an effect that was not carried out; `reason` in words, for the log."""

    reason: str
