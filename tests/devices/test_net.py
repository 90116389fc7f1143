"""The network device, with the driver of the tests."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.devices.wired import Wired
from vuproc.spec.net import CONFIG, HEADER, LINK_UP, MAX_FRAME, NetFeature
from vuproc.spec.virtio import Feature
from vuproc.testing import Guest, Served, serve

LAYOUTS = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
RX, TX = 0, 1
SIZE = 1526
BARE = bytes(HEADER.size)
ALWAYS = (
    NetFeature.STATUS
    | NetFeature.MRG_RXBUF
    | NetFeature.CTRL_VQ
    | NetFeature.CTRL_RX
    | NetFeature.CTRL_RX_EXTRA
    | NetFeature.CTRL_VLAN
    | NetFeature.CTRL_MAC_ADDR
)
QUICK_S = 1.0
"""A stop that ran into its deadline takes 3 s."""


@pytest.fixture(scope="module", params=["native", "python"])
def looped(request: pytest.FixtureRequest) -> Iterator[Served]:
    description = {"type": "net", "backend": "loopback", "queue_size": 512}
    with serve({**description, "engine": request.param}) as served:
        yield served


def frame(number: int, size: int = 60) -> bytes:
    """A frame that tells its number, with other bytes in each."""
    return number.to_bytes(4, "big") + bytes((number + i) & 0xFF for i in range(size - 4))


def send(guest: Guest, data: bytes, queue: int = TX) -> None:
    guest.do(queue, [BARE, data])


def parted(received: bytes) -> tuple[int, bytes]:
    """The number of buffers that the header tells of, and what follows it."""
    header = HEADER.unpack(received)
    assert not any(value for name, value in header.items() if name != "num_buffers")
    return int(header["num_buffers"]), received[HEADER.size :]


def receive(guest: Guest, queue: int = RX) -> bytes:
    """One frame, of as many buffers as its header says."""
    count, data = parted(guest.receive(queue))
    return data + b"".join(guest.receive(queue) for _ in range(count - 1))


def restart(served: Served, guest: Guest) -> int | None:
    """Stop the receive queue, which is to be quick, and start it again; its worker before that."""
    pid = served.status().queues[RX].pid
    began = time.monotonic()
    guest.stop_queue(RX)
    assert time.monotonic() - began < QUICK_S
    queue = guest.queues[RX]
    # A stop takes the call descriptor away.
    guest.front_end.request("SET_VRING_CALL", [queue.call_bell.theirs], value=RX)
    guest.kick_queue(queue)
    return pid


def dropped(served: Served, queue: int) -> int:
    return served.status().queues[queue].counters["dropped"]


def test_what_is_sent_comes_back(looped: Served) -> None:
    with looped.guest(queues=2) as guest:
        guest.keep_filled(RX, count=64, size=SIZE)
        for number in range(200):
            send(guest, frame(number, 60 + number))
            assert parted(guest.receive(RX)) == (1, frame(number, 60 + number))


def test_the_header_may_be_in_one_piece_with_the_frame_or_in_many(looped: Served) -> None:
    with looped.guest(queues=2) as guest:
        guest.keep_filled(RX, count=8, size=SIZE)
        guest.do(TX, [BARE + frame(1)])
        assert receive(guest) == frame(1)
        guest.do(TX, [BARE[:5], BARE[5:] + frame(2)[:9], frame(2)[9:]])
        assert receive(guest) == frame(2)


@LAYOUTS
def test_a_large_frame_fills_one_buffer_after_the_other(looped: Served, packed: bool) -> None:
    with looped.guest(queues=2, queue_size=256, packed=packed) as guest:
        guest.keep_filled(RX, count=200, size=200)
        for size in (188, 189, 1500, 64 * 200 - 12):
            send(guest, frame(size, size))
            count, data = parted(guest.receive(RX))
            assert count == -(-(size + 12) // 200)
            rest = [guest.receive(RX) for _ in range(count - 1)]
            whole = [12 + len(data), *map(len, rest)]
            assert whole[:-1] == [200] * (count - 1)
            assert data + b"".join(rest) == frame(size, size)


@LAYOUTS
def test_merged_frames_of_many_sizes_come_whole_and_in_order(looped: Served, packed: bool) -> None:
    with looped.guest(queues=2, queue_size=512, packed=packed) as guest:
        guest.keep_filled(RX, count=500, size=100)
        for turn in range(10):
            frames = [frame(turn * 40 + n, 60 + 37 * n) for n in range(25)]
            tokens = guest.queues[TX].submit_many([([BARE, data], ()) for data in frames])
            assert [receive(guest) for _ in frames] == frames
            for token in tokens:
                guest.queues[TX].wait(token)


def test_a_frame_for_which_there_is_no_room_is_dropped_and_counted(looped: Served) -> None:
    with looped.guest(queues=2) as guest:
        before = dropped(looped, RX)
        send(guest, frame(1))
        assert dropped(looped, RX) == before + 1
        guest.keep_filled(RX, count=3, size=100)
        send(guest, frame(2, 3 * 100 - 11))
        assert dropped(looped, RX) == before + 2
        # Those that were too few are all there for the next, and after a stop.
        send(guest, frame(3, 3 * 100 - 12))
        assert receive(guest) == frame(3, 3 * 100 - 12)
        send(guest, frame(4, 3 * 100 - 11))
        assert dropped(looped, RX) == before + 3
        pid = restart(looped, guest)
        send(guest, frame(5, 3 * 100 - 12))
        assert receive(guest) == frame(5, 3 * 100 - 12)
        for number in range(6, 12):
            send(guest, frame(number))
            assert receive(guest) == frame(number)
        assert dropped(looped, RX) == before + 3
        assert looped.status().queues[RX].pid == pid


def test_without_mergeable_buffers_a_frame_has_one(looped: Served) -> None:
    with looped.guest(queues=2, without=NetFeature.MRG_RXBUF) as guest:
        before = dropped(looped, RX)
        guest.keep_filled(RX, count=8, size=200)
        send(guest, frame(1, 189))
        assert dropped(looped, RX) == before + 1
        send(guest, frame(2, 188))
        assert parted(guest.receive(RX)) == (1, frame(2, 188))


@pytest.mark.parametrize(
    "chain",
    [[b""], [BARE[:11]], [BARE], [BARE, bytes(MAX_FRAME + 1)]],
    ids=["nothing", "half a header", "no frame", "too long"],
)
def test_c31_what_is_no_frame_is_dropped_and_counted(looped: Served, chain: list[bytes]) -> None:
    with looped.guest(queues=2) as guest:
        before = dropped(looped, TX)
        guest.keep_filled(RX, count=8, size=SIZE)
        guest.do(TX, chain)
        assert dropped(looped, TX) == before + 1
        send(guest, frame(1))
        assert receive(guest) == frame(1)


def test_c31_checksum_offsets_and_segments_count_for_nothing(looped: Served) -> None:
    with looped.guest(queues=2) as guest:
        guest.keep_filled(RX, count=8, size=SIZE)
        guest.do(TX, [b"\xff" * HEADER.size, frame(1)])
        assert parted(guest.receive(RX)) == (1, frame(1))


def test_the_largest_frame_passes(looped: Served) -> None:
    with looped.guest(queues=2) as guest:
        guest.keep_filled(RX, count=100, size=2048)
        send(guest, frame(1, MAX_FRAME))
        assert receive(guest) == frame(1, MAX_FRAME)


def test_buffers_too_small_for_a_header_come_back_empty(looped: Served) -> None:
    with looped.guest(queues=2) as guest:
        small = [guest.submit(RX, (), [11]) for _ in range(3)]
        large = guest.submit(RX, (), [SIZE])
        send(guest, frame(1))
        assert [guest.wait(token).written for token in small] == [0, 0, 0]
        assert parted(guest.wait(large).content) == (1, frame(1))


@pytest.mark.parametrize("engine", ["native", "python"])
def test_nothing_comes_of_what_is_sent_to_null(engine: str) -> None:
    with serve({"type": "net", "engine": engine}) as served, served.guest(queues=2) as guest:
        guest.keep_filled(RX, count=8, size=SIZE)
        for number in range(50):
            send(guest, frame(number))
        queues = served.status().queues
        assert (queues[TX].requests, queues[TX].counters["dropped"]) == (50, 50)
        assert queues[TX].counters["bytes_read"] == 50 * (60 + HEADER.size)
        assert (queues[RX].requests, queues[RX].counters["dropped"]) == (0, 0)


@LAYOUTS
def test_a_death_costs_no_buffer_and_repeats_no_frame(looped: Served, packed: bool) -> None:
    held, each = 64, 32
    with looped.guest(queues=2, queue_size=256, packed=packed) as guest:
        guest.keep_filled(RX, count=held, size=SIZE)
        arrived: list[int] = []
        for turn in range(8):
            sent = range(turn * each, (turn + 1) * each)
            before = dropped(looped, RX)
            tokens = guest.queues[TX].submit_many([([BARE, frame(n)], ()) for n in sent])
            pid = looped.kill_worker(TX)
            for token in tokens:
                guest.queues[TX].wait(token)
            looped.wait_worker(TX, other_than=pid)
            send(guest, frame(1 << 20))
            while (data := receive(guest)) != frame(1 << 20):
                number = int.from_bytes(data[:4], "big")
                assert data == frame(number)
                arrived.append(number)
            assert dropped(looped, RX) == before
        # What a worker had begun and not shown when it died is not there; the rest is, once.
        assert arrived == sorted(set(arrived))
        for number in range(2 * held):
            send(guest, frame(number))
            assert receive(guest) == frame(number)


@LAYOUTS
def test_a_stop_with_all_buffers_posted_is_quick(looped: Served, packed: bool) -> None:
    with looped.guest(queues=2, queue_size=256, packed=packed) as guest:
        guest.keep_filled(RX, count=256, size=SIZE)
        send(guest, frame(1))
        assert receive(guest) == frame(1)
        for turn in range(3):
            pid = restart(looped, guest)
            send(guest, frame(turn))
            assert receive(guest) == frame(turn)
            assert looped.status().queues[RX].pid == pid
        before = dropped(looped, RX)
        guest.stop_queue(RX)
        send(guest, frame(9))
        assert dropped(looped, RX) == before + 1


def test_each_pair_is_by_itself_and_has_a_worker() -> None:
    description = {"type": "net", "backend": "loopback", "pairs": 3}
    with serve(description) as served, served.guest(queues=6) as guest:
        for pair in range(3):
            guest.keep_filled(2 * pair, count=8, size=SIZE)
        for pair in (2, 0, 1):
            send(guest, frame(pair), 2 * pair + 1)
        assert [receive(guest, 2 * pair) for pair in range(3)] == [frame(n) for n in range(3)]
        *pids, control = [queue.pid for queue in served.status().queues]
        assert pids[::2] == pids[1::2] and len(set(pids)) == 3
        assert control == pids[0]
        assert [served.status().queues[n].requests for n in range(6)] == [1] * 6
        assert CONFIG.unpack(guest.config(CONFIG.size))["max_virtqueue_pairs"] == 3
        assert guest.front_end.features & NetFeature.MQ


def test_the_configuration_space_says_what_the_options_do() -> None:
    description = {"type": "net", "mac": "52:54:00:AB:cd:ef", "mtu": 9000}
    with serve(description) as served, served.guest(queues=2) as guest:
        said = CONFIG.unpack(guest.config(CONFIG.size))
        assert (said["mac"], said["mtu"]) == (bytes.fromhex("525400abcdef"), 9000)
        assert (said["status"], said["max_virtqueue_pairs"]) == (LINK_UP, 1)
        own = guest.front_end.features & ((1 << 24) - 1)
        assert own == ALWAYS | NetFeature.MAC | NetFeature.MTU


def test_what_has_no_option_is_not_offered(looped: Served) -> None:
    with looped.guest(queues=2) as guest:
        own = guest.front_end.features & ((1 << 24) - 1)
        assert own == ALWAYS
        assert guest.front_end.features & Feature.VERSION_1


def test_frames_come_from_a_backends_descriptor(tmp_path: Path) -> None:
    here, far = tmp_path / "here", tmp_path / "far"
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other,
        serve(Wired, wire=str(here), far=str(far)) as served,
        served.guest(queues=2) as guest,
    ):
        other.bind(str(far))
        other.settimeout(30.0)
        guest.keep_filled(RX, count=8, size=SIZE)
        for number in range(300):
            other.sendto(frame(number), str(here))
            assert receive(guest) == frame(number)
        send(guest, frame(300))
        assert other.recv(65536) == frame(300)
