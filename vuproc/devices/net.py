"""virtio-net: pairs of queues, and a back-end for each pair."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

from msgspec import Meta

from vuproc.device import Device, Resubmit
from vuproc.devices.net_backend import BACKENDS, Backend, BackendName
from vuproc.options import Options
from vuproc.spec.net import (
    CONFIG,
    DUPLEX_UNKNOWN,
    HEADER,
    LINK_UP,
    MAC_BYTES,
    MAX_FRAME,
    MTU_MAX,
    MTU_MIN,
    SPEED_UNKNOWN,
    NetFeature,
)
from vuproc.spec.virtio import Feature

if TYPE_CHECKING:
    from vuproc.shm.request import Request

MAX_PAIRS = 16
MOST_MERGED = 64
"""Receive buffers that one frame may take: as many as are shown to the driver at once."""
MOST_AT_ONCE = 256
"""Frames for the driver before the worker looks at its queues again."""
MOST_TAKEN = 64
"""Receive buffers that are looked at for one that a frame may begin in."""

_HEADER_BYTES = HEADER.size
_MRG_RXBUF = int(NetFeature.MRG_RXBUF)
_COUNT = struct.Struct("<H")
_BEFORE_COUNT = bytes(HEADER.offsets["num_buffers"])
"""The header up to `num_buffers`: without offloads it is all zeros (5.1.6.4.1)."""
_HEADERS = [_BEFORE_COUNT + _COUNT.pack(count) for count in range(MOST_MERGED + 1)]
"""The header of a frame in so many buffers."""
_MULTICAST = 1
"""Bit of the first byte of a MAC address that no interface may have."""


class NetOptions(Options, kw_only=True):
    """The options of `type: net`."""

    superseded: ClassVar[Mapping[str, str]] = {
        "queues": "pairs says how many queues this device has, two a pair"
    }

    pairs: Annotated[
        int,
        Meta(
            ge=1,
            le=MAX_PAIRS,
            description="Pairs of a receive and a transmit queue, a worker process each.",
        ),
    ] = 1
    backend: Annotated[
        BackendName,
        Meta(
            description="Where frames go. null: nowhere, each is dropped and counted. loopback: "
            "back to the receive queue of the pair that sent them.",
        ),
    ] = "null"
    mac: (
        Annotated[
            str,
            Meta(
                pattern="^([0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}$",
                description="The MAC address that the driver is to use, as 52:54:00:12:34:56; "
                "without one it makes one up.",
            ),
        ]
        | None
    ) = None
    mtu: (
        Annotated[
            int,
            Meta(
                ge=MTU_MIN,
                le=MTU_MAX,
                description="The MTU that the driver is to use, in bytes; without one it takes "
                "what it likes.",
            ),
        ]
        | None
    ) = None

    def problems(self) -> Iterator[tuple[str, str]]:
        """Check that an interface may have the address."""
        yield from super().problems()
        address = self.address()
        if address is not None and (address[0] & _MULTICAST or not any(address)):
            yield "mac", f"{self.mac} is no address of a single interface"

    def address(self) -> bytes | None:
        """The MAC address as 6 bytes; None: the driver makes one up."""
        return None if self.mac is None else bytes.fromhex(self.mac.replace(":", ""))


class Net(Device):
    """virtio-net: pairs of a receive and a transmit queue.

    Queue 2n receives and 2n + 1 transmits, as in virtio 1.3, 5.1.2; both are of one worker.
    Receive buffers stay with the driver until there is a frame for them.
    """

    device_id = 1
    options_type: ClassVar[type[Options]] = NetOptions
    options: NetOptions
    # A frame that was perhaps sent is not sent again; a receive buffer is as good as new.
    resubmit: ClassVar[Mapping[int, Resubmit]] = {2 * pair + 1: "drop" for pair in range(MAX_PAIRS)}

    def __init__(self, options: NetOptions) -> None:
        super().__init__(options)
        self._backends: dict[int, Backend] = {}
        self._held: dict[int, list[Request]] = {}
        """By receive queue, buffers that were too few for the last frame."""
        self._most_buffers = 1

    # What the master asks.

    def num_queues(self) -> int:
        """Two a pair. The control queue is the front-end's own."""
        return 2 * self.options.pairs

    def queue_groups(self) -> list[tuple[int, ...]]:
        """A worker a pair."""
        return [(2 * pair, 2 * pair + 1) for pair in range(self.options.pairs)]

    def offered_features(self) -> int:
        """No offloads. MQ with several pairs, MAC and MTU if there is one."""
        features = NetFeature.STATUS | NetFeature.MRG_RXBUF | Feature.IN_ORDER
        if self.options.pairs > 1:
            features |= NetFeature.MQ
        if self.options.mac is not None:
            features |= NetFeature.MAC
        if self.options.mtu is not None:
            features |= NetFeature.MTU
        return features

    def config_space(self) -> bytes:
        """virtio 1.3, 5.1.4: the address, the link, which is up, and how many pairs there are."""
        return CONFIG.pack(
            mac=self.options.address() or bytes(MAC_BYTES),
            status=LINK_UP,
            max_virtqueue_pairs=self.options.pairs,
            mtu=self.options.mtu or 0,
            speed=SPEED_UNKNOWN,
            duplex=DUPLEX_UNKNOWN,
        )

    # What a worker calls.

    def make_backend(self, pair: int) -> Backend:
        """The outside of this pair, for its worker."""
        return BACKENDS[self.options.backend]()

    def setup(self, queue: int) -> None:
        """Make the back-end of a pair, once, for its receive queue."""
        if queue % 2:
            return
        self._held[queue] = []
        backend = self._backends[queue] = self.make_backend(queue // 2)
        if backend.fileno() >= 0:
            self.watch(backend.fileno(), lambda: self._receive(queue))

    def teardown(self) -> None:
        """Close the back-ends."""
        for backend in self._backends.values():
            if backend.fileno() >= 0:
                self.unwatch(backend.fileno())
            backend.close()
        self._backends.clear()

    def pulls(self, queue: int) -> bool:
        """Receive buffers are taken when there is a frame."""
        return queue % 2 == 0

    def ring_stopping(self, queue: int) -> None:
        """Give back what is held for the next frame."""
        for buffer in self._held.get(queue, ()):
            if not buffer.finished:  # as all are if the ring broke
                buffer.release()
        if queue in self._held:
            self._held[queue].clear()

    def features_acked(self, features: int) -> None:
        """Remember whether a frame may take several buffers."""
        self._most_buffers = MOST_MERGED if features & _MRG_RXBUF else 1

    def reset(self) -> None:
        """Forget it."""
        self._most_buffers = 1

    def handle(self, request: Request) -> None:
        """Send one frame: the header, in which nothing counts without offloads, and its bytes."""
        queue = request.queue
        if request.skip(_HEADER_BYTES) < _HEADER_BYTES or not 0 < request.readable <= MAX_FRAME:
            self.count_dropped(queue)
            return
        if not self._backends[queue - 1].send(request.read()):
            self.count_dropped(queue)
        self._receive(queue - 1)

    def _receive(self, queue: int) -> None:
        """Give the driver what there is; a frame that has no room is dropped and counted."""
        backend = self._backends[queue]
        for _ in range(MOST_AT_ONCE):
            frame = backend.receive()
            if frame is None:
                return
            if not self._deliver(queue, frame):
                self.count_dropped(queue)

    def _deliver(self, queue: int, frame: bytes) -> bool:
        """Write one frame into as many buffers as it takes; False: there are too few."""
        needed = _HEADER_BYTES + len(frame)
        buffers = self._buffers(queue, needed)
        if not buffers:
            return False
        data = memoryview(_HEADERS[len(buffers)] + frame)
        for buffer in buffers:
            # All but the last are filled, as 5.1.6.4.1 has it.
            data = data[buffer.write(data) :]
        self.finish_together(buffers)
        return True

    def _buffers(self, queue: int, needed: int) -> list[Request]:
        """Buffers with room for so many bytes; none, if the driver has too few at the moment."""
        held = self._held[queue]
        if held and held[0].finished:
            held.clear()  # the ring broke
        count = room = 0
        while room < needed:
            if count == self._most_buffers or (count == len(held) and not self._hold(queue)):
                return []
            room += held[count].writable
            count += 1
        buffers = held[:count]
        del held[:count]
        return buffers

    def _hold(self, queue: int) -> bool:
        """Take one more buffer, to be kept until a frame fits; False: there is none."""
        for _ in range(MOST_TAKEN):
            buffer = self.take(queue)
            if buffer is None:
                break
            if buffer.writable >= _HEADER_BYTES:
                self._held[queue].append(buffer)
                return True
            # 5.1.6.3.2: each has room for a header at least. The driver gets it back unused.
            buffer.finish(0)
        return False
