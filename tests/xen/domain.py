"""The memory of a Xen domain as a front-end shares it, whoever plays the hypervisor."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from vuproc.fd import Fd
from vuproc.spec.vhost_user import XEN_GRANTED as GRANTED
from vuproc.spec.vhost_user import XEN_PAGE as PAGE
from vuproc.spec.vhost_user import XenFlag
from vuproc.testing.memory import USER_OFFSET, Allocation, Ram, RamRegion, Room

RING_PAGES = 32
REQUEST_PAGES = 1024


class XenRegion(RamRegion):
    """Memory of a domain that is at `guest_addr`, shared by an open device with these flags.

    `device` becomes its own; `buffer` is the memory as the driver has it.
    """

    def __init__(
        self,
        device: Fd,
        buffer: memoryview,
        guest_addr: int,
        flags: int,
        *,
        domain: int,
        user_addr: int,
    ) -> None:
        self.guest_addr = guest_addr
        self.size = buffer.nbytes
        self.user_addr = user_addr
        self.mmap_offset = 0
        self.flags = flags
        self.domain = domain
        self.fd = device
        self.buffer = buffer
        self._room = Room(guest_addr, self.size)

    @property
    def fields(self) -> dict[str, Any]:
        return {**super().fields, "xen_flags": self.flags, "domid": self.domain}


class GrantedRam(Ram, ABC):
    """Grants of a domain: those of the rings, mapped in advance, and those for what is in requests.

    Each are numbers that follow one another.
    """

    def __init__(
        self,
        device: Fd,
        rings: tuple[int, memoryview],
        requests: tuple[int, memoryview],
        *,
        domain: int,
        flag: int,
    ) -> None:
        """Of both the first grant and the pages. `flag`: that of memory which is not mapped in
        advance; 0: all of it is. `device` is the caller's.
        """
        self.rings = frozenset(range(rings[0], rings[0] + RING_PAGES))
        self.rings_are_made = False

        def region(first: int, pages: memoryview, flags: int, user_addr: int) -> XenRegion:
            addr = GRANTED + first * PAGE
            return XenRegion(device.dup(), pages, addr, flags, domain=domain, user_addr=user_addr)

        beyond = 0 if flag else USER_OFFSET + RING_PAGES * PAGE
        super().__init__(
            [
                region(*rings, XenFlag.GRANT, USER_OFFSET),
                region(*requests, XenFlag.GRANT | flag, beyond),
            ]
        )

    def allocate(self, size: int, align: int = 16) -> Allocation:
        """Rings first, in their region, then all else."""
        found = self.regions[self.rings_are_made].allocate(size, align)
        assert found is not None
        return found

    @abstractmethod
    def mapped(self) -> set[int]:
        """The grants that somebody has mapped."""


class Hypervisor(ABC):
    """What gives out a domain's memory."""

    domain: int
    """Whose memory it is."""
    absent = 99
    """There is no such domain."""

    @abstractmethod
    def foreign(self) -> Ram:
        """A region of a domain's frames, and behind the last there is nothing of the domain's."""

    @abstractmethod
    def granted(self, flag: int, *, read_only: bool = False) -> GrantedRam:
        """`RING_PAGES` and `REQUEST_PAGES` grants, the latter to be read only if that is asked."""
