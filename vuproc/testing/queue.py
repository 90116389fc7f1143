"""One virtqueue as its driver has it: the ring, its descriptors, and the requests in flight."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from vuproc.testing.bell import Bell, BellKind
from vuproc.testing.errors import NoCompletion, RingFull
from vuproc.testing.inband import InbandCall, InbandKick
from vuproc.testing.iommu import Iommu
from vuproc.testing.job import SECTOR, Job, Stats
from vuproc.testing.load import LoadGenerator
from vuproc.testing.memory import Allocation, Ram
from vuproc.testing.packed_ring import PackedDriverRing
from vuproc.testing.placed_ring import place_ring
from vuproc.testing.receive import ReceiveBuffers
from vuproc.testing.split_ring import SplitDriverRing

SEGMENT_ALIGN = 16
"""Bytes to which the guest address of a segment that is not whole sectors is aligned."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What came back for one request.

    written: the used length, what the device says it wrote, in bytes. data: the content of each
    writable segment, whole.
    """

    written: int
    data: tuple[bytes, ...]

    @property
    def content(self) -> bytes:
        """The first `written` bytes of the writable segments together."""
        return b"".join(self.data)[: self.written]


@dataclass(slots=True)
class _InFlight:
    token: int
    blocks: list[Allocation]
    writable: list[Allocation | None]  # None: a segment of no bytes


class DriverQueue:
    """One virtqueue in the guest's memory. Made by `Guest`; not thread-safe.

    The ring and its descriptors exist from the start; the back-end knows of them when
    `Guest.start_queue` has told it. packed: the ring's layout. base: where it starts, as
    SET_VRING_BASE has it; None: at its very beginning. iommu: between the memory and the device,
    with a mapping for the ring and one for each segment while its request is in flight.
    guest_addresses: the ring's are guest-physical.
    """

    def __init__(
        self,
        ram: Ram,
        index: int,
        size: int,
        *,
        packed: bool = False,
        base: int | None = None,
        event_idx: bool = False,
        call: BellKind | InbandCall = BellKind.EVENTFD,
        kick: BellKind | InbandKick | None = BellKind.EVENTFD,
        iommu: Iommu | None = None,
        guest_addresses: bool = False,
    ) -> None:
        self.index = index
        self.size = size
        self._ram = ram
        self._iommu = iommu
        placed = place_ring(ram, size, packed=packed, base=base, event_idx=event_idx)
        self.ring = placed.ring
        self.base = placed.base
        self.block = placed.block
        self._guest_addresses = guest_addresses
        user = self.block.user_addr
        moved = self._told(self.block) - user
        if iommu is not None:
            moved = iommu.map(self._told(self.block), self.block.size) - user
        self.desc = placed.desc + moved
        """Address of the descriptors as SET_VRING_ADDR has it: the user address, unless there is an
        IOMMU; `avail`, `used` likewise of the other two areas.
        """
        self.avail = placed.avail + moved
        self.used = placed.used + moved
        self.used_guest_addr = self.block.guest_addr + placed.used - user
        """Guest-physical address of `used`, for the device's writes there in a dirty log."""
        with ExitStack() as undo:
            self.kick_bell = Bell(kick, rings=False) if isinstance(kick, BellKind) else kick
            if self.kick_bell:
                undo.callback(self.kick_bell.close)
            self.call_bell = Bell(call) if isinstance(call, BellKind) else call
            undo.callback(self.call_bell.close)
            self.err_bell = Bell()
            undo.pop_all()
        self._serial = 0
        self._in_flight: dict[int, _InFlight] = {}
        self._done: dict[int, Completion] = {}
        self._receiving: ReceiveBuffers | None = None

    @property
    def split(self) -> SplitDriverRing:
        """The ring, for what only a split one has. Raises TypeError if it is packed."""
        if not isinstance(self.ring, SplitDriverRing):
            raise TypeError(f"the ring of queue {self.index} is not split")
        return self.ring

    @property
    def packed(self) -> PackedDriverRing:
        """The ring, for what only a packed one has. Raises TypeError if it is split."""
        if not isinstance(self.ring, PackedDriverRing):
            raise TypeError(f"the ring of queue {self.index} is not packed")
        return self.ring

    @property
    def in_flight(self) -> int:
        """Requests submitted and not seen completed."""
        return len(self._in_flight)

    def submit(
        self,
        out: Sequence[bytes] = (),
        in_: Sequence[int] = (),
        *,
        indirect: bool = False,
        kick: bool | None = None,
    ) -> int:
        """Offer one chain and publish it; returns a token for `wait`.

        out: the readable segments' content. in_: the writable segments' sizes. kick: None rings if
        the device asks for it, else whether to. Raises RingFull, OutOfMemory.
        """
        return self.submit_many([(out, in_)], indirect=indirect, kick=kick)[0]

    def submit_many(
        self,
        requests: Sequence[tuple[Sequence[bytes], Sequence[int]]],
        *,
        indirect: bool = False,
        kick: bool | None = None,
    ) -> list[int]:
        """Offer several chains, publish them at once, with at most one kick; their tokens."""
        tokens = [self._offer(out, in_, indirect) for out, in_ in requests]
        wanted = self.ring.publish()
        if (wanted if kick is None else kick) and self.kick_bell is not None:
            self.kick_bell.ring()
        return tokens

    def kick(self) -> None:
        """Ring, whether the device asks for it or not."""
        if self.kick_bell is None:
            raise ValueError("this queue is polled by the device")
        self.kick_bell.ring()

    def wait(self, token: int, timeout_s: float = 30.0) -> Completion:
        """Sleep on the call descriptor until the request is completed. Raises NoCompletion.

        It never looks at the ring without a call once it has gone to sleep, as a driver that trusts
        its interrupts: a call which the device forgets is a NoCompletion.
        """
        self._sleep_until(lambda: token in self._done, timeout_s)
        return self._done.pop(token)

    def do(
        self,
        out: Sequence[bytes] = (),
        in_: Sequence[int] = (),
        *,
        indirect: bool = False,
        timeout_s: float = 30.0,
    ) -> Completion:
        """Submit one request and wait for it."""
        return self.wait(self.submit(out, in_, indirect=indirect), timeout_s)

    def keep_filled(self, count: int, size: int) -> None:
        """Offer `count` writable buffers of `size` bytes, and each anew after it was received.

        For queues into which a device writes when it likes: network and console receive, vsock,
        events. Once a ring; other requests may go on beside it. Raises RingFull (nothing is offered
        then), OutOfMemory, ValueError.
        """
        if self._receiving is not None:
            raise ValueError("this queue is kept filled already")
        if count < 1 or size < 1:
            raise ValueError(f"{count} buffers of {size} bytes cannot be kept filled")
        if count > self.ring.free:
            raise RingFull(count, self.ring.free)
        tokens = self.submit_many([((), (size,))] * count)
        self._receiving = ReceiveBuffers(size, tokens)

    def receive(self, timeout_s: float = 30.0) -> bytes:
        """What the device wrote into the next buffer of `keep_filled`, in the device's order.

        Sleeps on the call descriptor, as `wait` does. The used length says how long it is, and an
        empty buffer is b"". The buffer is offered anew, so that the device has one less for each
        that waits here to be received. Raises NoCompletion, ValueError.
        """
        receiving = self._receiving
        if receiving is None:
            raise ValueError("this queue is not kept filled: call keep_filled first")
        self._sleep_until(lambda: bool(receiving.filled), timeout_s)
        receiving.offered(self.submit((), (receiving.size,)))
        return receiving.filled.popleft()

    def reap(self) -> int:
        """Take back what is completed without waiting; how many. Raises BackendFault."""
        elements = self.ring.reap()
        for head, written in elements:
            request = self._in_flight.pop(head)
            data = tuple(bytes(b.view) if b is not None else b"" for b in request.writable)
            completion = Completion(written, data)
            receiving = self._receiving
            if receiving is None or not receiving.completed(request.token, completion.content):
                self._done[request.token] = completion
            self._give_back(request.blocks)
        return len(elements)

    def loader(self, job: Job) -> tuple[LoadGenerator, Allocation]:
        """A load generator for `job` and the memory it uses, to be freed after its run."""
        kick_bell, call_bell = self.kick_bell, self.call_bell
        if isinstance(kick_bell, InbandKick) or isinstance(call_bell, InbandCall):
            raise ValueError("a load needs descriptors to kick and to be called by")
        arena = self._ram.allocate(job.arena_size, 4096)
        kick = -1 if kick_bell is None else kick_bell.ours.fileno()
        try:
            generator = LoadGenerator(
                self.ring,
                arena.region.buffer,
                arena=arena.offset,
                address=self._address(arena),
                kick=kick,
                call=-1 if job.poll else call_bell.ours.fileno(),
                job=job,
            )
        except BaseException:
            arena.free()
            raise
        return generator, arena

    def load(self, job: Job) -> Stats:
        """Run `job` to its end. Raises LoadStalled, BackendFault."""
        generator, arena = self.loader(job)
        stats = generator.run()
        # After a stall the device may still write there, so a failed run keeps its memory.
        self._give_back([arena])
        return stats

    def close(self) -> None:
        """Close the descriptors. The ring's memory stays, as the back-end may still use it."""
        if self.kick_bell is not None:
            self.kick_bell.close()
        self.call_bell.close()
        self.err_bell.close()

    def _sleep_until(self, holds: Callable[[], bool], timeout_s: float) -> None:
        """Take back what is completed, and sleep on the call descriptor, until it holds."""
        deadline = time.monotonic() + timeout_s
        while not holds():
            if self.reap() or self.ring.arm():
                continue
            if not self.call_bell.wait(deadline - time.monotonic()):
                raise NoCompletion(self.index, timeout_s)
            self.ring.disarm()

    def _offer(self, out: Sequence[bytes], in_: Sequence[int], indirect: bool) -> int:
        blocks: list[Allocation] = []
        writable: list[Allocation | None] = []
        segments: list[tuple[int, int, bool]] = []
        try:
            for content in out:
                block = self._segment(blocks, len(content))
                if block is not None:
                    block.view[:] = content
                segments.append((self._address(block), len(content), False))
            for size in in_:
                block = self._segment(blocks, size)
                writable.append(block)
                segments.append((self._address(block), size, True))
            table = None
            if indirect:
                block = self._ram.allocate(16 * len(segments))
                blocks.append(block)
                table = (self._address(block), block.view)
            head = self.ring.add(segments, table)
        except BaseException:
            self._give_back(blocks)
            raise
        self._serial += 1
        self._in_flight[head] = _InFlight(self._serial, blocks, writable)
        return self._serial

    def _segment(self, blocks: list[Allocation], size: int) -> Allocation | None:
        if size == 0:
            return None
        # Whole sectors lie as in real drivers: O_DIRECT of the back-end wants it.
        block = self._ram.allocate(size, SECTOR if size % SECTOR == 0 else SEGMENT_ALIGN)
        blocks.append(block)
        return block

    def _address(self, block: Allocation | None) -> int:
        """Of a segment, as its descriptor has it."""
        if block is None:
            return 0
        if self._iommu is None:
            return block.guest_addr
        if block.iova is None:
            block.iova = self._iommu.map(self._told(block), block.size)
        return block.iova

    def _told(self, block: Allocation) -> int:
        """Where a block is, as the front-end says it to the back-end."""
        return block.guest_addr if self._guest_addresses else block.user_addr

    def _give_back(self, blocks: Sequence[Allocation]) -> None:
        """Nobody needs them any more, not the device either."""
        for block in blocks:
            if self._iommu is not None and block.iova is not None:
                self._iommu.unmap(block.iova, block.size)
            block.free()
