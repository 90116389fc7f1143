"""Chips that are simulated, and what a chip of one's own is made of."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

MOST_MEMORY = 1 << 20
"""Bytes of one chip."""
ADDRESS_BITS = 8
"""Bits of each byte that says where to read or write."""
ERASED = 0xFF
"""What an EEPROM holds that was never written."""


class Nak(Exception):
    """A chip does not acknowledge: the driver is told that its request has failed."""


class Chip:
    """One chip on the bus. Subclass it, and write `write` and `read`.

    What is in `memory`, and the number in `position`, outlives workers; attributes do not. What a
    dead worker has done of a request is done again from the position that it began at.
    """

    memory_size: int = 0
    """Bytes of `memory`."""
    file: str | None = None
    """Where the memory is kept, if it is to outlive vuproc."""
    memory: memoryview = memoryview(b"")
    position: int
    """A number of the chip's own, as a rule where the next byte is read from."""

    def initial(self) -> bytes:
        """What the memory begins with; zeros after it."""
        return b""

    def attached(self) -> None:
        """The memory and the position are there: called once in each worker."""

    @abstractmethod
    def write(self, data: bytes) -> None:
        """The driver writes; nothing to see whether somebody is there. Raise Nak to refuse."""

    @abstractmethod
    def read(self, count: int) -> bytes:
        """The driver reads so many bytes: the answer is cut, or filled with 0xff. Nak likewise."""

    def set(self, name: str, value: str) -> None:
        """Somebody outside sets something. ValueError if there is no such thing."""
        raise ValueError(f"{type(self).__name__.lower()} has no {name}")


class Memory(Chip):
    """Bytes with an address: what is written is that address, and what follows goes there. Reading
    goes on from the last one. At the end both begin again.
    """

    def __init__(self, size: int, content: bytes = b"", file: str | None = None) -> None:
        """Up to 256 bytes have an address of one byte, more have one of two."""
        self.memory_size = size
        self.file = file
        self._content = content
        self._address_bytes = 1 if size <= 1 << ADDRESS_BITS else 2

    def initial(self) -> bytes:
        """What the device file has."""
        return self._content

    def write(self, data: bytes) -> None:
        """The address, and perhaps bytes."""
        if not data:
            return
        if len(data) < self._address_bytes:
            raise Nak(f"{len(data)} bytes are no address")
        at = int.from_bytes(data[: self._address_bytes], "big")
        for number, byte in enumerate(data[self._address_bytes :], start=at):
            self.memory[number % self.memory_size] = byte
        self.position = (at + len(data) - self._address_bytes) % self.memory_size

    def read(self, count: int) -> bytes:
        """From the position on."""
        at = self.position
        self.position = (at + count) % self.memory_size
        return bytes(self.memory[number % self.memory_size] for number in range(at, at + count))


class Registers(Memory):
    """A map of registers, a byte each."""


class Eeprom(Memory):
    """An EEPROM, such as a 24C02: without pages, and written at once."""

    def initial(self) -> bytes:
        """Erased after what the device file has."""
        return super().initial().ljust(self.memory_size, bytes([ERASED]))


class Lm75(Chip):
    """A temperature sensor LM75: four registers, the first of which is the temperature."""

    memory_size = 7
    places: ClassVar = ((0, 2), (2, 3), (3, 5), (5, 7))
    """Of temperature, configuration, hysteresis and limit in the memory."""

    def __init__(self, celsius: float = 25.0) -> None:
        self._celsius = celsius

    def initial(self) -> bytes:
        """The temperature; 75 and 80 degrees are the limits after a reset."""
        return degrees(self._celsius) + b"\0" + degrees(75) + degrees(80)

    def write(self, data: bytes) -> None:
        """The number of a register, and perhaps its new value."""
        if not data:
            return
        self.position = data[0] & 3
        begin, end = self.places[self.position]
        if len(data) > 1 and self.position != 0:  # the temperature is not to be written
            value = data[1:][: end - begin]
            self.memory[begin : begin + len(value)] = value

    def read(self, count: int) -> bytes:
        """The register that was named last."""
        begin, end = self.places[self.position & 3]
        return bytes(self.memory[begin:end])[:count]

    def set(self, name: str, value: str) -> None:
        """`temperature`, in degrees Celsius."""
        if name != "temperature":
            super().set(name, value)
        self.temperature = float(value)

    @property
    def temperature(self) -> float:
        """In degrees Celsius, in steps of a half."""
        return int.from_bytes(self.memory[:2], "big", signed=True) / 256

    @temperature.setter
    def temperature(self, celsius: float) -> None:
        self.memory[:2] = degrees(celsius)


def degrees(celsius: float) -> bytes:
    """As the sensor has it: 9 bits, in halves of a degree. ValueError beyond what it measures."""
    if not -55 <= celsius <= 125:
        raise ValueError(f"{celsius:g} is not from -55 to 125 degrees")
    return (round(celsius * 2) * 128).to_bytes(2, "big", signed=True)
