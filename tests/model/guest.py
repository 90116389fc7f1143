"""The guest's driver, of a ring of either layout.

The driver trusts interrupts and never polls. It submits while it has room, kicks if the device
wishes it, and takes completions in its interrupt handler only.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

from tests.model.config import put
from tests.model.judge import Driver, Judge, Words

Move = tuple[str, Words, Driver]


class Guest(Judge):
    """The driver's moves, and the judge's rules, for one model."""

    # ---- the layout's ----------------------------------------------------------------------------

    @abstractmethod
    def begin(self) -> tuple[Words, Driver, int]:
        """Memory and driver at the very beginning, and the base at which the ring is started."""

    @abstractmethod
    def renewed(self, words: Words, d: Driver) -> tuple[Words, Driver]:
        """The driver makes a new ring, whose base is 0; the record is as it was."""

    @abstractmethod
    def has_room(self, d: Driver) -> bool:
        """Whether the next request may be submitted."""

    @abstractmethod
    def submit(self, words: Words, d: Driver) -> Move:
        """The next request becomes available, in one step."""

    @abstractmethod
    def place(self, words: Words, d: Driver) -> int:
        """Where the driver submits next."""

    @abstractmethod
    def wants_kick(self, words: Words, place: int, told: int) -> bool:
        """Whether the device does, for what was submitted from `told` to `place`."""

    @abstractmethod
    def has_more(self, words: Words, d: Driver) -> bool:
        """Whether there are completions that are not taken."""

    @abstractmethod
    def take(self, words: Words, d: Driver) -> Driver:
        """Take all completions. Raises Violation at what must not be among them."""

    # ---- moves -----------------------------------------------------------------------------------

    def finished(self, d: Driver) -> bool:
        """Whether all requests were submitted and came back."""
        return d.sent == self.c.requests and not any(d.held)

    def moves(self, words: Words, d: Driver) -> Iterator[Move]:
        """Everything that the driver may do next."""
        place = self.place(words, d)
        may = self.c.bursts or d.told == place
        if may and d.sent < self.c.requests and self.has_room(d):
            yield self.submit(words, d)
        if d.told != place:
            wanted = self.wants_kick(words, place, d.told)
            after = put(words, self.m.kick, 1) if wanted else words
            yield "kicks" if wanted else "need not kick", after, d._replace(told=place)
        yield from self._interrupt(words, d)

    def _interrupt(self, words: Words, d: Driver) -> Iterator[Move]:
        """The handler, as Linux has it: refuse more, take all, ask again, look once more."""
        m = self.m
        if d.irq == "idle" and words[m.call]:
            after = put(words, m.call, 0)
            if not self.c.event_idx:
                after = put(after, m.call_wish, 1)
            yield "is interrupted", after, self._taken(words, d)
        elif d.irq == "ask":
            after = put(words, m.call_wish, d.seen if self.c.event_idx else 0)
            yield "asks for interrupts", after, d._replace(irq="look")
        elif d.irq == "look":
            if not self.has_more(words, d):
                yield "has taken all", words, d._replace(irq="idle")
            else:
                after = words if self.c.event_idx else put(words, m.call_wish, 1)
                yield "finds more", after, self._taken(words, d)

    def _taken(self, words: Words, d: Driver) -> Driver:
        return self.take(words, d)._replace(irq="ask")
