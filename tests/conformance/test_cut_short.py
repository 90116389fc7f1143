"""Row A1 for every message there is: front-ends that stop in the midst of one leave nothing behind.

VUPROC_LONG=1 makes a thousand connections for each message.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

import pytest

from tests.conformance import processes
from tests.conformance.checks import header, serves_newcomer
from tests.conformance.conftest import Footprint
from tests.leaks import Holdings
from vuproc.errors import ProtocolError
from vuproc.fd import Fd
from vuproc.spec.vhost_user import (
    BACK_END,
    FDS_MAX,
    FLAG_REPLY,
    FRONT_END,
    HEADER,
    VERSION,
    MessageSpec,
)
from vuproc.testing.bell import Bell, BellKind
from vuproc.testing.frontend import FrontEnd
from vuproc.testing.serve import Served
from vuproc.vhost_user.wire import send

LONG = os.environ.get("VUPROC_LONG", "") not in ("", "0")
CONNECTIONS = 1000 if LONG else 10
"""For each message."""
WARM_UP = 40
GROWTH = 1 << 20
"""Bytes that a process may grow by: less than a leak of one small thing a connection would be."""

Parts = list[tuple[bytes, bool]]
"""What is sent, piece by piece, and whether the descriptors go with it. The rest never comes."""


def in_the_header(head: bytes, body: bytes, at: int) -> Parts:
    return [(head[: 1 + at % (HEADER.size - 1)], False)]


def after_the_header(head: bytes, body: bytes, at: int) -> Parts:
    return [(head, bool(at % 2))]


def in_the_payload(head: bytes, body: bytes, at: int) -> Parts:
    return [(head, False), (body[: 1 + at % (len(body) - 1)], bool(at % 2))]


def after_the_first_byte(head: bytes, body: bytes, at: int) -> Parts:
    return [(head[:1], True)]


def a_byte_at_a_time(head: bytes, body: bytes, at: int) -> Parts:
    data = (head + body)[: 1 + at % (HEADER.size + len(body) - 1)]
    return [(bytes([byte]), number == 0) for number, byte in enumerate(data)]


Cut = Callable[[bytes, bytes, int], Parts]
CUTS: Sequence[Cut] = (
    in_the_header,
    after_the_header,
    in_the_payload,
    after_the_first_byte,
    a_byte_at_a_time,
)


class Quitter:
    """Makes connections that end inside a message, the same ones for the same seed."""

    def __init__(self, served: Served, fds: Sequence[Fd], seed: int) -> None:
        self.served = served
        self.fds = fds
        self.random = random.Random(seed)
        self.turns = itertools.count()

    def quit_in(self, row: MessageSpec) -> None:
        """One connection that ends inside this message, each time in another way."""
        turn = next(self.turns)
        cut = CUTS[turn % len(CUTS)]
        if turn % 12 == 11:
            with self.served.guest(queues=2, memory=1 << 18) as guest:
                self._cut(guest.front_end, row, cut)
            return
        with self.served.connect() as front_end:
            if turn % 3:
                front_end.negotiate()
            self._cut(front_end, row, cut)

    def quit_in_reply_to(self, row: MessageSpec) -> None:
        """The same on the back-end channel, inside an answer to this message."""
        cut = CUTS[next(self.turns) % len(CUTS)]
        with self.served.connect() as front_end:
            front_end.negotiate()
            channel = front_end.open_channel()
            body = _body(row) or bytes(8)
            head = header(row.number, len(body), VERSION | FLAG_REPLY)
            with contextlib.suppress(ProtocolError):
                for data, with_fds in cut(head, body, self.random.randrange(1 << 16)):
                    send(channel.socket, data, self._some_fds(row) if with_fds else ())
                front_end.request("GET_FEATURES")

    def _cut(self, front_end: FrontEnd, row: MessageSpec, cut: Cut) -> None:
        # A message without a payload is not over if its header says that there is one.
        body = _body(row) or bytes(8)
        head = header(row.number, len(body), self.random.choice((1, 9)))
        with contextlib.suppress(ProtocolError):
            for data, with_fds in cut(head, body, self.random.randrange(1 << 16)):
                front_end.send(data, self._some_fds(row) if with_fds else ())
            if self.random.random() < 0.3:
                front_end.socket.shutdown(1)
                assert front_end.closed_by_peer(), "half a message was waited for"

    def _some_fds(self, row: MessageSpec) -> Sequence[Fd]:
        """As many as belong to the message, fewer, or more than it may have."""
        most = row.fds[1] if row.fds[1] < FDS_MAX else 8
        return self.fds[: self.random.choice((row.fds[0], most, most, most + 1))]


def _body(row: MessageSpec) -> bytes:
    """A payload of the message: with one item, or some bytes, if it has such."""
    if row.payload.item is not None:
        return row.payload.encode(items=[{}])
    if row.payload.raw:
        return row.payload.encode(data=bytes(16))
    return bytes(row.payload.heads[0].size) if row.payload.heads else b""


@pytest.fixture(scope="module")
def spare_fds() -> Iterator[list[Fd]]:
    with ExitStack() as stack:
        fds = []
        for kind in itertools.islice(itertools.cycle(BellKind), 6):
            bell = Bell(kind)
            stack.callback(bell.close)
            fds.append(bell.theirs)
        for size in (0, 4096, 1 << 20):
            fds.append(stack.enter_context(Fd(os.memfd_create("spare", os.MFD_CLOEXEC))))
            os.ftruncate(fds[-1].fileno(), size)
        yield fds


@contextlib.contextmanager
def nothing_is_kept(served: Served) -> Iterator[None]:
    """Descriptors, processes, shared memory, guest memory and heap are as before."""
    serves_newcomer(served)
    held, here = Footprint.of(served), Holdings.now()
    memory = {pid: processes.resident(pid) for pid in held.processes}
    yield
    serves_newcomer(served)
    assert Footprint.of(served) == held
    assert here.leaked() == []
    for pid, before in memory.items():
        assert processes.resident(pid) - before < GROWTH, f"process {pid} has grown"
        assert not processes.guest_mappings(pid)


@pytest.mark.timeout(24 * 3600 if LONG else 240)
def test_a01_connections_that_stop_in_the_midst_of_any_message_leave_nothing_behind(
    disk_process: Served, spare_fds: list[Fd]
) -> None:
    quitter = Quitter(disk_process, spare_fds, seed=1)
    rows = list(FRONT_END)
    for turn in range(WARM_UP):
        quitter.quit_in(rows[turn % len(rows)])
    with nothing_is_kept(disk_process):
        for row in rows:
            for _ in range(CONNECTIONS):
                quitter.quit_in(row)


@pytest.mark.timeout(24 * 3600 if LONG else 240)
def test_a01_a39_answers_that_stop_in_the_midst_leave_nothing_behind(
    disk_process: Served, spare_fds: list[Fd]
) -> None:
    quitter = Quitter(disk_process, spare_fds, seed=2)
    rows = list(BACK_END)
    for turn in range(WARM_UP):
        quitter.quit_in_reply_to(rows[turn % len(rows)])
    with nothing_is_kept(disk_process):
        for row in rows:
            for _ in range(CONNECTIONS):
                quitter.quit_in_reply_to(row)
