"""All faults of a soak, by name."""

from __future__ import annotations

from tests.soak.fault import Fault
from tests.soak.faults.clock_jump import ClockJump
from tests.soak.faults.full_disk import FullDisk
from tests.soak.faults.full_shm import FullShm
from tests.soak.faults.master_death import MasterDeath
from tests.soak.faults.no_descriptors import NoDescriptors
from tests.soak.faults.no_memory import NoMemory
from tests.soak.faults.reconnection import Reconnection
from tests.soak.faults.reloading import Reloading
from tests.soak.faults.stopped import Stopped
from tests.soak.faults.upgrading import Upgrading
from tests.soak.faults.worker_death import WorkerDeath

FAULTS: tuple[type[Fault], ...] = (
    Reconnection,
    WorkerDeath,
    MasterDeath,
    Reloading,
    Upgrading,
    FullDisk,
    FullShm,
    NoDescriptors,
    NoMemory,
    Stopped,
    ClockJump,
)
