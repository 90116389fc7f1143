"""Words of memory that processes share, changed all at once, whenever one of them is killed.

A change is some stores. It is made under a lock of the file, which the kernel takes from the dead,
and written down first: places and values, then their number. That one store decides: before it
nothing has happened, after it whoever takes the lock next carries out what is written down, which
may be done any number of times.
"""

from __future__ import annotations

import fcntl
import mmap
from collections.abc import Iterator
from contextlib import contextmanager

from vuproc.fd import Fd

WORD_BYTES = 8
LOGGED = 64
"""Stores that one change has at most."""
COUNT = 0
"""The word that says how many stores are written down, each as place and value behind it."""
LOG_WORDS = 1 + 2 * LOGGED
"""How many words of the file are the log."""


class Stores(dict[int, int]):
    """Words as they will be once the change is made: those that are set, and the others."""

    def __init__(self, words: memoryview) -> None:
        self._words = words

    def __missing__(self, index: int) -> int:
        return int(self._words[index])


class LoggedWords:
    """The words of a file. Its descriptor must not be closed, nor a copy of it, while this is open:
    that would take the lock from us.
    """

    def __init__(self, file: Fd, count: int) -> None:
        self._file = file
        self._map = mmap.mmap(file.fileno(), count * WORD_BYTES)
        self._words = memoryview(self._map).cast("Q")

    def close(self) -> None:
        """Let go of the memory."""
        self._words.release()
        self._map.close()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Have what goes with the table for oneself."""
        fcntl.lockf(self._file.fileno(), fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._file.fileno(), fcntl.LOCK_UN)

    @contextmanager
    def _changing(self) -> Iterator[Stores]:
        with self.locked():
            self._carry_out()
            stores = Stores(self._words)
            yield stores
            self._write_down(stores)
            self._carry_out()

    def _write_down(self, stores: Stores) -> None:
        if len(stores) > LOGGED:
            raise AssertionError(f"a change of {len(stores)} stores")
        words = self._words
        for number, (index, value) in enumerate(stores.items()):
            words[1 + 2 * number] = index
            words[2 + 2 * number] = value
        words[COUNT] = len(stores)

    def _carry_out(self) -> None:
        words = self._words
        for number in range(words[COUNT]):
            words[words[1 + 2 * number]] = words[2 + 2 * number]
        words[COUNT] = 0
