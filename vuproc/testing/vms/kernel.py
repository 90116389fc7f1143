"""A Linux kernel's image and modules, as they lie in an unpacked package."""

from __future__ import annotations

import gzip
import lzma
import os
import re
import struct
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

from vuproc.testing.vms import lz4
from vuproc.testing.vms.errors import ClientMissing

# x86 boot protocol (kernel documentation, arch/x86/boot): the header's magic, the number of sectors
# of set-up code behind the first one, and where behind that code the compressed kernel lies.
HEADER_MAGIC = b"HdrS"
HEADER_MAGIC_AT = 0x202
SETUP_SECTORS_AT = 0x1F1
SECTOR = 512
PAYLOAD = struct.Struct("<II")
PAYLOAD_AT = 0x248

# How distributions compress modules and kernels, by the first two bytes.
DECOMPRESS: dict[bytes, Callable[[bytes], bytes]] = {
    b"\x1f\x8b": gzip.decompress,
    b"\xfd7": lzma.decompress,
    lz4.MAGIC[:2]: lz4.decompress,
}


def _plain(name: str) -> str:
    """A module's name as the kernel spells it: without suffixes, dashes as underscores."""
    return re.sub(r"\.ko(\.\w+)?$", "", name).replace("-", "_")


class Modules:
    """The modules below one directory of a kernel, by name."""

    def __init__(self, directory: Path) -> None:
        self._paths = {_plain(path.name): path for path in directory.rglob("*.ko*")}

    def contents(self, name: str) -> bytes | None:
        """The module's uncompressed bytes; None if the kernel has none of that name (built in)."""
        path = self._paths.get(_plain(name))
        if path is None:
            return None
        data = path.read_bytes()
        if path.suffix == ".ko":
            return data
        unpack = DECOMPRESS.get(data[:2])
        if unpack is None:
            raise ClientMissing("kernel modules", f"{path} is compressed in an unknown way")
        return unpack(data)

    def load_order(self, names: Iterable[str]) -> dict[str, bytes]:
        """Modules with everything that they depend on, each after its dependencies."""
        found: dict[str, bytes] = {}

        def visit(name: str) -> None:
            name = _plain(name)
            data = self.contents(name)
            if name in found or data is None:
                return
            # .modinfo holds NUL-terminated `key=value` strings. Modules have no cycles.
            listed = re.search(rb"\0depends=([^\0]*)\0", data)
            for dependency in (listed[1].decode() if listed else "").split(","):
                if dependency:
                    visit(dependency)
            found[name] = data

        for name in names:
            visit(name)
        return found


def uncompressed(image: Path, into: Path) -> Path:
    """The ELF kernel inside a bzImage, written to `into` once; the bzImage if that cannot be.

    QEMU enters an ELF kernel at once. Otherwise the guest unpacks itself, under emulation, which
    takes seconds, and many more after a reboot, when that overwrites translated code.
    """
    if into.exists() and into.stat().st_mtime >= image.stat().st_mtime:
        return into
    data = image.read_bytes()
    if data[HEADER_MAGIC_AT:][: len(HEADER_MAGIC)] != HEADER_MAGIC:
        return image
    offset, length = PAYLOAD.unpack_from(data, PAYLOAD_AT)
    payload = data[(data[SETUP_SECTORS_AT] + 1) * SECTOR + offset :][:length]
    temporary = into.with_name(f"{into.name}.{os.getpid()}")
    try:
        temporary.write_bytes(DECOMPRESS[payload[:2]](payload))
        temporary.rename(into)
    except (OSError, EOFError, LookupError, ValueError, lzma.LZMAError, zlib.error):
        temporary.unlink(missing_ok=True)
        return image
    return into
