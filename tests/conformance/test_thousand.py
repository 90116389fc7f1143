"""A thousand hostile connections, after which the device holds what it held before."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.conformance import processes
from tests.conformance.checks import header, serves_newcomer
from tests.conformance.conftest import Footprint
from vuproc.errors import ProtocolError, VuprocError
from vuproc.fd import Fd
from vuproc.spec.vhost_user import FRONT_END, MessageSpec
from vuproc.testing.bell import Bell, BellKind
from vuproc.testing.frontend import FrontEnd
from vuproc.testing.serve import Served

CONNECTIONS = 1000
WARM_UP = 100
"""Connections after which allocators and caches have what they keep."""
GROWTH = 1 << 20
"""Bytes that the master and each worker may grow by in 900 connections: none a connection."""


class Attacker:
    """Makes one hostile connection after the other, the same ones for the same seed."""

    def __init__(self, served: Served, seed: int) -> None:
        self.served = served
        self.random = random.Random(seed)
        self.rows = list(FRONT_END)

    def attack(self) -> None:
        """One connection of a kind picked at random; whatever the back-end says to it is fine."""
        kinds: list[tuple[int, Callable[[], None]]] = [
            (50, self.nonsense_messages),
            (15, self.cut_short),
            (15, self.broken_rings),
            (10, self.descriptors_galore),
            (10, self.vanish_under_requests),
        ]
        (kind,) = self.random.choices([k for _, k in kinds], [weight for weight, _ in kinds])
        with contextlib.suppress(VuprocError):
            kind()

    def nonsense_messages(self) -> None:
        """Messages of the table with fields, lengths, flags and descriptors at random."""
        with self.served.connect() as front_end:
            if self.random.random() < 0.9:
                front_end.negotiate()
            for _ in range(self.random.randrange(1, 40)):
                row = self.random.choice(self.rows)
                count = self.random.choice(row.fds if self._mostly() else (0, 1, 2, 8))
                with self._some_fds(min(count, 8)) as fds:
                    front_end.send(self._message(row), fds)
            self._drain(front_end)

    def cut_short(self) -> None:
        """A message that ends in the middle, with descriptors."""
        with self.served.connect() as front_end, self._some_fds(self.random.randrange(8)) as fds:
            message = self._message()
            front_end.send(message[: self.random.randrange(1, len(message))], fds)

    def broken_rings(self) -> None:
        """A running guest fills its rings with noise and kicks."""
        with self.served.guest(queues=2, queue_size=16, memory=1 << 18) as guest:
            for queue in guest.queues.values():
                size = self.random.choice((256, queue.block.size))
                queue.block.view[:size] = self.random.randbytes(size)
                queue.kick()
            with contextlib.suppress(ProtocolError):
                guest.front_end.send(self._message())
                guest.front_end.request("GET_FEATURES")

    def descriptors_galore(self) -> None:
        """Hundreds of descriptors on all sorts of messages."""
        with self.served.connect() as front_end:
            for _ in range(5):
                with self._some_fds(self.random.randrange(1, 120)) as fds:
                    front_end.send(self._message(), fds)
            self._drain(front_end)

    def vanish_under_requests(self) -> None:
        """A guest dies with requests in flight and messages unanswered."""
        with self.served.guest(queues=2, memory=1 << 18) as guest:
            for queue in guest.queues.values():
                queue.submit_many([([bytes(16)], [512, 1])] * 8)
            with contextlib.suppress(ProtocolError):
                guest.front_end.send(header(11, 8) + bytes(8))

    def _mostly(self) -> bool:
        """True but now and then: a connection with one mistake gets further than one with ten."""
        return self.random.random() < 0.97

    def _message(self, row: MessageSpec | None = None) -> bytes:
        row = row or self.random.choice(self.rows)
        body = self._body(row)
        flags = 9 if self._mostly() else self.random.choice((1, 5, 0, 0xFFFFFFFF))
        size = len(body)
        if not self._mostly():
            size = self.random.choice((0, size + 8, 4097, 0xFFFFFFFF))
        return header(row.number, size, flags) + body

    def _body(self, row: MessageSpec) -> bytes:
        if not row.payload.heads:
            return b""
        head = row.payload.heads[0]
        if not self._mostly():
            return self.random.randbytes(self.random.randrange(200))
        values = (0, 0, 1, 1, 2, 3, 4, 64, 256, 4096, 1 << 20, (1 << 32) - 1, (1 << 64) - 1)
        width = 4 if head.size == 8 else 8  # a ring's state is two small numbers
        words = (self.random.choice(values) for _ in range(1 + head.size // width))
        body = b"".join(word.to_bytes(8, "little")[:width] for word in words)[: head.size]
        if row.payload.item is not None:
            body = (1).to_bytes(4, "little") + body[4:]
            body += b"".join(
                self.random.choice(values).to_bytes(8, "little")
                for _ in range(row.payload.item.size // 8)
            )
        return body

    @contextlib.contextmanager
    def _some_fds(self, count: int) -> Iterator[list[Fd]]:
        with ExitStack() as stack:
            fds = []
            for _ in range(count):
                match self.random.randrange(4):
                    case 0:
                        fd = Fd(os.memfd_create("hostile", os.MFD_CLOEXEC))
                        os.ftruncate(fd.fileno(), self.random.choice((0, 4096, 1 << 20)))
                    case 1:
                        fd = Fd(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC))
                    case _:
                        bell = Bell(self.random.choice(list(BellKind)))
                        stack.callback(bell.close)
                        fd = bell.theirs.dup()
                fds.append(stack.enter_context(fd))
            yield fds

    def _drain(self, front_end: FrontEnd) -> None:
        """Sometimes wait until the back-end has gone through it all."""
        if self.random.random() < 0.5:
            front_end.socket.shutdown(1)
            front_end.closed_by_peer()


@pytest.mark.timeout(240)
def test_a_thousand_hostile_connections_leave_nothing_behind(disk_process: Served) -> None:
    served = disk_process
    attacker = Attacker(served, seed=1000)
    for _ in range(WARM_UP):
        attacker.attack()
    serves_newcomer(served)
    held = Footprint.of(served)
    memory = {pid: processes.resident(pid) for pid in held.processes}
    for _ in range(CONNECTIONS - WARM_UP):
        attacker.attack()
    serves_newcomer(served)
    assert Footprint.of(served) == held
    for pid, before in memory.items():
        assert processes.resident(pid) - before < GROWTH, f"process {pid} has grown"
        assert not processes.guest_mappings(pid)
