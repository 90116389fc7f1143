"""What a guest asks of a directory of the host without changing anything: a function an opcode."""

from __future__ import annotations

import errno
import os
import stat

from vuproc.devices import fs_host
from vuproc.devices.fs_answers import NO_ENTRY, attributes_out, directory_entry
from vuproc.devices.fs_call import MOST_LISTED, OFFSET_MAX, Call, refused
from vuproc.devices.fs_directory import HANDLE_DIRECTORY, Arm, Directory
from vuproc.fd import Fd
from vuproc.spec.fuse import (
    ACCESS_IN,
    FSYNC_FDATASYNC,
    FSYNC_IN,
    GETATTR_FH,
    GETATTR_IN,
    GETXATTR_IN,
    GETXATTR_OUT,
    LSEEK_IN,
    LSEEK_OUT,
    NAME_MAX,
    OPEN_IN,
    OPEN_OUT,
    OUT_HEADER,
    READ_IN,
    RELEASE_IN,
    STATFS_OUT,
    Opcode,
)

XATTRS = b"user."
"""What the names of extended attributes begin with that a guest may have: others mean something to
the host."""
_PLACEHOLDER = bytes(OUT_HEADER.size)
_LOOKUPS = 7
"""An entry with its attributes takes at most so many times what the kernel has for it."""


def lookup(tree: Directory, call: Call) -> bytes:
    """LOOKUP: a name in a directory."""
    (name,) = call.names(0, 1)
    return tree.entry(call.node, name, tree.found(call.node, name))


def getattr_(tree: Directory, call: Call) -> bytes:
    """GETATTR: of an open file, or of a node."""
    asked = call.fields(GETATTR_IN)
    if asked["getattr_flags"] & GETATTR_FH:
        file = tree.file(call.node, asked["fh"])
    else:
        file = tree.path(call.node)
    return attributes_out(os.fstat(file.fileno()), tree.valid)


def readlink(tree: Directory, call: Call) -> bytes:
    """READLINK: where a symlink leads, which is the guest's to follow."""
    return os.fsencode(os.readlink(b"", dir_fd=tree.path(call.node).fileno()))


def statfs(tree: Directory, call: Call) -> bytes:
    """STATFS: of the file system that a node is on."""
    of = os.statvfs(tree.path(call.node).fileno())
    return STATFS_OUT.pack(
        blocks=of.f_blocks,
        bfree=of.f_bfree,
        bavail=of.f_bavail,
        files=of.f_files,
        ffree=of.f_ffree,
        bsize=of.f_bsize,
        namelen=of.f_namemax,
        frsize=of.f_frsize,
    )


def access(tree: Directory, call: Call) -> bytes:
    """ACCESS: what the mode allows to the user, whose other groups are not known here."""
    mask = call.fields(ACCESS_IN)["mask"]
    if mask & os.W_OK and not tree.writable:
        raise refused(errno.EROFS)
    of = os.fstat(tree.path(call.node).fileno())
    shift = 6 if call.uid == of.st_uid else 3 if call.gid == of.st_gid else 0
    allowed = of.st_mode >> shift & 0o7
    if call.uid == 0:
        anybody = of.st_mode & 0o111 or stat.S_ISDIR(of.st_mode)
        allowed = 0o7 if anybody else os.R_OK | os.W_OK
    if mask & 0o7 & ~allowed:
        raise refused(errno.EACCES)
    return b""


# Open files.


def open_(tree: Directory, call: Call) -> bytes:
    """OPEN: a regular file."""
    flags = call.fields(OPEN_IN)["flags"]
    file = tree.open(call.node, flags)
    return opened(tree, call, file, tree.handle(flags))


def opendir(tree: Directory, call: Call) -> bytes:
    """OPENDIR."""
    file = tree.open_directory(call.node)
    return opened(tree, call, file, tree.handle(0, directory=True))


def opened(tree: Directory, call: Call, file: Fd, handle: int) -> bytes:
    """A handle for what was opened; that of a dead worker, if it had one for this request."""
    handle = call.records.begin(call.unique, handle=handle).handle or handle
    tree.keep(call.node, handle, file)
    return OPEN_OUT.pack(fh=handle)


def release(tree: Directory, call: Call) -> bytes:
    """RELEASE, RELEASEDIR: nobody in the guest has it open any more."""
    tree.release_file(call.node, call.fields(RELEASE_IN)["fh"])
    return b""


def read(tree: Directory, call: Call) -> int:
    """READ: straight from the file into the guest's memory."""
    asked = call.fields(READ_IN)
    size = min(asked["size"], call.room)
    if size < 0 or asked["offset"] > OFFSET_MAX - size:
        raise refused(errno.EINVAL)
    file = tree.file(call.node, asked["fh"])
    call.request.write(_PLACEHOLDER)
    done = 0
    while done < size:  # one that is short is the end of the file for the guest, and no error
        count = call.request.preadv(file, asked["offset"] + done, size - done)
        if not count:
            break
        done += count
    return done


def lseek(tree: Directory, call: Call) -> bytes:
    """LSEEK: the next hole, or what is behind it. All else is the guest's own."""
    asked = call.fields(LSEEK_IN)
    if asked["whence"] not in (os.SEEK_DATA, os.SEEK_HOLE) or asked["offset"] > OFFSET_MAX:
        raise refused(errno.EINVAL)
    file = tree.file(call.node, asked["fh"])
    return LSEEK_OUT.pack(offset=os.lseek(file.fileno(), asked["offset"], asked["whence"]))


def flush(tree: Directory, call: Call) -> bytes:
    """FLUSH: what was written is in the file already."""
    return b""


def fsync(tree: Directory, call: Call) -> bytes:
    """FSYNC, FSYNCDIR."""
    asked = call.fields(FSYNC_IN)
    file = tree.file(call.node, asked["fh"])
    sync = os.fdatasync if asked["fsync_flags"] & FSYNC_FDATASYNC else os.fsync
    sync(file.fileno())
    return b""


# Directories.


def readdir(tree: Directory, call: Call) -> bytes:
    """READDIR: names, as many as there is room for."""
    return _entries(tree, call, attributes=False)


def readdirplus(tree: Directory, call: Call) -> bytes:
    """READDIRPLUS: what they stand for, too."""
    return _entries(tree, call, attributes=True)


def _entries(tree: Directory, call: Call, *, attributes: bool) -> bytes:
    asked = call.fields(READ_IN)
    room = min(asked["size"], call.room, MOST_LISTED)
    if room < 0 or asked["offset"] > OFFSET_MAX or not asked["fh"] & HANDLE_DIRECTORY:
        raise refused(errno.EINVAL)
    directory = tree.file(call.node, asked["fh"])
    # So much that all of it has room: the next request goes on where this one ends.
    most = room // _LOOKUPS if attributes else room * 3 // 4
    data = bytearray()
    for found in fs_host.read_directory(directory, asked["offset"], most):
        one = directory_entry(found.name, found.ino, found.after, found.kind)
        size = len(one) + (len(NO_ENTRY) if attributes else 0)
        if len(data) + size > room:
            if not data:
                raise refused(errno.EINVAL)  # nothing would be the end
            break
        if attributes:
            data += _node(tree, call.node, directory, found.name)
        data += one
    return bytes(data)


def _node(tree: Directory, parent: int, directory: Fd, name: bytes) -> bytes:
    if name in (b".", b"..") or len(name) > NAME_MAX:
        return NO_ENTRY  # some file systems of the host have longer names
    try:
        of = os.stat(name, dir_fd=directory.fileno(), follow_symlinks=False)
        return tree.entry(parent, name, of)
    except OSError:  # it is gone, or there are too many: whoever wants it asks again
        return NO_ENTRY


# Extended attributes.


def getxattr(tree: Directory, call: Call) -> bytes:
    """GETXATTR: one of them, or its length."""
    (name,) = call.strings(GETXATTR_IN.size, 1)
    value = os.getxattr(xattr_path(tree, call), xattr_name(tree, name))
    return _sized(value, call.fields(GETXATTR_IN)["size"])


def listxattr(tree: Directory, call: Call) -> bytes:
    """LISTXATTR: their names, or the length of all."""
    size = call.fields(GETXATTR_IN)["size"]
    if not tree.xattrs:
        raise refused(errno.ENOSYS)
    names = map(os.fsencode, os.listxattr(xattr_path(tree, call)))
    return _sized(b"".join(name + b"\0" for name in names if name.startswith(XATTRS)), size)


def xattr_path(tree: Directory, call: Call) -> str:
    """Where they are found."""
    return fs_host.path_of(tree.path(call.node))


def xattr_name(tree: Directory, name: bytes) -> bytes:
    """The name of one that a guest may have."""
    if not tree.xattrs:
        raise refused(errno.ENOSYS)
    if not name.startswith(XATTRS):
        raise refused(errno.EOPNOTSUPP)
    return name


def _sized(value: bytes, size: int) -> bytes:
    if not size:
        return GETXATTR_OUT.pack(size=len(value))
    if len(value) > size:
        raise refused(errno.ERANGE)
    return value


ARMS: dict[int, Arm] = {
    Opcode.LOOKUP: lookup,
    Opcode.GETATTR: getattr_,
    Opcode.READLINK: readlink,
    Opcode.STATFS: statfs,
    Opcode.ACCESS: access,
    Opcode.OPEN: open_,
    Opcode.RELEASE: release,
    Opcode.READ: read,
    Opcode.LSEEK: lseek,
    Opcode.FLUSH: flush,
    Opcode.FSYNC: fsync,
    Opcode.OPENDIR: opendir,
    Opcode.READDIR: readdir,
    Opcode.READDIRPLUS: readdirplus,
    Opcode.RELEASEDIR: release,
    Opcode.FSYNCDIR: fsync,
    Opcode.GETXATTR: getxattr,
    Opcode.LISTXATTR: listxattr,
}
"""By opcode."""
