"""The messages between the master and a worker, and the channel that carries them with their fds.

One datagram of an AF_UNIX SOCK_SEQPACKET socketpair is one msgspec message (msgpack, tagged by
type) and its descriptors. The master commands, the worker answers each command once with `Done` or
`Failed` that repeats the serial, and may send `RingBroken` and `Logged` between answers. Nobody
trusts the other's lengths: a datagram that is too long, is not a known message or carries
descriptors where none belong is a `ChannelError`, and its sender is replaced.
"""

from __future__ import annotations

import array
import errno
import select
import socket
import time
from collections.abc import Sequence
from typing import Generic, TypeVar

import msgspec
from msgspec.structs import force_setattr

from vuproc import texts
from vuproc.errors import VuprocError
from vuproc.fd import Fd

MAX_DATAGRAM = 64 * 1024
"""Bytes of the largest message; a memory table of 253 regions needs about 12 KiB."""
MAX_FDS = 253
"""Descriptors in one datagram, the kernel's SCM_MAX_FD."""
SEND_DEADLINE = 1.0
"""Seconds a sender waits for room in the peer's queue before it calls the peer stuck."""
CAUSE_BYTES = 256
"""Bytes of the longest cause of a broken ring, or of a death: the state of a session and its status
hold some for every ring.
"""
_GONE = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN)
"""What sendmsg(2) says if the peer has closed its end."""
_FD_SIZE = array.array("i").itemsize


class ChannelError(VuprocError):
    """The peer broke the channel's rules, or does not read it; the peer is to be replaced."""


class ChannelClosed(ChannelError):
    """The peer closed its end: it has ended or is about to."""


class Region(msgspec.Struct, frozen=True, array_like=True):
    """One guest memory region; its fd travels beside the message, in the order of the regions."""

    guest_addr: int
    size: int
    user_addr: int
    mmap_offset: int


class Command(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What the master tells a worker; `serial` names the answer that belongs to it."""

    serial: int = 0


class Prepare(Command, frozen=True, tag=True):
    """The first command: which device. Fds: those of `shared`, in its order.

    The worker imports and makes the device and is then a standby, ready for any queues.
    """

    type_ref: str
    base_dir: str
    options: bytes
    chain_limit: int
    counters: str | None
    shared: tuple[str, ...]
    log_level: int


class Assign(Command, frozen=True, tag=True):
    """The second command: which queues are this worker's from now on."""

    queues: tuple[int, ...]


class SetFeatures(Command, frozen=True, tag=True):
    """The acknowledged device feature bits; they take effect at the next `StartRing`."""

    features: int


class SetMemory(Command, frozen=True, tag=True):
    """Replace the whole memory table once no request is in flight. Fds: one a region."""

    regions: tuple[Region, ...]


class AddRegion(Command, frozen=True, tag=True):
    """Map one more region. Fds: one."""

    region: Region


class RemoveRegion(Command, frozen=True, tag=True):
    """Unmap a region once no request is in flight; a ring that lives in it breaks."""

    guest_addr: int
    size: int
    user_addr: int


class StartRing(Command, frozen=True, tag=True):
    """Start a ring. Fds: the in-flight record, then kick, call and err as far as each is present.

    `record_offset` is where this queue's record begins. It says where a worker that died had come
    to; if it is empty, the ring begins at `base`, or where it stopped if that is None.
    """

    queue: int
    size: int
    desc: int
    avail: int
    used: int
    base: int | None
    enabled: bool
    record_offset: int
    kick: bool
    call: bool
    err: bool


STOP_KEPT = 1 << 16
"""In the answer to `StopRing`: the record still holds requests, which were not completed."""


class StopRing(Command, frozen=True, tag=True):
    """Finish what is in flight, stop the ring and answer with its next avail index (16 bits).

    `STOP_KEPT` is added if requests are left that a dead worker had fetched.
    """

    queue: int


class BlameUring(Command, frozen=True, tag=True):
    """This worker is going to be killed over what io_uring has had for so many looks: note that in
    the record of each such request, and answer with their number.
    """

    queue: int
    looks: int


class EnableRing(Command, frozen=True, tag=True):
    """Let a started ring process requests, or hold it."""

    queue: int
    enabled: bool


class SetKick(Command, frozen=True, tag=True):
    """Replace the kick descriptor. Fds: one, or none to poll."""

    queue: int


class SetCall(Command, frozen=True, tag=True):
    """Replace the call descriptor. Fds: one, or none: no notifications."""

    queue: int


class SetErr(Command, frozen=True, tag=True):
    """Replace the error descriptor. Fds: one, or none."""

    queue: int


class WriteConfig(Command, frozen=True, tag=True):
    """The driver wrote `data` at `offset` of the configuration space; the device may refuse."""

    offset: int
    data: bytes


class ResetDevice(Command, frozen=True, tag=True):
    """Device state back to its initial values; rings are stopped already."""


class SetLogLevel(Command, frozen=True, tag=True):
    """What is worth a line in the log from now on; the logging module's number."""

    level: int


class Detach(Command, frozen=True, tag=True):
    """The session is over: drop every ring and unmap all guest memory, without touching it."""


class Exit(Command, frozen=True, tag=True):
    """End the process after the answer."""


AnyCommand = (
    Prepare
    | Assign
    | SetFeatures
    | SetMemory
    | AddRegion
    | RemoveRegion
    | StartRing
    | StopRing
    | BlameUring
    | EnableRing
    | SetKick
    | SetCall
    | SetErr
    | WriteConfig
    | ResetDevice
    | SetLogLevel
    | Detach
    | Exit
)


def numbered(command: AnyCommand, serial: int) -> AnyCommand:
    """The same command with its serial."""
    return msgspec.structs.replace(command, serial=serial)


class Done(msgspec.Struct, frozen=True, tag=True):
    """The command `serial` has taken effect; `value` is its result (the base, for `StopRing`)."""

    serial: int
    value: int = 0


# What is text here may be a device author's, or the guest's. Each message makes its own fit, when
# it is made as well as when it is received: a worker can send it, and the master trusts no worker.


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The command `serial` was refused and changed nothing. `reason` is a `texts.line`."""

    serial: int
    reason: str

    def __post_init__(self) -> None:
        force_setattr(self, "reason", texts.line(self.reason))


class RingBroken(msgspec.Struct, frozen=True, tag=True):
    """The driver broke the rules of this ring; the worker no longer touches it.

    `cause` is a `texts.line` of at most `CAUSE_BYTES`.
    """

    queue: int
    cause: str

    def __post_init__(self) -> None:
        force_setattr(self, "cause", texts.line(self.cause, CAUSE_BYTES))


class Logged(msgspec.Struct, frozen=True, tag=True):
    """What the log is to show, a `texts.block`. `level` is the logging module's number."""

    level: int
    text: str

    def __post_init__(self) -> None:
        force_setattr(self, "text", texts.block(self.text))


AnyReport = Done | Failed | RingBroken | Logged

Out = TypeVar("Out")
In = TypeVar("In")


class Channel(Generic[Out, In]):
    """One end of a control channel: sends `Out`, receives `In`.

    `accepts_fds` is false at the master's end: a worker has nothing to send, so a descriptor from
    it is an error. The socket is ours alone, which is why it may be non-blocking.
    """

    def __init__(self, sock: socket.socket, receives: object, *, accepts_fds: bool) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(receives)
        self._accepts_fds = accepts_fds

    def fileno(self) -> int:
        """The socket's descriptor, for a poll set."""
        return self._sock.fileno()

    def close(self) -> None:
        """Close this end; idempotent."""
        self._sock.close()

    def send(self, message: Out, fds: Sequence[Fd] = (), *, timeout: float = SEND_DEADLINE) -> None:
        """Send one message with copies of `fds`.

        Raises `ChannelClosed` if the peer has gone and `ChannelError` if it took nothing for
        `timeout` seconds.
        """
        data = self._encoder.encode(message)
        if len(data) > MAX_DATAGRAM or len(fds) > MAX_FDS:
            raise ChannelError(f"message of {len(data)} bytes and {len(fds)} fds is too large")
        numbers = array.array("i", [fd.fileno() for fd in fds])
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)] if fds else []
        deadline = time.monotonic() + timeout
        while True:
            try:
                self._sock.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)
                return
            except BlockingIOError:
                if not self.wait(deadline - time.monotonic(), select.POLLOUT):
                    raise ChannelError(f"peer read nothing for {texts.seconds(timeout)}") from None
            except OSError as error:
                kind = ChannelClosed if error.errno in _GONE else ChannelError
                raise kind(f"cannot send: {error.strerror}") from error

    def receive(self) -> tuple[In, tuple[Fd, ...]] | None:
        """The next message and the fds that came with it, or None if there is none yet.

        Raises `ChannelClosed` at the end of the stream and `ChannelError` for a datagram that is
        not a message.
        """
        space = socket.CMSG_SPACE(MAX_FDS * _FD_SIZE) if self._accepts_fds else 0
        try:
            data, ancillary, flags, _ = self._sock.recvmsg(
                MAX_DATAGRAM, space, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return None
        except OSError as error:
            raise ChannelClosed(f"cannot receive: {error.strerror}") from error
        fds = _descriptors(ancillary)
        try:
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                raise ChannelError("datagram too long, or descriptors where none belong")
            if not data:
                raise ChannelClosed("closed by the peer")
            return self._decoder.decode(data), fds
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            # msgspec leaves text that is not UTF-8, and nesting without end, to Python's errors.
            _close_all(fds)
            raise ChannelError(f"not a message: {texts.described(error)}") from error
        except ChannelError:
            _close_all(fds)
            raise

    def wait(self, timeout: float | None, events: int = select.POLLIN) -> bool:
        """Wait up to `timeout` seconds (None: for ever) until the channel is ready for `events`."""
        poller = select.poll()
        poller.register(self._sock, events)
        return bool(poller.poll(None if timeout is None else max(0.0, timeout) * 1000))


MasterChannel = Channel[AnyCommand, AnyReport]
WorkerChannel = Channel[AnyReport, AnyCommand]


def master_end(sock: socket.socket) -> MasterChannel:
    """The end that commands."""
    return Channel(sock, AnyReport, accepts_fds=False)


def worker_end(sock: socket.socket) -> WorkerChannel:
    """The end that obeys."""
    return Channel(sock, AnyCommand, accepts_fds=True)


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> tuple[Fd, ...]:
    numbers = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers.frombytes(data[: len(data) - len(data) % _FD_SIZE])
    return tuple(Fd(number) for number in numbers)


def _close_all(fds: Sequence[Fd]) -> None:
    for fd in fds:
        fd.close()
