"""Virtio devices outside the VMM: one process a virtqueue, devices written in Python.

The names below are what a device author needs, and whoever serves a device from a program; each is
imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vuproc.daemon import Connect, Daemon
    from vuproc.device import Device
    from vuproc.errors import RequestFinished, VuprocError
    from vuproc.fd import Fd
    from vuproc.options import FilePath, Options, Size
    from vuproc.sandbox.needs import Needs
    from vuproc.shm.batch import Batch
    from vuproc.shm.request import Request

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "Connect",
    "Daemon",
    "Device",
    "Fd",
    "FilePath",
    "Needs",
    "Options",
    "Request",
    "RequestFinished",
    "Size",
    "VuprocError",
    "__version__",
]

# spec and errors import nothing of ours, so the package itself may import nothing on their behalf.
_HOMES = {
    "Batch": "vuproc.shm.batch",
    "Connect": "vuproc.daemon",
    "Daemon": "vuproc.daemon",
    "Device": "vuproc.device",
    "Fd": "vuproc.fd",
    "FilePath": "vuproc.options",
    "Needs": "vuproc.sandbox.needs",
    "Options": "vuproc.options",
    "Request": "vuproc.shm.request",
    "RequestFinished": "vuproc.errors",
    "Size": "vuproc.options",
    "VuprocError": "vuproc.errors",
}


def __getattr__(name: str) -> object:
    """Import a public name from the module that defines it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
