"""RST packets that wait for a buffer: of connections that ended, and for whom there is none."""

from __future__ import annotations

from collections.abc import Mapping

from vuproc.devices.vsock_connection import Packet
from vuproc.devices.vsock_table import CONNECTIONS_MOST, RESETS_MOST, Stored, Table
from vuproc.spec.vsock import HEADER, HOST_CID, Op

CROWD = RESETS_MOST - 2 * CONNECTIONS_MOST
"""So many may wait before nobody is to cause more; each connection may still need one."""

Change = tuple[Stored, Mapping[str, int]]


class Resets:
    """Those for the guest with this CID, in `table`."""

    def __init__(self, table: Table, cid: int) -> None:
        self._table = table
        self._head = table.head
        self._cid = cid

    @property
    def waiting(self) -> int:
        """How many there are."""
        return int(self._head.resets - self._head.resets_sent)

    @property
    def crowded(self) -> bool:
        """Whether nobody is to cause more."""
        return self.waiting >= CROWD

    def add(self, src_port: int, dst_port: int, kind: int, src_cid: int = HOST_CID) -> Change:
        """The change by which one is called for: one a step."""
        number = self._head.resets
        if self.waiting >= RESETS_MOST:
            return self._head, {}  # not as long as `crowded` is heeded
        self._table.resets[number % RESETS_MOST].header[: HEADER.size] = HEADER.pack(
            src_cid=src_cid,
            dst_cid=self._cid,
            src_port=src_port,
            dst_port=dst_port,
            type=kind,
            op=Op.RST,
        )
        return self._head, {"resets": number + 1}

    def first(self) -> tuple[Packet, Change]:
        """The first of them, and what its sending changes."""
        number = self._head.resets_sent
        header = bytes(self._table.resets[number % RESETS_MOST].header)[: HEADER.size]
        return Packet(header, (), {}), (self._head, {"resets_sent": number + 1})

    def forget(self) -> None:
        """The driver knows of nothing any more."""
        self._head.resets_sent = self._head.resets
