"""An SPI controller with one chip: a thermometer that warms up. In a device file:

socket: ./thermometer.sock
device: {type: ./thermometer.py:Board}
"""

import time

from vuproc.devices.spi import Spi
from vuproc.devices.spi_chip import Chip

DEGREES_A_MINUTE = 2


class Thermometer(Chip):
    """Sixteenths of a degree Celsius in two bytes, whatever is asked."""

    repeatable = True

    def __init__(self) -> None:
        self.since = time.monotonic()

    def transfer(self, tx: bytes, rx_length: int) -> bytes:
        """One transfer: what is sent counts for nothing."""
        degrees = 20 + (time.monotonic() - self.since) / 60 * DEGREES_A_MINUTE
        return int(degrees * 16).to_bytes(2, "big")


class Board(Spi):
    """virtio-spi: with a thermometer at chip select 0."""

    def make_chip(self, select: int) -> Chip:
        """Called in the worker, for each chip select of the option `chips`."""
        return Thermometer()
