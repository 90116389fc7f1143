"""What the master's loop calls beside its messages: when its time has come, or while it waits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from msgspec import Struct


class Chore(Protocol):
    """Something the loop looks after when no descriptor announces it."""

    def due(self) -> float | None:
        """Seconds until `tend` should be called, or None."""

    def tend(self) -> None:
        """Do what is due, if anything is."""

    def close(self) -> None:
        """The loop is over."""


class Meanwhile(Struct, frozen=True):
    """What the poll set may call also while a message waits for a worker: it changes nothing that
    the message is about.
    """

    action: Callable[[], None]

    def __call__(self) -> None:
        """Do it."""
        self.action()
