"""Real clients of a vhost-user device, started and driven from Python: for tests and the demo."""

from vuproc.testing.guests.blkio import Blkio, BlkioMemory, BlkioQueue
from vuproc.testing.guests.errors import ClientMissing, GuestFailed
from vuproc.testing.guests.linux import LinuxGuest, Report
from vuproc.testing.guests.pci_queue import PciQueue, Segment
from vuproc.testing.guests.qemu import VhostUserDevice, boot_qemu
from vuproc.testing.guests.qtest import HaltedQemu
from vuproc.testing.guests.uml import boot_uml
from vuproc.testing.guests.virtio_pci import VirtioPci

__all__ = [
    "Blkio",
    "BlkioMemory",
    "BlkioQueue",
    "ClientMissing",
    "GuestFailed",
    "HaltedQemu",
    "LinuxGuest",
    "PciQueue",
    "Report",
    "Segment",
    "VhostUserDevice",
    "VirtioPci",
    "boot_qemu",
    "boot_uml",
]
