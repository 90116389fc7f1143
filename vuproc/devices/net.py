"""virtio-net: pairs of queues, and a back-end for each pair."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from vuproc.devices.net_backend import rarp_request
from vuproc.devices.net_buffers import MOST_MERGED
from vuproc.devices.net_control import MOST_BYTES, CommandRefused, NetControl
from vuproc.devices.net_description import NetDescription
from vuproc.devices.net_filter import Filter
from vuproc.devices.net_native import (
    FRAMES_KIND,
    LOOPBACK_KIND,
    NULL_KIND,
    TAP_KIND,
    Frames,
    NativePair,
)
from vuproc.devices.net_options import NetOptions
from vuproc.devices.net_pair import MOST_AT_ONCE, Pair
from vuproc.devices.net_pcap import Capture
from vuproc.devices.net_state import NetState, Settings
from vuproc.fd import Fd
from vuproc.spec.net import (
    CONTROL_ERR,
    CONTROL_OK,
    GUEST_OFFLOADS,
    HEADER,
    Control,
    NetFeature,
)

if TYPE_CHECKING:
    from vuproc.shm.request import Request

SETTLED_S = 1.0
"""Seconds by which a worker that follows another has its rings again, if they run."""

_MRG_RXBUF = int(NetFeature.MRG_RXBUF)
_KINDS = {"null": NULL_KIND, "loopback": LOOPBACK_KIND, "tap": TAP_KIND}
"""The back-ends that are served without Python."""
_IN_CONFIG = (Control.MAC_ADDR_SET, Control.ANNOUNCE_ACK)
"""Commands that the configuration space tells of."""


def is_native(options: NetOptions) -> bool:
    """Whether such a device needs no Python for its frames."""
    return options.engine == "native" and options.backend in _KINDS and options.capture is None


class Net(NetDescription):
    """virtio-net: pairs of a receive and a transmit queue.

    Queue 2n receives and 2n + 1 transmits, as in virtio 1.3, 5.1.2; both are of one worker. The
    one behind them is the control queue, which most front-ends keep for themselves.
    Receive buffers stay with the driver until there is a frame for them.
    """

    def __init__(self, options: NetOptions) -> None:
        super().__init__(options)
        self._pairs: dict[int, Pair] = {}
        """By receive queue."""
        self._natives: dict[int, NativePair] = {}
        """What serves them without Python."""
        self._features = 0
        self._control = -1
        """The control queue; -1: the driver has none, or not here."""
        self._enabled: set[int] = set()
        """Receive queues that run."""
        self._watched: set[int] = set()
        """Those whose back-end is looked at."""
        self._accepted: int | None = None
        """What the back-ends know of the features."""
        self._version = 0
        """Of the settings that they go by."""

    def follows_at_once(self) -> bool:
        """A TAP, a bound socket and files are shared; a stream is of its worker, and a program at
        its other end may take one at a time.
        """
        return type(self) is Net and self.options.backend != "stream"

    # What a worker calls.

    def frames(self, pair: int, frames: Frames) -> None:
        """The driver has sent these frames by a pair, as many as came together. In the worker of
        the pair.

        Override it for a device that is a network by itself; `send_frames` is for its answers.
        """
        raise NotImplementedError(f"{type(self).__name__}.frames")

    def send_frames(
        self, pair: int, frames: Frames | Iterable[bytes | bytearray | memoryview]
    ) -> int:
        """Give the driver whole Ethernet frames, most quickly as `Frames`; how many it got. What
        it has no buffers for is dropped and counted, and what it does not want is dropped. In the
        worker of the pair, of a device that overrides `frames`. Raises ValueError for one that is
        empty or too long.
        """
        return self._natives[2 * pair].send(frames)

    @property
    def _is_network(self) -> bool:
        return type(self).frames is not Net.frames

    def native(self, queue: int) -> NativePair | None:
        """One object for both queues of a pair, unless it needs Python: for a capture, for another
        back-end, or since the options say so.
        """
        if queue == 2 * self.options.pairs:
            return None
        receive = queue & ~1
        if receive not in self._natives and self._is_native:
            kind = FRAMES_KIND if self._is_network else _KINDS[self.options.backend]
            pair, backend = receive // 2, self._pairs[receive].backend
            self._natives[receive] = NativePair(
                receive,
                kind,
                self.count_dropped,
                backend.fileno(),
                self._state,
                lambda frames: self._sent(pair, frames),
            )
        return self._natives.get(receive)

    @property
    def _is_native(self) -> bool:
        usual = type(self).make_backend is Net.make_backend
        return self._is_network or (usual and is_native(self.options))

    def _sent(self, pair: int, frames: Frames) -> None:
        try:
            self.frames(pair, frames)
        except Exception:
            self.log.exception("%d frames of pair %d are lost", len(frames), pair)
            self.count_dropped(2 * pair + 1, len(frames))

    def setup(self, queue: int) -> None:
        """Make the back-end of a pair, once, for its receive queue."""
        if queue % 2 or queue == 2 * self.options.pairs:
            return
        self._state = self._kept or NetState()
        capture = None
        if self.options.capture is not None:
            capture = Capture(self.shared[self._named("capture")])
        backend = self.make_backend(queue // 2)
        self._pairs[queue] = Pair(self, queue, backend, self._state, capture)
        turn = self.shared.get(self._named(f"turn{queue // 2}"))
        if turn is not None:
            self.watch(turn, lambda: self._turned(turn))
        if self.recovered:
            # Its ring is about to come, and frames wait for that. If it does not, the last worker
            # died as the pair went out of use.
            self.call_later(SETTLED_S, lambda: self._begin(queue))
        else:
            self._begin(queue)

    def teardown(self) -> None:
        """Close the back-ends."""
        for queue, pair in self._pairs.items():
            if queue in self._watched:
                self.unwatch(pair.backend.fileno())
            pair.backend.close()
        self._pairs.clear()

    def pulls(self, queue: int) -> bool:
        """Receive buffers are taken when there is a frame."""
        return queue % 2 == 0 and queue != 2 * self.options.pairs

    def ring_started(self, queue: int) -> None:
        """A control queue that starts is one that the front-end leaves to us."""
        state = self._state
        if queue == self._control and state is not None and not state.controlled:
            state.controlled = 1
            self._turn()

    def ring_enabled(self, queue: int, enabled: bool) -> None:
        """Have a pair in use, or not."""
        if queue in self._pairs and queue != self._control:
            (self._enabled.add if enabled else self._enabled.discard)(queue)
            self._begin(queue)

    def ring_stopped(self, queue: int) -> None:
        """It is not in use. What was said by a control queue goes with it: whoever starts it again
        may be another driver, and all frames by the first pair are right for any.
        """
        self.ring_enabled(queue, False)
        if queue == self._control:
            self._forget()

    def ring_stopping(self, queue: int) -> None:
        """Give back what is held for the next frame."""
        if queue in self._natives:
            self._natives[queue].give_all_back()
        if queue in self._pairs:
            self._pairs[queue].buffers.give_back()

    def features_acked(self, features: int) -> None:
        """Remember what the driver can do, and which its control queue is (5.1.2)."""
        self._features = features
        self._merge(MOST_MERGED if features & _MRG_RXBUF else 1)
        self._control = -1
        if features & NetFeature.CTRL_VQ:
            self._control = 2 * self.options.pairs if features & NetFeature.MQ else 2
        self._renew()

    def reset(self) -> None:
        """Forget it, and what came by the control queue."""
        self._features, self._control = 0, -1
        self._merge(1)
        self._enabled.clear()
        if 0 in self._pairs:
            self._forget()
        else:
            self._renew()
        for queue in self._pairs:
            self._use(queue)

    def _merge(self, most: int) -> None:
        for pair in self._pairs.values():
            pair.buffers.most = most
        for native in self._natives.values():
            native.merge(most)

    def _forget(self) -> None:
        if self._state is not None:
            self._state.settle(Settings())
            self._state.announce = self._state.controlled = 0
            self._renew()
            self._turn()

    def available(self, queue: int) -> None:
        """There are buffers for a frame that waits for some."""
        if queue == self._control:
            while (request := self.take(queue)) is not None:
                self._command(request)
        elif queue not in self._natives and self._pairs[queue].backend.patient:
            self._receive(queue)

    def announce(self, mac: bytes) -> None:
        """Have the network told where the guest is now: by its driver, if that can, otherwise by a
        RARP request about it.
        """
        state = self._state
        if self._features & NetFeature.GUEST_ANNOUNCE and state is not None and state.controlled:
            state.announce = 1
            self.config_changed()
            return
        pair = self._pairs.get(0)
        if pair is None:
            return
        if self.options.backend == "loopback" and 0 in self._natives:
            self._natives[0].send([rarp_request(mac)])
        else:
            pair.send(bytes(HEADER.size), rarp_request(mac))

    # What the driver has said by the control queue.

    def _command(self, request: Request) -> None:
        assert self._state is not None
        features = self._features if request.queue == self._control else 0
        answer = CONTROL_ERR
        try:
            if request.readable > MOST_BYTES:
                raise CommandRefused(f"a command of {request.readable} bytes")
            control = NetControl(self._state, features, self.options.pairs)
            kind = control.carry_out(request.read())
        except CommandRefused as error:
            self.log.warning("queue %d: control command refused: %s", request.queue, error)
        else:
            answer = CONTROL_OK
            self._renew()
            self._turn()
            if kind in _IN_CONFIG and 0 in self._pairs:
                self.config_changed()
        request.write(bytes([answer]))
        request.finish()

    def _renew(self) -> None:
        """Go by the settings as they are now."""
        state = self._state
        if state is None:
            return
        self._version = state.version
        settings = state.settings()
        found = Filter(settings, self._features, self._address(settings))
        for pair in self._pairs.values():
            pair.filter = None if found.passes_all else found
        for native in self._natives.values():
            if found.passes_all:
                native.want_all()
            else:
                native.want(found.broadcast, found.unicast, found.multicast, found.vlans)
        features = self._features
        if settings.has_offloads:
            features = features & ~int(GUEST_OFFLOADS) | settings.offloads
        if features != self._accepted:
            self._accepted = features
            for pair in self._pairs.values():
                pair.backend.accept(features)

    def _turn(self) -> None:
        """There are other settings, or pairs in use: tell the workers of all of them."""
        for pair in range(self.options.pairs):
            turn = self.shared.get(self._named(f"turn{pair}"))
            if turn is not None:
                os.eventfd_write(turn.fileno(), 1)

    def _turned(self, turn: Fd) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(turn.fileno())
        self._renew()
        for queue in self._pairs:
            self._use(queue)

    def _begin(self, queue: int) -> None:
        """Look at what comes for a pair from now on, and have it in use or not."""
        pair = self._pairs.get(queue)
        if pair is None:
            return  # the worker has ended
        if queue not in self._watched and pair.backend.fileno() >= 0:
            self._watched.add(queue)
            self.watch(pair.backend.fileno(), lambda: self._receive(queue))
        self._use(queue)

    def _use(self, queue: int) -> None:
        """Have the back-end of a pair in use if the driver has the pair in use."""
        state = self._state
        if state is not None:
            pairs = max(1, state.settings().pairs) if state.controlled else self.options.pairs
            used = queue == 0 or (queue in self._enabled and queue // 2 < pairs)
            self._pairs[queue].backend.use(used)

    def handle(self, request: Request) -> None:
        """A frame, or a command."""
        queue = request.queue
        if queue % 2 == 0:
            self._command(request)
            return
        self._pairs[queue - 1].transmit(request)
        self._receive(queue - 1)

    def _receive(self, queue: int) -> None:
        """Give the driver what there is."""
        if queue in self._natives:
            self._natives[queue].pump(MOST_AT_ONCE)
            return
        if self._state is not None and self._state.version != self._version:
            self._renew()
        pair = self._pairs[queue]
        if pair.receive() and pair.backend.patient:
            self.call_soon(lambda: self._receive(queue))
