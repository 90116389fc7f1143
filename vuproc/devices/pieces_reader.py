"""Reading an image in pieces, as its map says, whatever is written back meanwhile."""

from __future__ import annotations

from urllib.parse import quote, urlsplit

from vuproc.devices.object_store import ObjectAbsent, ObjectStore, key_of
from vuproc.devices.pieces_manifest import BASE, ZEROS, piece_name
from vuproc.devices.pieces_map import PiecesMap


class PiecesReader:
    """Reads parts of the disk; by any thread. Owns the map."""

    def __init__(self, url: str, pieces: PiecesMap) -> None:
        """Raises ObjectUnavailable."""
        self.store = ObjectStore(url)
        self.folder = key_of(url)
        self._pieces = pieces

    def close(self) -> None:
        """Give the map back."""
        self._pieces.close()

    def read(self, offset: int, length: int) -> bytes:
        """That many bytes. Raises ObjectUnavailable."""
        parts = []
        while length:
            number, at = divmod(offset, self._pieces.piece)
            size = min(length, self._pieces.piece - at)
            parts.append(self._part(number, at, size))
            offset += size
            length -= size
        return b"".join(parts)

    def _part(self, number: int, at: int, size: int) -> bytes:
        run = self._pieces.run_of(number)
        while True:
            if run == ZEROS:
                return bytes(size)
            base = self._pieces.base
            if run == BASE and base is not None:
                start = number * self._pieces.piece + at
                return self.store.part(base.key, start, size, base.tag)
            try:
                return self.store.part(self.folder + piece_name(run, number), at, size)
            except ObjectAbsent:
                newer = self._pieces.run_of(number)
                if newer == run:
                    raise
                run = newer  # it was replaced while we asked


def url_of(folder_url: str, key: str) -> str:
    """The URL of another object in the bucket of an image."""
    parts = urlsplit(folder_url)
    return f"{parts.scheme}://{parts.netloc}/{quote(key)}"
