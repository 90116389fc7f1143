"""A driver for virtio devices on PCI, for a halted machine: it does what a test says."""

from __future__ import annotations

from vuproc.spec.layout import Layout
from vuproc.spec.virtio import Feature, Status
from vuproc.testing.vms.errors import GuestFailed
from vuproc.testing.vms.pci import PciFunction
from vuproc.testing.vms.pci_queue import COMPLETION_TIMEOUT_S, PciQueue, poll_until
from vuproc.testing.vms.qtest import HaltedQemu

VIRTIO_VENDOR = 0x1AF4
CAPABILITY_VENDOR = 0x09

# virtio 1.3 section 4.1.4: the kinds of a vendor capability, the common configuration structure.
COMMON_CFG, NOTIFY_CFG, _ISR_CFG, DEVICE_CFG = 1, 2, 3, 4
COMMON = Layout(
    "virtio_pci_common_cfg",
    "<IIIIHHBBHHHHHQQQ",
    "device_feature_select",
    "device_feature",
    "driver_feature_select",
    "driver_feature",
    "config_msix_vector",
    "num_queues",
    "device_status",
    "config_generation",
    "queue_select",
    "queue_size",
    "queue_msix_vector",
    "queue_enable",
    "queue_notify_off",
    "queue_desc",
    "queue_driver",
    "queue_device",
)
_ENDS = [*list(COMMON.offsets.values())[1:], COMMON.size]
WIDTH = {name: end - COMMON.offsets[name] for name, end in zip(COMMON.fields, _ENDS, strict=True)}


class VirtioPci:
    """A modern virtio device in a slot of a halted machine."""

    def __init__(self, machine: HaltedQemu, slot: int) -> None:
        self.machine = machine
        self.function = PciFunction(machine, slot)
        if self.function.vendor != VIRTIO_VENDOR:
            raise GuestFailed(f"slot {slot} holds no virtio device")
        self._areas: dict[int, int] = {}
        self._notify_multiplier = 0
        for capability in self.function.capabilities:
            if capability.id == CAPABILITY_VENDOR:
                self._take_capability(capability.offset)
        self._words = self.function.enable_msix(self.common("num_queues") + 1)
        self.features = 0

    def _take_capability(self, offset: int) -> None:
        kind = self.function.config_read(offset + 3, 1)
        bar = self.function.config_read(offset + 4, 1)
        if bar in self.function.windows and kind not in self._areas:
            start = self.function.config_read(offset + 8, 4)
            self._areas[kind] = self.function.windows[bar] + start
            if kind == NOTIFY_CFG:
                self._notify_multiplier = self.function.config_read(offset + 16, 4)

    def common(self, field: str) -> int:
        """Reads a field of the common configuration."""
        at = self._areas[COMMON_CFG] + COMMON.offsets[field]
        return self.machine.read_register(at, WIDTH[field])

    def set_common(self, field: str, value: int) -> None:
        """Writes a field of the common configuration; 64-bit ones in halves as the rules ask."""
        at = self._areas[COMMON_CFG] + COMMON.offsets[field]
        if WIDTH[field] == 8:
            self.machine.write_register(at, 4, value & 0xFFFFFFFF)
            self.machine.write_register(at + 4, 4, value >> 32)
        else:
            self.machine.write_register(at, WIDTH[field], value)

    def config(self, offset: int, size: int) -> bytes:
        """Bytes of the device's own configuration, as QEMU shows them."""
        at = self._areas[DEVICE_CFG] + offset
        return bytes(self.machine.read_register(at + byte, 1) for byte in range(size))

    def set_config(self, offset: int, data: bytes) -> None:
        """Writes the device's own configuration, byte by byte."""
        for place, byte in enumerate(data):
            self.machine.write_register(self._areas[DEVICE_CFG] + offset + place, 1, byte)

    @property
    def status(self) -> Status:
        """The device status."""
        return Status(self.common("device_status"))

    def add_status(self, bits: Status) -> None:
        """Sets bits of the device status."""
        self.set_common("device_status", self.status | bits)

    def reset(self) -> None:
        """Resets the device and waits until it says that it is done."""
        self.set_common("device_status", 0)
        poll_until(lambda: self.status == 0, COMPLETION_TIMEOUT_S, "the device stays in reset")

    def offered(self) -> int:
        """The feature bits that the device offers."""
        bits = 0
        for half in (0, 1):
            self.set_common("device_feature_select", half)
            bits |= self.common("device_feature") << 32 * half
        return bits

    def negotiate(self, wanted: int) -> int:
        """Reset to FEATURES_OK; takes what is both offered and wanted, and VERSION_1."""
        self.reset()
        self.add_status(Status.ACKNOWLEDGE)
        self.add_status(Status.DRIVER)
        self.features = self.offered() & (wanted | Feature.VERSION_1)
        for half in (0, 1):
            self.set_common("driver_feature_select", half)
            self.set_common("driver_feature", self.features >> 32 * half & 0xFFFFFFFF)
        self.add_status(Status.FEATURES_OK)
        if not self.status & Status.FEATURES_OK:
            raise GuestFailed(f"the device refused the features {self.features:#x}")
        self.set_common("config_msix_vector", len(self._words) - 1)
        return self.features

    def queue(self, index: int, size: int = 128) -> PciQueue:
        """Sets up a queue with memory of its own, and an interrupt if the device has one for it,
        which is that of others otherwise; and enables it.
        """
        self.set_common("queue_select", index)
        size = min(size, self.common("queue_size"))
        notify = self.common("queue_notify_off") * self._notify_multiplier
        vector = min(index, len(self._words) - 1)
        queue = PciQueue(
            self.machine,
            index,
            size=size,
            notify=self._areas[NOTIFY_CFG] + notify,
            word=self._words[vector],
            event_idx=bool(self.features & Feature.EVENT_IDX),
        )
        self.set_common("queue_size", size)
        self.set_common("queue_msix_vector", vector)
        if self.common("queue_msix_vector") != vector:
            raise GuestFailed(f"the device has no interrupt {vector} for its queue {index}")
        self.set_common("queue_desc", queue.desc)
        self.set_common("queue_driver", queue.avail)
        self.set_common("queue_device", queue.used)
        self.set_common("queue_enable", 1)
        return queue

    def start(self) -> None:
        """DRIVER_OK: from here on the device serves its queues."""
        self.add_status(Status.DRIVER_OK)
