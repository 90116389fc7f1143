"""The device's configuration space as the master keeps it: what the device says, and what the
driver wrote over it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator


class ConfigSpace:
    """Bytes from `read_device()`, with the driver's writes on top until the next reset."""

    def __init__(self, read_device: Callable[[], bytes]) -> None:
        self._read_device = read_device
        self._content = bytearray(read_device())
        self._written: set[int] = set()

    def __len__(self) -> int:
        return len(self._content)

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`, zero past the end: front-ends ask for what newer
        specifications have.
        """
        return bytes(self._content[offset : offset + size]).ljust(size, b"\0")

    def write(self, offset: int, data: bytes) -> None:
        """The driver's write, which the device has accepted; what lies past the end is dropped."""
        end = min(offset + len(data), len(self._content))
        if offset < end:
            self._content[offset:end] = data[: end - offset]
            self._written.update(range(offset, end))

    def written(self) -> Iterator[tuple[int, bytes]]:
        """The driver's writes since the last reset as runs of (offset, bytes)."""
        start: int | None = None
        for offset in range(len(self._content) + 1):
            if offset in self._written:
                start = offset if start is None else start
            elif start is not None:
                yield start, bytes(self._content[start:offset])
                start = None

    def renew(self, read_device: Callable[[], bytes]) -> None:
        """The device says something else from now on; the driver's writes stay on top."""
        writes = list(self.written())
        self._read_device = read_device
        self._content = bytearray(read_device())
        self._written.clear()
        for offset, data in writes:
            self.write(offset, data)

    def reset(self) -> None:
        """Back to what the device says."""
        self._content = bytearray(self._read_device())
        self._written.clear()
