"""What a worker of a file system has open because it was used a moment ago."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar


class Closable(Protocol):
    """Anything that is closed."""

    def close(self) -> None: ...  # noqa: D102


K = TypeVar("K")
V = TypeVar("V", bound=Closable)


def _nothing(key: object) -> None:
    """Do nothing."""


class Recent(Generic[K, V]):
    """At most twice `most` things, which are closed when two ticks have passed without their use.

    A thing is not closed before `most` others have been used, so that a request may have some of
    them in its hands.
    """

    def __init__(self, most: int, closing: Callable[[K], None] = _nothing) -> None:
        """`closing`: is told of each before it is closed."""
        self._most = most
        self._closing = closing
        self._young: dict[K, V] = {}
        self._old: dict[K, V] = {}

    def __contains__(self, key: object) -> bool:
        return key in self._young or key in self._old

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def get(self, key: K) -> V | None:
        """The thing, which counts as used."""
        found = self._young.get(key)
        if found is None and key in self._old:
            found = self._add(key, self._old.pop(key))
        return found

    def put(self, key: K, value: V) -> V:
        """Own another one."""
        self.drop(key)
        return self._add(key, value)

    def _add(self, key: K, value: V) -> V:
        if len(self._young) >= self._most:
            self.tick()
        self._young[key] = value
        return value

    def drop(self, key: K) -> None:
        """Close one; nothing happens if it is not here."""
        for things in (self._young, self._old):
            if key in things:
                self._closing(key)
                things.pop(key).close()

    def tick(self) -> None:
        """Time has passed."""
        for key, thing in self._old.items():
            self._closing(key)
            thing.close()
        self._old, self._young = self._young, {}

    def clear(self) -> None:
        """Close all of them."""
        self.tick()
        self.tick()
