"""Which queues wait for which translations of an IOMMU, so that others are not bothered."""

from __future__ import annotations

ASKED_MOST = 16384
"""Questions that are remembered: whoever asks is no less served for what was forgotten."""


class AskedTranslations:
    """Queues by the I/O virtual addresses that they have asked for."""

    def __init__(self) -> None:
        self._asked: dict[int, set[int]] = {}

    def note(self, queue: int, iova: int) -> None:
        """A queue has asked for the page at this address."""
        if len(self._asked) >= ASKED_MOST:
            del self._asked[next(iter(self._asked))]
        self._asked.setdefault(iova, set()).add(queue)

    def waits(self, queue: int, iova: int) -> bool:
        """Whether it has, and nothing has come of it since."""
        return queue in self._asked.get(iova, ())

    def take(self, first: int, last: int) -> list[int]:
        """The queues that wait for an address of this range; they do not any more."""
        found = [iova for iova in self._asked if first <= iova <= last]
        return sorted(set().union(*(self._asked.pop(iova) for iova in found)))

    def clear(self) -> None:
        """Nobody waits."""
        self._asked.clear()
