"""One step of a worker, what it knows between two programs, and which program it runs."""

from __future__ import annotations

from collections.abc import Generator
from typing import NamedTuple


class Access(NamedTuple):
    """One step: `kind` is load, store, wait, run, skip, live, broken or stopped."""

    kind: str
    at: int = 0
    value: int = 0
    heads: tuple[int, ...] = ()
    why: str = ""


GONE = -1


class Private(NamedTuple):
    """What a worker knows between two programs.

    `last` and `used`: the next avail and used index; `counter`: of the next fetch; `ran`: heads to
    be published, in the order in which they were fetched; `left`: heads of a dead worker, not run
    yet; `back`: heads that the device gave back; `recent`: the last fetches, from the oldest that
    is not completed on, with GONE for those that are (where the device gives back).
    """

    last: int
    used: int
    counter: int = 0
    ran: tuple[int, ...] = ()
    left: tuple[int, ...] = ()
    back: tuple[int, ...] = ()
    recent: tuple[int, ...] = ()
    asleep: bool = False

    def published(self, heads: tuple[int, ...], used: int) -> Private:
        """After these were, up to `used`."""
        ran = tuple(head for head in self.ran if head not in heads)
        recent = tuple(GONE if head in heads else head for head in self.recent)
        while recent[:1] == (GONE,):
            recent = recent[1:]
        return self._replace(used=used, ran=ran, recent=recent)


Program = Generator[Access, int, Private]


class Choice(NamedTuple):
    """A program that may run next, by its name, and what it is given."""

    name: str
    given: tuple[Private | tuple[int, ...] | int, ...]


def load(at: int) -> Access:
    """What is there."""
    return Access("load", at)


def store(at: int, value: int, why: str = "") -> Access:
    """Put `value` there."""
    return Access("store", at, value, why=why)


def broken(why: str) -> Access:
    """What the driver gave makes no sense."""
    return Access("broken", why=why)
