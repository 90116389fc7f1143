"""The base of a disk that is an image in pieces: an object store has it, and may get changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from vuproc.devices.blk_url_base import OPTION, UrlBase
from vuproc.devices.object_reader import ask_manifest
from vuproc.devices.object_store import WRITABLE, ObjectUnavailable
from vuproc.devices.pieces_manifest import Manifest
from vuproc.devices.pieces_map import PiecesMap, new_map
from vuproc.devices.pieces_reader import PiecesReader
from vuproc.errors import FileRefused
from vuproc.fd import Fd

_WRITABLE = tuple(f"{scheme}://" for scheme in WRITABLE)


class PiecesBase(UrlBase[Manifest]):
    """Its shared file is the map of its pieces."""

    def __init__(self, url: str, *, writes_back: bool) -> None:
        super().__init__(url, "pieces", ask_manifest)
        self.writes_back = writes_back

    def _problem(self) -> str | None:
        problem = super()._problem()
        if problem is None and self.writes_back and not self.path.startswith(_WRITABLE):
            return f"changes go to {', '.join(_WRITABLE)} alone"
        return problem

    def open(self) -> dict[str, Fd]:
        """The map, for all. Raises FileRefused, OSError."""
        return {self._name: new_map(self._ask())}

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
