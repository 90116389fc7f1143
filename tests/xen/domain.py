"""The memory of a Xen domain as a front-end shares it; `stand_in.c` is the hypervisor."""

from __future__ import annotations

import os
import struct
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from vuproc.fd import Fd
from vuproc.shm.memory import Mapping
from vuproc.spec.vhost_user import XEN_GRANTED as GRANTED
from vuproc.spec.vhost_user import XEN_PAGE as PAGE
from vuproc.spec.vhost_user import XenFlag
from vuproc.testing.memory import USER_OFFSET, Allocation, Ram, RamRegion

DOMAIN = 7
GRANT = struct.Struct("=IHH")
"""Frame, flags, and how often it is mapped."""
PERMIT, READ_ONLY = 1, 4
TABLE_PAGES = 4
"""Pages at the begin of the domain's memory that hold its grants."""


def build_stand_in(folder: Path) -> Path:
    """The library to be loaded first by whoever maps such memory."""
    made = folder / "stand_in.so"
    compiler = os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"
    source = Path(__file__).with_name("stand_in.c")
    options = ["-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run([*compiler.split(), *options, "-o", made, source], check=True, timeout=60)
    return made


class XenRegion(RamRegion):
    """`pages` of the domain's memory from `frame` on, shared with these flags: at `guest_addr`."""

    def __init__(
        self, device: Fd, guest_addr: int, frame: int, pages: int, flags: int, user_addr: int
    ) -> None:
        self.guest_addr = guest_addr
        self.size = pages * PAGE
        self.user_addr = user_addr
        self.mmap_offset = 0
        self.flags = flags
        self.domain = DOMAIN
        self.fd = device.dup()
        self.buffer = memoryview(Mapping(self.fd.fileno(), self.size, frame * PAGE))
        self._free = [(0, self.size)]

    @property
    def fields(self) -> dict[str, Any]:
        return {**super().fields, "xen_flags": self.flags, "domid": self.domain}


def foreign_ram(pages: int = 2048) -> Ram:
    """All of a domain by its frames."""
    first = 256
    with Fd(os.memfd_create("xen-privcmd", os.MFD_CLOEXEC)) as device:
        os.ftruncate(device.fileno(), (first + pages) * PAGE)
        address = first * PAGE
        region = XenRegion(device, address, first, pages, XenFlag.FOREIGN, address + USER_OFFSET)
    return Ram([region])


class GrantedRam(Ram):
    """Grants of a domain: some for the rings, mapped in advance, the rest for what is in requests.

    A grant `n` is that of frame `TABLE_PAGES + n`.
    """

    def __init__(self, ring_pages: int = 32, pages: int = 1024, flag: int = 0) -> None:
        """`flag`: that of memory which is not mapped in advance; 0: all of it is."""
        self._device = Fd(os.memfd_create("xen-gntdev", os.MFD_CLOEXEC))
        os.ftruncate(self._device.fileno(), (TABLE_PAGES + ring_pages + pages) * PAGE)
        for number in range(ring_pages + pages):
            self.grant(number, PERMIT)
        rings = XenRegion(
            self._device, GRANTED, TABLE_PAGES, ring_pages, XenFlag.GRANT, USER_OFFSET
        )
        others = XenRegion(
            self._device,
            GRANTED + ring_pages * PAGE,
            TABLE_PAGES + ring_pages,
            pages,
            XenFlag.GRANT | flag,
            0 if flag else USER_OFFSET + ring_pages * PAGE,
        )
        super().__init__([rings, others])
        self.ring_pages = ring_pages
        self.rings_are_made = False

    def allocate(self, size: int, align: int = 16) -> Allocation:
        """Rings first, in their region, then all else."""
        found = self.regions[self.rings_are_made].allocate(size, align)
        assert found is not None
        return found

    def grant(self, number: int, flags: int) -> None:
        """Grant a page with these flags; those who have it keep it."""
        entry = GRANT.pack(TABLE_PAGES + number, flags, 0)
        os.pwrite(self._device.fileno(), entry, number * GRANT.size)

    def mapped(self) -> dict[int, int]:
        """How often each grant is mapped, if it is."""
        count = sum(region.size for region in self.regions) // PAGE
        table = os.pread(self._device.fileno(), count * GRANT.size, 0)
        found = enumerate(mapped for _frame, _flags, mapped in GRANT.iter_unpack(table))
        return {number: mapped for number, mapped in found if mapped}

    def close(self) -> None:
        super().close()
        self._device.close()
