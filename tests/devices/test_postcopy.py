"""Devices whose guest's memory comes page by page, while they serve it: postcopy."""

from __future__ import annotations

import errno
import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import vuproc
from tests.devices.lazy import ADVISE, TABLE, LazyMemory, acknowledge, advise, stage
from tests.field import without_call
from vuproc.errors import Disconnected
from vuproc.ops.admin import AdminError, Request, ask
from vuproc.spec.blk import BlkType
from vuproc.spec.vhost_user import FRONT_END, ProtocolFeature
from vuproc.spec.virtio import Feature
from vuproc.testing import Served, serve
from vuproc.testing.bell import Bell
from vuproc.testing.block import Block, outcome
from vuproc.testing.errors import Refused, ServeFailed
from vuproc.testing.guest import DRIVER_READY, Guest
from vuproc.vhost_user.wire import encode

pytestmark = pytest.mark.timeout(120)

QUEUES = 2
LAST = QUEUES - 1
"""Started last: a worker that waits for a page starts no ring."""
SIZE = 4 << 20
BLOCK = 16 << 10
FILE = {"postcopy": True}
STALL_S = 0.4
"""Shorter than any test keeps a page back."""
LATE_S = 2.5
"""Longer than that, and than a worker has for a command."""


@contextmanager
def disk(folder: Path, engine: str = "auto", **more: object) -> Iterator[Served]:
    image = folder / "disk.raw"
    image.write_bytes(random.Random(1).randbytes(SIZE))
    device = {"type": "blk", "image": str(image), "engine": engine, "queues": QUEUES}
    with serve(device, file={**FILE, **more}) as served:
        yield served


@contextmanager
def arriving(served: Served) -> Iterator[Guest]:
    """A guest that listens, with rings that the device does not know yet."""
    with served.guest(start=False, timeout_s=20.0) as guest:
        # Without EVENT_IDX each completion has its call, and no memory is needed to ask for it.
        guest.front_end.negotiate(without=Feature.RING_PACKED | Feature.EVENT_IDX)
        for index in range(QUEUES):
            guest.make_queue(index)
        yield guest


def settle(guest: Guest, lazy: LazyMemory) -> None:
    """From the advice to the rings' start, as QEMU has it."""
    front_end = guest.front_end
    userfault = advise(front_end)
    front_end.request("POSTCOPY_LISTEN")
    (base,) = stage(front_end, guest.ram.regions)
    lazy.serve(userfault, base)
    acknowledge(front_end)
    start(guest)


def start(guest: Guest) -> None:
    for index, queue in guest.queues.items():
        guest.configure_queue(queue)
        guest.kick_queue(queue)
        guest.enable_queue(index)
    guest.set_status(DRIVER_READY)


def end(guest: Guest, lazy: LazyMemory) -> None:
    lazy.complete()
    assert guest.front_end.request("POSTCOPY_END") == {"value": 0}


def bell_of(guest: Guest, index: int) -> Bell:
    bell = guest.queues[index].call_bell
    assert isinstance(bell, Bell)
    return bell


def await_requests(served: Served, guest: Guest, counts: list[int]) -> None:
    """Until each queue has completed so many; the guest's memory is not looked at."""
    for index, count in enumerate(counts):
        while served.status().queues[index].requests != count:
            assert bell_of(guest, index).wait(30.0), served.status().queues


@pytest.mark.proves(
    "POSTCOPY_ADVISE",
    "POSTCOPY_LISTEN",
    "POSTCOPY_END",
    "PROTOCOL_F_PAGEFAULT",
    front_end="built-in",
)
@pytest.mark.parametrize("engine", ["map", "sync", "io_uring", "python"])
def test_what_is_missing_is_asked_for_and_every_byte_is_right(tmp_path: Path, engine: str) -> None:
    with disk(tmp_path, engine) as served, arriving(served) as guest:
        content = (tmp_path / "disk.raw").read_bytes()
        block, half = Block(guest), SIZE // 2
        written = {n: os.urandom(BLOCK) for n in range(0, half, 4 * BLOCK)}
        writes = [
            block.submit(BlkType.OUT, n // 512, [data], queue=0) for n, data in written.items()
        ]
        places = range(half, SIZE, 8 * BLOCK)
        reads = [block.submit(BlkType.IN, n // 512, in_=[BLOCK], queue=1) for n in places]
        with LazyMemory(guest.ram.regions[0]) as lazy:
            settle(guest, lazy)
            await_requests(served, guest, [len(writes), len(reads)])
            assert len(lazy.asked) > len(written) * BLOCK // 4096
            end(guest, lazy)
            for token in writes:
                assert outcome(guest.wait(token)).status == 0
            for place, token in zip(places, reads, strict=True):
                result = outcome(guest.wait(token))
                assert (result.status, result.data) == (0, content[place : place + BLOCK])
        for place, data in written.items():
            assert (tmp_path / "disk.raw").read_bytes()[place : place + BLOCK] == data
        # And then as any other: a worker that dies is replaced.
        pid = served.kill_worker()
        served.wait_worker(other_than=pid)
        assert block.read(0, BLOCK) == written[0]


def test_a_page_that_comes_late_delays_its_request_and_nothing_else(tmp_path: Path) -> None:
    with disk(tmp_path, stall_timeout=STALL_S) as served, arriving(served) as guest:
        data = os.urandom(BLOCK)
        token = Block(guest).submit(BlkType.OUT, 0, [data], queue=LAST)
        with LazyMemory(guest.ram.regions[0], hold=[data]) as lazy:
            settle(guest, lazy)
            lazy.wait_held()
            pid, until = served.status().queues[0].pid, time.monotonic() + LATE_S
            while time.monotonic() < until:
                # Its place among what may be asked of the device.
                assert guest.front_end.request("GET_FEATURES")["value"]
                assert served.status().queues[LAST].requests == 0
                assert not bell_of(guest, LAST).wait(0.05)
            end(guest, lazy)
            assert outcome(guest.wait(token)).status == 0
        found = served.status().queues
        assert [(queue.pid, queue.restarts) for queue in found] == [(pid, 0)] * QUEUES
    assert (tmp_path / "disk.raw").read_bytes()[:BLOCK] == data


def test_one_worker_serves_all_rings_and_memory_slots_are_not_offered(tmp_path: Path) -> None:
    with disk(tmp_path) as served, served.connect() as front_end:
        front_end.negotiate()
        offered = front_end.protocol_features
        assert offered & ProtocolFeature.PAGEFAULT
        assert not offered & ProtocolFeature.CONFIGURE_MEM_SLOTS
        assert len({queue.pid for queue in served.status().queues}) == 1


def test_it_is_not_offered_unless_asked_for(tmp_path: Path) -> None:
    with disk(tmp_path, postcopy=False) as served, served.connect() as front_end:
        front_end.negotiate()
        assert not front_end.protocol_features & ProtocolFeature.PAGEFAULT


def test_a_worker_that_dies_is_not_replaced_before_the_end(tmp_path: Path) -> None:
    """Nobody else can wait for pages; once all are there, an operator has the rings served."""
    with disk(tmp_path) as served, arriving(served) as guest:
        data = os.urandom(BLOCK)
        block = Block(guest)
        block.submit(BlkType.OUT, 0, [data], queue=LAST)
        with LazyMemory(guest.ram.regions[0], hold=[data]) as lazy:
            settle(guest, lazy)
            lazy.wait_held()
            pid = served.status().queues[0].pid
            served.kill_worker()
            served.wait_for_line("broken")
            for queue in served.status().queues:
                assert queue.state == "broken"
                assert "ended in postcopy" in (queue.cause or "")
            with pytest.raises(Refused):
                # A ring that is set up anew fares no better.
                guest.front_end.request("SET_VRING_ENABLE", index=0, num=0)
                guest.stop_queue(0)
                guest.start_queue(0)
            end(guest, lazy)
        assert pid is not None


def test_rings_that_broke_go_on_once_all_memory_is_there(tmp_path: Path) -> None:
    with disk(tmp_path) as served, arriving(served) as guest:
        data = os.urandom(BLOCK)
        token = Block(guest).submit(BlkType.OUT, 0, [data], queue=LAST)
        with LazyMemory(guest.ram.regions[0], hold=[data]) as lazy:
            settle(guest, lazy)
            lazy.wait_held()
            served.kill_worker()
            served.wait_for_line("broken")
            with pytest.raises(AdminError, match="ended in postcopy"):
                ask(served.socket, Request("queue-restart", LAST))
            end(guest, lazy)
        for queue in range(QUEUES):
            ask(served.socket, Request("queue-restart", queue))
        # What the one that died had in its hands, by the record.
        assert outcome(guest.wait(token)).status == 0
        assert Block(guest).read(0, BLOCK) == data


def test_reload_and_upgrade_wait_for_the_end(tmp_path: Path) -> None:
    with disk(tmp_path) as served, arriving(served) as guest:
        with LazyMemory(guest.ram.regions[0]) as lazy:
            settle(guest, lazy)
            with pytest.raises(ServeFailed, match="by postcopy is under way"):
                served.reload()
            os.kill(served.pid, signal.SIGUSR2)
            assert "by postcopy is under way" in served.wait_for_line("upgrade refused")
            end(guest, lazy)
        served.reload()
        assert not any("becoming the new program" in line for line in served.lines)
        os.kill(served.pid, signal.SIGUSR2)
        served.wait_for_line("becoming the new program")
        assert Block(guest).read(0, 512) == (tmp_path / "disk.raw").read_bytes()[:512]


GATED = """
import logging
import pathlib

import vuproc


class Gated(vuproc.Device):
    device_id = 42

    def setup(self, queue):
        log = logging.getLogger("vuproc.worker")
        log.info("at the gate")
        gate = pathlib.Path(__file__).with_name("gate")
        if gate.exists():
            gate.read_bytes()
        log.info("through the gate")

    def handle(self, request):
        request.finish()
"""


def test_a_reload_that_is_under_way_waits_for_the_end(tmp_path: Path) -> None:
    script, file, gate = (tmp_path / name for name in ("gated.py", "gated.yaml", "gate"))
    script.write_text(GATED)
    file.write_text("socket: ./gated.sock\npostcopy: true\ndevice: {type: './gated.py:Gated'}\n")
    with serve(file) as served, served.connect() as front_end:
        front_end.negotiate()
        pid = served.wait_worker()
        os.mkfifo(gate)
        script.write_text(GATED + "# another\n")
        before = len(served.lines)
        served.reload()
        served.wait_for_line("at the gate", after=before)
        with advise(front_end):
            gate.write_bytes(b"")  # which waits for a reader
            gate.unlink()
            served.wait_for_line("through the gate", after=before)
            for _ in range(20):
                assert served.status().queues[0].pid == pid
            assert front_end.request("POSTCOPY_END") == {"value": 0}
        served.wait_worker(other_than=pid)


class Unprivileged(vuproc.Device):
    """One that gives up the right to a userfaultfd."""

    device_id = 42

    def setup(self, queue: int) -> None:
        without_call.refuse(without_call.NUMBERS[os.uname().machine]["userfaultfd"], errno.EPERM)
        if os.geteuid() == 0:
            os.seteuid(65534)

    def handle(self, request: vuproc.Request) -> None:
        request.finish()


def test_without_the_right_to_a_userfaultfd_the_advice_ends_the_connection() -> None:
    with serve(Unprivileged, file=FILE) as served:
        with served.connect() as front_end:
            front_end.negotiate()
            front_end.send(encode(ADVISE.number))
            assert front_end.closed_by_peer()
        assert "sysctl vm.unprivileged_userfaultfd" in served.wait_for_line("userfaultfd: ")
        with served.guest() as guest:
            assert guest.do(in_=[1]).content == b""


@pytest.mark.parametrize("what", ["another message", "another value", "another table"])
def test_a56_what_does_not_acknowledge_the_table_ends_the_connection(
    tmp_path: Path, what: str
) -> None:
    with disk(tmp_path) as served, arriving(served) as guest:
        front_end = guest.front_end
        with advise(front_end):
            front_end.request("POSTCOPY_LISTEN")
            stage(front_end, guest.ram.regions)
            if what == "another message":
                with pytest.raises(Disconnected):
                    front_end.request("GET_FEATURES")
            elif what == "another value":
                acknowledge(front_end, 1 << 32)
            else:
                body = TABLE.payload.encode(items=[region.fields for region in guest.ram.regions])
                with guest.ram.regions[0].fd.dup() as file:
                    front_end.send(encode(TABLE.number, body), [file])
            assert front_end.closed_by_peer()
        with served.guest() as another:
            assert Block(another).read(0, 512)


def test_a56_messages_out_of_order_are_refused(tmp_path: Path) -> None:
    with disk(tmp_path) as served, arriving(served) as guest:
        front_end = guest.front_end
        with pytest.raises(Refused):
            front_end.request("POSTCOPY_LISTEN")
        assert front_end.request("POSTCOPY_END") == {"value": 1}
        with advise(front_end):
            front_end.set_memory(guest.ram.regions)
            with pytest.raises(Refused):
                front_end.request("POSTCOPY_LISTEN")
            assert front_end.request("POSTCOPY_END") == {"value": 0}
        start(guest)
        assert Block(guest).read(0, 512)


def test_a_table_that_comes_again_takes_the_place_of_the_first(tmp_path: Path) -> None:
    with disk(tmp_path) as served, arriving(served) as guest:
        data = os.urandom(BLOCK)
        block = Block(guest)
        token = block.submit(BlkType.OUT, 0, [data], queue=LAST)
        with LazyMemory(guest.ram.regions[0], hold=[data]) as lazy:
            front_end = guest.front_end
            userfault = advise(front_end)
            front_end.request("POSTCOPY_LISTEN")
            stage(front_end, guest.ram.regions)
            acknowledge(front_end)
            (base,) = stage(front_end, guest.ram.regions)
            lazy.serve(userfault, base)
            acknowledge(front_end)
            start(guest)
            lazy.wait_held()
            end(guest, lazy)
            assert outcome(guest.wait(token)).status == 0
        assert (tmp_path / "disk.raw").read_bytes()[:BLOCK] == data


@pytest.mark.parametrize("asks", [False, True])
def test_a_front_end_that_goes_leaves_a_device_for_the_next(tmp_path: Path, asks: bool) -> None:
    """Though a worker waits for a page that never comes, and the master (`asks`) for it."""
    with disk(tmp_path) as served:
        with arriving(served) as guest:
            data = os.urandom(BLOCK)
            Block(guest).submit(BlkType.OUT, 0, [data], queue=LAST)
            with LazyMemory(guest.ram.regions[0], hold=[data]) as lazy:
                settle(guest, lazy)
                lazy.wait_held()
                if asks:
                    disable = FRONT_END.named("SET_VRING_ENABLE")
                    body = disable.payload.encode(index=0, num=0)
                    guest.front_end.send(encode(disable.number, body))
                guest.front_end.close()
        with served.guest(timeout_s=20.0) as another:
            assert Block(another).read(0, 512) == (tmp_path / "disk.raw").read_bytes()[:512]


def test_a_master_that_dies_breaks_the_rings(tmp_path: Path) -> None:
    image = tmp_path / "disk.raw"
    image.write_bytes(bytes(SIZE))
    device = {"type": "blk", "image": str(image), "queues": QUEUES}
    with serve(device, file=FILE, arguments=["--supervised"]) as served:
        with arriving(served) as guest, LazyMemory(guest.ram.regions[0]) as lazy:
            settle(guest, lazy)
            os.kill(served.status().pid, signal.SIGKILL)
            served.wait_for_line("went on with the session")
            served.wait_for_line("ended in postcopy")
            assert {queue.state for queue in served.status().queues} == {"broken"}
            end(guest, lazy)
