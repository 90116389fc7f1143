"""The device's configuration space as the master keeps it: what the device says, and what the
driver wrote over it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

Kept = tuple[bytes, dict[int, int], bytes | None]


class ConfigSpace:
    """Bytes from `read_device()`, with the driver's writes on top until the next reset.

    What a worker has `say` counts more than either: then the device itself decides what the driver
    reads after what it wrote.
    """

    def __init__(self, read_device: Callable[[], bytes]) -> None:
        self._read_device = read_device
        self._content = bytearray(read_device())
        self._written: dict[int, int] = {}
        """What the driver wrote, by offset: a worker may have it read something else there."""
        self._said: bytes | None = None

    def __len__(self) -> int:
        return len(self._content)

    @property
    def content(self) -> bytes:
        """What the driver reads."""
        return bytes(self._content)

    @property
    def said(self) -> bytes | None:
        """What a worker has said it is; None: none has."""
        return self._said

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
            self._written.update(zip(range(offset, end), data, strict=False))

    def written(self) -> Iterator[tuple[int, bytes]]:
        """The driver's writes since the last reset as runs of (offset, bytes)."""
        start: int | None = None
        for offset in range(len(self._content) + 1):
            if offset in self._written:
                start = offset if start is None else start
            elif start is not None:
                yield start, bytes(self._written[at] for at in range(start, offset))
                start = None

    def say(self, content: bytes) -> bool:
        """A worker says what the driver is to read from now on; False if it is of another length,
        and then nothing changes.
        """
        if len(content) != len(self._content):
            return False
        self._said = content
        self._content[:] = content
        return True

    def state(self) -> Kept:
        """For `back_to`."""
        return bytes(self._content), dict(self._written), self._said

    def back_to(self, kept: Kept) -> None:
        """As it was at a `state`."""
        content, written, self._said = kept
        self._content[:] = content
        self._written = dict(written)

    def renew(self, read_device: Callable[[], bytes]) -> None:
        """The device says something else from now on; the driver's writes stay on top."""
        writes = list(self.written())
        self._read_device = read_device
        self._said = None
        self._content = bytearray(read_device())
        self._written.clear()
        for offset, data in writes:
            self.write(offset, data)

    def reset(self) -> None:
        """Back to what the device says."""
        self._content = bytearray(self._said or self._read_device())
        self._written.clear()
