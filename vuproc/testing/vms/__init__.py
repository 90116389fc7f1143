"""Real clients of a vhost-user device, started and driven from Python: for tests and the demo."""

from vuproc.testing.vms.blkio import Blkio, BlkioMemory, BlkioQueue
from vuproc.testing.vms.clients import Qemu
from vuproc.testing.vms.dpdk import Dpdk, DpdkBackend, PortRates, PortStats
from vuproc.testing.vms.errors import ClientMissing, GuestFailed
from vuproc.testing.vms.linux import LinuxGuest, Report
from vuproc.testing.vms.pci_queue import PciQueue, Segment
from vuproc.testing.vms.qemu import VhostUserDevice, VhostUserNet, boot_qemu
from vuproc.testing.vms.qtest import HaltedQemu
from vuproc.testing.vms.uml import boot_uml
from vuproc.testing.vms.virtio_pci import VirtioPci

__all__ = [
    "Blkio",
    "BlkioMemory",
    "BlkioQueue",
    "ClientMissing",
    "Dpdk",
    "DpdkBackend",
    "GuestFailed",
    "HaltedQemu",
    "LinuxGuest",
    "PciQueue",
    "PortRates",
    "PortStats",
    "Qemu",
    "Report",
    "Segment",
    "VhostUserDevice",
    "VhostUserNet",
    "VirtioPci",
    "boot_qemu",
    "boot_uml",
]
