"""Where the programs that play the guest are found on this machine, or why they are not."""

from __future__ import annotations

import ctypes.util
import enum
import functools
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from vuproc.testing.vms.elf import interpreter
from vuproc.testing.vms.errors import ClientMissing
from vuproc.testing.vms.kernel import Modules, uncompressed

# Programs of the system administrator are not on every user's path.
SEARCH_PATH = os.pathsep.join(["/usr/local/sbin", "/usr/sbin", "/sbin"])
HOW = "sh deploy/setup gets it where apt is there"
VERSION_S = 30.0
"""Seconds that QEMU may take to tell its version."""


class Qemu(enum.StrEnum):
    """Which QEMU is run: the one that is installed, or that of a later suite of Debian's."""

    INSTALLED = "installed"
    TRIXIE = "trixie"
    SID = "sid"

    @property
    def how(self) -> str:
        """How it is had. Sid changes daily, so it is unpacked only for who asks for it."""
        return f"VUPROC_SID=1 {HOW}" if self is Qemu.SID else HOW


@dataclass(frozen=True)
class Kernel:
    """A bootable kernel: the program or image, and its modules."""

    image: Path
    modules: Modules


def cache() -> Path:
    """Where `deploy/setup` unpacks: $VUPROC_CACHE, else the checkout, else the user's cache."""
    if named := os.environ.get("VUPROC_CACHE"):
        return Path(named)
    checkout = Path(__file__).parents[3]
    if (checkout / "deploy" / "setup").exists():
        return checkout / ".cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vuproc"


def _program(name: str, *unpacked: str) -> Path | None:
    for place in unpacked:
        path = cache() / place
        if os.access(path, os.X_OK):
            return path
    found = shutil.which(name, path=os.environ.get("PATH", "") + os.pathsep + SEARCH_PATH)
    return Path(found) if found else None


def _required(client: str, name: str, *unpacked: str) -> Path:
    found = _program(name, *unpacked)
    if found is None:
        raise ClientMissing(client, f"there is no {name} on this machine ({HOW})")
    return found


def busybox() -> Path:
    """A statically linked busybox: the user space of every guest here."""
    found = _required("busybox", "busybox", "busybox/bin/busybox", "busybox/usr/bin/busybox")
    if interpreter(found) is not None:
        raise ClientMissing("busybox", f"{found} is not a static one ({HOW})")
    return found


def mke2fs() -> Path:
    """The program which makes an ext4 file system, taken along into guests."""
    return _required("mke2fs", "mke2fs")


def user_mode_linux() -> Kernel:
    """User-Mode Linux and its modules."""
    found = _required("User-Mode Linux", "linux.uml", "uml/usr/bin/linux.uml")
    modules = found.parents[1] / "lib" / "uml" / "modules"
    if not modules.is_dir():
        raise ClientMissing("User-Mode Linux", f"its modules are not at {modules}")
    return Kernel(found, Modules(modules))


def uml_with_drivers() -> Kernel:
    """User-Mode Linux that `deploy/setup` has built from a newer source, with the drivers of all
    device types here that Debian's kernels lack. It has no modules.
    """
    folder = cache() / "uml-drivers"
    image = folder / "linux"
    if not os.access(image, os.X_OK):
        raise ClientMissing("User-Mode Linux with more drivers", f"there is no {image} ({HOW})")
    return Kernel(image, Modules(folder))


@functools.cache
def uml_release(image: Path) -> str:
    """What a User-Mode Linux says of itself: "7.3.4"."""
    text = subprocess.check_output([image, "--version"], text=True, timeout=VERSION_S)
    return text.strip()


def qemu(which: Qemu = Qemu.INSTALLED) -> Path:
    """QEMU for x86-64."""
    name = "qemu-system-x86_64"
    if which is Qemu.INSTALLED:
        return _required("QEMU", name)
    unpacked = cache() / f"qemu-{which}" / name
    if not os.access(unpacked, os.X_OK):
        raise ClientMissing(f"QEMU of {which}", f"there is no {unpacked} ({which.how})")
    return unpacked


@functools.cache
def qemu_version(program: Path) -> tuple[int, ...]:
    """What a QEMU says of itself: (10, 0, 13)."""
    text = subprocess.check_output([program, "--version"], text=True, timeout=VERSION_S)
    found = re.search(r"version (\d+(?:\.\d+)+)", text)
    if found is None:
        raise ClientMissing("QEMU", f"{program} does not tell its version: {text[:200]!r}")
    return tuple(int(part) for part in found[1].split("."))


def qemu_kernel(suite: str = "") -> Kernel:
    """The kernel that QEMU boots: the cloud kernel of the distribution, or of a later suite of
    Debian's ("trixie"), unpacked.
    """
    unpacked = cache() / (f"linux-{suite}" if suite else "linux")
    images = sorted(unpacked.glob("boot/vmlinuz-*"))
    if not images:
        raise ClientMissing("kernel for QEMU", f"there is none below {unpacked} ({HOW})")
    release = images[-1].name.removeprefix("vmlinuz-")
    modules = [path for path in unpacked.glob(f"**/lib/modules/{release}") if path.is_dir()]
    if not modules:
        raise ClientMissing("kernel for QEMU", f"{images[-1]} has no modules beside it")
    image = uncompressed(images[-1], unpacked / f"vmlinux-{release}")
    return Kernel(image, Modules(modules[0]))


def libblkio() -> str:
    """What to give to the dynamic loader for libblkio: a path or a name."""
    unpacked = sorted(cache().glob("blkio/usr/lib/*/libblkio.so.1"))
    if unpacked:
        return str(unpacked[0])
    installed = ctypes.util.find_library("blkio")
    if installed is None:
        raise ClientMissing("libblkio", f"there is no libblkio.so.1 on this machine ({HOW})")
    return installed


@dataclass(frozen=True)
class DpdkProgram:
    """DPDK's test program, where its libraries are, and the number in the names of DPDK's."""

    program: Path
    libraries: Path
    abi: str


def dpdk(driver: str = "librte_net_virtio.so") -> DpdkProgram:
    """DPDK's test program, with a driver."""
    program = _required("DPDK", "dpdk-testpmd", "dpdk/usr/bin/dpdk-testpmd")
    drivers = sorted(program.parents[1].glob(f"lib/*/{driver}.*"))
    if not drivers:
        raise ClientMissing("DPDK", f"{program} has no {driver} beside it ({HOW})")
    found = min(drivers, key=lambda path: len(path.name))
    return DpdkProgram(program, found.parent, found.name.partition(".so.")[2])


def stdbuf() -> Path:
    """The program of coreutils that has another write line by line."""
    return _required("stdbuf", "stdbuf")


def storage_daemon() -> Path:
    """QEMU's storage daemon: another back-end, to tell a client's fault from ours."""
    return _required("qemu-storage-daemon", "qemu-storage-daemon")


@dataclass(frozen=True)
class CephPrograms:
    """Ceph's programs and libraries, and its modules for one version of Python."""

    programs: Path
    libraries: Path
    modules: Path

    @property
    def environment(self) -> dict[str, str]:
        """What whoever runs them needs, and whoever imports the modules."""
        libraries = f"{self.libraries}{os.pathsep}{self.libraries / 'ceph'}"
        return {"LD_LIBRARY_PATH": libraries, "PYTHONPATH": str(self.modules)}


def ceph() -> CephPrograms:
    """What a Ceph cluster of one machine is made of, unpacked."""
    how = f"VUPROC_LONG=1 {HOW}"
    root = cache() / "ceph" / "usr"
    if not os.access(root / "bin" / "ceph-osd", os.X_OK):
        raise ClientMissing("Ceph", f"there is no {root / 'bin' / 'ceph-osd'} ({how})")
    modules = root / "lib" / "python3" / "dist-packages"
    if not any((modules / f"rbd{suffix}").exists() for suffix in EXTENSION_SUFFIXES):
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise ClientMissing("Ceph", f"its module rbd is not for Python {version}")
    return CephPrograms(root / "bin", next((root / "lib").glob("*-linux-gnu*")), modules)


def xmllint() -> Path:
    """The program that checks XML by a schema."""
    return _required("xmllint", "xmllint", "xmllint/usr/bin/xmllint")


def libvirt_schema() -> Path:
    """libvirt's schema of a domain."""
    name = "usr/share/libvirt/schemas/domain.rng"
    for root in (cache() / "libvirt", Path("/")):
        if (root / name).exists():
            return root / name
    raise ClientMissing("libvirt's schema", f"there is no /{name} on this machine ({HOW})")
