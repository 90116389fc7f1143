from typing_extensions import Buffer

from vuproc.shm.native import NativeDevice

class NativeFs(NativeDevice):
    """Serves READ and WRITE of the open files that it is told of; all else is left to `handle`."""

    def __init__(self, *, writable: bool) -> None: ...
    def follow(self, words: Buffer | None, value: int) -> None:
        """Serve as long as the first of `words`, of 64 bits and shared, has this value; None: serve
        nothing any more. ValueError if it is no such word.
        """

    def know(self, node: int, handle: int, fd: int) -> None:
        """A file is open; `fd` is borrowed, until `forget`."""

    def forget(self, node: int, handle: int) -> None:
        """It is to be closed. Nothing happens if it is not known."""

    def take_used(self) -> list[tuple[int, int]]:
        """The files (node, handle) that were used since this was asked last."""
