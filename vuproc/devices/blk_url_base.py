"""What all bases have in common that a URL names."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Generic, Protocol, TypeVar

from vuproc.devices.object_store import ObjectUnavailable, problem_of
from vuproc.errors import FileRefused
from vuproc.fd import Fd

OPTION = "url"


class Sized(Protocol):
    """What is found at a URL."""

    @property
    def size(self) -> int:
        """Bytes of the disk."""


Found = TypeVar("Found", bound=Sized)


class UrlBase(Generic[Found]):
    """In the manner of `Image`, with one shared file, called KIND and a number.

    `ask` looks at what there is; it raises ObjectUnavailable.
    """

    option = OPTION
    strict = True
    """An overlay has parts of the base, which are not to be mixed with those of another."""

    def __init__(self, url: str, kind: str, ask: Callable[[str], Found]) -> None:
        self.path = url
        self._name = f"{kind}.{zlib.crc32(url.encode()):08x}"
        self._look = ask
        self._found: Found | None = None

    @property
    def names(self) -> set[str]:
        """Of the shared files that are its own."""
        return {self._name}

    def problems(self, block_size: int) -> Iterator[tuple[str, str]]:
        """What is wrong with the URL, or with what is there."""
        problem = self._problem()
        if problem is not None:
            yield OPTION, f"{self.path}: {problem}"
            return
        try:
            size = self._ask().size
        except FileRefused as refused:
            yield refused.option, refused.reason
            return
        if size == 0 or size % block_size:
            yield OPTION, f"{self.path}: {size} bytes are not a multiple of {block_size}"

    def adopt(self, left: Mapping[str, Fd]) -> bool:
        """As `Image.adopt`."""
        return left.keys() == self.names

    def _problem(self) -> str | None:
        """What is wrong with the URL itself."""
        return problem_of(self.path)

    def _ask(self) -> Found:
        if self._found is None:
            try:
                self._found = self._look(self.path)
            except ObjectUnavailable as error:
                raise FileRefused(OPTION, f"{self.path}: {error}") from error
        return self._found
