"""A Linux kernel's image and modules, as they lie in an unpacked package."""

from __future__ import annotations

import gzip
import lzma
import os
import re
import struct
from collections.abc import Callable, Iterable
from pathlib import Path

from vuproc.testing.guests.errors import ClientMissing

# x86 boot protocol (kernel documentation, arch/x86/boot): the number of 512-byte sectors of
# set-up code, the magic, and where the compressed kernel lies behind that code.
SETUP_SECTORS = 0x1F1
HEADER_MAGIC = (0x202, b"HdrS")
PAYLOAD = struct.Struct("<II")
PAYLOAD_AT = 0x248
SECTOR = 512

DECOMPRESS: dict[bytes, Callable[[bytes], bytes]] = {
    b"\x1f\x8b": gzip.decompress,
    b"\xfd7": lambda data: lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(data),
    b"\x5d\x00": lambda data: lzma.LZMADecompressor(lzma.FORMAT_ALONE).decompress(data),
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
            # .modinfo holds NUL-terminated `key=value` strings; a cycle cannot be (the linker orders them).
            listed = re.search(rb"\0depends=([^\0]*)\0", data)
            for dependency in (listed[1].decode() if listed else "").split(","):
                if dependency:
                    visit(dependency)
            found[name] = data

        for name in names:
            visit(name)
        return found


def uncompressed(image: Path, into: Path) -> Path:
    """The ELF kernel inside a bzImage, written to `into` once; the bzImage where that is not possible.

    QEMU enters an ELF kernel with a PVH note directly. Under emulation that saves the guest
    from unpacking itself, which takes longer than all the rest of its boot.
    """
    if into.exists() and into.stat().st_mtime >= image.stat().st_mtime:
        return into
    data = image.read_bytes()
    at, magic = HEADER_MAGIC
    if data[at : at + len(magic)] != magic:
        return image
    offset, length = PAYLOAD.unpack_from(data, PAYLOAD_AT)
    start = (data[SETUP_SECTORS] + 1) * SECTOR + offset
    payload = data[start : start + length]
    unpack = DECOMPRESS.get(payload[:2])
    if unpack is None:
        return image
    temporary = into.with_name(f"{into.name}.{os.getpid()}")
    try:
        temporary.write_bytes(unpack(payload))
        temporary.rename(into)
    except OSError:
        return image
    return into
