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
from typing import NamedTuple, Protocol, TypeVar

from vuproc.errors import FileRefused
from vuproc.fd import Fd

T = TypeVar("T", bound=ctypes.Structure)

TUN_DEVICE = "/dev/net/tun"
TUNSETIFF = 0x400454CA
"""Linux, if_tun.h, as the next three; ifreq is a name of 16 bytes and flags, of 40 bytes in all."""
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
IFREQ = layouts.Struct("16sH22x")
MAX_NAME = 15
"""Bytes of the name of a network interface (IFNAMSIZ, less its end)."""
TIOCGPTN = 0x80045430
"""Linux, ioctls.h: the number of a pseudo terminal, by its master."""
BACKLOG = 64
"""Connections that may wait to be accepted."""


class HasFileno(Protocol):
    """Anything with a file descriptor."""

    def fileno(self) -> int: ...  # noqa: D102


def struct_file(kind: type[ctypes.Structure]) -> Fd:
    """Memory for one `kind`, all zeros, which cannot be made shorter: what `struct` shows.

    The device that follows one with another layout of the same size must not take it for its own:
    let the name in `shared_files` say which layout it is.
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


def tap(name: str, *, vnet_hdr: bool = False, option: str = "tap") -> Fd:
    """The network interface `name`, which is made if it is not there: frames are read and written
    one at a time, without waiting. It goes when its last descriptor does.

    `vnet_hdr`: each frame begins with a virtio_net_hdr of 10 bytes. Raises FileRefused, of
    `option`, without the right to do this (CAP_NET_ADMIN), or if it is in use.
    """
    if not 0 < len(os.fsencode(name)) <= MAX_NAME:
        raise FileRefused(option, f"{name!r} is no name of 1 to {MAX_NAME} bytes")
    flags = IFF_TAP | IFF_NO_PI | (IFF_VNET_HDR if vnet_hdr else 0)
    with _refusing(option, f"network interface {name}"):
        file = Fd(os.open(TUN_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
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
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            _remove_dead(path)
            made.bind(path)
            os.chmod(path, mode)
            made.listen(BACKLOG)
        except BaseException:
            made.close()
            raise
    return Fd(made.detach())


def _remove_dead(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except FileNotFoundError:
            return
        except ConnectionRefusedError:
            # A file of another kind refuses, too: that is somebody's, and bind says so.
            if stat.S_ISSOCK(os.lstat(path).st_mode):
                os.unlink(path)
            return
        except BlockingIOError:
            pass  # so many wait for it that it is alive
    raise BlockingIOError(errno.EADDRINUSE, "somebody listens on it")


@contextmanager
def _refusing(option: str, what: str) -> Iterator[None]:
    """An OSError is the refusal of an option's file."""
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise FileRefused(option, f"{what}: {reason}") from error
