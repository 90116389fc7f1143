"""A directory of the host, as the guest has it: its nodes and open files, for one worker.

The guest resolves paths, and links in them, by itself: what comes here is one name in one
directory. A node's descriptor (O_PATH) is found again by the names that lead to it, no link among
them, and is the node's only if it has the same inode. Open files are parked in sockets, where each
worker finds them. What a worker has open is closed when it was not used for a while, since a file
that was deleted takes room for as long as somebody has it open.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Mapping
from functools import partial

from vuproc.devices import fs_host
from vuproc.devices.fs_answers import Validity, entry
from vuproc.devices.fs_call import Call, refused
from vuproc.devices.fs_native import NativeFs
from vuproc.devices.fs_nodes import Nodes
from vuproc.devices.fs_parked import Parked
from vuproc.devices.fs_recent import Recent
from vuproc.fd import Fd
from vuproc.spec.fuse import PATH_MAX, ROOT

MOST_OPEN = 128
"""Files that a worker has open at the same time, and as many nodes; twice that for a moment."""
IDLE_S = 1.0
"""What was not used for so long is closed, within twice the time."""
KEPT_FLAGS = os.O_ACCMODE | os.O_TRUNC | os.O_SYNC | os.O_DSYNC | os.O_NOATIME
"""Flags of an open file that are the host's business. Without O_APPEND: the guest says where it
writes, so that a write may run twice. Without O_DIRECT: the guest's memory need not be aligned."""
MODE = 0o7777
"""The bits of a mode that say who may do what."""
_STEPS = (PATH_MAX - 1) // 256
"""Names that are looked up together: with a slash each, they are a path."""

# A handle has a number, and in its lowest bits how the file is opened again if it must be.
HANDLE_BITS = 4
HANDLE_DIRECTORY = 1 << 2
_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV})
"""Why a way does not lead to a node any more."""

Arm = Callable[["Directory", Call], "bytes | int"]


class Directory:
    """One worker's view of it."""

    def __init__(
        self,
        root: Fd,
        nodes: Nodes,
        parked: Parked,
        arms: Mapping[int, Arm],
        *,
        writable: bool,
        xattrs: bool,
        valid: Validity,
        served: NativeFs | None = None,
    ) -> None:
        """`root`: the directory, which stays the caller's. `arms`: what is done for each opcode.
        `served`: is to know of each file that is open here.
        """
        self.root = root
        self.nodes = nodes
        self.parked = parked
        self.arms = {number: partial(arm, self) for number, arm in arms.items()}
        self.writable = writable
        self.xattrs = xattrs
        self.valid = valid
        self.gives_away = os.geteuid() == 0
        """Whether what is made here may be given to the guest's user who makes it."""
        of = os.fstat(root.fileno())
        self._root_key = of.st_dev, of.st_ino
        self._paths: Recent[int, Fd] = Recent(MOST_OPEN)
        self._served = served
        self._files: Recent[tuple[int, int], Fd] = Recent(MOST_OPEN, self._closing)

    # Nodes.

    def path(self, node: int) -> Fd:
        """A node's descriptor, for O_PATH or more. OSError ESTALE if it is not there any more."""
        if node == ROOT:
            return self.root
        found = self._paths.get(node)
        if found is not None:
            return found
        try:
            found = self._resolved(node)
        except OSError as error:
            parked = self.parked.find(node) if error.errno == errno.ESTALE else None
            if parked is None:
                raise
            found = parked
        return self._paths.put(node, found)

    def _resolved(self, node: int) -> Fd:
        start, names, key = self.nodes.route(node, self._paths)
        above = self.root if start == ROOT else self._paths.get(start)
        assert above is not None and names
        found: Fd | None = None
        try:
            for step in range(0, len(names), _STEPS):
                below = fs_host.open_beneath(found or above, b"/".join(names[step : step + _STEPS]))
                if found is not None:
                    found.close()
                found = below
            assert found is not None
            there = os.fstat(found.fileno())
            if (there.st_dev, there.st_ino) != key:
                raise refused(errno.ESTALE)
        except OSError as error:
            if found is not None:
                found.close()
            if error.errno in _GONE:
                raise refused(errno.ESTALE) from error
            raise
        return found

    def found(self, parent: int, name: bytes) -> os.stat_result:
        """What a name stands for. OSError if there is nothing."""
        return os.stat(name, dir_fd=self.path(parent).fileno(), follow_symlinks=False)

    def inode(self, parent: int, name: bytes) -> int:
        """The inode number of what has the name; 0: nothing has."""
        try:
            return self.found(parent, name).st_ino
        except FileNotFoundError:
            return 0

    def entry(self, parent: int, name: bytes, of: os.stat_result) -> bytes:
        """Give the guest a node, and say so."""
        return entry(self.remember(parent, name, of), of, self.valid)

    def remember(self, parent: int, name: bytes, of: os.stat_result) -> int:
        """Give the guest a node; its id. Nothing else has the root's."""
        key = of.st_dev, of.st_ino
        return ROOT if key == self._root_key else self.nodes.remember(key, parent, name)

    # Open files.

    def handle(self, flags: int, *, directory: bool = False) -> int:
        """A number for a file that is opened with these flags."""
        kind = HANDLE_DIRECTORY if directory else flags & os.O_ACCMODE
        return self.nodes.new_handle() << HANDLE_BITS | kind

    def keep(self, node: int, handle: int, file: Fd) -> None:
        """A file is open: for this worker, for the others, for those that follow."""
        try:
            self.parked.park(node, handle, file)
        except BaseException:
            file.close()
            raise
        self._have(node, handle, file)

    def file(self, node: int, handle: int) -> Fd:
        """An open file of the guest's. OSError if it cannot be had."""
        found = self._files.get((node, handle))
        if found is None:
            found = self.parked.find(node, handle) or self._reopened(node, handle)
            self._have(node, handle, found)
        elif self._served is not None:
            self._served.know(node, handle, found.fileno())  # another may have its place there
        return found

    def _have(self, node: int, handle: int, file: Fd) -> None:
        self._files.put((node, handle), file)
        if self._served is not None:
            self._served.know(node, handle, file.fileno())

    def _closing(self, key: tuple[int, int]) -> None:
        if self._served is not None:
            self._served.forget(*key)

    def made(self, parent: int, name: bytes, handle: int) -> Fd | None:
        """The file that a dead worker has made and opened, if it had come so far as to keep it."""
        of = self.found(parent, name)
        return self.parked.find(self.nodes.id_of((of.st_dev, of.st_ino)), handle)

    def _reopened(self, node: int, handle: int) -> Fd:
        """There were too many to park it."""
        if handle & HANDLE_DIRECTORY:
            return self.open_directory(node)
        return self.open(node, handle & os.O_ACCMODE)

    def open(self, node: int, flags: int) -> Fd:
        """Open a regular file. OSError EROFS if that is to change it and may not."""
        if not self.writable and (flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC):
            raise refused(errno.EROFS)
        return open_regular(self.path(node), flags)

    def open_directory(self, node: int) -> Fd:
        """Open a directory, to read it."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        return Fd(os.open(b".", flags, dir_fd=self.path(node).fileno()))

    def release_file(self, node: int, handle: int) -> None:
        """The guest has closed it."""
        self._files.drop((node, handle))
        self.parked.drop(node, handle)

    # Its life.

    def forget(self) -> None:
        """The guest has mounted anew."""
        self._paths.clear()
        self._files.clear()

    def release(self) -> None:
        """The guest has no open files."""
        self.parked.clear()

    def tick(self) -> bool:
        """Close what was not used of late; whether there is something left."""
        if self._served is not None:
            for key in self._served.take_used():
                self._files.get(key)
        self._paths.tick()
        self._files.tick()
        return bool(len(self._paths) or len(self._files))

    def close(self) -> None:
        """The worker ends."""
        self.forget()
        self.parked.close()


def open_regular(path: Fd, flags: int) -> Fd:
    """Open the regular file of an O_PATH descriptor. OSError EINVAL if it is none: pipes and
    devices are the guest's own, whose driver does not open them here.
    """
    if not stat.S_ISREG(os.fstat(path.fileno()).st_mode):
        raise refused(errno.EINVAL)
    return fs_host.open_again(path, flags & KEPT_FLAGS)
