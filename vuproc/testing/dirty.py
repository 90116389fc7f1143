"""The dirty log as the front-end has it: which pages of its guest a back-end says it wrote to."""

from __future__ import annotations

import os

from vuproc.fd import Fd
from vuproc.shm.memory import Mapping

PAGE = 4096
"""Bytes of a page of the log, whatever the host's pages are (vhost-user, "Migration")."""


class DirtyBitmap:
    """A log for the guest's first `memory` bytes, one bit a page, `offset` bytes into a memfd.

    fd: the memfd. size: bytes of the log, whole words as QEMU has them.
    """

    def __init__(self, memory: int, *, offset: int = 0) -> None:
        self.offset = offset
        self.size = 8 * -(-memory // (64 * PAGE))
        self.fd = Fd(os.memfd_create("dirty-log", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
        try:
            os.ftruncate(self.fd.fileno(), offset + self.size)
            self._bits = memoryview(Mapping(self.fd.fileno(), self.size, offset))
        except BaseException:
            self.fd.close()
            raise

    def pages(self) -> set[int]:
        """The numbers of the pages that are marked."""
        marked = enumerate(bytes(self._bits))
        return {8 * i + bit for i, byte in marked if byte for bit in range(8) if byte >> bit & 1}

    def clear(self) -> None:
        """Take all marks away; nobody may mark meanwhile, for it is not one atomic step."""
        self._bits[:] = bytes(self.size)

    def close(self) -> None:
        """Close the memfd."""
        self._bits.release()
        self.fd.close()

    def __enter__(self) -> DirtyBitmap:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
