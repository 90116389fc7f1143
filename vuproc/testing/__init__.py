"""The guest side and the front-end side, for tests of devices: see docs/testing.md."""

from vuproc.ops.status import QueueStatus, Status
from vuproc.testing.bell import Bell, BellKind
from vuproc.testing.block import Block, Outcome
from vuproc.testing.channel import BackEndChannel
from vuproc.testing.dirty import DirtyBitmap
from vuproc.testing.errors import (
    BackendFault,
    LoadStalled,
    NoCompletion,
    NoConfigChange,
    NoReply,
    NotOffered,
    OutOfMemory,
    Refused,
    RingFull,
    ServeFailed,
)
from vuproc.testing.frontend import FrontEnd
from vuproc.testing.guest import Guest
from vuproc.testing.inflight import InflightRegion
from vuproc.testing.job import Job, Kind, Stats
from vuproc.testing.memory import Allocation, Ram, RamRegion
from vuproc.testing.queue import Completion, DriverQueue
from vuproc.testing.serve import Served, serve

__all__ = [
    "Allocation",
    "BackEndChannel",
    "BackendFault",
    "Bell",
    "BellKind",
    "Block",
    "Completion",
    "DirtyBitmap",
    "DriverQueue",
    "FrontEnd",
    "Guest",
    "InflightRegion",
    "Job",
    "Kind",
    "LoadStalled",
    "NoCompletion",
    "NoConfigChange",
    "NoReply",
    "NotOffered",
    "OutOfMemory",
    "Outcome",
    "QueueStatus",
    "Ram",
    "RamRegion",
    "Refused",
    "RingFull",
    "ServeFailed",
    "Served",
    "Stats",
    "Status",
    "serve",
]
