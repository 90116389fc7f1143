"""Numbers and layouts of the I2C adapter device (virtio 1.3 section 5.16)."""

from __future__ import annotations

from enum import IntEnum, IntFlag

from vuproc.spec.layout import Layout

SEVEN_BIT_MAX = 0x7F
TEN_BIT_MAX = 0x3FF
TEN_BIT_MARK, TEN_BIT_MASK = 0xF0, 0xF9
"""What the low byte of a 10-bit address looks like, but for two bits of it (5.16.6.1)."""


class I2cFeature(IntFlag):
    """Feature bits (virtio 1.3 section 5.16.3)."""

    ZERO_LENGTH_REQUEST = 1 << 0


class I2cFlag(IntFlag):
    """Flags of a request (5.16.6.1)."""

    FAIL_NEXT = 1 << 0
    M_RD = 1 << 1


class I2cStatus(IntEnum):
    """The last byte of a request (5.16.6.1)."""

    OK = 0
    ERR = 1


OUT_HEADER = Layout("virtio_i2c_out_hdr", "<HHI", "addr", "padding", "flags")
"""What each request begins with (5.16.6.1)."""


def address_of(addr: int) -> tuple[int, bool] | None:
    """The address in a request's `addr`, and whether it has 10 bits; None: it is none."""
    if addr & TEN_BIT_MASK == TEN_BIT_MARK:
        return (addr & 0x06) << 7 | addr >> 8, True
    return None if addr & 1 or addr >> 8 else (addr >> 1, False)


def in_request(address: int, ten_bit: bool = False) -> int:
    """The `addr` of an address."""
    if not ten_bit:
        return address << 1
    return (address & 0xFF) << 8 | TEN_BIT_MARK | address >> 7 & 0x06
