"""The objects that a device shares, for the front-end to ask for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from vuproc.fd import Fd

OBJECTS_MAX = 1024
"""Objects of one device: they are part of its state, which has to stay small."""


class SharedObjects:
    """Names of the device's shared files by UUID; `files` gives those that there are."""

    def __init__(self) -> None:
        self.files: Callable[[], Mapping[str, Fd]] = dict
        self._names: dict[bytes, str] = {}

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._names)

    def add(self, uuid: bytes, file: str) -> str:
        """An object is shared, in place of another of that UUID; why not, or ""."""
        if file not in self.files():
            return f"there is no shared file {file!r}"
        if uuid not in self._names and len(self._names) >= OBJECTS_MAX:
            return f"{OBJECTS_MAX} objects are shared already"
        self._names[uuid] = file
        return ""

    def remove(self, uuid: bytes) -> bool:
        """It is not shared any more; whether it was."""
        return self._names.pop(uuid, None) is not None

    def find(self, uuid: bytes) -> Fd | None:
        """Another descriptor of the object's file, the caller's; None: there is no such object.

        Raises OSError.
        """
        file = self.files().get(self._names.get(uuid, ""))
        return None if file is None else file.dup()

    def names(self) -> tuple[tuple[bytes, str], ...]:
        """For `restore`."""
        return tuple(self._names.items())

    def restore(self, names: tuple[tuple[bytes, str], ...]) -> None:
        """Those of a predecessor."""
        self._names = dict(names)
