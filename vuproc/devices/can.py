"""virtio-can: a CAN controller on a bus of this host, of its own, or of simulated nodes."""

from __future__ import annotations

import ctypes
from collections import deque
from enum import IntEnum
from typing import TYPE_CHECKING, ClassVar

from vuproc import shared
from vuproc.device import Device
from vuproc.devices.can_bus import LOOPBACK, BusLost, HostBus
from vuproc.devices.can_frame import Frame
from vuproc.devices.can_options import CanOptions
from vuproc.fd import Fd
from vuproc.options import Options
from vuproc.sandbox.needs import Needs, existing
from vuproc.spec.can import (
    CONFIG,
    CONTROL_OUT,
    FD_MAX,
    S_CTRL_BUSOFF,
    TX_OUT,
    CanFeature,
    CanMessage,
    CanResult,
)

if TYPE_CHECKING:
    from vuproc.shm.request import Request

TRANSMIT, RECEIVE, CONTROL = 0, 1, 2
BACKLOG = 1024
"""Frames that wait for receive buffers: at least 50 ms of a bus at 1 Mbit/s, whose shortest frames
have 47 bits. What comes then is dropped.
"""
MOST_TAKEN = 64
"""Receive buffers that are looked at for one that a frame fits into."""
_OK, _NOT_OK = bytes((CanResult.OK,)), bytes((CanResult.NOT_OK,))


class Mode(IntEnum):
    """Of the controller."""

    STOPPED = 0
    STARTED = 1
    BUS_OFF = 2
    """It has stopped by itself."""


class _State(ctypes.Structure):
    """What outlives a worker."""

    _fields_: ClassVar = [("mode", ctypes.c_uint64)]


class Can(Device):
    """virtio-can: a CAN controller.

    Override `frame` to simulate other nodes of the bus, and answer with `send`. Queues of frames
    to transmit, of buffers to receive into, and of control, of one worker.
    """

    device_id = 36
    queues = 3
    options_type: ClassVar[type[Options]] = CanOptions
    options: CanOptions

    _acked = 0
    _bus: HostBus | None = None
    _state: _State | None = None

    # What the master asks.

    def queue_groups(self) -> list[tuple[int, ...]]:
        """A worker for all."""
        return [(TRANSMIT, RECEIVE, CONTROL)]

    def offered_features(self) -> int:
        """LATE_TX_ACK where a frame is on the bus once it was handed over: what adapters do with
        one is not known.
        """
        features = CanFeature.CAN_CLASSIC | CanFeature.RTR_FRAMES
        if self.options.fd:
            features |= CanFeature.CAN_FD
        if self.options.interface == LOOPBACK:
            features |= CanFeature.LATE_TX_ACK
        return features

    def config_space(self) -> bytes:
        """virtio 1.4, 5.20.4: whether the controller has stopped by itself."""
        off = self._state is not None and self._state.mode == Mode.BUS_OFF
        return CONFIG.pack(status=S_CTRL_BUSOFF if off else 0)

    def sandbox_needs(self) -> Needs:
        """The bus: a socket, or an adapter at a serial line or a USB port."""
        if self.options.interface == LOOPBACK:
            return self.needs
        channel = self.options.channel or ""
        serial = existing(channel) if channel.startswith("/dev/") else ()
        devices = (*existing("/dev/bus/usb"), *serial)
        return self.needs.with_more(Needs(network=True, devices=devices, readable=existing("/sys")))

    def follows_at_once(self) -> bool:
        """A bus is a socket, or an adapter that only one may have; without one nothing is open."""
        return type(self) is Can and self.options.interface == LOOPBACK

    def shared_files(self) -> dict[str, Fd]:
        """The mode of the controller."""
        return {"controller": shared.struct_file(_State)}

    # What a worker calls.

    def setup(self, queue: int) -> None:
        """Go on in the mode that the worker before us was in, once a worker."""
        if queue != TRANSMIT:
            return
        self._backlog: deque[Frame] = deque()
        self._state = shared.struct(_State, self.shared["controller"])
        if self._state.mode == Mode.STARTED and not self._connect():
            self.call_soon(self.bus_off)
        elif self.recovered and self._state.mode == Mode.BUS_OFF:
            # The worker before us may have died before it said so.
            self.call_soon(self.config_changed)

    def teardown(self) -> None:
        """Leave the bus."""
        self._disconnect()

    def features_acked(self, features: int) -> None:
        """Remember which frames the driver takes."""
        self._acked = features

    def pulls(self, queue: int) -> bool:
        """Receive buffers are taken when there is a frame."""
        return queue == RECEIVE

    def available(self, queue: int) -> None:
        """There are receive buffers again."""
        self._deliver()

    def save_state(self) -> bytes:
        """The mode. A machine that is paused keeps it, too, for with this it is no reset."""
        return bytes((self._mode,))

    def load_state(self, data: bytes, version: int) -> None:
        """Go on in the mode that another was in."""
        mode = Mode(int.from_bytes(data, "little"))
        self._stop()
        if mode is not Mode.STARTED or self._start():
            self._set_mode(mode)
        else:
            self._set_mode(Mode.BUS_OFF)

    def reset(self) -> None:
        """Stopped, as at first (virtio 1.4, 5.20.6.1)."""
        self._acked = 0
        self._stop()

    # For simulations.

    def frame(self, frame: Frame) -> bool | None:
        """The driver sends a frame; False: it could not be sent, which the driver hears.

        By default it goes to the bus of the options. A subclass simulates what is on a bus: it
        answers by `send`, here or whenever it likes to, and need not call this one.
        """
        if self._bus is not None:
            return self._bus.send(frame)
        self.send(frame)
        return True

    def send(self, frame: Frame) -> None:
        """A frame for the driver, from another node. In the worker's thread.

        While the controller is stopped nobody hears it. It waits for a buffer; with too many others
        in its way it is dropped and counted, as is one of a kind that the driver does not take.
        """
        if self._mode != Mode.STARTED:
            return
        if frame.needs & ~self._acked or len(self._backlog) >= BACKLOG:
            self.count_dropped(RECEIVE)
            return
        self._backlog.append(frame)
        self._deliver()

    def bus_off(self) -> None:
        """The controller stops by itself, and the driver is told: too many errors on the bus."""
        if self._mode == Mode.STARTED:
            self._stop(Mode.BUS_OFF)

    # The requests.

    def handle(self, request: Request) -> None:
        """Send one frame, or start or stop the controller; the answer is one byte."""
        sends = request.queue == TRANSMIT
        data = request.read(TX_OUT.size + FD_MAX if sends else CONTROL_OUT.size)
        if not request.writable:
            # Nowhere to put a result, so nothing is done.
            request.finish(0)
            return
        done = self._transmit(request, data) if sends else self._control(data)
        request.write(_OK if done else _NOT_OK)

    def fail(self, request: Request, error: BaseException) -> None:
        """It was not done; or perhaps it was, when the worker died that had begun to send it."""
        if request.writable_total:
            request.put(0, _NOT_OK)
        request.finish()

    def _transmit(self, request: Request, data: bytes) -> bool:
        try:
            frame = Frame.sent(data)
        except ValueError:
            return False
        if self._mode != Mode.STARTED or frame.needs & ~self._acked:
            return False
        # From here on it may be on the bus, and is not to be there twice.
        request.resubmit = "fail"
        return self.frame(frame) is not False

    def _control(self, data: bytes) -> bool:
        if len(data) < CONTROL_OUT.size:
            return False
        match CONTROL_OUT.unpack(data)["msg_type"]:
            case CanMessage.SET_CTRL_MODE_START:
                return self._start()
            case CanMessage.SET_CTRL_MODE_STOP:
                self._stop()
                return True
        return False

    @property
    def _mode(self) -> int:
        return Mode.STOPPED if self._state is None else int(self._state.mode)

    def _set_mode(self, mode: Mode) -> None:
        assert self._state is not None
        before, self._state.mode = self._state.mode, mode
        if Mode.BUS_OFF in (before, mode) and before != mode:
            self.config_changed()

    def _start(self) -> bool:
        if self._mode != Mode.STARTED and not self._connect():
            return False
        self._set_mode(Mode.STARTED)
        return True

    def _stop(self, mode: Mode = Mode.STOPPED) -> None:
        """All that was to be sent is sent, or was refused: there is nothing to cancel."""
        self._disconnect()
        self._backlog.clear()
        self._set_mode(mode)

    # The bus.

    def _connect(self) -> bool:
        """Whether we are on the bus now."""
        if self.options.interface == LOOPBACK:
            return True
        self._disconnect()
        try:
            self._bus = HostBus(
                self.options.interface,
                channel=self.options.channel,
                bitrate=self.options.bitrate,
                fd=self.options.fd,
                received=self.send,
                lost=self._lost,
            )
        except BusLost as error:
            self.log.warning("the CAN bus cannot be had: %s", error)
            return False
        if self._bus.fileno() >= 0:
            self.watch(self._bus.fileno(), self._bus.read)
        else:
            self._bus.listen(self.call_soon)
        return True

    def _disconnect(self) -> None:
        bus, self._bus = self._bus, None
        if bus is None:
            return
        if bus.fileno() >= 0:
            self.unwatch(bus.fileno())
        bus.close()

    def _lost(self, reason: str) -> None:
        self.log.warning("the CAN bus is lost: %s", reason)
        self.bus_off()

    def _deliver(self) -> None:
        """Give the driver what waits, as far as there are buffers."""
        while self._backlog:
            content = self._backlog[0].received()
            for _ in range(MOST_TAKEN):
                buffer = self.take(RECEIVE)
                if buffer is None:
                    return
                if buffer.writable >= len(content):
                    buffer.write(content)
                    buffer.finish()
                    break
                buffer.finish(0)
            else:
                self.count_dropped(RECEIVE)
            self._backlog.popleft()
