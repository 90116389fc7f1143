"""A PCI function of a halted machine: its configuration space, memory windows and capabilities."""

from __future__ import annotations

from dataclasses import dataclass

from vuproc.testing.vms.errors import GuestFailed
from vuproc.testing.vms.qtest import HaltedQemu

# PCI local bus 3.0 section 3.2.2.3.2: the address and data ports of configuration space.
CONFIG_ADDRESS = 0xCF8
CONFIG_DATA = 0xCFC
VENDOR_ID = 0x00
DEVICE_ID = 0x02
COMMAND = 0x04
STATUS = 0x06
FIRST_BAR = 0x10
BARS = 6
CAPABILITIES = 0x34
COMMAND_MEMORY_AND_MASTER = 0x6
STATUS_HAS_CAPABILITIES = 0x10
BAR_IO = 0x1
BAR_64_BIT = 0x4
CAPABILITY_MSIX = 0x11
# PCI local bus 3.0 section 6.8.2.3: message control of MSI-X.
MSIX_SIZE = 0x7FF
MSIX_ENABLE = 0x8000
# Where windows go: above any memory of the machines here, below the chipset's own addresses. Each
# slot has its own stretch, so that functions need not know of each other.
WINDOWS = 0xE0000000
WINDOW_STRETCH = 0x01000000
# At most 48 capabilities of 4 bytes fit behind the header.
CAPABILITIES_MAX = 48


@dataclass(frozen=True)
class Capability:
    """One entry of the list: its id and its offset in configuration space."""

    id: int
    offset: int


class PciFunction:
    """Function 0 of a slot on bus 0, its windows assigned and switched on."""

    def __init__(self, machine: HaltedQemu, slot: int) -> None:
        self.machine = machine
        self.slot = slot
        self.vendor = self.config_read(VENDOR_ID, 2)
        self.device = self.config_read(DEVICE_ID, 2)
        if self.vendor == 0xFFFF:
            raise GuestFailed(f"there is no PCI device in slot {slot}")
        self.windows = self._assign_windows()
        self.config_write(COMMAND, 2, COMMAND_MEMORY_AND_MASTER)
        self.capabilities = self._list_capabilities()

    def _select(self, offset: int) -> int:
        """Points the data port at a register; returns the port for byte `offset`."""
        self.machine.port_write(CONFIG_ADDRESS, 4, 1 << 31 | self.slot << 11 | (offset & 0xFC))
        return CONFIG_DATA + (offset & 3)

    def config_read(self, offset: int, size: int) -> int:
        """Reads 1, 2 or 4 bytes of configuration space."""
        return self.machine.port_read(self._select(offset), size)

    def config_write(self, offset: int, size: int, value: int) -> None:
        """Writes 1, 2 or 4 bytes of configuration space."""
        self.machine.port_write(self._select(offset), size, value)

    def _assign_windows(self) -> dict[int, int]:
        """Gives each memory BAR an address; BAR number -> address."""
        windows: dict[int, int] = {}
        free = WINDOWS + self.slot * WINDOW_STRETCH
        bar = 0
        while bar < BARS:
            register = FIRST_BAR + 4 * bar
            self.config_write(register, 4, 0xFFFFFFFF)
            mask = self.config_read(register, 4)
            wide = not mask & BAR_IO and mask & BAR_64_BIT
            if mask & ~0xF and not mask & BAR_IO:
                size = -(mask & ~0xF) & 0xFFFFFFFF
                free = -(-free // size) * size
                self.config_write(register, 4, free)
                if wide:
                    self.config_write(register + 4, 4, 0)
                windows[bar] = free
                free += size
            bar += 2 if wide else 1
        return windows

    def _list_capabilities(self) -> list[Capability]:
        found: list[Capability] = []
        if not self.config_read(STATUS, 2) & STATUS_HAS_CAPABILITIES:
            return found
        offset = self.config_read(CAPABILITIES, 1)
        while offset and len(found) < CAPABILITIES_MAX:
            found.append(Capability(self.config_read(offset, 1), offset))
            offset = self.config_read(offset + 1, 1)
        return found

    def enable_msix(self, vectors: int) -> list[int]:
        """Points the first vectors at words of guest memory; returns the words' addresses, which
        are fewer if the device has no more.

        An interrupt of vector n is then a store of n + 1 into the word, which a test can see.
        """
        capability = next(each for each in self.capabilities if each.id == CAPABILITY_MSIX)
        table = self.config_read(capability.offset + 4, 4)
        entries = self.windows[table & 7] + (table & ~7)
        control = self.config_read(capability.offset + 2, 2)
        words = []
        for vector in range(min(vectors, (control & MSIX_SIZE) + 1)):
            word = self.machine.allocate(4, 4)
            self.machine.write_register(entries + 16 * vector, 4, word)
            self.machine.write_register(entries + 16 * vector + 4, 4, 0)
            self.machine.write_register(entries + 16 * vector + 8, 4, vector + 1)
            self.machine.write_register(entries + 16 * vector + 12, 4, 0)
            words.append(word)
        self.config_write(capability.offset + 2, 2, control | MSIX_ENABLE)
        return words
