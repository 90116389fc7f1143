"""What the options of a disk say of an export, of which a server or a cluster tells when asked."""

from __future__ import annotations

import os
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping

from vuproc.devices.nbd_handshake import Export
from vuproc.errors import FileRefused
from vuproc.fd import Fd


class ExportSource(ABC):
    """In the manner of `Image`. One of the shared files, `name`, has what was said of the export
    when the master asked.
    """

    option: str
    """Of the device file, which names the export."""

    def __init__(self, text: str, name: str, *, readonly: bool, block_size: int) -> None:
        self._text = text
        self._name = name
        self._readonly = readonly
        self._block_size = block_size
        self._found: Export | None = None

    def problems(self, block_size: int) -> Iterator[tuple[str, str]]:
        """What is wrong with the name, or with what is said of the export."""
        try:
            self._check_name()
            self._ask()
        except ValueError as error:
            yield self.option, f"{self._text}: {error}"
        except FileRefused as refused:
            yield refused.option, refused.reason

    def size(self, files: Mapping[str, Fd]) -> int:
        """Bytes of the export, as they were when it was asked for. Raises FileRefused."""
        return self.export(files).size

    def export(self, files: Mapping[str, Fd]) -> Export:
        """What was said of it. Raises FileRefused."""
        if self._found is None:
            file = files.get(self._name)
            if file is None:
                return self._ask()
            try:
                self._found = Export.unpack(os.pread(file.fileno(), Export.PACKED_BYTES, 0))
            except struct.error as error:
                reason = f"{self._text}: what is known of it is cut"
                raise FileRefused(self.option, reason) from error
        return self._found

    def _ask(self) -> Export:
        if self._found is None:
            name, export = self._asked()
            problem = self._problem(export)
            if problem is not None:
                raise FileRefused(self.option, f"{name} {problem}")
            self._found = export
        return self._found

    def _problem(self, export: Export) -> str | None:
        """Why a disk with these options cannot be served from it."""
        if export.size < self._block_size or export.size % self._block_size:
            return f"has {export.size} bytes, which are no blocks of {self._block_size}"
        return None

    @abstractmethod
    def _check_name(self) -> None:
        """Raises ValueError if the name is none."""

    @abstractmethod
    def _asked(self) -> tuple[str, Export]:
        """Ask: what it is called, and what is said of it. Raises FileRefused."""
