"""A real master over workers that only exist in memory, which can be killed at any step.

Three kinds of processes, all forked from the test: a front-end that plays a script, masters one
after the other, and the test itself, which is their service manager. What the workers would have
done to the rings is kept in memory that all of them share.
"""

from __future__ import annotations

import array
import mmap
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from tests.handover.earlier import make_earlier
from vuproc.errors import ConnectionBroken, Disconnected
from vuproc.fd import Fd
from vuproc.handover import state_file
from vuproc.handover.checkpoint import CONNECTION, STATE_FILE, Checkpoint
from vuproc.handover.fd_store import FdStore
from vuproc.handover.outbox import Outbox
from vuproc.handover.peek import PeekingReceiver
from vuproc.handover.sd_notify import Notifier
from vuproc.handover.state_file import Phase, StateFile
from vuproc.master import Master
from vuproc.poll_set import PollSet
from vuproc.pool.history import History
from vuproc.pool.pool import WorkerPool
from vuproc.pool.pool_state import PoolState
from vuproc.pool.post import Posts
from vuproc.serve import PROTOCOL_FEATURES
from vuproc.signals import Signals
from vuproc.spec.virtio import Feature
from vuproc.testing.frontend import FrontEnd
from vuproc.vhost_user import effects
from vuproc.vhost_user.config_space import ConfigSpace
from vuproc.vhost_user.replay import replay
from vuproc.vhost_user.session import Offer, State
from vuproc.workers.control import RingBroken

BOUND_S = 20.0
QUEUES = 2
BURST = 3
"""Requests that a ring completes whenever it is started."""
LABEL_BYTES = 200

OFFER = Offer(
    features=int(Feature.VERSION_1 | Feature.PROTOCOL_FEATURES),
    protocol_features=int(PROTOCOL_FEATURES),
    num_queues=QUEUES,
    queue_size=128,
    config_size=16,
)


class Shared:
    """Words that every process sees: the doom, and for each ring its record and its history."""

    STEP, WAITING, RING = 0, 1, 8
    VERSION, POSITION, DONE, SKIPPED, RUNNING = range(5)

    def __init__(self) -> None:
        self._mapping = mmap.mmap(-1, 4096)
        self.labels = Fd(os.memfd_create("labels"))
        """A line for each step of the masters that were not to die."""
        self.words = memoryview(self._mapping).cast("q")

    def ring(self, index: int, field: int) -> int:
        return self.words[self.RING + 8 * index + field]

    def set_ring(self, index: int, field: int, value: int) -> None:
        self.words[self.RING + 8 * index + field] = value

    def await_waiting(self) -> None:
        """Until a master waits for room for an answer."""
        deadline = time.monotonic() + BOUND_S
        while not self.words[self.WAITING]:
            assert time.monotonic() < deadline
            time.sleep(0.001)

    @property
    def label(self) -> str:
        return self._mapping[1024 : 1024 + LABEL_BYTES].rstrip(b"\0").decode()

    def set_label(self, label: str) -> None:
        self._mapping[1024 : 1024 + LABEL_BYTES] = label.encode().ljust(LABEL_BYTES, b"\0")

    def steps(self) -> list[str]:
        """The label of each step, as `labels`."""
        with open(self.labels.dup().take(), "rb") as file:
            file.seek(0)
            return file.read().decode().splitlines()

    def close(self) -> None:
        self.words.release()
        self._mapping.close()
        self.labels.close()


class Doom:
    """Kills the process at its step number `at`, counted from 1; 0: never."""

    def __init__(self, shared: Shared, at: int) -> None:
        self._shared = shared
        self._at = at
        self._steps = 0

    def step(self, label: str) -> None:
        self._steps += 1
        self._shared.words[Shared.STEP] = self._steps
        if not self._at:
            os.write(self._shared.labels.fileno(), f"{label}\n".encode())
        if self._steps == self._at:
            self._shared.set_label(label)
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, owner: type, name: str, label: Callable[..., str]) -> None:
        """Have every call of a method be two steps: before and after."""
        original = getattr(owner, name)

        def wrapped(*arguments: Any, **more: Any) -> Any:
            text = label(*arguments)
            self.step(f"before {text}")
            result = original(*arguments, **more)
            self.step(f"after {text}")
            return result

        setattr(owner, name, wrapped)


class FakePool:
    """The pool's part towards the master; its workers live in `shared`.

    A start from an empty record begins at its base, any other goes on where the ring is. Each start
    completes `BURST` requests at once, as a ring with work does.
    """

    def __init__(self, shared: Shared, doom: Doom) -> None:
        self.slots = FakeSlots()
        self.history = History(ConfigSpace(lambda: b""), QUEUES, 8)
        self._shared = shared
        self._doom = doom
        self._config: dict[int, bytes] = {}
        self._records: Fd | None = None

    def start(self, *, succeeds: bool) -> None: ...

    def deliver(self) -> None: ...

    def attach(self, _state: State) -> None:
        self._records = self._records or Fd(os.memfd_create("records"))

    def snapshot(self) -> PoolState:
        return PoolState(tuple(sorted(self._config.items())), (), self._records)

    def restore(self, state: State, known: PoolState) -> None:
        self._config = dict(known.config)
        self._records = known.records
        for index in range(QUEUES):
            self._shared.set_ring(index, Shared.RUNNING, 0)
        for effect in replay(state):
            if isinstance(effect, effects.StartRing):
                self._start_ring(effect.setup.index, None)

    def clear_record(self, effect: effects.Effect) -> None:
        if isinstance(effect, effects.StartRing):
            self._doom.step("before clear")
            self._shared.set_ring(effect.setup.index, Shared.VERSION, 0)
            self._doom.step("after clear")

    def perform_at_end(self, effect: effects.Effect) -> object:
        return self.perform(effect)

    def pids(self) -> list[int]:
        return []

    def perform(self, effect: effects.Effect) -> object:
        name = type(effect).__name__
        self._doom.step(f"before {name}")
        result = self._perform(effect)
        self._doom.step(f"after {name}")
        return result

    def _perform(self, effect: effects.Effect) -> object:
        match effect:
            case effects.StartRing(setup=setup):
                self._start_ring(setup.index, setup.base)
            case effects.StopRing(index=index):
                assert self._shared.ring(index, Shared.RUNNING)
                self._shared.set_ring(index, Shared.RUNNING, 0)
                self._shared.set_ring(index, Shared.VERSION, 0)
                return self._shared.ring(index, Shared.POSITION)
            case effects.ReadConfig(offset=offset, size=size):
                return self._config.get(offset, b"").ljust(size, b"\0")[:size]
            case effects.WriteConfig(offset=offset, data=data):
                self._config[offset] = data
            case effects.MakeInflight():
                return Fd(os.memfd_create("inflight")), 4096
            case effects.ResetDevice():
                self._config.clear()
        return None

    def _start_ring(self, index: int, base: int | None) -> None:
        shared = self._shared
        assert not shared.ring(index, Shared.RUNNING), "two workers on one ring"
        shared.set_ring(index, Shared.RUNNING, 1)
        if shared.ring(index, Shared.VERSION) == 0:
            if base is not None:
                # Everything up to the base is behind the driver, whoever did it.
                skipped = base - shared.ring(index, Shared.POSITION)
                shared.set_ring(index, Shared.SKIPPED, shared.ring(index, Shared.SKIPPED) + skipped)
                shared.set_ring(index, Shared.POSITION, base)
            shared.set_ring(index, Shared.VERSION, 1)
        for field in (Shared.POSITION, Shared.DONE):
            shared.set_ring(index, field, shared.ring(index, field) + BURST)

    def take_news(self) -> list[RingBroken]:
        return []

    def settled(self, _state: State, *, undone: bool) -> None:
        assert not undone

    def detach(self) -> None:
        self._config.clear()

    def due(self) -> None: ...

    def tend(self) -> None: ...

    def close(self) -> None: ...


class FakeSlots(list[Any]):
    def __init__(self) -> None:
        super().__init__()
        self.standby = FakeStandby()
        self.posts = Posts()

    def wind_down(self) -> None: ...


class FakeStandby:
    worker = None

    def wait_ready(self) -> None: ...


class OneConnection:
    """A source that has one connection, for the first master."""

    def __init__(self, connection: socket.socket | None) -> None:
        self._connection = connection

    def open(self) -> None: ...

    def fileno(self) -> None: ...

    def delay(self) -> float:
        return 3600.0

    def accept(self) -> socket.socket | None:
        connection, self._connection = self._connection, None
        return connection

    def exhausted(self) -> bool:
        return True

    def close(self) -> None: ...


class ServiceManager:
    """Keeps descriptors by name, as the messages of masters say."""

    def __init__(self) -> None:
        self.stored: dict[str, list[Fd]] = {}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("")
        self.address = "@" + self._socket.getsockname()[1:].decode()

    def fileno(self) -> int:
        return self._socket.fileno()

    def listen(self) -> None:
        """Take all messages that have come."""
        while True:
            try:
                data, ancillary, _, _ = self._socket.recvmsg(
                    4096, 1 << 12, socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return
            numbers = array.array("i")
            for _, _, block in ancillary:
                numbers.frombytes(block)
            fields = dict(line.partition("=")[::2] for line in data.decode().splitlines())
            if "FDSTORE" in fields:
                self.stored.setdefault(fields["FDNAME"], []).extend(map(Fd, numbers))
            elif "FDSTOREREMOVE" in fields:
                self.lose(fields["FDNAME"])

    def lose(self, name: str) -> None:
        """Close what is kept under a name."""
        for fd in self.stored.pop(name, []):
            fd.close()

    def make_earlier(self) -> None:
        """Have the state be as a program before would have left it."""
        if STATE_FILE in self.stored:
            stored = {name: fds[0] for name, fds in self.stored.items()}
            left = make_earlier(stored[STATE_FILE], OFFER, stored)
            self.lose(STATE_FILE)
            if left is not None:
                self.stored[STATE_FILE] = [left]

    def close(self) -> None:
        self.listen()
        for fds in self.stored.values():
            for fd in fds:
                fd.close()
        self._socket.close()


@dataclass
class Outcome:
    """What became of a play."""

    masters: int
    steps: list[str]
    """The labels of the steps of the last master, which was not to die."""
    label: str
    """Where the first master died."""
    lost: bool
    """The front-end saw its connection end."""
    stored: list[str]
    """Names of what is left in the store."""
    lost_name: str = ""
    """What the service manager lost."""


Script = Callable[[FrontEnd, Shared], None]


def play(
    script: Script,
    dooms: Sequence[int] = (),
    loses: int | None = None,
    *,
    earlier: bool = False,
) -> Outcome:
    """Run the script of a front-end against masters, the first of which die at these steps.

    `loses`: after the first death the service manager loses the descriptors under one name, this
    one in the order of all. `earlier`: the first master leaves its state as a program before would.
    """
    shared = Shared()
    manager = ServiceManager()
    ours, theirs = socket.socketpair()
    try:
        with _forked(lambda: _front_end(script, shared, ours, theirs)) as front_end:
            ours.close()
            outcome = _supervise(manager, shared, theirs, front_end, list(dooms), loses, earlier)
            manager.listen()
            outcome.stored = sorted(manager.stored)
            outcome.label = shared.label
            return outcome
    finally:
        ours.close()
        theirs.close()
        manager.close()
        shared.close()


def _supervise(
    manager: ServiceManager,
    shared: Shared,
    connection: socket.socket,
    front_end: Process,
    dooms: list[int],
    loses: int | None,
    earlier: bool,
) -> Outcome:
    masters = 0
    lost_name = ""
    first: socket.socket | None = connection
    while True:
        doom = dooms.pop(0) if dooms else 0
        masters += 1
        with _forked(partial(_live, manager, shared, first, doom)) as master:
            if first is not None:
                # A copy in here would keep the front-end waiting for a connection that has ended.
                first.close()
                first = None
            code = master.wait(manager)
        manager.listen()
        if code == -signal.SIGKILL:
            if loses is not None and loses < len(manager.stored):
                lost_name = sorted(manager.stored)[loses]
                manager.lose(lost_name)
            loses = None
            if earlier and masters == 1:
                manager.make_earlier()
            continue
        played = front_end.wait(manager)
        # A successor that finds nothing may have come after the end, too.
        lost = code == NO_SESSION and played == DISCONNECTED
        assert lost or (code in (0, NO_SESSION) and played == 0), (
            f"master ended with {code}, front-end with {played}, after {shared.label!r}"
        )
        return Outcome(masters, shared.steps(), "", lost, [], lost_name)


NO_SESSION = 3
DISCONNECTED = 4
FAILED = 5


def _live(
    manager: ServiceManager, shared: Shared, connection: socket.socket | None, doom_at: int
) -> int:
    """A master's life."""
    doom = Doom(shared, doom_at)
    doom.around(Notifier, "store", lambda _self, name, *_fds: f"store {_kind(name)}")
    doom.around(Notifier, "remove", lambda _self, name: f"remove {_kind(name)}")
    # Also between the stores of a write, and with a log that is soon full.
    writing = ""

    def begun(_self: StateFile, phase: Phase, *_rest: object) -> str:
        nonlocal writing
        writing = _phase(phase)
        return f"write {writing}"

    doom.around(StateFile, "write", begun)
    for store in ("_store_word", "_store_half", "_store_bytes"):
        doom.around(StateFile, store, lambda *_arguments: f"store inside write {writing}")
    state_file.LOG_BYTES = 0
    doom.around(StateFile, "begin_effect", lambda _self, _count: "begin")
    doom.around(PeekingReceiver, "take", lambda _self, message: f"take {message.name}")
    doom.around(Outbox, "put", lambda _self, _reply: "put")
    doom.around(Outbox, "send", lambda _self, _sock: "send")
    _note_waiting(shared)
    left = {name: tuple(fds) for name, fds in manager.stored.items()}
    fd_store = FdStore(Notifier(manager.address), left)
    resumed = CONNECTION in left
    master = Master(
        OneConnection(connection),
        OFFER,
        cast(WorkerPool, FakePool(shared, doom)),
        fd_store,
        Signals(),
        PollSet(),
    )

    def ready() -> None:
        if connection is None and (not resumed or master.session is None):
            os._exit(NO_SESSION)

    master.run(ready, lambda: None)
    master.close()
    return 0


def _note_waiting(shared: Shared) -> None:
    original = Checkpoint.send_rest

    def send_rest(self: Checkpoint) -> None:
        original(self)
        if self.replying:
            shared.words[Shared.WAITING] = 1

    Checkpoint.send_rest = send_rest  # type: ignore[method-assign]


def _kind(name: str) -> str:
    prefix, _, rest = name.partition(".")
    return "a descriptor" if prefix == "session" and rest.isdecimal() else rest or prefix


def _phase(phase: Phase) -> str:
    known = getattr(phase, "fds", None) is not None
    return type(phase).__name__ + (" with fds" if known else "")


def _front_end(script: Script, shared: Shared, ours: socket.socket, theirs: socket.socket) -> int:
    theirs.close()
    with FrontEnd(ours, timeout_s=BOUND_S) as front_end:
        try:
            script(front_end, shared)
        except (Disconnected, ConnectionBroken):
            return DISCONNECTED
    return 0


class Process:
    """A forked process."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._code: int | None = None

    def wait(self, manager: ServiceManager) -> int:
        """Wait for its end, hearing what masters say; its exit code, or minus its signal."""
        deadline = time.monotonic() + BOUND_S
        pidfd = Fd(os.pidfd_open(self._pid))
        try:
            poller = select.poll()
            poller.register(pidfd.fileno(), select.POLLIN)
            poller.register(manager.fileno(), select.POLLIN)
            while True:
                ready = poller.poll(max(0.0, deadline - time.monotonic()) * 1000)
                assert ready, "a process does not end"
                manager.listen()
                if any(number == pidfd.fileno() for number, _ in ready):
                    break
        finally:
            pidfd.close()
        self._code = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        return self._code

    def kill(self) -> None:
        if self._code is None:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)


@contextmanager
def _forked(life: Callable[[], int]) -> Iterator[Process]:
    pid = os.fork()
    if pid == 0:
        code = FAILED
        try:
            code = life()
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    process = Process(pid)
    try:
        yield process
    finally:
        process.kill()
