"""What a guest changes of a node in a directory of the host: a function an opcode.

A request may run twice, if its worker dies before it is completed. What sets something, writes or
truncates comes to the same.
"""

from __future__ import annotations

import errno
import os
import time

from vuproc.devices import fs_host
from vuproc.devices.fs_answers import NANO, attributes_out
from vuproc.devices.fs_call import OFFSET_MAX, Call, refused
from vuproc.devices.fs_directory import MODE, Arm, Directory
from vuproc.devices.fs_reading import xattr_name, xattr_path
from vuproc.fd import Fd
from vuproc.spec.fuse import (
    COPY_FILE_RANGE_IN,
    FALLOCATE_IN,
    SETATTR_IN,
    SETXATTR_IN,
    WRITE_IN,
    WRITE_OUT,
    Opcode,
    SetattrValid,
)

KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 0x01, 0x02, 0x10
"""Linux, falloc.h: what FALLOCATE may do, beside giving room. Twice is as good as once."""
MOST_COPIED = 16 << 20
"""Bytes of one COPY_FILE_RANGE; the guest asks again for the rest."""


# What a node has.


def setattr_(tree: Directory, call: Call) -> bytes:
    """SETATTR: owner, mode, size, times."""
    asked = call.fields(SETATTR_IN)
    valid = asked["valid"]
    path = tree.path(call.node)
    named = fs_host.path_of(path)
    if valid & (SetattrValid.UID | SetattrValid.GID):
        uid = asked["uid"] if valid & SetattrValid.UID else -1
        gid = asked["gid"] if valid & SetattrValid.GID else -1
        os.chown(named, uid, gid)
    if valid & SetattrValid.MODE:
        os.chmod(named, asked["mode"] & MODE)
    if valid & SetattrValid.SIZE:
        _truncate(tree, call, path, asked)
    if valid & (SetattrValid.ATIME | SetattrValid.MTIME):
        of, now = os.fstat(path.fileno()), time.time_ns()
        accessed, modified = of.st_atime_ns, of.st_mtime_ns
        if valid & SetattrValid.ATIME:
            set_now = valid & SetattrValid.ATIME_NOW
            accessed = now if set_now else _nanoseconds(asked["atime"], asked["atimensec"])
        if valid & SetattrValid.MTIME:
            set_now = valid & SetattrValid.MTIME_NOW
            modified = now if set_now else _nanoseconds(asked["mtime"], asked["mtimensec"])
        os.utime(named, ns=(accessed, modified))
    return attributes_out(os.fstat(path.fileno()), tree.valid)


def _nanoseconds(seconds: int, rest: int) -> int:
    """A time; before 1970 its seconds are negative, as a number of 64 bits."""
    return (seconds - (1 << 64) if seconds > OFFSET_MAX else seconds) * NANO + rest


def _truncate(tree: Directory, call: Call, path: Fd, asked: dict[str, int]) -> None:
    if asked["size"] > OFFSET_MAX:
        raise refused(errno.EINVAL)
    if asked["valid"] & SetattrValid.FH:
        os.ftruncate(tree.file(call.node, asked["fh"]).fileno(), asked["size"])
        return
    with tree.open(call.node, os.O_WRONLY) as file:
        os.ftruncate(file.fileno(), asked["size"])


def setxattr(tree: Directory, call: Call) -> bytes:
    """SETXATTR."""
    asked = call.fields(SETXATTR_IN)
    (name,) = call.strings(SETXATTR_IN.size, 1)
    value = call.body[SETXATTR_IN.size + len(name) + 1 :]
    if len(value) != asked["size"]:
        raise refused(errno.EINVAL)
    name, path = xattr_name(tree, name), xattr_path(tree, call)
    with call.once(_has_xattr(path, name), errno.EEXIST):
        os.setxattr(path, name, value, asked["flags"])
    return b""


def removexattr(tree: Directory, call: Call) -> bytes:
    """REMOVEXATTR."""
    (name,) = call.strings(0, 1)
    name, path = xattr_name(tree, name), xattr_path(tree, call)
    with call.once(_has_xattr(path, name), errno.ENODATA):
        os.removexattr(path, name)
    return b""


def _has_xattr(path: str, name: bytes) -> int:
    return int(os.fsdecode(name) in os.listxattr(path))


# What a file has.


def write(tree: Directory, call: Call) -> bytes:
    """WRITE: straight from the guest's memory into the file."""
    request = call.request
    asked = WRITE_IN.unpack(request.read(WRITE_IN.size))
    size = asked["size"]
    if size != request.readable or asked["offset"] > OFFSET_MAX - size:
        raise refused(errno.EINVAL)
    file = tree.file(call.node, asked["fh"])
    written = 0
    while written < size:
        count = request.pwritev(file, asked["offset"] + written, size - written)
        if not count:
            break
        written += count
    return WRITE_OUT.pack(size=written)


def fallocate(tree: Directory, call: Call) -> bytes:
    """FALLOCATE: room, a hole, zeros."""
    asked = call.fields(FALLOCATE_IN)
    offset, length, mode = asked["offset"], asked["length"], asked["mode"]
    if mode & ~(KEEP_SIZE | PUNCH_HOLE | ZERO_RANGE):
        raise refused(errno.EOPNOTSUPP)
    if offset > OFFSET_MAX or length > OFFSET_MAX - offset:
        raise refused(errno.EFBIG)
    fs_host.allocate(tree.file(call.node, asked["fh"]), mode, offset, length)
    return b""


def copy_file_range(tree: Directory, call: Call) -> bytes:
    """COPY_FILE_RANGE: between two open files, without the guest."""
    asked = call.fields(COPY_FILE_RANGE_IN)
    length = min(asked["len"], MOST_COPIED)
    if asked["flags"] or max(asked["off_in"], asked["off_out"]) > OFFSET_MAX - length:
        raise refused(errno.EINVAL)
    source = tree.file(call.node, asked["fh_in"])
    target = tree.file(asked["nodeid_out"], asked["fh_out"])
    copied = os.copy_file_range(
        source.fileno(), target.fileno(), length, asked["off_in"], asked["off_out"]
    )
    return WRITE_OUT.pack(size=copied)


ARMS: dict[int, Arm] = {
    Opcode.SETATTR: setattr_,
    Opcode.SETXATTR: setxattr,
    Opcode.REMOVEXATTR: removexattr,
    Opcode.WRITE: write,
    Opcode.FALLOCATE: fallocate,
    Opcode.COPY_FILE_RANGE: copy_file_range,
}
"""By opcode."""
