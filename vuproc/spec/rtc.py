"""Numbers and layouts of the real-time clock device (virtio 1.4 section 5.23)."""

from __future__ import annotations

from enum import IntEnum, IntFlag

from vuproc.spec.layout import Layout


class RtcFeature(IntFlag):
    """Feature bits of the real-time clock device."""

    ALARM = 1 << 0


class RtcRequest(IntEnum):
    """Message types of the request queue."""

    READ = 0x0001
    READ_CROSS = 0x0002
    CFG = 0x1000
    CLOCK_CAP = 0x1001
    CROSS_CAP = 0x1002
    READ_ALARM = 0x1003
    SET_ALARM = 0x1004
    SET_ALARM_ENABLED = 0x1005


class RtcStatus(IntEnum):
    """How a request ended."""

    OK = 0
    EOPNOTSUPP = 2
    ENODEV = 3
    EINVAL = 4
    EIO = 5


class ClockType(IntEnum):
    """What a clock shows, in nanoseconds."""

    UTC = 0
    TAI = 1
    MONOTONIC = 2
    UTC_SMEARED = 3
    UTC_MAYBE_SMEARED = 4


class Smearing(IntEnum):
    """How a smeared clock goes about a leap second."""

    UNSPECIFIED = 0
    NOON_LINEAR = 1
    UTC_SLS = 2


class HardwareCounter(IntEnum):
    """Counters that a clock may be read together with; 0xF0 to 0xFE are an implementation's own."""

    ARM_VCT = 0
    X86_TSC = 1
    INVALID = 0xFF


NOTIF_ALARM = 0x2000
"""Message type of the alarm queue: an alarm has expired."""
FLAG_ALARM_CAP = 1 << 0
"""Bit of `flags` in the answer to CLOCK_CAP: the clock has an alarm."""
FLAG_CROSS_CAP = 1 << 0
"""Bit of `flags` in the answer to CROSS_CAP: the clock can be read with this counter."""
FLAG_ALARM_ENABLED = 1 << 0
"""Bit of `flags` in READ_ALARM's answer, SET_ALARM and SET_ALARM_ENABLED."""

REQUEST_HEAD = Layout("virtio_rtc_req_head", "<H6s", "msg_type", "head_reserved")
RESPONSE_HEAD = Layout("virtio_rtc_resp_head", "<B7s", "status", "head_reserved")

_WITH_CLOCK = ("<H6sH6s", "msg_type", "head_reserved", "clock_id", "reserved")
_WITH_COUNTER = ("<H6sHB5s", "msg_type", "head_reserved", "clock_id", "hw_counter", "reserved")

REQUESTS: dict[RtcRequest, Layout] = {
    RtcRequest.READ: Layout("virtio_rtc_req_read", *_WITH_CLOCK),
    RtcRequest.READ_CROSS: Layout("virtio_rtc_req_read_cross", *_WITH_COUNTER),
    RtcRequest.CFG: Layout("virtio_rtc_req_cfg", "<H6s", "msg_type", "head_reserved"),
    RtcRequest.CLOCK_CAP: Layout("virtio_rtc_req_clock_cap", *_WITH_CLOCK),
    RtcRequest.CROSS_CAP: Layout("virtio_rtc_req_cross_cap", *_WITH_COUNTER),
    RtcRequest.READ_ALARM: Layout("virtio_rtc_req_read_alarm", *_WITH_CLOCK),
    RtcRequest.SET_ALARM: Layout(
        "virtio_rtc_req_set_alarm",
        "<H6sQHB5s",
        "msg_type",
        "head_reserved",
        "alarm_time",
        "clock_id",
        "flags",
        "reserved",
    ),
    RtcRequest.SET_ALARM_ENABLED: Layout(
        "virtio_rtc_req_set_alarm_enabled",
        "<H6sHB5s",
        "msg_type",
        "head_reserved",
        "clock_id",
        "flags",
        "reserved",
    ),
}
"""What the driver gives to read, with its head."""

_HEAD_ONLY = ("<B7s", "status", "head_reserved")

RESPONSES: dict[RtcRequest, Layout] = {
    RtcRequest.READ: Layout(
        "virtio_rtc_resp_read", "<B7sQ", "status", "head_reserved", "clock_reading"
    ),
    RtcRequest.READ_CROSS: Layout(
        "virtio_rtc_resp_read_cross",
        "<B7sQQ",
        "status",
        "head_reserved",
        "clock_reading",
        "counter_cycles",
    ),
    RtcRequest.CFG: Layout(
        "virtio_rtc_resp_cfg", "<B7sH6s", "status", "head_reserved", "num_clocks", "reserved"
    ),
    RtcRequest.CLOCK_CAP: Layout(
        "virtio_rtc_resp_clock_cap",
        "<B7sBBB5s",
        "status",
        "head_reserved",
        "type",
        "leap_second_smearing",
        "flags",
        "reserved",
    ),
    RtcRequest.CROSS_CAP: Layout(
        "virtio_rtc_resp_cross_cap", "<B7sB7s", "status", "head_reserved", "flags", "reserved"
    ),
    RtcRequest.READ_ALARM: Layout(
        "virtio_rtc_resp_read_alarm",
        "<B7sQB7s",
        "status",
        "head_reserved",
        "alarm_time",
        "flags",
        "reserved",
    ),
    RtcRequest.SET_ALARM: Layout("virtio_rtc_resp_set_alarm", *_HEAD_ONLY),
    RtcRequest.SET_ALARM_ENABLED: Layout("virtio_rtc_resp_set_alarm_enabled", *_HEAD_ONLY),
}
"""The device's answer, with its head; a refusal is its head alone."""

NOTIFICATION = Layout(
    "virtio_rtc_notif_alarm", "<H6sH6s", "msg_type", "head_reserved", "clock_id", "reserved"
)
"""What the device writes into a buffer of the alarm queue."""
