"""What the session knows of one ring: its configuration, and whether it is started and enabled."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from vuproc.errors import MessageRefused
from vuproc.fd import Fd
from vuproc.spec.ring_layout import Area, RingLayout
from vuproc.spec.vhost_user import VRING_ADDR_F_LOG
from vuproc.vhost_user.dirty_log import check_used_log
from vuproc.vhost_user.effects import Bells, Inflight, Region, RingSetup
from vuproc.vhost_user.memory_table import covers


class Addresses(msgspec.Struct, frozen=True, kw_only=True):
    """Where a ring's areas lie, in front-end user addresses, or in I/O virtual ones if there is an
    IOMMU; `log` is guest-physical.
    """

    desc: int
    used: int
    avail: int
    flags: int
    log: int

    def same_place(self, other: Addresses) -> bool:
        """Whether the ring itself stays where it is, whatever happens to its logging."""
        return (self.desc, self.used, self.avail) == (other.desc, other.used, other.avail)

    def check_alignment(self, layout: RingLayout) -> None:
        """MessageRefused unless each area is aligned as the layout demands."""
        for area, address in self._areas(layout):
            if address % area.align:
                raise MessageRefused(f"{area.name} at {address:#x} is not aligned to {area.align}")

    def check_covered(self, layout: RingLayout, regions: Iterable[Region], size: int) -> None:
        """MessageRefused unless each area of a ring of `size` descriptors lies in one region."""
        regions = tuple(regions)
        for area, address in self._areas(layout):
            length = area.length(size)
            if not covers(regions, address, length):
                raise MessageRefused(
                    f"{area.name} at {address:#x}+{length:#x} is not in one region"
                )

    def check_log(self, layout: RingLayout, size: int) -> None:
        """MessageRefused if the used ring of `size` descriptors cannot be logged where it says."""
        if self.used_log is not None:
            check_used_log(self.used_log, layout.used.length(size))

    @property
    def used_log(self) -> int | None:
        """Where writes to the used ring are logged; None: they are not."""
        return self.log if self.flags & VRING_ADDR_F_LOG else None

    def _areas(self, layout: RingLayout) -> tuple[tuple[Area, int], ...]:
        return (layout.desc, self.desc), (layout.avail, self.avail), (layout.used, self.used)


class Vring(msgspec.Struct, frozen=True, kw_only=True):
    """One ring. `started` and `enabled` are independent of each other (vhost-user, "Ring states").

    `size` 0 and `addresses` None: not set yet. `kicked`: SET_VRING_KICK came, with a descriptor or
    without. `base_known`: `base` is the front-end's or a stopped ring's, not the initial 0.
    `broken`: why a started ring is not served any more, "" if it is. `inflight`: the front-end's
    record with which the ring was started; a region that comes later is for its next start.
    `bells`: there if in-band notifications are negotiated. They are used unless a descriptor came,
    or a message that there is none: `polled` and `muted`, of the kick and of the call.
    """

    index: int
    size: int = 0
    addresses: Addresses | None = None
    base: int = 0
    base_known: bool = False
    kicked: bool = False
    kick: Fd | None = None
    call: Fd | None = None
    err: Fd | None = None
    enabled: bool = False
    started: bool = False
    broken: str = ""
    inflight: Inflight | None = None
    bells: Bells | None = None
    polled: bool = False
    muted: bool = False

    @property
    def live(self) -> bool:
        """Whether a worker serves the ring, so that changes must reach it."""
        return self.started and not self.broken

    @property
    def placed(self) -> bool:
        """Whether all is there but perhaps the base."""
        return self.size > 0 and self.addresses is not None and self.kicked

    @property
    def kick_used(self) -> Fd | None:
        """What the worker is kicked by: the front-end's descriptor, or a bell of ours; None: the
        ring is polled.
        """
        return self.kick or (None if self.bells is None or self.polled else self.bells.kick)

    @property
    def call_used(self) -> Fd | None:
        """What the worker calls the driver by, likewise; None: it does not."""
        return self.call or (None if self.bells is None or self.muted else self.bells.call)

    def roles(self) -> tuple[tuple[str, Fd | None], ...]:
        """The descriptors that this ring keeps open, each behind a word for what it is for."""
        record = None if self.inflight is None else self.inflight.fd
        own = ("kick", self.kick), ("call", self.call), ("err", self.err), ("inflight", record)
        if self.bells is None:
            return own
        return *own, ("kick_bell", self.bells.kick), ("call_bell", self.bells.call)

    def stopped(self) -> Vring:
        """The ring after its stop: it starts again when a new SET_VRING_KICK comes."""
        return msgspec.structs.replace(
            self,
            started=False,
            broken="",
            kicked=False,
            kick=None,
            polled=False,
            inflight=None,
        )

    def setup(self) -> RingSetup:
        """All that a worker must know to run the ring; only for a ring that is placed."""
        if self.addresses is None:
            raise ValueError(f"vring {self.index} has no addresses")
        return RingSetup(
            index=self.index,
            size=self.size,
            desc=self.addresses.desc,
            avail=self.addresses.avail,
            used=self.addresses.used,
            base=self.base,
            enabled=self.enabled,
            kick=self.kick_used,
            call=self.call_used,
            err=self.err,
            inflight=self.inflight,
            used_log=self.addresses.used_log,
        )
