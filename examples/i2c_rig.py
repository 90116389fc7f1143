"""A bus with a chip of one's own: a device file has `type: ./i2c_rig.py:Rig`."""

from vuproc.devices.i2c import I2c
from vuproc.devices.i2c_chips import Chip, Nak


class Pump(Chip):
    """Register 0 is the speed, register 1 the flow. A speed of 0xff breaks it for good."""

    memory_size = 2  # outlives a worker, as does self.position

    def write(self, data: bytes) -> None:
        """A register's number, and perhaps its value."""
        if self.memory[0] == 0xFF:
            raise Nak("it does not answer any more")
        if data:
            self.position = data[0] & 1
        if len(data) > 1 and self.position == 0:
            self.memory[0], self.memory[1] = data[1], data[1] // 2

    def read(self, count: int) -> bytes:
        """The register."""
        return bytes(self.memory[self.position :][:1])


class Rig(I2c):
    """The chips of the device file, and a pump."""

    def chips(self) -> dict[int, Chip]:
        """By address."""
        return {**super().chips(), 0x2A: Pump()}
