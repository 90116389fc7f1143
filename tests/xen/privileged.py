"""The real hypervisor, as its privileged domain reaches it, and a domain that is made to be shared.

That domain never runs: whoever plays its driver maps its memory, and writes its grants. Hypercalls
and structures are those of Xen 4.17's public headers (domctl.h, memory.h, grant_table.h), the calls
of devices those of Linux (include/uapi/xen/privcmd.h).
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import struct
from pathlib import Path

from tests.xen.domain import (
    REQUEST_PAGES,
    RING_PAGES,
    GrantedRam,
    Hypervisor,
    XenRegion,
)
from vuproc.fd import Fd
from vuproc.shm.xen import XenDevice, foreign
from vuproc.spec.vhost_user import XEN_PAGE as PAGE
from vuproc.spec.vhost_user import XenFlag
from vuproc.testing.memory import USER_OFFSET, Ram

PRIVCMD, GNTDEV, BUFFER = (Path("/dev/xen", name) for name in ("privcmd", "gntdev", "hypercall"))

HYPERCALL = 0x305000
HYPERCALL_ARGUMENTS = struct.Struct("=6Q")
MMAP_RESOURCE = 0x205007
RESOURCE = struct.Struct("=HxxIIIQQ")
"""Domain, kind, its number, first frame, frames, where to."""
GRANT_TABLE = 1
"""The kind of resource."""

MEMORY_OP, DOMCTL = 12, 36
POPULATE_PHYSMAP = 6
RESERVATION = struct.Struct("=QQIIHxxxxxx")
"""Where the numbers of the frames go, extents, order of one, flags, domain."""
CREATE, DESTROY, MAX_MEM = 1, 2, 11
DOMCTL_VERSION = 0x15
DOMCTL_HEADER = struct.Struct("=IIHxxxxxx")
"""Command, version of the interface, domain."""
DOMCTL_BYTES = 144
NEW_DOMAIN = struct.Struct("=I16sIIIIiiIIIII")
"""Label, UUID, flags, of the IOMMU, processors, event channels, frames of grants, of mapped ones,
version of the grant table, trace, pool, emulated devices, more flags.
"""

GRANT = struct.Struct("=HHI")
"""Flags, domain that may map it, frame."""
PERMIT, READ_ONLY = 1, 4
IN_USE = 0x18
"""Flags: it is mapped, to be read or written."""
GRANT_FRAMES = 4
FIRST_GRANT = 16
OURSELVES = 0
ORDER = 11
"""Frames of an extent, by the power of two: they follow one another."""


def is_here() -> bool:
    """Whether this is the privileged domain of a Xen."""
    return all(device.exists() for device in (PRIVCMD, GNTDEV, BUFFER))


def opened(device: Path) -> Fd:
    return Fd(os.open(device, os.O_RDWR | os.O_CLOEXEC))


def address_of(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


class Calls:
    """Hypercalls with one buffer, in memory that is there when the hypervisor reads it."""

    def __init__(self) -> None:
        self.privcmd = opened(PRIVCMD)
        with opened(BUFFER) as device:
            self._memory = mmap.mmap(device.fileno(), PAGE)
        self._address = address_of(self._memory)

    def call(self, number: int, *arguments: int) -> int:
        """Raises OSError."""
        words = [number, *arguments, *[0] * (5 - len(arguments))]
        call = bytearray(HYPERCALL_ARGUMENTS.pack(*words))
        return int(fcntl.ioctl(self.privcmd.fileno(), HYPERCALL, call))

    def domctl(self, command: int, domain: int, rest: bytes = b"") -> int:
        """The domain that it was about."""
        header = DOMCTL_HEADER.pack(command, DOMCTL_VERSION, domain)
        self._memory[:DOMCTL_BYTES] = (header + rest).ljust(DOMCTL_BYTES, b"\0")
        self.call(DOMCTL, self._address)
        return int(DOMCTL_HEADER.unpack_from(self._memory)[2])

    def close(self) -> None:
        self._memory.close()
        self.privcmd.close()

    def populate(self, domain: int) -> int:
        """The first of the frames of one extent more."""
        frame = struct.Struct("=Q")
        at = RESERVATION.size
        self._memory[:at] = RESERVATION.pack(self._address + at, 1, ORDER, 0, domain)
        self._memory[at : at + frame.size] = frame.pack(0)
        if self.call(MEMORY_OP, POPULATE_PHYSMAP, self._address) != 1:
            raise MemoryError(f"no {1 << ORDER} frames for domain {domain}")
        return int(frame.unpack_from(self._memory, at)[0])


class Domain(Hypervisor):
    """Once it is closed it goes, with the last who has memory of it mapped."""

    def __init__(self) -> None:
        self._calls = Calls()
        made = NEW_DOMAIN.pack(0, os.urandom(16), 0, 0, 1, 1023, GRANT_FRAMES, -1, 1, 0, 0, 0, 0)
        self.domain = self._calls.domctl(CREATE, 0, made)
        self._calls.domctl(MAX_MEM, self.domain, struct.pack("=Q", 64 << 10))
        self._first = self._calls.populate(self.domain)
        self._grants = mmap.mmap(-1, GRANT_FRAMES * PAGE)
        self._map_grants()

    def close(self) -> None:
        self._grants.close()
        self._calls.domctl(DESTROY, self.domain)
        self._calls.close()

    def _map_grants(self) -> None:
        # Over memory of ours: the device's mapping has to be there first.
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64]
        address, size = address_of(self._grants), GRANT_FRAMES * PAGE
        fixed = mmap.MAP_SHARED | 0x10
        privcmd = self._calls.privcmd.fileno()
        if libc.mmap(address, size, mmap.PROT_READ | mmap.PROT_WRITE, fixed, privcmd, 0) != address:
            raise OSError(ctypes.get_errno(), "mmap of the grant table")
        resource = RESOURCE.pack(self.domain, GRANT_TABLE, 0, 0, GRANT_FRAMES, address)
        fcntl.ioctl(privcmd, MMAP_RESOURCE, resource)

    def _frames(self) -> memoryview:
        device = XenDevice(self._calls.privcmd.fileno())
        return memoryview(foreign(device, self.domain, self._first * PAGE, PAGE << ORDER))

    def foreign(self) -> Ram:
        addr = self._first * PAGE
        return Ram(
            [
                XenRegion(
                    self._calls.privcmd.dup(),
                    self._frames(),
                    addr,
                    XenFlag.FOREIGN,
                    domain=self.domain,
                    user_addr=addr + USER_OFFSET,
                )
            ]
        )

    def granted(self, flag: int, *, read_only: bool = False) -> GrantedRam:
        for number in range(RING_PAGES + REQUEST_PAGES):
            only = READ_ONLY * (read_only and number >= RING_PAGES)
            at = (FIRST_GRANT + number) * GRANT.size
            entry = GRANT.pack(PERMIT | only, OURSELVES, self._first + number)
            self._grants[at : at + GRANT.size] = entry
        with opened(GNTDEV) as device:
            return Grants(device, self._frames(), self._grants, self.domain, flag)


class Grants(GrantedRam):
    """A grant `FIRST_GRANT + n` is that of the domain's `n`th frame."""

    def __init__(
        self, device: Fd, frames: memoryview, table: mmap.mmap, domain: int, flag: int
    ) -> None:
        self._table = table
        split, end = RING_PAGES * PAGE, (RING_PAGES + REQUEST_PAGES) * PAGE
        super().__init__(
            device,
            (FIRST_GRANT, frames[:split]),
            (FIRST_GRANT + RING_PAGES, frames[split:end]),
            domain=domain,
            flag=flag,
        )

    def mapped(self) -> set[int]:
        entries = enumerate(GRANT.iter_unpack(self._table[:]))
        return {number for number, (flags, _domain, _frame) in entries if flags & IN_USE}
