"""The whole state of one connection as one immutable value, and what the device offers to it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

import msgspec

from vuproc.fd import Fd
from vuproc.spec.ring_layout import RingLayout, layout_of
from vuproc.spec.virtio import Feature
from vuproc.vhost_user.effects import LogArea, Region, SetLog
from vuproc.vhost_user.inflight_region import InflightRegion
from vuproc.vhost_user.vring import Vring


def extra_bits(value: int, allowed: int) -> int:
    """The bits of `value` that are not in `allowed`.

    The plain way, `value & ~allowed`, is wrong for an IntFlag: its complement knows only its own
    members, so that a bit without a name would pass.
    """
    return int(value) & ~int(allowed)


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """What a device offers to every front-end.

    `features` are device feature bits and include bit 30, `queue_size` is the largest number of
    descriptors that a driver may choose, `config_size` is in bytes, `max_regions` bounds the memory
    table. `shared_memory` has the size in bytes of each shared memory region, by id.
    """

    features: int
    protocol_features: int
    num_queues: int
    queue_size: int
    config_size: int
    max_regions: int = 509
    shared_memory: Mapping[int, int] = {}
    display: bool = False
    """Whether the device shows something on a display."""


class Postcopy(Enum):
    """How far the front-end is in a migration whose memory comes after the guest has begun to run.

    ADVISED: it has the worker's userfaultfd. LISTENING: memory tables from now on lack pages.
    """

    OFF = "off"
    ADVISED = "advised"
    LISTENING = "listening"


class State(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that one front-end has told us and that a fresh worker would have to know.

    `features` is None until SET_FEATURES. `inflight` is for the rings that start from now on.
    `log` is the dirty log, written to while LOG_ALL is acknowledged; `log_call` is told of that.
    """

    rings: tuple[Vring, ...]
    owned: bool = False
    features: int | None = None
    protocol_features: int = 0
    status: int = 0
    regions: tuple[Region, ...] = ()
    inflight: InflightRegion | None = None
    backend_channel: Fd | None = None
    mtu: int = 0
    """Bytes, of a network device whose front-end has said so; 0: it has not."""
    log: LogArea | None = None
    log_call: Fd | None = None
    transferring: bool = False
    """The device's own state is being moved, or was and has not been checked."""
    display: Fd | None = None
    """The socket of GPU_SET_SOCKET."""
    postcopy: Postcopy = Postcopy.OFF
    staged: tuple[Region, ...] = ()
    """A memory table that the worker has mapped, and whose addresses the front-end was told: it has
    to say that it knows them before the table is used.
    """

    @staticmethod
    def initial(num_queues: int) -> State:
        """The state of a new connection."""
        return State(rings=tuple(Vring(index=index) for index in range(num_queues)))

    @property
    def started(self) -> tuple[Vring, ...]:
        """The rings that run, broken ones among them."""
        return tuple(ring for ring in self.rings if ring.started)

    @property
    def any_started(self) -> bool:
        """Whether any ring runs, broken ones among them."""
        return any(ring.started for ring in self.rings)

    @property
    def ring_features(self) -> int | None:
        """The acknowledged features that concern the device and its rings: all but LOG_ALL."""
        return None if self.features is None else extra_bits(self.features, Feature.LOG_ALL)

    @property
    def logging(self) -> SetLog:
        """Which dirty log workers are to write to."""
        if self.log is None or not (self.features or 0) & Feature.LOG_ALL:
            return SetLog(None)
        return SetLog(self.log, self.log_call)

    @property
    def translated(self) -> bool:
        """Whether rings and descriptors have I/O virtual addresses, behind an IOMMU."""
        return bool((self.features or 0) & Feature.ACCESS_PLATFORM)

    @property
    def layout(self) -> RingLayout:
        """How this session's rings lie in memory."""
        return layout_of(self.features)

    def with_ring(self, ring: Vring) -> State:
        """The same state with one ring replaced."""
        rings = self.rings[: ring.index] + (ring,) + self.rings[ring.index + 1 :]
        return msgspec.structs.replace(self, rings=rings)

    def fds(self) -> frozenset[Fd]:
        """Every descriptor that this state keeps open."""
        return frozenset(self.roles())

    def roles(self) -> dict[Fd, str]:
        """Every descriptor that this state keeps open, and what it is for in a word.

        The order is fixed: back-end channel, in-flight region, memory, dirty log, display, staged
        memory, then ring by ring.
        """
        roles: dict[Fd, str] = {}
        if self.backend_channel is not None:
            roles[self.backend_channel] = "backend"
        if self.inflight is not None:
            roles.setdefault(self.inflight.fd, "inflight")
        for i, region in enumerate(self.regions):
            roles.setdefault(region.fd, f"region-{i}")
        if self.log is not None:
            roles.setdefault(self.log.fd, "log")
        if self.log_call is not None:
            roles.setdefault(self.log_call, "logcall")
        if self.display is not None:
            roles.setdefault(self.display, "display")
        for i, region in enumerate(self.staged):
            roles.setdefault(region.fd, f"staged-{i}")
        for ring in self.rings:
            for role, fd in ring.roles():
                if fd is not None and fd not in roles:
                    roles[fd] = f"{role}-{ring.index}"
        return roles
