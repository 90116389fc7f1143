"""The base of a disk that is an object of a store, or a file of a web server."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping

import msgspec

from vuproc import shared
from vuproc.devices.blk_url_base import OPTION, UrlBase
from vuproc.devices.object_reader import ObjectReader, ask
from vuproc.devices.object_store import Object, ObjectUnavailable
from vuproc.errors import FileRefused
from vuproc.fd import Fd


class ObjectBase(UrlBase[Object]):
    """In the manner of `Image`. What the object was when the master asked is a shared file, so that
    all workers and successors read the same one, or find that it is another by now.
    """

    def __init__(self, url: str) -> None:
        super().__init__(url, "object", ask)

    def open(self) -> dict[str, Fd]:
        """What the object is, for all. Raises FileRefused."""
        packed = msgspec.msgpack.encode(self._ask())
        with shared.gathering() as files:
            memory = files[self._name] = Fd(os.memfd_create("vuproc-object", os.MFD_CLOEXEC))
            os.pwrite(memory.fileno(), packed, 0)
        return files

    def replaced(self, files: Mapping[str, Fd]) -> Iterator[tuple[str, str]]:
        """As `Image.replaced`. Raises FileRefused if there is none any more."""
        self._found = None  # what it was said to be then
        if self._name in files and self.found(files) != self._ask():
            yield OPTION, f"another object is at {self.path} now"

    def size(self, files: Mapping[str, Fd]) -> int:
        """Bytes of it. Raises FileRefused."""
        return self.found(files).size

    def changed(self, files: Mapping[str, Fd]) -> int:
        """A number that another object at the URL does not have. Raises FileRefused."""
        found = self.found(files)
        digest = hashlib.sha256(f"{found.tag} {found.changed}".encode()).digest()
        return int.from_bytes(digest[:8], "little")

    def found(self, files: Mapping[str, Fd]) -> Object:
        """What it was when the device began, or is. Raises FileRefused."""
        file = files.get(self._name)
        if file is None:
            return self._ask()
        packed = os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0)
        return msgspec.msgpack.decode(packed, type=Object)

    def reader(self, files: Mapping[str, Fd]) -> ObjectReader:
        """What reads parts of it. Raises FileRefused."""
        try:
            return ObjectReader(self.path, self.found(files).tag)
        except ObjectUnavailable as error:
            raise FileRefused(OPTION, f"{self.path}: {error}") from error
