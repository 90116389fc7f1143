"""The base of a disk that is an image in pieces: an object store has it, and may get changes."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping

from vuproc.devices.object_reader import ask_manifest
from vuproc.devices.object_store import WRITABLE, ObjectUnavailable, problem_of
from vuproc.devices.pieces_manifest import Manifest
from vuproc.devices.pieces_map import PiecesMap, new_map
from vuproc.devices.pieces_reader import PiecesReader
from vuproc.errors import FileRefused
from vuproc.fd import Fd

OPTION = "url"


class PiecesBase:
    """In the manner of `ObjectBase`. Its shared file is the map of its pieces."""

    option = OPTION
    strict = True

    def __init__(self, url: str, *, writes_back: bool) -> None:
        self.path = url
        self.writes_back = writes_back
        self._name = f"pieces.{zlib.crc32(url.encode()):08x}"
        self._found: Manifest | None = None

    @property
    def names(self) -> set[str]:
        """Of the shared files that are its own."""
        return {self._name}

    def problems(self, block_size: int) -> Iterator[tuple[str, str]]:
        """What is wrong with the URL, or with what is there."""
        problem = problem_of(self.path)
        if problem is None and self.writes_back and not self.path.startswith(_WRITABLE):
            problem = f"changes go to {', '.join(f'{scheme}://' for scheme in WRITABLE)} alone"
        if problem is not None:
            yield OPTION, f"{self.path}: {problem}"
            return
        try:
            size = self._ask().size
        except FileRefused as refused:
            yield refused.option, refused.reason
            return
        if size % block_size:
            yield OPTION, f"{self.path}: {size} bytes are not a multiple of {block_size}"

    def open(self) -> dict[str, Fd]:
        """The map, for all. Raises FileRefused, OSError."""
        return {self._name: new_map(self._ask())}

    def adopt(self, left: Mapping[str, Fd]) -> bool:
        """As `Image.adopt`."""
        return left.keys() == self.names

    def replaced(self, files: Mapping[str, Fd]) -> Iterator[tuple[str, str]]:
        """As `Image.replaced`. Raises FileRefused if there is none any more. Whoever writes changes
        back sees by itself that another has done so, and its own are no news.
        """
        self._found = None  # what it was said to be then
        known = self._name in files and not self.writes_back
        if known and self._ask().number != self.changed(files):
            yield OPTION, f"another image is at {self.path} now"

    def size(self, files: Mapping[str, Fd]) -> int:
        """Bytes of it. Raises FileRefused, OSError."""
        file = files.get(self._name)
        if file is None:
            return self._ask().size
        pieces = PiecesMap(file)
        try:
            return pieces.size
        finally:
            pieces.close()

    def changed(self, files: Mapping[str, Fd]) -> int:
        """The run that has written it. Raises FileRefused, OSError."""
        file = files.get(self._name)
        if file is None:
            return self._ask().number
        pieces = PiecesMap(file)
        try:
            return pieces.run
        finally:
            pieces.close()

    def map(self, files: Mapping[str, Fd]) -> PiecesMap:
        """The map, which is the caller's. Raises OSError."""
        return PiecesMap(files[self._name])

    def reader(self, files: Mapping[str, Fd]) -> PiecesReader:
        """What reads parts of it. Raises FileRefused, OSError."""
        pieces = self.map(files)
        try:
            return PiecesReader(self.path, pieces)
        except ObjectUnavailable as error:
            pieces.close()
            raise FileRefused(OPTION, f"{self.path}: {error}") from error

    def _ask(self) -> Manifest:
        if self._found is None:
            try:
                self._found = ask_manifest(self.path)
            except ObjectUnavailable as error:
                raise FileRefused(OPTION, f"{self.path}: {error}") from error
        return self._found


_WRITABLE = tuple(f"{scheme}://" for scheme in WRITABLE)
