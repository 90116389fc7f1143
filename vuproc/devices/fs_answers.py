"""Answers of a file system: attributes, entries, parts of a directory."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

from vuproc.spec.fuse import ALIGN, ATTR, ATTR_OUT, DIRENT, ENTRY_OUT

BLOCK = 512
"""Bytes of the blocks that a file's size on the disk is counted in."""
NANO = 10**9
_WORD = (1 << 64) - 1
_HALF = (1 << 32) - 1
TYPE_SHIFT = 12
"""From a mode to the type that a directory entry has (DT_*)."""


@dataclass(frozen=True, slots=True)
class Attributes:
    """What is said of a node that no stat tells of, in the words of os.stat_result."""

    st_ino: int
    st_size: int
    st_mode: int
    st_mtime_ns: int
    st_nlink: int = 1
    st_uid: int = 0
    st_gid: int = 0
    st_rdev: int = 0
    st_blksize: int = 4096

    @property
    def st_blocks(self) -> int:
        """Blocks of 512 bytes."""
        return -(-self.st_size // BLOCK)

    @property
    def st_atime_ns(self) -> int:
        """When it was changed: nobody tells when it was read."""
        return self.st_mtime_ns

    @property
    def st_ctime_ns(self) -> int:
        """When it was changed."""
        return self.st_mtime_ns


@dataclass(frozen=True, slots=True)
class Validity:
    """How long the guest may believe an answer."""

    seconds: int
    nanoseconds: int

    @classmethod
    def of(cls, seconds: float) -> Validity:
        """Of so many seconds."""
        whole, rest = divmod(round(seconds * NANO), NANO)
        return cls(whole, rest)


def attributes(of: os.stat_result | Attributes) -> bytes:
    """What FUSE says of a node."""
    device = 0
    if stat.S_ISCHR(of.st_mode) or stat.S_ISBLK(of.st_mode):
        major, minor = os.major(of.st_rdev), os.minor(of.st_rdev)
        device = minor & 0xFF | major << 8 | (minor & ~0xFF) << 12
    times = [divmod(ns, NANO) for ns in (of.st_atime_ns, of.st_mtime_ns, of.st_ctime_ns)]
    return ATTR.pack(
        ino=of.st_ino & _WORD,
        size=of.st_size,
        blocks=of.st_blocks,
        atime=times[0][0] & _WORD,
        mtime=times[1][0] & _WORD,
        ctime=times[2][0] & _WORD,
        atimensec=times[0][1],
        mtimensec=times[1][1],
        ctimensec=times[2][1],
        mode=of.st_mode,
        nlink=min(of.st_nlink, _HALF),
        uid=of.st_uid,
        gid=of.st_gid,
        rdev=device & _HALF,
        blksize=of.st_blksize,
    )


def attributes_out(of: os.stat_result | Attributes, valid: Validity) -> bytes:
    """The answer to GETATTR and SETATTR."""
    head = ATTR_OUT.pack(attr_valid=valid.seconds, attr_valid_nsec=valid.nanoseconds)
    return head + attributes(of)


def entry(node: int, of: os.stat_result | Attributes, valid: Validity) -> bytes:
    """What a name stands for: the answer to LOOKUP, and to what makes something."""
    return ENTRY_OUT.pack(
        nodeid=node,
        entry_valid=valid.seconds,
        attr_valid=valid.seconds,
        entry_valid_nsec=valid.nanoseconds,
        attr_valid_nsec=valid.nanoseconds,
    ) + attributes(of)


NO_ENTRY = bytes(ENTRY_OUT.size + ATTR.size)
"""In a directory that is read with what its entries stand for: this one is not told."""


def directory_entry(name: bytes, ino: int, after: int, kind: int) -> bytes:
    """One entry, of DT_* `kind`; `after` is where those behind it begin."""
    head = DIRENT.pack(ino=ino & _WORD, off=after & _WORD, namelen=len(name), type=kind)
    return head + name.ljust(-(-len(name) // ALIGN) * ALIGN, b"\0")
