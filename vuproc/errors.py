"""The exceptions that cross rooms, with their fields; the class decides the fate of what failed.

An exception that one room raises and catches itself is beside the code that raises it.
"""

from __future__ import annotations

import errno
import traceback


class VuprocError(Exception):
    """The base of all: nothing outside `vuproc` raises a subclass of it."""


class ReasonedError(VuprocError):
    """The base of those which are known by their class and a `reason`, in words."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class RingError(VuprocError):
    """The driver's ring holds what no driver may write: the ring is broken until it is set up anew.

    `queue` is the virtqueue's number, `index` the free-running 16-bit position (next avail index)
    at which the fault was found, `cause` the rule that was broken, in words.
    """

    def __init__(self, queue: int, index: int, cause: str) -> None:
        super().__init__(queue, index, cause)
        self.queue = queue
        self.index = index
        self.cause = cause

    def __str__(self) -> str:
        return f"queue {self.queue}: ring broken at index {self.index}: {self.cause}"


class MemoryFault(VuprocError):
    """An address range is not (wholly) guest memory, or a region cannot be mapped.

    `address` is guest-physical or a front-end user address as `reason` says, `length` is in bytes.
    """

    def __init__(self, address: int, length: int, reason: str) -> None:
        super().__init__(address, length, reason)
        self.address = address
        self.length = length
        self.reason = reason

    def __str__(self) -> str:
        return f"guest memory {self.address:#x}+{self.length:#x}: {self.reason}"


class RequestFinished(VuprocError):
    """A verb was used on a request that is finished, or whose ring has stopped.

    `queue` is the virtqueue's number and `head` the request's descriptor head.
    """

    def __init__(self, queue: int, head: int) -> None:
        super().__init__(queue, head)
        self.queue = queue
        self.head = head

    def __str__(self) -> str:
        return f"queue {self.queue}: request {self.head} is finished already"


class UringUnavailable(VuprocError):
    """The kernel gives no io_uring, or none that would do; blocking calls do the same work.

    `step` is what was tried, `errno` and `reason` are what the kernel said to it.
    """

    def __init__(self, step: str, errno: int, reason: str) -> None:
        super().__init__(step, errno, reason)
        self.step = step
        self.errno = errno
        self.reason = reason

    def __str__(self) -> str:
        return f"no io_uring: {self.step}: {self.reason.lower()}"


class RequestAbandoned(VuprocError):
    """A request that is completed without being run again; what `Device.fail` gets for it.

    `attempts` is how many times it was begun by workers that died.
    """

    def __init__(self, queue: int, head: int, attempts: int) -> None:
        super().__init__(queue, head, attempts)
        self.queue = queue
        self.head = head
        self.attempts = attempts

    def __str__(self) -> str:
        return f"queue {self.queue}, head {self.head}: abandoned after {self.attempts} attempts"


class SegmentInUse(VuprocError):
    """A shared-memory segment of that name belongs to a process which is alive.

    `name` is the segment's name and `pid` its owner's process id, as the owner counts (0: it has
    not said yet).
    """

    def __init__(self, name: str, pid: int) -> None:
        super().__init__(name, pid)
        self.name = name
        self.pid = pid

    def __str__(self) -> str:
        by = f" (process {self.pid} by its own count)" if self.pid else ""
        return (
            f"shared memory segment {self.name} is in use by a running vuproc{by}: does it serve "
            "the same socket?"
        )


class SegmentUnavailable(VuprocError):
    """A shared-memory segment cannot be made: `name` and `size` in bytes, `error` of the system."""

    def __init__(self, name: str, size: int, error: OSError) -> None:
        super().__init__(name, size, error)
        self.name = name
        self.size = size
        self.error = error

    def __str__(self) -> str:
        return (
            f"cannot make {self.size} bytes of shared memory {self.name} in /dev/shm: "
            f"{self.error.strerror or self.error}; {_SHM_REMEDIES.get(self.error.errno or 0, _SHM)}"
        )


_SHM = "a tmpfs is wanted there that this user may write to"
_SHM_REMEDIES = {
    errno.ENOSPC: "free some there, or mount it larger (docker run --shm-size)",
    errno.EDQUOT: "free some of what this user has there",
    errno.EACCES: "it is another user's, or this user may not write there",
}


class HostLacks(VuprocError):
    """This machine, or how vuproc was started on it, does not have what it takes.

    `what` is wanted, `reason` is what was found instead, `remedy` is what to do.
    """

    def __init__(self, what: str, reason: str, remedy: str) -> None:
        super().__init__(what, reason, remedy)
        self.what = what
        self.reason = reason
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.what} wanted, {self.reason}: {self.remedy}"


class DeviceLoadError(VuprocError):
    """A device type cannot be had: no such name, file, module or class, or not a device.

    `ref` is what the device file's `type` says, `reason` why nothing came of it.
    """

    def __init__(self, ref: str, reason: str) -> None:
        super().__init__(ref, reason)
        self.ref = ref
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.ref}: {self.reason}"


class DeviceWrong(VuprocError):
    """The device author's mistake, found before anything is served; the text names its line."""


class FileRefused(VuprocError):
    """A file that an option of the device names cannot be served.

    `option` is the option's key and `reason` says which file, and why not.
    """

    def __init__(self, option: str, reason: str) -> None:
        super().__init__(option, reason)
        self.option = option
        self.reason = reason

    def __str__(self) -> str:
        return f"device.{self.option}: {self.reason}"


class ConfigError(VuprocError):
    """One thing wrong in a device file, and where: `line` and `column` count from 1.

    Line 0 means the file as a whole.
    """

    def __init__(self, file: str, line: int, column: int, message: str) -> None:
        super().__init__(file, line, column, message)
        self.file = file
        self.line = line
        self.column = column
        self.message = message

    def __str__(self) -> str:
        if self.line == 0:
            return f"{self.file}: {self.message}"
        return f"{self.file}:{self.line}:{self.column}: {self.message}"


class ConfigErrors(VuprocError):
    """Everything wrong in a device file: `errors`, in the order of the file, at least one."""

    def __init__(self, errors: tuple[ConfigError, ...]) -> None:
        super().__init__(errors)
        self.errors = errors

    def __str__(self) -> str:
        return "\n".join(str(error) for error in self.errors)


class DaemonError(ReasonedError):
    """A `vuproc.Daemon` cannot do what was asked of it; `reason` says why, in words."""


class StartRefused(DaemonError):
    """The daemon did not start, and nothing of it is left: the subclass says whose matter it is."""


class DeviceRefused(StartRefused):
    """The device cannot be set up: its author's mistake, or that of whoever chose its options."""


class SocketRefused(StartRefused):
    """The socket cannot be had: its path, its permissions, or somebody else is there."""


class HostRefused(StartRefused):
    """The machine has not what it takes: processes, shared memory, open files."""


class StartTimeout(StartRefused):
    """The daemon was not ready in time, and was ended."""


class DaemonRefused(DaemonError):
    """A request to a running daemon was refused, and has changed nothing."""


class DaemonSilent(DaemonError):
    """A running daemon has not answered a request in time: it may be carried out all the same."""


class NotRunning(DaemonError):
    """There is nobody to ask: the daemon was not started, has ended, or is another process's."""


class ProtocolError(VuprocError):
    """A connection is over, by its end or by the peer's mistake; the listener goes on."""


class Disconnected(ProtocolError):
    """The peer closed the connection between two messages: it is gone, nothing is wrong."""

    def __str__(self) -> str:
        return "the peer closed the connection"


class ConnectionBroken(ReasonedError, ProtocolError):
    """The connection cannot go on: it ended inside a message, stalled, or the system refused.

    `reason` says what happened, in words.
    """


class FramingError(ConnectionBroken):
    """A header that breaks the framing rules: where the next message begins cannot be trusted."""


class MessageRefused(ReasonedError):
    """The VMM's mistake in one message: that message fails and the device is as it was before.

    `reason` is the rule that was broken, in words.
    """


class DisplayLost(ReasonedError):
    """The display has gone, or what came from it made no sense; `reason` says why."""


class ReplyGivenUp(ReasonedError):
    """A reply of the display's is not waited for any longer; `reason` says why."""


class DisplayBusy(VuprocError):
    """The front-end has so much to take of what its display is to show that no more can wait:
    `waiting` bytes.
    """

    def __init__(self, waiting: int) -> None:
        super().__init__(waiting)
        self.waiting = waiting

    def __str__(self) -> str:
        return f"{self.waiting} bytes for the display wait already"


class ShmemRefused(ReasonedError):
    """What a device asked for in a shared memory region was not done; `reason` says why."""


class RestoreError(VuprocError):
    """A session's snapshot cannot be restored here; the front-end has to connect anew.

    `reason` says why, in words.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"the session's snapshot: {self.reason}"


class CloseConnection(ReasonedError, ProtocolError):
    """The VMM's mistake where no reply can say so: this connection ends, the listener goes on.

    `reason` is the message's name and the rule that was broken, in words.
    """


def in_words(error: Exception) -> str:
    """An error for the log; to one of the system is added what was tried, and where."""
    if not isinstance(error, OSError):
        return str(error)
    reason = error.strerror or str(error)
    if error.filename is not None:
        reason = f"{error.filename}: {reason}"
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return reason
    return f"{reason} (at `{frames[-1].line}`, {frames[-1].filename}:{frames[-1].lineno})"
