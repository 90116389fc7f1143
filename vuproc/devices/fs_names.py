"""What a guest makes, moves and removes in a directory of the host: a function an opcode.

A request may run twice, if its worker dies before it is completed: what makes or removes a name is
done by `Call.once`.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from vuproc.devices import fs_host
from vuproc.devices.fs_answers import entry
from vuproc.devices.fs_call import Call, component, refused
from vuproc.devices.fs_directory import KEPT_FLAGS, MODE, Arm, Directory, open_regular
from vuproc.fd import Fd
from vuproc.spec.fuse import (
    CREATE_IN,
    LINK_IN,
    MKDIR_IN,
    MKNOD_IN,
    OPEN_OUT,
    PATH_MAX,
    RENAME2_IN,
    RENAME_EXCHANGE,
    RENAME_IN,
    RENAME_NOREPLACE,
    Opcode,
)

MADE = frozenset({stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK})
"""What a guest may make by MKNOD: nothing that is a device here."""


def create(tree: Directory, call: Call) -> bytes:
    """CREATE: a regular file, and open it."""
    asked = call.fields(CREATE_IN)
    (name,) = call.names(CREATE_IN.size, 1)
    if not tree.writable:
        raise refused(errno.EROFS)
    parent = tree.path(call.node)
    record = call.records.begin(
        call.unique, tree.inode(call.node, name), tree.handle(asked["flags"])
    )
    made = True
    try:
        flags = asked["flags"] & KEPT_FLAGS | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        file = Fd(os.open(name, flags, asked["mode"] & MODE, dir_fd=parent.fileno()))
    except FileExistsError:
        made = record.again and not record.before  # by a worker that is dead
        if asked["flags"] & os.O_EXCL and not made:
            raise
        kept = tree.made(call.node, name, record.handle) if made else None
        file = kept or _existing(parent, name, asked["flags"], asked["mode"] if made else None)
    try:
        if made:
            _give(tree, call, parent, file, asked["mode"])
        of = os.fstat(file.fileno())
        node = tree.remember(call.node, name, of)
    except BaseException:
        file.close()
        raise
    tree.keep(node, record.handle, file)
    return entry(node, of, tree.valid) + OPEN_OUT.pack(fh=record.handle)


def _existing(parent: Fd, name: bytes, flags: int, mode: int | None) -> Fd:
    """Open a file that is there. `mode`: a dead worker has made it with this mode, which need not
    allow it to be opened a second time.
    """
    with fs_host.open_beneath(parent, name) as path:
        try:
            return open_regular(path, flags)
        except PermissionError:
            if mode is None:
                raise
            os.chmod(fs_host.path_of(path), mode & MODE | stat.S_IRUSR | stat.S_IWUSR)
            return open_regular(path, flags)
        finally:
            if mode is not None:
                os.chmod(fs_host.path_of(path), mode & MODE)


def mknod(tree: Directory, call: Call) -> bytes:
    """MKNOD: a regular file, a pipe, a socket's place."""
    mode = call.fields(MKNOD_IN)["mode"]
    (name,) = call.names(MKNOD_IN.size, 1)
    kind = stat.S_IFMT(mode) or stat.S_IFREG
    if kind not in MADE:
        raise refused(errno.EPERM)
    with _making(tree, call, name) as parent:
        os.mknod(name, kind | mode & MODE, dir_fd=parent.fileno())
    return _made(tree, call, name, kind | mode & MODE)


def mkdir(tree: Directory, call: Call) -> bytes:
    """MKDIR."""
    mode = call.fields(MKDIR_IN)["mode"] & MODE
    (name,) = call.names(MKDIR_IN.size, 1)
    with _making(tree, call, name) as parent:
        os.mkdir(name, mode, dir_fd=parent.fileno())
    return _made(tree, call, name, stat.S_IFDIR | mode)


def symlink(tree: Directory, call: Call) -> bytes:
    """SYMLINK: its target is anything, since nobody follows it here."""
    name, target = call.strings(0, 2)
    if not 0 < len(target) < PATH_MAX:
        raise refused(errno.ENAMETOOLONG if target else errno.ENOENT)
    with _making(tree, call, component(name)) as parent:
        os.symlink(target, name, dir_fd=parent.fileno())
    return _made(tree, call, name, stat.S_IFLNK)


def link(tree: Directory, call: Call) -> bytes:
    """LINK: another name of a node."""
    (name,) = call.names(LINK_IN.size, 1)
    node = tree.path(call.fields(LINK_IN)["oldnodeid"])
    with _making(tree, call, name) as parent:
        os.link(fs_host.path_of(node), name, dst_dir_fd=parent.fileno(), follow_symlinks=True)
    return tree.entry(call.node, name, tree.found(call.node, name))


@contextmanager
def _making(tree: Directory, call: Call, name: bytes) -> Iterator[Fd]:
    """Make something of this name in the directory that is given."""
    parent = tree.path(call.node)
    with call.once(tree.inode(call.node, name), errno.EEXIST):
        yield parent


def _made(tree: Directory, call: Call, name: bytes, mode: int) -> bytes:
    """It is there, and becomes the caller's."""
    of = tree.found(call.node, name)
    if stat.S_IFMT(of.st_mode) != stat.S_IFMT(mode):
        raise refused(errno.EEXIST)  # somebody else's, after a death
    if tree.gives_away and (call.uid, call.gid) != (of.st_uid, of.st_gid):
        parent = tree.path(call.node)
        with fs_host.open_beneath(parent, name) as made:
            _give(tree, call, parent, made, mode)
            of = os.fstat(made.fileno())
    return tree.entry(call.node, name, of)


def _give(tree: Directory, call: Call, parent: Fd, made: Fd, mode: int) -> None:
    """Have what was made belong to the guest's user who has made it, as far as we may."""
    if not tree.gives_away:
        return
    inherits = os.fstat(parent.fileno()).st_mode & stat.S_ISGID
    named = fs_host.path_of(made)
    os.chown(named, call.uid, -1 if inherits else call.gid)
    if mode & (stat.S_ISUID | stat.S_ISGID) and not stat.S_ISDIR(mode):
        os.chmod(named, mode & MODE)  # they went with the owner


def unlink(tree: Directory, call: Call) -> bytes:
    """UNLINK: a name that is no directory's. Who has it open keeps it."""
    (name,) = call.names(0, 1)
    with call.once(tree.inode(call.node, name), errno.ENOENT):
        os.unlink(name, dir_fd=tree.path(call.node).fileno())
    return b""


def rmdir(tree: Directory, call: Call) -> bytes:
    """RMDIR: an empty directory."""
    (name,) = call.names(0, 1)
    with call.once(tree.inode(call.node, name), errno.ENOENT):
        os.rmdir(name, dir_fd=tree.path(call.node).fileno())
    return b""


def rename(tree: Directory, call: Call) -> bytes:
    """RENAME."""
    asked = call.fields(RENAME_IN)
    return _rename(tree, call, asked["newdir"], 0, call.names(RENAME_IN.size, 2))


def rename2(tree: Directory, call: Call) -> bytes:
    """RENAME2: not over something, or in exchange for it."""
    asked = call.fields(RENAME2_IN)
    names = call.names(RENAME2_IN.size, 2)
    if asked["flags"] not in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
        raise refused(errno.EINVAL)
    return _rename(tree, call, asked["newdir"], asked["flags"], names)


def _rename(tree: Directory, call: Call, newdir: int, flags: int, names: list[bytes]) -> bytes:
    old, new = names
    inode = tree.inode(call.node, old)
    record = call.records.begin(call.unique, inode)
    if not (flags == RENAME_EXCHANGE and record.again and inode != record.before):
        with call.once(inode, errno.ENOENT):
            fs_host.rename(tree.path(call.node), old, tree.path(newdir), new, flags)
    moves = [(newdir, new)]
    if flags == RENAME_EXCHANGE:
        moves.append((call.node, old))
    for parent, name in moves:
        of = tree.found(parent, name)
        tree.nodes.moved((of.st_dev, of.st_ino), parent, name)
    return b""


ARMS: dict[int, Arm] = {
    Opcode.CREATE: create,
    Opcode.MKNOD: mknod,
    Opcode.MKDIR: mkdir,
    Opcode.SYMLINK: symlink,
    Opcode.LINK: link,
    Opcode.UNLINK: unlink,
    Opcode.RMDIR: rmdir,
    Opcode.RENAME: rename,
    Opcode.RENAME2: rename2,
}
"""By opcode."""
