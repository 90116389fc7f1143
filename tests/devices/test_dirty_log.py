"""The dirty log of served devices: every page that a device wrote to is in it, whatever happens."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.devices.holding import RX, TX, Keeps
from tests.devices.scattering import (
    BOUND_S,
    END,
    QUEUES,
    Arena,
    Scatters,
    drain,
    in_arena,
    pages_of,
    ring_pages,
    used_pages,
)
from tests.field.events import status
from vuproc.ops.admin import Request, ask
from vuproc.spec.blk import REQUEST_HEADER, BlkType
from vuproc.testing.bell import Bell
from vuproc.testing.dirty import PAGE, DirtyBitmap
from vuproc.testing.guest import Guest
from vuproc.testing.memory import RamRegion
from vuproc.testing.plugin import ServeDevice
from vuproc.testing.serve import Served

LONG = os.environ.get("VUPROC_LONG", "") not in ("", "0")
REQUESTS = 15
"""Of each queue in one round, before something happens and again after it: twice as many, of up to
four descriptors, have room in a ring.
"""


@pytest.fixture
def log() -> Iterator[DirtyBitmap]:
    with DirtyBitmap(END, offset=24) as made:
        yield made


class Migration:
    """A guest whose devices write at random while its memory is copied."""

    def __init__(self, served: Served, guest: Guest, arena: Arena, chance: random.Random) -> None:
        self.served, self.guest, self.arena, self.chance = served, guest, arena, chance
        self.log = DirtyBitmap(END)
        self.old: list[DirtyBitmap] = []
        self.added = 0
        self.offered: list[tuple[int, int]] = []

    def submit(self) -> None:
        """Requests on every queue; nobody waits for them."""
        for queue in self.guest.queues.values():
            for _ in range(REQUESTS):
                buffers = self.arena.buffers(self.chance.randrange(1, 4))
                wanted = self.chance.randrange(1 << 14)
                self.arena.submit(queue, wanted.to_bytes(2, "little"), buffers)
                self.offered += buffers

    def drain(self) -> None:
        """Take all back: the last may be kept until there is another."""
        for queue in self.guest.queues.values():
            self.arena.submit(queue, bytes(3), [])
            drain(queue, 2 * REQUESTS + 1)

    def kill(self) -> None:
        self.served.kill_worker(self.chance.randrange(QUEUES))

    def kill_master(self) -> None:
        os.kill(status(self.served.socket)["pid"], signal.SIGKILL)

    def upgrade(self) -> None:
        ask(self.served.socket, Request("upgrade"), BOUND_S)

    def replace_log(self) -> None:
        self.old.append(self.log)
        self.log = DirtyBitmap(END, offset=8 * self.chance.randrange(4))
        self.guest.front_end.set_log(self.log)

    def tell_memory(self) -> None:
        self.guest.front_end.set_memory(self.guest.ram.regions)

    def add_memory(self) -> None:
        # Above the end of the log: what is written there could not be marked.
        self.added += 1
        self.guest.add_memory(RamRegion(END + (self.added << 20), PAGE))

    def toggle_used_rings(self) -> None:
        for queue in self.guest.queues.values():
            self.guest.tell_addresses(queue, logged=False)
            self.guest.tell_addresses(queue)

    def marked(self) -> set[int]:
        return set().union(*(in_arena(log) for log in (*self.old, self.log)))

    def forget(self) -> None:
        """A new round, with nothing in flight."""
        self.offered.clear()
        for log in (*self.old, self.log):
            log.clear()

    def close(self) -> None:
        for log in (*self.old, self.log):
            log.close()


EVENTS: list[Callable[[Migration], None]] = [
    Migration.kill,
    Migration.replace_log,
    Migration.tell_memory,
    Migration.add_memory,
    Migration.toggle_used_rings,
]


MASTER_EVENTS: list[Callable[[Migration], None]] = [
    Migration.kill_master,
    Migration.upgrade,
    Migration.replace_log,
]


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("events", "arguments", "packed"),
    [
        (EVENTS, (), True),
        (EVENTS, (), False),
        (MASTER_EVENTS, ("--supervised",), True),
    ],
    ids=["packed", "split", "master"],
)
def test_every_page_that_was_written_is_marked_whatever_happens(
    vuproc_device: ServeDevice,
    events: list[Callable[[Migration], None]],
    arguments: Sequence[str],
    packed: bool,
) -> None:
    seed = random.randrange(1 << 32) if LONG else 1
    print(f"seed {seed}")
    chance = random.Random(seed)
    arena = Arena(chance)
    served = vuproc_device(Scatters, arguments=arguments)
    options = {"memory": arena.ram, "timeout_s": BOUND_S, "packed": packed}
    with served.guest(queues=QUEUES, **options) as guest:
        migration = Migration(served, guest, arena, chance)
        try:
            guest.log_writes(migration.log)
            migration.submit()
            for event in chance.sample(events, k=len(events)) * (8 if LONG else 1):
                event(migration)
                migration.submit()
                migration.drain()
                changed = arena.changed()
                assert len(changed) > 50 and changed <= migration.marked(), event
                assert migration.marked() <= pages_of(migration.offered), event
                migration.forget()
                migration.submit()
        finally:
            migration.close()


@pytest.mark.proves("SET_LOG_BASE", "PROTOCOL_F_LOG_SHMFD", "VHOST_F_LOG_ALL", front_end="built-in")
def test_without_events_the_log_is_exact(vuproc_device: ServeDevice, log: DirtyBitmap) -> None:
    chance = random.Random(2)
    arena = Arena(chance)
    served = vuproc_device(Scatters)
    with served.guest(queues=QUEUES, memory=arena.ram) as guest:
        buffers = arena.buffers(40)
        guest.log_writes(log)
        log.clear()
        arena.submit(guest.queues[1], b"\xff\xff", buffers)
        drain(guest.queues[1], 1)
        queue = guest.queues[1]
        assert in_arena(log) == pages_of(buffers) >= arena.changed()
        assert log.pages() - in_arena(log) <= pages_of(
            [(queue.used_guest_addr, 6 + 8 * queue.size)]
        )
        guest.log_writes(None)
        log.clear()
        arena.submit(guest.queues[1], b"\xff\xff", buffers)
        drain(guest.queues[1], 1)
        assert arena.changed() and log.pages() == set()


def test_after_the_stop_nothing_is_marked_and_all_before_it_is(
    vuproc_device: ServeDevice, log: DirtyBitmap
) -> None:
    arena = Arena(random.Random(3))
    served = vuproc_device(Scatters)
    with served.guest(queues=QUEUES, memory=arena.ram) as guest:
        guest.log_writes(log)
        for queue in guest.queues.values():
            for _ in range(5):
                arena.submit(queue, b"\xff\xff", arena.buffers(2))
        for index in guest.queues:
            guest.stop_queue(index)
        assert arena.changed() <= in_arena(log) and used_pages(guest) <= log.pages()
        log.clear()
        guest.set_status(0)
        served.status()
        assert log.pages() == set()


@pytest.mark.parametrize("packed", [False, True])
def test_a_device_that_holds_buffers_is_not_disturbed_when_logging_begins(
    vuproc_device: ServeDevice, log: DirtyBitmap, packed: bool
) -> None:
    served = vuproc_device(Keeps)
    with served.guest(queues=2, packed=packed) as guest:
        guest.keep_filled(RX, count=4, size=3 * PAGE)
        worker = served.wait_worker(RX)
        assert guest.do(TX, [b"count"], [8]).content == b"4"
        guest.log_writes(log)
        assert guest.do(TX, [b"count"], [8]).content == b"4"
        log.clear()
        guest.submit(TX, [b"hello"])
        assert guest.receive(RX) == b"hello"
        assert served.wait_worker(RX) == worker
        # The buffers were posted before there was a log.
        assert log.pages() - ring_pages(guest, RX, TX)


@pytest.mark.parametrize("engine", ["python", "map", "sync", "io_uring"])
def test_what_a_disk_reads_is_marked_by_each_engine(
    vuproc_device: ServeDevice, log: DirtyBitmap, tmp_path: Path, engine: str
) -> None:
    image = tmp_path / "disk.raw"
    image.write_bytes(b"\xff" * (1 << 20))
    chance = random.Random(4)
    arena = Arena(chance)
    disk = {"type": "blk", "image": str(image), "engine": engine}
    with vuproc_device(disk, queues=2).guest(queues=2, memory=arena.ram) as guest:
        offered: list[tuple[int, int]] = []
        for moment in range(2):
            for queue in guest.queues.values():
                for _ in range(REQUESTS):
                    sector = chance.randrange(1000)
                    request = REQUEST_HEADER.pack(type=int(BlkType.IN), sector=sector)
                    buffers = [(addr // 512 * 512, 4096) for addr, _ in arena.buffers(2)]
                    # The status is a byte of its own.
                    arena.submit(queue, request, [*buffers, (arena.buffers(1)[0][0], 1)])
                    offered += buffers
            if moment == 0:
                guest.log_writes(log)
        for queue in guest.queues.values():
            drain(queue, 2 * REQUESTS)
        # The first ones may have been done before there was a log.
        late = pages_of(offered[len(offered) // 2 :])
        assert late <= in_arena(log) and arena.changed()


@pytest.mark.proves("SET_LOG_FD", front_end="built-in")
def test_marks_are_told_of(vuproc_device: ServeDevice, log: DirtyBitmap) -> None:
    arena = Arena(random.Random(5))
    bell = Bell()
    served = vuproc_device(Scatters)
    with served.guest(queues=QUEUES, memory=arena.ram) as guest:
        guest.front_end.set_log_call(bell.theirs)
        guest.log_writes(log)
        served.kill_worker(0)
        arena.submit(guest.queues[0], b"\xff\xff", arena.buffers(1))
        assert bell.wait(BOUND_S) and in_arena(log)
        drain(guest.queues[0], 1)
    bell.close()
