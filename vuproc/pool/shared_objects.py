"""The objects that a device shares, for the front-end to ask for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from vuproc.fd import Fd

OBJECTS_MAX = 1024
"""Objects of one device: they are part of its state, which has to stay small."""
OWN_FILES_MAX = 64
"""Those of them that are files made by a worker: each is a descriptor here and in the store."""


class SharedObjects:
    """Files by UUID: some of the device's shared files, by name, of which `files` gives those that
    there are; and files that a worker has made, which are owned here.
    """

    def __init__(self) -> None:
        self.files: Callable[[], Mapping[str, Fd]] = dict
        self._names: dict[bytes, str] = {}
        self._made: dict[bytes, Fd] = {}

    def __iter__(self) -> Iterator[bytes]:
        yield from self._names
        yield from self._made

    def add(self, uuid: bytes, file: str) -> str:
        """A shared file is an object, in place of another of that UUID; why not, or ""."""
        if file not in self.files():
            return f"there is no shared file {file!r}"
        if problem := self._full(uuid):
            return problem
        self.remove(uuid)
        self._names[uuid] = file
        return ""

    def add_made(self, uuid: bytes, file: Fd) -> str:
        """The same for a file that a worker has made. It is ours from then on, or closed."""
        problem = self._full(uuid)
        if not problem and uuid not in self._made and len(self._made) >= OWN_FILES_MAX:
            problem = f"{OWN_FILES_MAX} files that were made by a worker are shared already"
        if problem:
            file.close()
            return problem
        self.remove(uuid)
        self._made[uuid] = file
        return ""

    def _full(self, uuid: bytes) -> str:
        known = uuid in self._names or uuid in self._made
        if not known and len(self._names) + len(self._made) >= OBJECTS_MAX:
            return f"{OBJECTS_MAX} objects are shared already"
        return ""

    def remove(self, uuid: bytes) -> None:
        """It is not shared any more, if it was."""
        self._names.pop(uuid, None)
        made = self._made.pop(uuid, None)
        if made is not None:
            made.close()

    def find(self, uuid: bytes) -> Fd | None:
        """Another descriptor of the object's file, the caller's; None: there is no such object.

        Raises OSError.
        """
        file = self._made.get(uuid) or self.files().get(self._names.get(uuid, ""))
        return None if file is None else file.dup()

    def names(self) -> tuple[tuple[bytes, str], ...]:
        """Those that are shared files, for `restore`."""
        return tuple(self._names.items())

    def made(self) -> tuple[tuple[bytes, Fd], ...]:
        """Those that a worker has made, for `restore`; the files stay ours."""
        return tuple(self._made.items())

    def restore(
        self, names: tuple[tuple[bytes, str], ...], made: tuple[tuple[bytes, Fd], ...]
    ) -> None:
        """Those of a predecessor; the files are ours from then on."""
        self._names = dict(names)
        self._made = dict(made)

    def close(self) -> None:
        """Nothing is shared any more."""
        for file in self._made.values():
            file.close()
        self._made.clear()
        self._names.clear()
