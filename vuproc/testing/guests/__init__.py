"""Real clients of a vhost-user device, started and driven from Python: for tests and the demo."""

from vuproc.testing.guests.errors import ClientMissing, GuestFailed
from vuproc.testing.guests.linux import LinuxGuest, Report
from vuproc.testing.guests.qemu import VhostUserDevice, boot_qemu
from vuproc.testing.guests.uml import boot_uml

__all__ = [
    "ClientMissing",
    "GuestFailed",
    "LinuxGuest",
    "Report",
    "VhostUserDevice",
    "boot_qemu",
    "boot_uml",
]
