"""Bytes of a connection that wait for their reader, in shared memory."""

from __future__ import annotations


class Area:
    """A ring of bytes; positions go on for ever."""

    def __init__(self, memory: memoryview, address: int, begin: int, size: int) -> None:
        self.size = size
        self._bytes = memory[begin : begin + size]
        self._address = address + begin

    def put(self, position: int, data: bytes | memoryview) -> None:
        """Write bytes, at most `size`."""
        at = position % self.size
        first = min(len(data), self.size - at)
        self._bytes[at : at + first] = data[:first]
        if first < len(data):
            self._bytes[: len(data) - first] = data[first:]

    def get(self, position: int, count: int) -> bytes:
        """Read bytes, at most `size`."""
        return b"".join(self.pieces(position, count))

    def pieces(self, position: int, count: int) -> list[memoryview]:
        """Where so many bytes lie: one piece or two."""
        at = position % self.size
        first = min(count, self.size - at)
        pieces = [self._bytes[at : at + first]]
        if first < count:
            pieces.append(self._bytes[: count - first])
        return pieces

    def places(self, position: int, count: int) -> list[tuple[int, int]]:
        """The same as addresses and lengths."""
        at = position % self.size
        first = min(count, self.size - at)
        places = [(self._address + at, first)]
        if first < count:
            places.append((self._address, count - first))
        return places
