"""Files for `Device.shared_files`, and what to make of them in a worker.

Each is opened in the master and outlives the workers: a new one goes on where a dead one was. A tap
and a socket cannot be had a second time while they are open, and a pty would be another; but the
master that follows another asks for all of them again, unless `goes_on_with` is overridden. So let
a device with one of these say yes to the names that it knows.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import socket
import stat
import struct as layouts
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

from vuproc.errors import FileRefused
from vuproc.fd import Fd, HasFileno

T = TypeVar("T", bound=ctypes.Structure)

TUN_DEVICE = "/dev/net/tun"
TUNSETIFF = 0x400454CA
"""Linux, if_tun.h, as the next three; ifreq is a name of 16 bytes and flags, of 40 bytes in all."""
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR, IFF_MULTI_QUEUE = 0x0002, 0x1000, 0x4000, 0x0100
IFREQ = layouts.Struct("16sH22x")
MAX_NAME = 15
"""Bytes of the name of a network interface (IFNAMSIZ, less its end)."""
TIOCGPTN = 0x80045430
"""Linux, ioctls.h: the number of a pseudo terminal, by its master."""
BACKLOG = 64
"""Connections that may wait to be accepted."""


@contextmanager
def gathering() -> Iterator[dict[str, Fd]]:
    """A dictionary for `Device.shared_files`: what is in it is closed if the next is refused."""
    files: dict[str, Fd] = {}
    try:
        yield files
    except BaseException:
        for file in files.values():
            file.close()
        raise


def named(what: str, *depends: object) -> str:
    """A name for `Device.shared_files` that says what the file depends on, by its `repr`: a device
    with other options, which may follow this one, does not find it, and does not go on with it.
    """
    import hashlib  # not at each start: it brings a whole library

    return f"{what}-{hashlib.sha256(repr(depends).encode()).hexdigest()[:16]}"


def is_at(path: str, file: HasFileno) -> bool:
    """Whether an open file is what is at `path` by now. Raises OSError if nothing is to be had
    there.
    """
    return os.path.samestat(os.stat(path), os.fstat(file.fileno()))


def replaced(path: str, file: HasFileno) -> str | None:
    """What has become of the file at `path` that `file` was, in words for
    `Device.replaced_files`; None: it is there.
    """
    try:
        return None if is_at(path, file) else f"{path}: another file is there now"
    except OSError as error:
        return f"{path}: {error.strerror}"


def struct_file(kind: type[ctypes.Structure]) -> Fd:
    """Memory for one `kind`, all zeros, which cannot be made shorter: what `struct` shows.

    The device that follows one with another layout of the same size must not take it for its own:
    let the name in `shared_files` say which layout it is (`named`).
    """
    with _refusing("shared", f"memory for {kind.__name__}"):
        file = Fd(os.memfd_create(kind.__name__, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
        try:
            os.ftruncate(file.fileno(), ctypes.sizeof(kind))
            fcntl.fcntl(file.fileno(), fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        except BaseException:
            file.close()
            raise
    return file


def struct(kind: type[T], file: HasFileno) -> T:
    """The `kind` in a file of `struct_file`, for as long as it is kept: what is stored in its
    fields is in the file at once, for all that have it.

    A death comes between any two stores. That of one aligned number is whole or not there; `+= 1`
    is a load and a store, so let each number have one worker that writes to it. Raises ValueError
    if the file is too short.
    """
    size, wanted = os.fstat(file.fileno()).st_size, ctypes.sizeof(kind)
    if size < wanted:
        raise ValueError(f"{kind.__name__} has {wanted} bytes, and the file {size}")
    return kind.from_buffer(mmap.mmap(file.fileno(), wanted))


def tap(name: str, *, vnet_hdr: bool = False, many: bool = False, option: str = "tap") -> Fd:
    """The network interface `name`, which is made if it is not there: frames are read and written
    one at a time, without waiting. It goes when its last descriptor does.

    `vnet_hdr`: each frame begins with a virtio_net_hdr of 10 bytes. `many`: each call opens one
    more queue of the interface. Raises FileRefused, of `option`, without the right to do this
    (CAP_NET_ADMIN), or if it is in use.
    """
    if not 0 < len(os.fsencode(name)) <= MAX_NAME:
        raise FileRefused(option, f"{name!r} is no name of 1 to {MAX_NAME} bytes")
    flags = IFF_TAP | IFF_NO_PI | (IFF_VNET_HDR if vnet_hdr else 0)
    flags |= IFF_MULTI_QUEUE if many else 0
    with _refusing(option, f"network interface {name}: {TUN_DEVICE}"):
        file = Fd(os.open(TUN_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
    with _refusing(option, f"network interface {name}"):
        try:
            fcntl.ioctl(file.fileno(), TUNSETIFF, IFREQ.pack(os.fsencode(name), flags))
        except OSError as error:
            file.close()
            if error.errno == errno.EBUSY:
                raise BlockingIOError(error.errno, "it is in use") from error
            raise
    return file


class Pty(NamedTuple):
    """Both ends of a pseudo terminal. As long as `terminal` is open, `master` has no end of file,
    whoever comes and goes at `path`: share both.
    """

    master: Fd
    terminal: Fd
    path: str


def pty(*, option: str = "pty") -> Pty:
    """A new pseudo terminal in raw mode: bytes pass as they are. `master` never waits.

    Raises FileRefused, of `option`, if there is none to be had.
    """
    with _refusing(option, "pseudo terminal"):
        master, terminal = map(Fd, os.openpty())
        tty.setraw(terminal.fileno())
        os.set_blocking(master.fileno(), False)
    return Pty(master, terminal, pty_path(master))


def pty_path(master: HasFileno) -> str:
    """Where a program finds the terminal whose master this is."""
    number = bytearray(4)
    fcntl.ioctl(master.fileno(), TIOCGPTN, number)
    return f"/dev/pts/{int.from_bytes(number, 'little')}"


def listening_socket(path: str, *, mode: int = 0o600, option: str = "path") -> Fd:
    """A Unix stream socket that listens at `path`, with these permissions. It never waits:
    `socket.socket(fileno=os.dup(...))` in a worker, and `accept` when it is readable.

    A socket that nobody listens on is replaced. Raises FileRefused, of `option`, if somebody does,
    or the path cannot be had. The socket's file stays when the device ends.
    """
    with _refusing(option, path):
        made = _bound(path, socket.SOCK_STREAM, mode, "somebody listens on it")
        made.listen(BACKLOG)
    return Fd(made.detach())


def datagram_socket(path: str, *, mode: int = 0o600, option: str = "path") -> Fd:
    """A Unix datagram socket at `path`; otherwise as `listening_socket`."""
    with _refusing(option, path):
        made = _bound(path, socket.SOCK_DGRAM, mode, "somebody has this socket")
    return Fd(made.detach())


def _bound(path: str, kind: int, mode: int, taken: str) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK)
    try:
        if not _remove_dead(path, kind):
            raise BlockingIOError(errno.EADDRINUSE, taken)
        made.bind(path)
        os.chmod(path, mode)
    except BaseException:
        made.close()
        raise
    return made


def _remove_dead(path: str, kind: int) -> bool:
    """Make room for a socket at `path`; False: somebody has one there."""
    with socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except FileNotFoundError:
            return True
        except ConnectionRefusedError:
            # A file of another kind refuses, too: that is somebody's, and bind says so.
            if stat.S_ISSOCK(os.lstat(path).st_mode):
                os.unlink(path)
            return True
        except BlockingIOError:
            pass  # so many wait for it that it is alive
        except OSError as error:
            if error.errno != errno.EPROTOTYPE:  # one of another kind
                raise
    return False


@contextmanager
def _refusing(option: str, what: str) -> Iterator[None]:
    """An OSError is the refusal of an option's file."""
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise FileRefused(option, f"{what}: {reason}") from error
