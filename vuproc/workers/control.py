"""What the master and a worker say to each other.

The master gives commands: the session's effects that are for workers, and those below. The worker
answers each of them once, in their order, with `Done` or `Failed` that repeats the serial, and may
send `RingBroken`, `ConfigSays`, `Logged` and what its device asks between answers.
"""

from __future__ import annotations

import socket

import msgspec
from msgspec.structs import force_setattr

from vuproc import texts
from vuproc.asks import Ask
from vuproc.fd import Fd
from vuproc.mapping import ShmemMapping
from vuproc.sandbox.policy import Policy
from vuproc.vhost_user.effects import ForWorkers, Order
from vuproc.workers.channel import Channel

CAUSE_BYTES = 256
"""Bytes of the longest cause of a broken ring, or of a death: the state of a session and its status
hold some for every ring.
"""


LACKS_MOST = 16
"""Parts of a sandbox that one worker may say it lacks."""
MISSES_MOST = 4096
"""Translations that a queue may ask for at a time."""

CONFIG_QUEUE = 0
"""The queue whose worker speaks for the device's configuration space."""


class Prepare(Order, frozen=True, tag=True):
    """The first command: which device. `shared` are the files that its workers share, by name,
    `pickled` is the device itself if it is a program's object (`vuproc.device_object`), `limits`
    what its workers share for its limits (`workers.throttle`), and `trace` is where its requests
    are traced, `trace_bytes` a queue.

    The worker imports and makes the device and is then a standby, ready for any queues.
    """

    keeps_fds = True

    type_ref: str
    base_dir: str
    options: bytes
    chain_limit: int
    counters: str | None
    shared: dict[str, Fd]
    log_level: int
    pickled: Fd | None = None
    limits: Fd | None = None
    sandbox: Policy | None = None
    """How it locks itself in; None: it does not."""
    trace: Fd | None = None
    trace_bytes: int = 0


class Assign(Order, frozen=True, tag=True):
    """The second command: which queues are this worker's from now on.

    `recovered`: another worker has served them before this one. `ahead`: nobody waits for it yet.
    """

    queues: tuple[int, ...]
    recovered: bool = False
    ahead: bool = False


class Help(Order, frozen=True, tag=True):
    """Instead of `Assign`: serve no queue, and run the device's helper, until `Exit`."""


class BlameUring(Order, frozen=True, tag=True):
    """This worker is going to be killed over what io_uring has had for so many looks: note that in
    the record of each such request, and answer with their number.
    """

    queue: int
    looks: int


class AskConfig(Order, frozen=True, tag=True):
    """Say by `ConfigSays` what the configuration space is, if it is another than when the device
    was made, or if a worker has said so before (`said`).
    """

    said: bool


class ObjectFound(Order, frozen=True, tag=True):
    """The answer to `LookUpObject`: the object's file, or None if there is none."""

    keeps_fds = True

    uuid: bytes
    file: Fd | None


class ShmemDone(Order, frozen=True, tag=True):
    """The answer to a `ShmemAsk`; `problem` says why it was not done, "" that it was."""

    serial: int
    problem: str = ""


class ShmemKnown(Order, frozen=True, tag=True):
    """What a worker before this one had mapped in the shared memory regions, and is there still."""

    mappings: tuple[ShmemMapping, ...]


class Untranslated(Order, frozen=True, tag=True):
    """What this queue's ring has asked about is not to be had, as far as the front-end knows."""

    queue: int
    iova: int
    access: int


class SetLogLevel(Order, frozen=True, tag=True):
    """What is worth a line in the log from now on; the logging module's number."""

    level: int


class Detach(Order, frozen=True, tag=True):
    """The session is over: drop every ring and unmap all guest memory, without touching it."""


class Exit(Order, frozen=True, tag=True):
    """End the process after the answer."""


AnyOrder = (
    ForWorkers
    | Prepare
    | Assign
    | Help
    | AskConfig
    | ObjectFound
    | ShmemDone
    | ShmemKnown
    | BlameUring
    | Untranslated
    | SetLogLevel
    | Detach
    | Exit
)


class Command(msgspec.Struct, frozen=True, array_like=True):
    """One order to a worker; `serial` names the answer that belongs to it."""

    serial: int
    order: AnyOrder


class Done(msgspec.Struct, frozen=True, tag=True):
    """The command `serial` has taken effect.

    `value` is its result: for `StopRing` the base. `kept` is how many requests that a dead worker
    had fetched a stopped ring's record still holds; they were not completed. `file` is that of
    `OpenUserfault`, and `addresses` those of `StageMemory`.
    """

    serial: int
    value: int = 0
    kept: int = 0
    file: Fd | None = None
    addresses: tuple[int, ...] = ()


# What is text here may be a device author's, or the guest's. Each message makes its own fit, when
# it is made as well as when it is received: a worker can send it, and the master trusts no worker.


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The command `serial` was refused and changed nothing. `reason` is a `texts.line`.

    `lasting`: it is what a ring holds, so that no other worker would get any further.
    """

    serial: int
    reason: str
    lasting: bool = False

    def __post_init__(self) -> None:
        force_setattr(self, "reason", texts.line(self.reason))


class Refusal(Exception):
    """An order that cannot be carried out, with the reason for the answer."""


class RingBroken(msgspec.Struct, frozen=True, tag=True):
    """The driver broke the rules of this ring; the worker no longer touches it.

    `cause` is a `texts.line` of at most `CAUSE_BYTES`. `told`: the worker has signalled the ring's
    error descriptor; it has none of a ring that it could not start.
    """

    queue: int
    cause: str
    told: bool = True

    def __post_init__(self) -> None:
        force_setattr(self, "cause", texts.line(self.cause, CAUSE_BYTES))


class Logged(msgspec.Struct, frozen=True, tag=True):
    """What the log is to show, a `texts.block`. `level` is the logging module's number."""

    level: int
    text: str

    def __post_init__(self) -> None:
        force_setattr(self, "text", texts.block(self.text))


class LockedIn(msgspec.Struct, frozen=True, tag=True):
    """The worker is in its sandbox; `lacks` are the parts that it could not have, a `texts.line`
    each. `listener` is that of its filter of system calls, which tells of its end.
    """

    goes_without_fds = True

    lacks: tuple[str, ...]
    listener: Fd | None = None
    """Closed, if the master has no room for it: the pidfd tells, too."""

    def __post_init__(self) -> None:
        lines = tuple(texts.line(lack, CAUSE_BYTES) for lack in self.lacks[:LACKS_MOST])
        force_setattr(self, "lacks", lines)


class ConfigSays(msgspec.Struct, frozen=True, tag=True):
    """What the driver is to read as the configuration space from now on.

    `changed`: by itself, so that the driver is to be told. `repeated`: a worker before this one has
    said something, too, so that the driver is to be told if it is not the same.
    """

    content: bytes
    changed: bool = False
    repeated: bool = False


class Missing(msgspec.Struct, frozen=True, tag=True):
    """This queue's ring waits for translations: of each the I/O virtual address of a page, and the
    `Access` that is wanted. At most `MISSES_MOST`.
    """

    queue: int
    misses: tuple[tuple[int, int], ...]


Said = RingBroken | Logged | LockedIn | ConfigSays | Missing | Ask
"""What a worker says unasked."""

AnyReport = Done | Failed | Said

MasterChannel = Channel[Command, AnyReport]
WorkerChannel = Channel[AnyReport, Command]


def master_end(sock: socket.socket) -> MasterChannel:
    """The end that commands."""
    return Channel(sock, AnyReport)


def worker_end(sock: socket.socket) -> WorkerChannel:
    """The end that obeys."""
    return Channel(sock, Command)


def warm_up() -> None:
    """Have msgspec work out once what commands and reports are: processes that are forked from this
    one find it done, and need no memory of their own for it.
    """
    for kind in (Command, AnyReport):
        msgspec.msgpack.Decoder(kind)
