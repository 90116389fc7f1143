"""Numbers and layouts of the SPI controller (virtio 1.4 section 5.21)."""

from __future__ import annotations

from enum import IntEnum, IntFlag

from vuproc.spec.layout import Layout


class SpiResult(IntEnum):
    """How a transfer ended."""

    TRANS_OK = 0
    PARAM_ERR = 1
    TRANS_ERR = 2


class SpiMode(IntFlag):
    """Bits of `mode` of a transfer."""

    CPHA = 1 << 0
    CPOL = 1 << 1
    CS_HIGH = 1 << 2
    LSB_FIRST = 1 << 3
    LOOP = 1 << 4


class SpiSupport(IntFlag):
    """Bits of `mode_func_supported` in the configuration space."""

    CPHA_0 = 1 << 0
    CPHA_1 = 1 << 1
    CPOL_0 = 1 << 2
    CPOL_1 = 1 << 3
    CS_HIGH = 1 << 4
    LSB_FIRST = 1 << 5
    LOOPBACK = 1 << 6


SINGLE = (0, 1)
"""Values of `tx_nbits` and `rx_nbits` for one wire; 2, 4 and 8 are for as many."""

CONFIG = Layout(
    "virtio_spi_config",
    "<BBBBIIIIIII",
    "cs_max_number",
    "cs_change_supported",
    "tx_nbits_supported",
    "rx_nbits_supported",
    "bits_per_word_mask",
    "mode_func_supported",
    "max_freq_hz",
    "max_word_delay_ns",
    "max_cs_setup_ns",
    "max_cs_hold_ns",
    "max_cs_inactive_ns",
)
"""Config space, 32 bytes."""

TRANSFER_HEAD = Layout(
    "virtio_spi_transfer_head",
    "<BBBBB3xIIIIII",
    "chip_select_id",
    "bits_per_word",
    "cs_change",
    "tx_nbits",
    "rx_nbits",
    "mode",
    "freq",
    "word_delay_ns",
    "cs_setup_ns",
    "cs_delay_hold_ns",
    "cs_change_delay_inactive_ns",
)
"""What a transfer begins with: before what is sent, room for what is received, and a byte for the
result. With both of them they have the same length.
"""
