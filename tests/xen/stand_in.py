"""A hypervisor where there is none: `stand_in.c` answers the calls of its devices."""

from __future__ import annotations

import os
import struct
import subprocess
import sysconfig
from pathlib import Path

from tests.xen.domain import (
    REQUEST_PAGES,
    RING_PAGES,
    GrantedRam,
    Hypervisor,
    XenRegion,
)
from vuproc.fd import Fd
from vuproc.shm.memory import Mapping
from vuproc.spec.vhost_user import XEN_PAGE as PAGE
from vuproc.spec.vhost_user import XenFlag
from vuproc.testing.memory import USER_OFFSET, Ram

DOMAIN = 7
GRANT = struct.Struct("=IHH")
"""Frame, flags, and how often it is mapped."""
PERMIT, READ_ONLY = 1, 4
TABLE_PAGES = 4
"""Pages at the begin of the domain's memory that hold its grants."""
FIRST_FRAME = 256
FRAMES = 2048


def build(folder: Path) -> Path:
    """The library to be loaded first by whoever maps such memory."""
    made = folder / "stand_in.so"
    compiler = os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"
    source = Path(__file__).with_name("stand_in.c")
    options = ["-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run([*compiler.split(), *options, "-o", made, source], check=True, timeout=60)
    return made


class StandInGrants(GrantedRam):
    """A grant `n` is that of frame `TABLE_PAGES + n`."""

    def __init__(self, flag: int, read_only: bool) -> None:
        count = RING_PAGES + REQUEST_PAGES
        self._device = Fd(os.memfd_create("xen-gntdev", os.MFD_CLOEXEC))
        os.ftruncate(self._device.fileno(), (TABLE_PAGES + count) * PAGE)
        for number in range(count):
            only = READ_ONLY * (read_only and number >= RING_PAGES)
            entry = GRANT.pack(TABLE_PAGES + number, PERMIT | only, 0)
            os.pwrite(self._device.fileno(), entry, number * GRANT.size)
        pages = memoryview(Mapping(self._device.fileno(), count * PAGE, TABLE_PAGES * PAGE))
        split = RING_PAGES * PAGE
        super().__init__(
            self._device,
            (0, pages[:split]),
            (RING_PAGES, pages[split:]),
            domain=DOMAIN,
            flag=flag,
        )

    def mapped(self) -> set[int]:
        count = RING_PAGES + REQUEST_PAGES
        table = os.pread(self._device.fileno(), count * GRANT.size, 0)
        entries = enumerate(GRANT.iter_unpack(table))
        return {number for number, (_frame, _flags, mapped) in entries if mapped}

    def close(self) -> None:
        super().close()
        self._device.close()


class StandIn(Hypervisor):
    """Its devices are memfds, which are the domain's memory as well."""

    domain = DOMAIN

    def foreign(self) -> Ram:
        addr = FIRST_FRAME * PAGE
        device = Fd(os.memfd_create("xen-privcmd", os.MFD_CLOEXEC))
        os.ftruncate(device.fileno(), addr + FRAMES * PAGE)
        frames = memoryview(Mapping(device.fileno(), FRAMES * PAGE, addr))
        region = XenRegion(
            device, frames, addr, XenFlag.FOREIGN, domain=DOMAIN, user_addr=addr + USER_OFFSET
        )
        return Ram([region])

    def granted(self, flag: int, *, read_only: bool = False) -> GrantedRam:
        return StandInGrants(flag, read_only)
