"""A Linux kernel's modules, as they lie in an unpacked package, in the order in which they load."""

from __future__ import annotations

import gzip
import lzma
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from vuproc.testing.guests.errors import ClientMissing

# How distributions compress modules, by the first bytes.
DECOMPRESS: dict[bytes, Callable[[bytes], bytes]] = {
    b"\x1f\x8b": gzip.decompress,
    b"\xfd7": lzma.decompress,
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
