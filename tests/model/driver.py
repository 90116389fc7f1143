"""The driver of a split ring: its names of requests are the heads, as the worker's are."""

from __future__ import annotations

from tests.model.config import Config, Memory, passed, put
from tests.model.guest import Guest, Move
from tests.model.judge import Driver, Request, Violation, Words, replaced


class SplitGuest(Guest):
    """The driver's moves and the judge's rules for one model of a split ring."""

    c: Config
    m: Memory

    def __init__(self, config: Config, memory: Memory) -> None:
        self.c = config
        self.m = memory

    def begin(self) -> tuple[Words, Driver, int]:
        origin = self.c.origin
        return self.m.initial(self.c, origin), self._driver(origin, 0), origin

    def renewed(self, words: Words, d: Driver) -> tuple[Words, Driver]:
        return self.m.initial(self.c, 0, words), self._driver(0, d.sent)

    def _driver(self, origin: int, sent: int) -> Driver:
        return Driver(sent, origin, origin, "idle", (None,) * self.c.size)

    def name(self, head: int, words: Words) -> int:
        return head

    def inspect(self, request: Request, head: int, words: Words) -> None:
        # The descriptors stay the driver's, and are not modelled.
        pass

    def has_room(self, d: Driver) -> bool:
        return None in d.held

    def submit(self, words: Words, d: Driver) -> Move:
        m, idx = self.m, words[self.m.avail_idx]
        head = d.held.index(None)
        words = put(words, m.avail_ring + idx % self.c.size, head)
        words = put(words, m.avail_idx, (idx + 1) % self.c.modulus)
        held = replaced(d.held, head, Request(d.sent))
        return f"submits {d.sent} at {head}", words, d._replace(sent=d.sent + 1, held=held)

    def place(self, words: Words, d: Driver) -> int:
        return words[self.m.avail_idx]

    def wants_kick(self, words: Words, place: int, told: int) -> bool:
        wish = words[self.m.kick_wish]
        return passed(wish, place, told, self.c.modulus) if self.c.event_idx else not wish

    def has_more(self, words: Words, d: Driver) -> bool:
        return words[self.m.used_idx] != d.seen

    def take(self, words: Words, d: Driver) -> Driver:
        held, seen, used = d.held, d.seen, words[self.m.used_idx]
        if (used - seen) % self.c.modulus > sum(request is not None for request in held):
            raise Violation("more completions than requests")
        while seen != used:
            head = words[self.m.used_ring + seen % self.c.size]
            d = d._replace(held=held)
            self.completed(d, head)
            held = replaced(held, head, None)
            seen = (seen + 1) % self.c.modulus
        return d._replace(held=held, seen=seen)
