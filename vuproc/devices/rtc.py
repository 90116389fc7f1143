"""virtio-rtc: clocks that follow this machine's, or go as a test wants them to, with alarms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from vuproc import shared
from vuproc.device import Device, Timer
from vuproc.devices import rtc_state
from vuproc.devices.rtc_alarms import Alarms, KeptAlarms
from vuproc.devices.rtc_course import NORMAL, Course, Kept, S, begin
from vuproc.devices.rtc_options import RtcOptions
from vuproc.fd import Fd
from vuproc.options import Options
from vuproc.spec.rtc import (
    FLAG_ALARM_CAP,
    FLAG_ALARM_ENABLED,
    NOTIF_ALARM,
    NOTIFICATION,
    REQUEST_HEAD,
    REQUESTS,
    RESPONSE_HEAD,
    RESPONSES,
    ClockType,
    HardwareCounter,
    RtcFeature,
    RtcRequest,
    RtcStatus,
    Smearing,
)

if TYPE_CHECKING:
    from vuproc.shm.request import Request

REQUEST, ALARM = 0, 1
LOOK_S = 1.0
"""While an alarm is enabled its clock is looked at as often: somebody may have set it."""
SOON_S = 0.0005
"""Before a clock is looked at again that was to have come to its time and is a little early."""
MOST_TAKEN = 64
"""Buffers of the alarm queue that are looked at for one that a notification fits into."""
MAX_READING = (1 << 64) - 1
_LONGEST = max(layout.size for layout in REQUESTS.values())
_ALARM_REQUESTS = {RtcRequest.READ_ALARM, RtcRequest.SET_ALARM, RtcRequest.SET_ALARM_ENABLED}
_TYPES = {
    "utc": ClockType.UTC,
    "tai": ClockType.TAI,
    "monotonic": ClockType.MONOTONIC,
    "smeared": ClockType.UTC_SMEARED,
}


class Refused(Exception):
    """The request ends with this status; nothing is wrong with the device."""

    def __init__(self, status: RtcStatus) -> None:
        super().__init__(status)
        self.status = status


class Rtc(Device):
    """virtio-rtc: clocks for the driver to read, each with an alarm.

    For a time of your own override `now`. A queue of requests and one of alarms, of one worker.
    """

    device_id = 17
    queues = 2
    features = RtcFeature.ALARM
    options_type: ClassVar[type[Options]] = RtcOptions
    options: RtcOptions

    _acked = 0
    _timer: Timer | None = None

    # What the master asks.

    def queue_groups(self) -> list[tuple[int, ...]]:
        """A worker for both."""
        return [(REQUEST, ALARM)]

    def follows_at_once(self) -> bool:
        """A worker has nothing but timers."""
        return type(self) is Rtc

    def shared_files(self) -> dict[str, Fd]:
        """How time passes, from now on, and what the alarms are set to."""
        course, alarms = shared.struct_file(Kept), shared.struct_file(KeptAlarms)
        begin(shared.struct(Kept, course), self.options.epoch_ns(), self.options.rate())
        return {self._named("course"): course, self._named("alarms"): alarms}

    def _named(self, what: str) -> str:
        """A name that says whose it is: a device with other clocks is not to go on with it."""
        return shared.named(what, self.options.clocks, self.options.epoch)

    # What a worker calls.

    def setup(self, queue: int) -> None:
        """Go on with the time and the alarms of the worker before us, once a worker."""
        if queue != REQUEST:
            return
        self.clocks = tuple(_TYPES[name] for name in self.options.clocks)
        """Their types, by their numbers."""
        self._course = Course(
            shared.struct(Kept, self.shared[self._named("course")]),
            offset=round(self.options.offset * S),
            rate=self.options.rate(),
            tai_offset=self.options.tai_offset,
        )
        self._alarms = Alarms(
            shared.struct(KeptAlarms, self.shared[self._named("alarms")]),
            len(self.clocks),
            self._reading,
        )
        self.clock_changed()

    def pulls(self, queue: int) -> bool:
        """Buffers for notifications are taken when an alarm has expired."""
        return queue == ALARM

    def features_acked(self, features: int) -> None:
        """Remember whether the driver knows of alarms."""
        self._acked = features

    def save_state(self) -> bytes:
        """The time, if it goes by itself, and the alarms."""
        return rtc_state.pack(self.clocks, self._course, self._alarms)

    def load_state(self, data: bytes, version: int) -> None:
        """Go on with them. What has expired on the way is told as soon as there is a buffer."""
        rtc_state.unpack(data, self.clocks, self._course, self._alarms)
        self.clock_changed()

    def reset(self) -> None:
        """The alarms stay set, as those of other clocks do (virtio 1.4, 5.23.6)."""
        self._acked = 0
        self._alarms.again()
        self.clock_changed()

    def now(self, clock: ClockType) -> int:
        """What a clock shows, in nanoseconds. A subclass may say anything, but for MONOTONIC, which
        never shows less than before. It is asked for each reading, and each second while an alarm
        is enabled; `clock_changed` has it asked at once.
        """
        match clock:
            case ClockType.MONOTONIC:
                return self._course.monotonic()
            case ClockType.TAI:
                return self._course.tai()
            case ClockType.UTC_SMEARED:
                return self._course.smeared()
            case _:
                return self._course.utc()

    def clock_changed(self) -> None:
        """Somebody has set a clock: see whether an alarm has expired, or waits again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        seconds: float | None = LOOK_S  # also if a `now` raises, which is logged
        try:
            self.available(ALARM)
            wait = self._alarms.next()
            passing = NORMAL / max(1, self._course.rate)
            seconds = None if wait is None else min(LOOK_S, wait / S * passing + SOON_S)
        finally:
            if seconds is not None:
                self._timer = self.call_later(seconds, self.clock_changed)

    def available(self, queue: int) -> None:
        """Tell the driver of the alarms that have expired, once of each."""
        if self._alarms.noted and (unfinished := self.unfinished(ALARM)) is not None:
            self._alarms.settle(unfinished)
        for clock in self._alarms.look():
            buffer = self._buffer() if self._acked & RtcFeature.ALARM else None
            if buffer is None:
                return
            self._alarms.telling(clock, buffer.head)
            buffer.write(NOTIFICATION.pack(msg_type=NOTIF_ALARM, clock_id=clock))
            buffer.finish()
            self.publish(ALARM)
            self._alarms.told(clock)

    def _buffer(self) -> Request | None:
        for _ in range(MOST_TAKEN):
            buffer = self.take(ALARM)
            if buffer is None or buffer.writable >= NOTIFICATION.size:
                return buffer
            buffer.finish(0)
        return None

    # The requests.

    def handle(self, request: Request) -> None:
        """Answer one request. A refusal is as much of its head as there is room for."""
        data, room = request.read(_LONGEST), request.writable
        try:
            response = self._answer(data, room)
        except Refused as refused:
            response = RESPONSE_HEAD.pack(status=refused.status)
        request.write(response)

    def fail(self, request: Request, error: BaseException) -> None:
        """What raised is a fault of the device."""
        request.put(0, RESPONSE_HEAD.pack(status=RtcStatus.EIO)[: request.writable_total])
        request.finish(min(RESPONSE_HEAD.size, request.writable_total))

    def _answer(self, data: bytes, room: int) -> bytes:
        if len(data) < REQUEST_HEAD.size:
            raise Refused(RtcStatus.EINVAL)
        try:
            kind = RtcRequest(REQUEST_HEAD.unpack(data)["msg_type"])
        except ValueError:
            raise Refused(RtcStatus.EOPNOTSUPP) from None
        if kind in _ALARM_REQUESTS and not self._acked & RtcFeature.ALARM:
            raise Refused(RtcStatus.EOPNOTSUPP)
        layout = REQUESTS[kind]
        if len(data) < layout.size or room < RESPONSES[kind].size:
            raise Refused(RtcStatus.EINVAL)
        fields = layout.unpack(data)
        if any(fields["head_reserved"]) or any(fields.get("reserved", b"")):
            raise Refused(RtcStatus.EINVAL)
        if fields.get("clock_id", 0) >= len(self.clocks):
            raise Refused(RtcStatus.ENODEV)
        return RESPONSES[kind].pack(**self._served(kind, fields))

    def _served(self, kind: RtcRequest, fields: Mapping[str, Any]) -> dict[str, int]:
        """The fields of the answer to a request that is well formed."""
        clock = fields.get("clock_id", 0)
        match kind:
            case RtcRequest.READ:
                return {"clock_reading": self._reading(clock)}
            case RtcRequest.CFG:
                return {"num_clocks": len(self.clocks)}
            case RtcRequest.CLOCK_CAP:
                smeared = self.clocks[clock] is ClockType.UTC_SMEARED
                return {
                    "type": self.clocks[clock],
                    "leap_second_smearing": Smearing.UTC_SLS if smeared else Smearing.UNSPECIFIED,
                    "flags": FLAG_ALARM_CAP if self._acked & RtcFeature.ALARM else 0,
                }
            case RtcRequest.READ_CROSS:
                _known(fields["hw_counter"])
                raise Refused(RtcStatus.EOPNOTSUPP)  # what the guest's counter shows, nobody knows
            case RtcRequest.CROSS_CAP:
                _known(fields["hw_counter"])
                return {"flags": 0}
            case RtcRequest.READ_ALARM:
                return {
                    "alarm_time": self._alarms.time(clock),
                    "flags": FLAG_ALARM_ENABLED * self._alarms.enabled(clock),
                }
            case RtcRequest.SET_ALARM | RtcRequest.SET_ALARM_ENABLED:
                if fields["flags"] & ~FLAG_ALARM_ENABLED:
                    raise Refused(RtcStatus.EINVAL)
                enabled = bool(fields["flags"])
                if kind is RtcRequest.SET_ALARM:
                    self._alarms.set(clock, fields["alarm_time"], enabled)
                else:
                    self._alarms.enable(clock, enabled)
                self.clock_changed()
                return {}

    def _reading(self, clock: int) -> int:
        """As far as 64 bits can say it."""
        return min(max(0, self.now(self.clocks[clock])), MAX_READING)


def _known(counter: int) -> None:
    """Whether it is one that the specification has."""
    if counter == HardwareCounter.INVALID:
        raise Refused(RtcStatus.EINVAL)
    if counter not in (HardwareCounter.ARM_VCT, HardwareCounter.X86_TSC):
        raise Refused(RtcStatus.EOPNOTSUPP)
