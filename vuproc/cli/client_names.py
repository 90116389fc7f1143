"""What clients call the device types."""

from __future__ import annotations

from typing import NamedTuple


class QemuDevice(NamedTuple):
    """A vhost-user device of QEMU; `since` is the first version with it, "" for long ago."""

    name: str
    """For a machine with PCI."""
    plain: str
    """For one without, such as microvm."""
    since: str = ""


NAMES: dict[int, str] = {
    1: "network device",
    2: "block device",
    3: "console",
    4: "entropy source",
    5: "balloon",
    8: "SCSI host",
    16: "GPU",
    17: "real-time clock",
    18: "input device",
    19: "socket device",
    20: "crypto device",
    25: "sound device",
    26: "file system",
    27: "pmem device",
    32: "SCMI device",
    34: "I2C adapter",
    36: "CAN controller",
    40: "Bluetooth device",
    41: "GPIO controller",
    45: "SPI controller",
}
"""virtio 1.3, section 5, in words."""

SPELT = ("scmi", "spi")
"""Those of its short names that are spoken letter by letter, from a consonant that sounds as es."""

QEMU_DEVICES: dict[int, QemuDevice] = {
    2: QemuDevice("vhost-user-blk-pci", "vhost-user-blk"),
    4: QemuDevice("vhost-user-rng-pci", "vhost-user-rng", "7.2"),
    8: QemuDevice("vhost-user-scsi-pci", "vhost-user-scsi"),
    16: QemuDevice("vhost-user-gpu-pci", "vhost-user-gpu"),
    17: QemuDevice("vhost-user-rtc-pci", "vhost-user-rtc", "11.1"),
    18: QemuDevice("vhost-user-input-pci", "vhost-user-input"),
    19: QemuDevice("vhost-user-vsock-pci", "vhost-user-vsock-device"),
    25: QemuDevice("vhost-user-snd-pci", "vhost-user-snd", "10.0"),
    26: QemuDevice("vhost-user-fs-pci", "vhost-user-fs-device"),
    34: QemuDevice("vhost-user-i2c-pci", "vhost-user-i2c-device"),
    41: QemuDevice("vhost-user-gpio-pci", "vhost-user-gpio-device", "7.2"),
    45: QemuDevice("vhost-user-spi-pci", "vhost-user-spi-device", "11.1"),
}

CROSVM_TYPES: dict[int, str] = {
    1: "net",
    2: "block",
    3: "console",
    4: "rng",
    5: "balloon",
    8: "scsi",
    16: "gpu",
    18: "input",
    19: "vsock",
    25: "sound",
    26: "fs",
    27: "pmem",
    32: "scmi",
}
"""The words of crosvm's --vhost-user."""
