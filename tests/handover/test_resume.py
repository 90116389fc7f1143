"""The rule for the message under way at a death; the outbox; names of stored descriptors."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vuproc.errors import Disconnected
from vuproc.fd import Fd, HasFileno
from vuproc.handover.outbox import CAPACITY, Outbox
from vuproc.handover.resume import Decision, decide
from vuproc.handover.sd_notify import Notifier
from vuproc.handover.session_fds import SessionFds
from vuproc.handover.state_file import Applying, Idle, Phase, Receiving, Replying
from vuproc.vhost_user.fd_uses import FdUses

SEEN = Applying(12, 9, bytes(8))
"""A message of 20 bytes."""
TAKEN = Applying(12, 9, bytes(8), ("session.3",))
GO_ON, AGAIN, REST, CLOSE = Decision


@pytest.mark.parametrize(
    ("phase", "untaken", "unsent", "may_carry_fds", "decision"),
    [
        (Idle(), 0, 0, True, GO_ON),
        (Idle(), 7, 0, True, GO_ON),
        (Receiving(), 7, 0, False, CLOSE),
        (SEEN, 20, 0, True, GO_ON),
        (SEEN, 20, 0, False, GO_ON),
        (SEEN, 12, 0, True, CLOSE),
        (SEEN, 0, 0, True, CLOSE),
        (SEEN, 12, 0, False, AGAIN),
        (SEEN, 0, 0, False, AGAIN),
        (TAKEN, 0, 0, True, AGAIN),
        (TAKEN, 0, 30, True, AGAIN),
        (Applying(1, 1, b"", ()), 0, 0, False, AGAIN),
        (Replying(exact=True), 0, 20, True, REST),
        (Replying(exact=True), 0, 0, True, GO_ON),
        (Replying(exact=False), 0, 0, True, CLOSE),
    ],
)
def test_the_rule(
    phase: Phase, untaken: int, unsent: int, may_carry_fds: bool, decision: Decision
) -> None:
    assert decide(phase, untaken=untaken, unsent=unsent, may_carry_fds=may_carry_fds) is decision


# The outbox.


@pytest.fixture
def outbox() -> Iterator[Outbox]:
    made = Outbox.create()
    yield made
    made.close()


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    theirs.settimeout(20)
    yield ours, theirs
    ours.close()
    theirs.close()


Ends = tuple[socket.socket, socket.socket]


def test_an_answer_leaves_the_outbox_as_it_is_sent(outbox: Outbox, ends: Ends) -> None:
    answer = bytes(range(256)) * 16
    outbox.put(answer)
    assert outbox.unsent == len(answer)
    assert outbox.send(ends[0])
    assert outbox.unsent == 0
    assert ends[1].recv(8192) == answer


def test_a_full_socket_leaves_it_where_it_is(outbox: Outbox, ends: Ends) -> None:
    ends[0].setblocking(False)
    with pytest.raises(BlockingIOError):
        while True:
            ends[0].send(bytes(4096))
    outbox.put(b"answer")
    assert not outbox.send(ends[0])
    assert outbox.unsent == 6
    while len(ends[1].recv(1 << 16)) == 1 << 16:
        pass
    assert outbox.send(ends[0])
    assert ends[1].recv(1 << 16).endswith(b"answer")


def test_a_peer_that_has_gone(outbox: Outbox, ends: Ends) -> None:
    ends[1].close()
    outbox.put(b"answer")
    with pytest.raises(Disconnected):
        outbox.send(ends[0])


def test_what_is_dropped_is_not_sent(outbox: Outbox, ends: Ends) -> None:
    outbox.put(b"old")
    outbox.clear()
    outbox.put(b"new")
    outbox.send(ends[0])
    assert ends[1].recv(100) == b"new"


def test_only_one_answer_and_only_what_fits(outbox: Outbox) -> None:
    with pytest.raises(ValueError, match="an answer of 65537 bytes"):
        outbox.put(bytes(CAPACITY + 1))
    outbox.put(bytes(CAPACITY - 2))
    with pytest.raises((ValueError, BlockingIOError)):
        outbox.put(bytes(100))


SENDER = """
import os, select, socket, sys
from vuproc.fd import Fd
from vuproc.handover.outbox import Outbox
read_end, write_end, sock = map(int, sys.argv[1:])
outbox = Outbox(Fd(read_end), Fd(write_end))
sock = socket.socket(fileno=sock)
print("up", flush=True)
while True:
    outbox.put(b"0123456789" * 7)
    while not outbox.send(sock):
        select.select([], [sock], [])
"""


def test_a_sender_that_is_killed_leaves_exactly_what_it_has_not_sent(
    outbox: Outbox, ends: Ends
) -> None:
    fds = [outbox.read_end.fileno(), outbox.write_end.fileno(), ends[0].fileno()]
    command = [sys.executable, "-c", SENDER, *map(str, fds)]
    received = b""
    for number in range(8):
        ends[1].settimeout(20)
        with subprocess.Popen(command, stdout=subprocess.PIPE, pass_fds=fds) as sender:
            assert sender.stdout is not None
            assert sender.stdout.readline() == b"up\n"
            target = len(received) + 20_000 + 777 * number
            while len(received) < target:
                received += ends[1].recv(4096)
            sender.send_signal(signal.SIGKILL)
        ends[1].settimeout(0)
        while True:
            try:
                received += ends[1].recv(1 << 16)
            except BlockingIOError:
                if not outbox.unsent:
                    break
                outbox.send(ends[0])
        assert len(received) % 70 == 0
    assert received == b"0123456789" * (len(received) // 10)


# The names.


class Manager(Notifier):
    """Remembers what it was told."""

    def __init__(self) -> None:
        super().__init__(None)
        self.told: list[tuple[str, ...]] = []

    def store(self, name: str, *fds: HasFileno) -> bool:
        self.told.append(("store", name))
        return True

    def remove(self, name: str) -> bool:
        self.told.append(("remove", name))
        return True


@pytest.fixture
def opened() -> Iterator[list[Fd]]:
    """Two memfds, two eventfds, a second descriptor for one of each; sockets and a pidfd."""
    one, two = socket.socketpair()
    fds = [
        Fd(os.memfd_create("one")),
        Fd(os.memfd_create("two")),
        Fd(os.eventfd(0)),
        Fd(os.eventfd(0)),
        Fd(one.detach()),
        Fd(two.detach()),
        Fd(os.pidfd_open(os.getpid())),
    ]
    fds += [fds[0].dup(), fds[2].dup()]
    yield fds
    for fd in fds:
        fd.close()


def test_a_name_stands_for_an_open_file(opened: list[Fd]) -> None:
    manager = Manager()
    store = SessionFds(manager, "session.")
    names = store.keep(opened)
    assert names == tuple(f"session.{number}" for number in (1, 2, 3, 4, 5, 6, 7, 1, 3))
    assert manager.told == [("store", f"session.{number}") for number in range(1, 8)]
    assert store.keep(opened) == names
    assert len(manager.told) == 7


def test_read_only_and_writable_are_two_files() -> None:
    with Fd(os.memfd_create("one")) as one:
        with Fd(os.open(f"/proc/self/fd/{one.fileno()}", os.O_RDONLY)) as other:
            assert one.file != other.file


def test_what_is_not_wanted_any_more_is_removed_and_its_name_never_used_again(
    opened: list[Fd],
) -> None:
    manager = Manager()
    store = SessionFds(manager, "session.")
    names = store.keep(opened[:4])
    assert names == ("session.1", "session.2", "session.3", "session.4")
    store.use({0: [opened[1]], 1: [opened[3]]})
    assert len(manager.told) == 4
    store.remove_unused()
    assert manager.told[4:] == [("remove", "session.1"), ("remove", "session.3")]
    assert store.keep([opened[0], opened[1]]) == ("session.5", "session.2")
    store.use({2: [opened[0], opened[1]]})
    assert set(store.held()) == {"session.2", "session.4", "session.5"}
    store.use({0: []})
    store.remove_unused()
    assert len(manager.told) == 7, "the other part uses it"
    store.use({1: [], 2: []})
    store.remove_unused()
    removed = [("remove", f"session.{number}") for number in (2, 4, 5)]
    assert manager.told[7:] == removed and store.held() == {}


def test_what_goes_from_one_part_to_another_stays(opened: list[Fd]) -> None:
    manager = Manager()
    store = SessionFds(manager, "session.")
    store.keep(opened[:2])
    store.use({0: [opened[0]], 1: [opened[1]]})
    store.use({0: [opened[1]], 1: [opened[0]]})
    store.remove_unused()
    assert manager.told == [("store", "session.1"), ("store", "session.2")]
    store.remove_all()
    assert manager.told[2:] == [("remove", "session.1"), ("remove", "session.2")]
    assert store.keep([opened[0]]) == ("session.3",)


def test_a_copy_takes_the_place_of_a_closed_one(opened: list[Fd]) -> None:
    store = SessionFds(Manager(), "session.")
    store.keep([opened[0]])
    store.use({0: [opened[0]]})
    opened[0].close()
    assert store.held() == {}
    assert store.keep([opened[7]]) == ("session.1",)
    store.use({1: [opened[7]]})
    assert store.held() == {"session.1": opened[7]}
    store.use({0: []})
    store.remove_unused()
    assert store.held() == {"session.1": opened[7]}


FD_USES = st.dictionaries(st.integers(0, 3), st.frozensets(st.integers(0, 5)), max_size=4)


@given(st.lists(FD_USES, max_size=12))
def test_what_no_part_uses_any_more_is_what_a_look_at_all_would_find(
    changes: list[dict[int, frozenset[int]]],
) -> None:
    fds = [Fd(number) for number in range(1000, 1006)]
    uses, now = FdUses(), dict[int, frozenset[int]]()
    for change in changes:
        before = set[int]().union(*now.values())
        now.update(change)
        after = set[int]().union(*now.values())
        unused = uses.change({part: [fds[at] for at in used] for part, used in change.items()})
        assert unused == {fds[at] for at in before - after}
        assert {at for at, fd in enumerate(fds) if fd in uses} == after
    for fd in fds:
        fd.take()


def test_a_successor_goes_on_counting_and_knows_what_it_was_given(opened: list[Fd]) -> None:
    manager = Manager()
    left = ["session.9", "session.7", "listener", "session.x", "session."]
    store = SessionFds(manager, "session.", left)
    store.adopt("session.7", opened[0])
    assert numbered(store.keep(opened[:2])) == [7, 10]
    assert manager.told == [("store", "session.10")]


def numbered(names: Sequence[str]) -> list[int]:
    return [int(name.partition(".")[2]) for name in names]
