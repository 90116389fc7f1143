"""Who uses which descriptors: how one is found that nobody uses any more, without a look at all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from vuproc.fd import Fd


class FdUses:
    """The descriptors that the parts of something use, by the parts' numbers."""

    def __init__(self) -> None:
        self._of: dict[int, frozenset[Fd]] = {}
        self._counts: dict[Fd, int] = {}

    def __contains__(self, fd: Fd) -> bool:
        """Whether any part uses it."""
        return fd in self._counts

    def change(self, now: Mapping[int, Iterable[Fd]]) -> set[Fd]:
        """These parts use these from now on, and nothing else: what no part uses any more."""
        uses = {number: frozenset(fds) for number, fds in now.items()}
        for number, fds in uses.items():
            for fd in fds - self._of.get(number, frozenset()):
                self._counts[fd] = self._counts.get(fd, 0) + 1
        unused: set[Fd] = set()
        for number, fds in uses.items():
            # Only after all of them: one that goes from a part to another is in use.
            for fd in self._of.get(number, frozenset()) - fds:
                self._counts[fd] -= 1
                if not self._counts[fd]:
                    del self._counts[fd]
                    unused.add(fd)
            self._of[number] = fds
        return unused
