"""The guest side and the front-end side, for tests of devices."""

from vuproc.testing.bell import Bell, BellKind
from vuproc.testing.block import Block
from vuproc.testing.errors import BackendFault, LoadStalled, NoCompletion, NoReply, Refused
from vuproc.testing.frontend import FrontEnd
from vuproc.testing.guest import Guest
from vuproc.testing.job import Job, Kind, Stats
from vuproc.testing.memory import Ram, RamRegion
from vuproc.testing.queue import Completion
from vuproc.testing.serve import Served, serve

__all__ = [
    "BackendFault",
    "Bell",
    "BellKind",
    "Block",
    "Completion",
    "FrontEnd",
    "Guest",
    "Job",
    "Kind",
    "LoadStalled",
    "NoCompletion",
    "NoReply",
    "Ram",
    "RamRegion",
    "Refused",
    "Served",
    "Stats",
    "serve",
]
