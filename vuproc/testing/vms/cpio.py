"""An archive in the format that Linux takes as its first root file system (cpio, "newc")."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

# Kernel documentation, driver-api/early-userspace/buffer-format: 13 fields of 8 hexadecimal digits
# after the magic; the header with the name and the contents are each padded to 4 bytes.
MAGIC = "070701"
ALIGNMENT = 4
TRAILER = "TRAILER!!!"


class Archive:
    """Files to be, by absolute path. The directories above each are made with it."""

    def __init__(self) -> None:
        self._entries: dict[str, tuple[int, bytes, tuple[int, int]]] = {}

    def directory(self, path: str) -> None:
        """Adds a directory and those above it."""
        for part in [*reversed(PurePosixPath(path).parents), PurePosixPath(path)]:
            if str(part) != "/":
                self._entries.setdefault(str(part), (stat.S_IFDIR | 0o755, b"", (0, 0)))

    def file(self, path: str, contents: bytes, *, mode: int = 0o644) -> None:
        """Adds a regular file."""
        self._add(path, stat.S_IFREG | mode, contents)

    def copy(self, path: str, source: Path) -> None:
        """Adds a regular file with the contents and mode of `source`; links are followed."""
        self.file(path, source.read_bytes(), mode=stat.S_IMODE(source.stat().st_mode))

    def character_device(self, path: str, major: int, minor: int) -> None:
        """Adds a device node; this needs no privilege, since it is only a line of an archive."""
        self._add(path, stat.S_IFCHR | 0o600, b"", (major, minor))

    def _add(self, path: str, mode: int, contents: bytes, node: tuple[int, int] = (0, 0)) -> None:
        self.directory(str(PurePosixPath(path).parent))
        self._entries[path] = (mode, contents, node)

    def chunks(self) -> Iterator[bytes]:
        """The archive's bytes, entry by entry."""
        for number, (path, (mode, contents, node)) in enumerate(self._entries.items(), start=1):
            yield _entry(number, path.lstrip("/"), mode, contents, node)
        yield _entry(0, TRAILER, 0, b"", (0, 0))

    def write(self, target: Path) -> None:
        """Writes the archive to a file."""
        with target.open("wb") as out:
            out.writelines(self.chunks())


def _entry(number: int, name: str, mode: int, contents: bytes, node: tuple[int, int]) -> bytes:
    encoded = os.fsencode(name) + b"\0"
    # inode, mode, uid, gid, links, mtime, size, device (2), node (2), length of the name, checksum
    fields = (number, mode, 0, 0, 1, 0, len(contents), 0, 0, *node, len(encoded), 0)
    head = MAGIC + "".join(f"{field:08x}" for field in fields)
    return _padded(head.encode("ascii") + encoded) + _padded(contents)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % ALIGNMENT)
