"""The files that disks are kept in, made once and shared by all sides of a run."""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.bench.work import MIB, Store


class Images:
    """A context manager which removes what it made.

    tmpfs: a directory of one. directory: one of a file system on a disk. span: bytes of each image.
    """

    def __init__(self, tmpfs: Path, directory: Path, span: int) -> None:
        self._places = {Store.TMPFS: tmpfs, Store.CACHE: directory, Store.DIRECT: directory}
        self._span = span
        self._made: dict[Path, Path] = {}
        self._undo = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._undo.close()

    def path(self, store: Store) -> Path | None:
        """The image for a store, None for the one that has none. Raises OSError."""
        if store is Store.NULL:
            return None
        place = self._places[store]
        if place not in self._made:
            place.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(dir=place, prefix="vuproc-bench-")
            self._undo.callback(os.unlink, name)
            block = os.urandom(MIB)
            with open(descriptor, "wb") as file:
                for _ in range(self._span // MIB):
                    file.write(block)
                file.flush()
                os.fsync(file.fileno())
            self._made[place] = Path(name)
        return self._made[place]

    def problem(self, store: Store) -> str | None:
        """Why nothing can be measured on a store here; None if it can."""
        try:
            image = self.path(store)
            if image is not None and store is Store.DIRECT:
                os.close(os.open(image, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC))
        except OSError as error:
            return f"{store.value}: {error.filename}: {error.strerror}"
        return None
