"""Queue and load generator on a packed ring, with a device in a thread of this process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from tests.testing.toy_packed import DESC, DISABLE, ENABLE, Buffer, ToyPacked
from vuproc.testing import BackendFault, Bell, DriverQueue, Job, Kind, LoadStalled, Ram

SIZE = 9


class EchoThread:
    """Answers each request of a queue with what it reads, until `stop`.

    It sleeps and calls as a device does that trusts the event areas, by positions or by flags.
    """

    def __init__(self, queue: DriverQueue, ram: Ram, *, event_idx: bool) -> None:
        self.queue = queue
        self.region = ram.regions[0]
        self.event_idx = event_idx
        desc, driver, device = (
            address - self.region.user_addr for address in (queue.desc, queue.avail, queue.used)
        )
        self.toy = ToyPacked(self.region, queue.size, desc=desc, driver=driver, device=device)
        self.toy.start_at(queue.base & 0xFFFF, queue.base >> 16)
        self.calls = 0
        self._ending = threading.Event()
        self._fence = threading.Lock()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._ending.set()
        self._kick().ring()
        self._thread.join()

    def _serve(self) -> None:
        while not self._ending.is_set():
            self.toy.ask(DISABLE)
            self._answer(self.toy.fetch())
            self.toy.ask(DESC if self.event_idx else ENABLE, self.toy.next.off_wrap)
            self._order()
            if not self.toy.available():
                self._kick().wait(60)

    def _answer(self, buffers: list[Buffer]) -> None:
        before, slots = self.toy.returned.off_wrap, 0
        for buffer in reversed(buffers):
            content = b"".join(self._view(s.address, s.length) for s in buffer.segments[:-1])
            last = buffer.segments[-1]
            self._view(last.address, len(content))[:] = content
            self.toy.complete(buffer, len(content))
            slots += buffer.slots
        self._order()
        if slots and self.toy.wants_call(before, slots):
            self.calls += 1
            self.queue.call_bell.ring()

    def _view(self, address: int, length: int) -> memoryview:
        offset = address - self.region.guest_addr
        return self.region.buffer[offset : offset + length]

    def _order(self) -> None:
        """Stores before, loads after: the only full fence that Python has is a lock."""
        with self._fence:
            pass

    def _kick(self) -> Bell:
        assert self.queue.kick_bell is not None
        return self.queue.kick_bell


Start = Callable[..., tuple[DriverQueue, EchoThread]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Makes a packed queue and its device."""
    ram = Ram(1 << 20)
    made: list[tuple[DriverQueue, EchoThread]] = []

    def make(*, event_idx: bool, base: int | None = None) -> tuple[DriverQueue, EchoThread]:
        queue = DriverQueue(ram, 0, SIZE, packed=True, base=base, event_idx=event_idx)
        made.append((queue, EchoThread(queue, ram, event_idx=event_idx)))
        return made[-1]

    yield make
    for queue, echo in made:
        echo.stop()
        queue.close()
    ram.close()


@pytest.mark.parametrize("event_idx", [False, True])
@pytest.mark.parametrize("base", [None, 0x8005_8005, 0x0008_0008])
def test_requests_come_back_with_their_content(
    start: Start, event_idx: bool, base: int | None
) -> None:
    queue, _ = start(event_idx=event_idx, base=base)
    for number in range(3 * SIZE):
        words = [b"%d" % number, b"-%d" % (number % 7)]
        answer = queue.do(words, [20], indirect=number % 3 == 0)
        assert answer.content == b"".join(words)
    assert queue.in_flight == 0


@pytest.mark.parametrize("event_idx", [False, True])
@pytest.mark.parametrize("indirect", [False, True])
@pytest.mark.parametrize("poll", [False, True])
def test_load_goes_through_whole(start: Start, event_idx: bool, indirect: bool, poll: bool) -> None:
    queue, echo = start(event_idx=event_idx, base=0x8004_8004)
    depth = 7 if indirect else 4
    job = Job(
        count=500,
        depth=depth,
        kind=Kind.PLAIN,
        out_size=24,
        in_size=24,
        pattern=3,
        echo=True,
        indirect=indirect,
        poll=poll,
    )
    stats = queue.load(job)
    assert (stats.completed, stats.corrupt) == (500, 0)
    assert stats.kicks > 0
    assert stats.calls <= echo.calls
    assert poll or stats.calls > 0
    assert queue.ring.free == SIZE and queue.ring.position == queue.packed.avail_position * 0x10001


def test_load_deeper_than_the_ring_is_refused(start: Start) -> None:
    queue, _ = start(event_idx=False)
    with pytest.raises(ValueError, match="depth 5 does not fit"):
        queue.load(Job(count=1, depth=5, kind=Kind.PLAIN, indirect=False))


def test_id_that_is_not_in_flight_ends_a_load(start: Start) -> None:
    queue, echo = start(event_idx=False)
    echo.stop()
    queue.submit(in_=[1], kick=False)
    echo.toy.write_used(3)
    with pytest.raises(BackendFault, match="buffer id 3, which is not in flight"):
        queue.load(Job(count=1, depth=1, kind=Kind.PLAIN))


def test_a_silent_device_stalls_a_load(start: Start) -> None:
    queue, echo = start(event_idx=False)
    echo.stop()
    with pytest.raises(LoadStalled, match="0 requests done, 2 in flight"):
        queue.load(Job(count=2, depth=2, kind=Kind.PLAIN, stall_s=0.2))


def test_each_layout_has_its_own_name(start: Start) -> None:
    queue, _ = start(event_idx=False)
    assert queue.packed is queue.ring
    with pytest.raises(TypeError, match="queue 0 is not split"):
        queue.split  # noqa: B018
