"""Packets for the guest: into its receive buffers, each of them once, whoever dies.

What a packet changes in the table counts once the driver has its buffer (`Table.finish`). Before
that a worker that dies has sent nothing: the buffer comes again, and the packet is made anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from vuproc.device import Device
from vuproc.devices.vsock_connection import Packet
from vuproc.devices.vsock_table import Stored, Table
from vuproc.spec.vsock import HEADER, RX

if TYPE_CHECKING:
    from vuproc.shm.request import Request

SMALL_AT_ONCE = 64
"""Buffers without room for a packet that are given back before others get their turn."""


class Delivery:
    """The receive queue of `device`."""

    def __init__(self, device: Device, table: Table) -> None:
        self._device = device
        self._table = table
        self._buffer: Request | None = None
        """The one for the next packet."""

    def room(self) -> int | None:
        """Bytes that the next packet may have behind its header; None: it has to wait."""
        if self._buffer is None or self._buffer.finished:  # finished: the ring broke
            self._buffer = self._take()
        return None if self._buffer is None else self._buffer.writable - HEADER.size

    def give(self, packet: Packet, *changes: tuple[Stored, Mapping[str, int]]) -> None:
        """Send a packet, and store `changes` with that; `room` has said that it may be sent."""
        buffer, self._buffer = self._buffer, None
        assert buffer is not None
        buffer.write(packet.header)
        for piece in packet.data:
            buffer.write(piece)
        self._table.finish(self._device, buffer, *changes)

    def stopping(self) -> None:
        """Give back what is in hand; it comes again."""
        buffer, self._buffer = self._buffer, None
        if buffer is not None and not buffer.finished:
            buffer.release()

    def _take(self) -> Request | None:
        for _ in range(SMALL_AT_ONCE):
            buffer = self._device.take(RX)
            if buffer is None or buffer.writable > HEADER.size:
                return buffer
            buffer.finish(0)  # no packet has room there
        return None
