"""Where a program wants its device to meet front-ends."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass

from vuproc.fd import Fd, FdKind, HasFileno
from vuproc.place import shown


@dataclass(frozen=True)
class Connect:
    """The VMM listens at `path`: connect there, and try again until it is there (client mode)."""

    path: str | os.PathLike[str]


Place = str | os.PathLike[str] | Connect | socket.socket | HasFileno | int
"""A path to listen at, a VMM that listens, or an open Unix stream socket."""


def met_at(place: Place) -> tuple[str | None, bool, HasFileno | None]:
    """The absolute path where front-ends are met, whether that is the VMM's; or an open socket.

    ValueError for a descriptor that is no such socket, or not open.
    """
    if isinstance(place, Connect):
        return _path(place.path), True, None
    if isinstance(place, (str, os.PathLike)):
        return _path(place), False, None
    given = as_file(place)
    if given is None:
        raise TypeError("a path, a Connect or an open socket is wanted, not None")
    try:
        with Fd(os.dup(given.fileno())) as copy:
            fits = copy.kind is FdKind.SOCKET and _is_unix_stream(copy)
    except OSError as error:
        raise ValueError(f"descriptor {given.fileno()}: {error.strerror}") from None
    if not fits:
        raise ValueError(f"descriptor {given.fileno()} is no Unix stream socket")
    return None, False, given


def _path(place: str | os.PathLike[str]) -> str:
    found = os.fspath(place) if isinstance(place, os.PathLike) else place
    if not isinstance(found, str):
        raise TypeError(f"the path of a socket is a text, not {shown(found)}")
    return os.path.abspath(found)


def _is_unix_stream(file: Fd) -> bool:
    with socket.socket(fileno=file.dup().take()) as found:
        return found.family == socket.AF_UNIX and found.type == socket.SOCK_STREAM


class _Number:
    """A descriptor that is known by its number alone."""

    def __init__(self, number: int) -> None:
        self._number = number

    def fileno(self) -> int:
        return self._number


def as_file(file: HasFileno | int | None) -> HasFileno | None:
    """What has that descriptor, whoever owns it. TypeError for what has none."""
    if isinstance(file, int):
        return _Number(file)
    if file is not None and not hasattr(file, "fileno"):
        raise TypeError(f"a descriptor or an open file is wanted, not {shown(file)}")
    return file


def is_open(file: HasFileno) -> bool:
    """Whether its descriptor is open at this moment."""
    try:
        os.fstat(file.fileno())
    except (OSError, ValueError):  # a file of Python's that is closed has no number
        return False
    return True
