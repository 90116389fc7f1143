"""Networks that are written in Python: batches of frames from the driver, and frames for it."""

from __future__ import annotations

import pytest

from tests.devices.networks import Counting, Mirror, Returning, frames_of
from vuproc.devices.net_buffers import MOST_MERGED, MOST_TAKEN
from vuproc.devices.net_native import BOUNDS, FRAMES_KIND, Frames, NativePair
from vuproc.devices.net_state import MOST_ADDRESSES
from vuproc.spec.net import HEADER, MAX_FRAME
from vuproc.testing import Guest, serve

pytestmark = pytest.mark.timeout(120)

RX, TX = 0, 1
SIZE = 1526
BARE = bytes(HEADER.size)
LAYOUTS = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])


def frame(number: int, size: int = 60) -> bytes:
    return number.to_bytes(4, "big") + bytes((number + i) & 0x7F for i in range(size - 4))


def received(guest: Guest, queue: int = RX) -> bytes:
    """The next frame, of as many buffers as there are."""
    data = guest.receive(queue)
    count = HEADER.unpack(data[: HEADER.size])["num_buffers"]
    return data[HEADER.size :] + b"".join(guest.receive(queue) for _ in range(count - 1))


@LAYOUTS
def test_frames_come_in_order_and_whole_and_answers_go_back(packed: bool) -> None:
    with serve(Mirror) as served, served.guest(queues=2, queue_size=256, packed=packed) as guest:
        guest.keep_filled(RX, count=200, size=SIZE)
        sent = [frame(number, 60 + 11 * number) for number in range(120)]
        for first in range(0, 120, 40):
            some = sent[first : first + 40]
            tokens = guest.queues[TX].submit_many([([BARE, data], ()) for data in some])
            assert [received(guest) for _ in some] == [data[::-1] for data in some]
            for token in tokens:
                guest.queues[TX].wait(token)
        assert served.status().queues[TX].requests == 120
        assert served.status().queues[TX].counters["dropped"] == 0


def test_the_largest_frames_are_several_batches() -> None:
    with serve(Mirror) as served, served.guest(queues=2, queue_size=256) as guest:
        guest.keep_filled(RX, count=250, size=8192)
        sent = [frame(number, MAX_FRAME) for number in range(10)]
        tokens = guest.queues[TX].submit_many([([BARE, data], ()) for data in sent])
        assert [received(guest) for _ in sent] == [data[::-1] for data in sent]
        for token in tokens:
            guest.queues[TX].wait(token)


def test_each_pair_has_its_worker_and_its_frames() -> None:
    with serve(Mirror, pairs=2) as served, served.guest(queues=4) as guest:
        for queue in (2, 0):
            guest.keep_filled(queue, count=8, size=SIZE)
            guest.do(queue + 1, [BARE, frame(queue)])
            assert received(guest, queue) == frame(queue)[::-1]


def test_what_fails_is_logged_and_counted_and_the_rest_goes_on() -> None:
    with serve(Mirror) as served, served.guest(queues=2) as guest:
        guest.keep_filled(RX, count=8, size=SIZE)
        guest.do(TX, [BARE, b"!" + bytes(59)])
        served.wait_for_line("no such frames")
        guest.do(TX, [BARE, frame(1)])
        assert received(guest) == frame(1)[::-1]
        assert served.status().queues[TX].counters["dropped"] == 1


@LAYOUTS
def test_a_death_costs_no_buffer_and_repeats_no_frame(packed: bool) -> None:
    with serve(Mirror) as served, served.guest(queues=2, queue_size=256, packed=packed) as guest:
        guest.keep_filled(RX, count=128, size=SIZE)
        came: list[bytes] = []
        for turn in range(6):
            sent = [frame(turn * 32 + n) for n in range(32)]
            tokens = guest.queues[TX].submit_many([([BARE, data], ()) for data in sent])
            pid = served.kill_worker(TX)
            for token in tokens:
                guest.queues[TX].wait(token)
            served.wait_worker(TX, other_than=pid)
            last = frame(1 << 20 | turn)
            guest.do(TX, [BARE, last])
            while (data := received(guest)) != last[::-1]:
                came.append(data)
        numbers = [int.from_bytes(data[::-1][:4], "big") for data in came]
        assert numbers == sorted(set(numbers))
        assert all(data == frame(number)[::-1] for number, data in zip(numbers, came, strict=True))


def test_a_sink_counts_what_comes() -> None:
    with serve(Counting) as served, served.guest(queues=2, queue_size=256) as guest:
        guest.keep_filled(RX, count=4, size=SIZE)
        for _ in range(5):
            tokens = guest.queues[TX].submit_many([([BARE, frame(n)], ()) for n in range(99)])
            for token in tokens:
                guest.queues[TX].wait(token)
        guest.do(TX, [BARE, b"?" + bytes(59)])
        assert int.from_bytes(received(guest)[:8], "little") == 5 * 99 + 1


@LAYOUTS
@pytest.mark.parametrize("size", [64, 2048])
def test_a_batch_goes_back_as_it_is(packed: bool, size: int) -> None:
    """Into one buffer a frame, and into several."""
    with serve(Returning) as served, served.guest(queues=2, packed=packed) as guest:
        guest.keep_filled(RX, count=120, size=size)
        sent = [frame(number, 60 + 9 * number) for number in range(16)]
        tokens = guest.queues[TX].submit_many([([BARE, data], ()) for data in sent])
        assert [received(guest) for _ in sent] == sent
        for token in tokens:
            guest.queues[TX].wait(token)


def test_frames_are_made_of_any_bytes() -> None:
    changed = bytearray(b"second")
    some: list[bytes | bytearray | memoryview] = [b"first", changed, memoryview(b"the third")[4:]]
    frames = Frames(some)
    assert frames_of(frames) == [bytes(each) for each in some] == [bytes(each) for each in frames]
    assert (len(frames), frames.ends, bytes(frames[-1])) == (3, (5, 11, 16), b"third")
    changed[:] = b"SECOND"
    assert bytes(frames[1]) == b"second"
    assert (len(Frames()), bytes(Frames().data), Frames().ends) == (0, b"", ())
    for bad in (b"", bytes(MAX_FRAME + 1)):
        with pytest.raises(ValueError, match="bytes is not 1 to"):
            Frames([bytes(60), bad])
    with pytest.raises(IndexError, match="frame 3 of 3"):
        frames[3]


def test_what_is_no_frame_cannot_be_sent() -> None:
    lost: list[int] = []
    pair = NativePair(0, FRAMES_KIND, lost.append, on_frames=print)
    for bad in (b"", bytes(MAX_FRAME + 1)):
        with pytest.raises(ValueError, match="bytes is not 1 to"):
            pair.send([bad])
    assert (pair.send([bytes(60)]), lost) == (0, [0])  # there is no driver
    assert (pair.send(Frames([bytes(60)] * 2)), lost) == (0, [0, 0, 0])
    with pytest.raises(ValueError, match="66 addresses, of at most 65"):
        pair.want(True, [bytes(6)] * 66, None, None)
    with pytest.raises(ValueError, match="there is no kind 4"):
        NativePair(0, 4, lost.append)


def test_numbers_that_stand_in_both_engines_are_the_same() -> None:
    assert (HEADER.size, MAX_FRAME, MOST_MERGED, MOST_TAKEN, MOST_ADDRESSES) == BOUNDS
