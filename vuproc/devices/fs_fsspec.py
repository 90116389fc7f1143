"""What fsspec has at a URL, to be read: a node is a path of its file system, for one worker.

Nothing is kept but files that were read a moment ago, and what fsspec keeps by itself. Symlinks,
pipes and the like, of which fsspec tells more or less, are not shown.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from collections.abc import Callable
from datetime import datetime
from typing import Any

import fsspec

from vuproc.devices.fs_answers import (
    NANO,
    NO_ENTRY,
    Attributes,
    Validity,
    attributes_out,
    directory_entry,
    entry,
)
from vuproc.devices.fs_call import MOST_LISTED, OFFSET_MAX, Call, component, refused
from vuproc.devices.fs_nodes import Nodes
from vuproc.devices.fs_recent import Recent
from vuproc.devices.fs_session import Arm
from vuproc.spec.fuse import OPEN_IN, OPEN_OUT, READ_IN, ROOT, STATFS_OUT, Opcode

MOST_OPEN = 64
"""Files that a worker has open at the same time; twice that for a moment."""
MOST_READ = 1 << 20
"""Bytes of one answer to READ."""
BLOCK = 4096
DIRECTORY_MODE = stat.S_IFDIR | 0o555
FILE_MODE = stat.S_IFREG | 0o444
KINDS = {"directory": DIRECTORY_MODE, "file": FILE_MODE}
DT_DIR, DT_REG = 4, 8
TIMES = ("mtime", "LastModified", "last_modified", "updated", "modified", "created", "date_time")
"""Where the file systems of fsspec say when a file was changed, if they do."""
PLAIN = re.compile(r"[\w .,=+@()-]+")
"""Names that mean themselves to each of them. In others a library may see a query, a version, an
escape or another URL, so they are looked for in the list of their directory first."""
MISSING = (FileNotFoundError, KeyError)
"""What they raise for what is not there."""


class FsspecTree:
    """One worker's view of it."""

    writable = False

    def __init__(self, url: str, nodes: Nodes, valid: Validity) -> None:
        """Raises ValueError, or what fsspec does, if there is no directory at the URL."""
        self._fs, self._root = fsspec.core.url_to_fs(url)
        if self._root and self._fs.info(self._root)["type"] != "directory":
            raise ValueError(f"no directory is at {url}")
        self._nodes = nodes
        self._valid = valid
        self._files: Recent[int, Any] = Recent(MOST_OPEN)
        arms: dict[int, Callable[[Call], bytes]] = {
            Opcode.LOOKUP: self._lookup,
            Opcode.GETATTR: self._getattr,
            Opcode.STATFS: self._statfs,
            Opcode.OPEN: self._open,
            Opcode.CREATE: self._create,
            Opcode.READ: self._read,
            Opcode.RELEASE: self._nothing,
            Opcode.FLUSH: self._nothing,
            Opcode.OPENDIR: self._opendir,
            Opcode.READDIR: self._readdir,
            Opcode.READDIRPLUS: self._readdirplus,
            Opcode.RELEASEDIR: self._nothing,
        }
        self.arms: dict[int, Arm] = {number: self._careful(arm) for number, arm in arms.items()}

    def _careful(self, arm: Callable[[Call], bytes]) -> Arm:
        """Errors without a number have one. What else fsspec raises is logged, and an EIO."""

        def careful(call: Call) -> bytes:
            try:
                return arm(call)
            except MISSING as error:
                raise refused(errno.ENOENT) from error
            except PermissionError as error:
                raise refused(errno.EACCES) from error

        return careful

    # Paths.

    def _path(self, node: int) -> str:
        names = self._nodes.route(node, ()).names if node != ROOT else []
        return self._below(self._root, *map(os.fsdecode, names))

    def _below(self, path: str, *names: str) -> str:
        whole = "/".join((path.rstrip("/"), *names))
        return whole if path else whole.lstrip("/")

    def _info(self, path: str) -> Attributes:
        if path == self._root:
            return Attributes(ROOT, 0, DIRECTORY_MODE, 0)
        return self._found(path, self._fs.info(path))

    def _found(self, path: str, info: dict[str, Any]) -> Attributes:
        """OSError ENOENT for what is neither a file nor a directory."""
        mode = KINDS.get(info["type"])
        if mode is None or info.get("islink"):
            raise refused(errno.ENOENT)
        size = int(info.get("size") or 0) if mode == FILE_MODE else 0
        return Attributes(_number(path), size, mode, _changed(info))

    def _entry(self, parent: int, name: str, found: Attributes) -> bytes:
        node = self._nodes.remember((found.st_ino, 0), parent, os.fsencode(name))
        return entry(node, found, self._valid)

    # Arms.

    def _lookup(self, call: Call) -> bytes:
        (name,) = map(os.fsdecode, call.names(0, 1))
        parent = self._path(call.node)
        if not PLAIN.fullmatch(name) and name not in self._listed(parent):
            raise refused(errno.ENOENT)
        return self._entry(call.node, name, self._info(self._below(parent, name)))

    def _getattr(self, call: Call) -> bytes:
        return attributes_out(self._info(self._path(call.node)), self._valid)

    def _statfs(self, call: Call) -> bytes:
        return STATFS_OUT.pack(bsize=BLOCK, frsize=BLOCK, namelen=255)

    def _open(self, call: Call) -> bytes:
        flags = call.fields(OPEN_IN)["flags"]
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            raise refused(errno.EROFS)
        self._file(call.node)
        return OPEN_OUT.pack()

    def _create(self, call: Call) -> bytes:
        raise refused(errno.EROFS)

    def _nothing(self, call: Call) -> bytes:
        return b""

    def _file(self, node: int) -> Any:
        file = self._files.get(node)
        if file is None:
            path = self._path(node)
            if not stat.S_ISREG(self._info(path).st_mode):
                raise refused(errno.EISDIR)
            file = self._files.put(node, self._fs.open(path, "rb"))
        return file

    def _read(self, call: Call) -> bytes:
        asked = call.fields(READ_IN)
        size = min(asked["size"], call.room, MOST_READ)
        if size < 0 or asked["offset"] > OFFSET_MAX - size:
            raise refused(errno.EINVAL)
        file = self._file(call.node)
        file.seek(asked["offset"])
        data = bytearray()
        while len(data) < size:
            part = file.read(size - len(data))
            if not part:
                break
            data += part
        return bytes(data)

    def _opendir(self, call: Call) -> bytes:
        if not stat.S_ISDIR(self._info(self._path(call.node)).st_mode):
            raise refused(errno.ENOTDIR)
        return OPEN_OUT.pack()

    def _readdir(self, call: Call) -> bytes:
        return self._entries(call, attributes=False)

    def _readdirplus(self, call: Call) -> bytes:
        return self._entries(call, attributes=True)

    def _entries(self, call: Call, *, attributes: bool) -> bytes:
        """By name, and an offset is how many were before: the same for each worker, as long as the
        directory is.
        """
        asked = call.fields(READ_IN)
        room = min(asked["size"], call.room, MOST_LISTED)
        path = self._path(call.node)
        listed = sorted(self._listed(path).items())
        data = bytearray()
        for number, (name, info) in enumerate(listed[asked["offset"] :], asked["offset"] + 1):
            below = self._below(path, name)
            kind = DT_DIR if info["type"] == "directory" else DT_REG
            one = directory_entry(os.fsencode(name), _number(below), number, kind)
            if len(data) + len(one) + (len(NO_ENTRY) if attributes else 0) > room:
                if not data:
                    raise refused(errno.EINVAL)  # nothing would be the end
                break
            if attributes:
                data += self._told(call.node, name, below, info)
            data += one
        return bytes(data)

    def _told(self, parent: int, name: str, path: str, info: dict[str, Any]) -> bytes:
        try:
            return self._entry(parent, name, self._found(path, info))
        except OSError:  # there are too many: whoever wants it asks again
            return NO_ENTRY

    def _listed(self, path: str) -> dict[str, dict[str, Any]]:
        """What may be shown, by name."""
        listed = {}
        for info in self._fs.ls(path, detail=True):
            name = info["name"].rstrip("/").rsplit("/", 1)[-1]
            if info["type"] not in KINDS or info.get("islink"):
                continue
            try:
                component(os.fsencode(name))
            except OSError:
                continue  # an archive may have any name
            listed[name] = info
        return listed

    # Its life.

    def forget(self) -> None:
        """The guest has mounted anew."""
        self._files.clear()

    def release(self) -> None:
        """Nothing is open for others."""

    def tick(self) -> bool:
        """Close what was not used of late; whether there is something left."""
        self._files.tick()
        return bool(len(self._files))

    def close(self) -> None:
        """The worker ends."""
        self.forget()


def _number(path: str) -> int:
    """An inode number for a path: the same in each worker."""
    digest = hashlib.blake2b(os.fsencode(path), digest_size=8).digest()
    return int.from_bytes(digest, "little") or ROOT + 1


def _changed(info: dict[str, Any]) -> int:
    """When it was changed, in nanoseconds; 0 if it is not said."""
    for name in TIMES:
        value = info.get(name)
        try:
            if isinstance(value, datetime):
                return int(value.timestamp() * NANO)
            if isinstance(value, int | float):
                return int(value * NANO)
            if isinstance(value, tuple):
                return int(datetime(*value).timestamp() * NANO)
        except (ValueError, OverflowError, TypeError):
            continue
    return 0
