"""Numbers and layouts of the SCSI host device (virtio 1.3 section 5.6)."""

from __future__ import annotations

from enum import IntEnum, IntFlag

from vuproc.spec.layout import Layout

CONTROL, EVENT, FIRST_REQUEST = 0, 1, 2
"""Queues (5.6.2): requests have this one and those after it."""

SENSE_SIZE, CDB_SIZE = 96, 32
"""Bytes of sense data and of a command in each request, until the driver says others (5.6.4)."""
LUN_BYTES = 8


class ScsiFeature(IntFlag):
    """Feature bits of the SCSI host (virtio 1.3 section 5.6.3)."""

    INOUT = 1 << 0
    HOTPLUG = 1 << 1
    CHANGE = 1 << 2
    T10_PI = 1 << 3


class ScsiResponse(IntEnum):
    """What became of a request, of either kind (5.6.6.1 and 5.6.6.2)."""

    OK = 0
    """Of a task management function: it is complete."""
    OVERRUN = 1
    ABORTED = 2
    BAD_TARGET = 3
    RESET = 4
    BUSY = 5
    TRANSPORT_FAILURE = 6
    TARGET_FAILURE = 7
    NEXUS_FAILURE = 8
    FAILURE = 9
    FUNCTION_SUCCEEDED = 10
    FUNCTION_REJECTED = 11
    INCORRECT_LUN = 12


class ControlType(IntEnum):
    """Requests of the control queue (5.6.6.2)."""

    TMF = 0
    AN_QUERY = 1
    AN_SUBSCRIBE = 2


class Tmf(IntEnum):
    """Task management functions (5.6.6.2)."""

    ABORT_TASK = 0
    ABORT_TASK_SET = 1
    CLEAR_ACA = 2
    CLEAR_TASK_SET = 3
    I_T_NEXUS_RESET = 4
    LOGICAL_UNIT_RESET = 5
    QUERY_TASK = 6
    QUERY_TASK_SET = 7


class ScsiEvent(IntEnum):
    """Events (5.6.6.3)."""

    NO_EVENT = 0
    TRANSPORT_RESET = 1
    ASYNC_NOTIFY = 2
    PARAM_CHANGE = 3


EVENTS_MISSED = 0x80000000
"""Bit of an event: others before it are lost."""


class ResetReason(IntEnum):
    """Why a transport was reset (5.6.6.3)."""

    HARD = 0
    RESCAN = 1
    REMOVED = 2


CONFIG = Layout(
    "virtio_scsi_config",
    "<IIIIIIIHHI",
    "num_queues",
    "seg_max",
    "max_sectors",
    "cmd_per_lun",
    "event_info_size",
    "sense_size",
    "cdb_size",
    "max_channel",
    "max_target",
    "max_lun",
)
"""Config space, 36 bytes (5.6.4); the driver may write sense_size and cdb_size."""

REQUEST = Layout("virtio_scsi_req_cmd", "<8sQBBB", "lun", "id", "task_attr", "prio", "crn")
"""What a request begins with; the command follows, of cdb_size bytes, and data for the device."""

RESPONSE = Layout(
    "virtio_scsi_resp_cmd",
    "<IIHBB",
    "sense_len",
    "residual",
    "status_qualifier",
    "status",
    "response",
)
"""What the answer begins with; sense data follows, of sense_size bytes, and data of the device."""

TMF_REQUEST = Layout("virtio_scsi_ctrl_tmf", "<II8sQ", "type", "subtype", "lun", "id")
AN_REQUEST = Layout("virtio_scsi_ctrl_an", "<I8sI", "type", "lun", "event_requested")
AN_RESPONSE = Layout("virtio_scsi_ctrl_an_resp", "<IB", "event_actual", "response")
EVENT_INFO = Layout("virtio_scsi_event", "<I8sI", "event", "lun", "reason")
