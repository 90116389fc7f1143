"""The driver of a packed ring.

Its name of a request is the buffer id; the worker's is an entry of the record, whose copies say
which id that is.
"""

from __future__ import annotations

from tests.model.access import Access
from tests.model.config import passed, put
from tests.model.guest import Guest, Move
from tests.model.judge import Driver, Request, Violation, Words, replaced
from tests.model.packed.memory import (
    DISABLE,
    NEXT,
    PLACE,
    WRITTEN,
    Config,
    Memory,
    available_bits,
    halves,
    id_of,
    is_used,
    made,
    used_bits,
)

LOST = -1
"""The number of a request that was lost before the first worker."""


class PackedGuest(Guest):
    """The driver's moves and the judge's rules for one model of a packed ring."""

    c: Config
    m: Memory

    def __init__(self, config: Config, memory: Memory) -> None:
        self.c = config
        self.m = memory

    # ---- the driver ------------------------------------------------------------------------------

    def begin(self) -> tuple[Words, Driver, int]:
        c, origin = self.c, self.c.origin
        words, d = self.m.initial(c, origin), self._driver(origin, 0)
        for name in range(c.size - c.lost, c.size):
            words = put(words, self.m.slot + d.next % c.size, made(self._bits(d.next), name))
            place = (d.next + 1) % c.modulus
            d = d._replace(next=place, told=place, held=replaced(d.held, name, Request(LOST)))
        return words, d, origin * c.modulus + d.next

    def renewed(self, words: Words, d: Driver) -> tuple[Words, Driver]:
        return self.m.initial(self.c, 0, words), self._driver(0, d.sent)

    def _driver(self, origin: int, sent: int) -> Driver:
        return Driver(sent, origin, origin, "idle", (None,) * self.c.size, origin)

    def finished(self, d: Driver) -> bool:
        waiting = any(r is not None and r.number != LOST for r in d.held)
        return d.sent == self.c.requests and not waiting

    def has_room(self, d: Driver) -> bool:
        taken = sum(self._length(request) for request in d.held if request is not None)
        return taken + self.c.length(d.sent) <= self.c.size

    def _length(self, request: Request) -> int:
        return 1 if request.number == LOST else self.c.length(request.number)

    def submit(self, words: Words, d: Driver) -> Move:
        # Only the last descriptor of a chain has to name the buffer.
        m, c = self.m, self.c
        name, count = d.held.index(None), c.length(d.sent)
        for i in range(count):
            place, more = (d.next + i) % c.modulus, i < count - 1
            bits = self._later_bits(place) if i and c.bare else self._bits(place)
            word = made(bits, 0 if more else name, NEXT if more else 0)
            words = put(words, m.slot + place % c.size, word)
            words = put(words, m.addr + place % c.size, d.sent)
        held = replaced(d.held, name, Request(d.sent))
        place = (d.next + count) % c.modulus
        label = f"submits {d.sent} as {name}"
        return label, words, d._replace(sent=d.sent + 1, next=place, held=held)

    def _bits(self, place: int) -> int:
        return available_bits(place, self.c.size)

    def _later_bits(self, place: int) -> int:
        # What was there before: used in the round before this one.
        return used_bits((place + self.c.size) % self.c.modulus, self.c.size)

    def place(self, words: Words, d: Driver) -> int:
        return d.next

    def wants_kick(self, words: Words, place: int, told: int) -> bool:
        flags = words[self.m.kick_flags]
        if flags != PLACE:
            return flags != DISABLE
        return passed(words[self.m.kick_wish], place, told, self.c.modulus)

    def has_more(self, words: Words, d: Driver) -> bool:
        return is_used(words[self.m.slot + d.seen % self.c.size], d.seen, self.c.size)

    def take(self, words: Words, d: Driver) -> Driver:
        while self.has_more(words, d):
            name = id_of(words[self.m.slot + d.seen % self.c.size])
            seen = (d.seen + self._length(self.completed(d, name))) % self.c.modulus
            d = d._replace(held=replaced(d.held, name, None), seen=seen)
        return d

    # ---- the judge -------------------------------------------------------------------------------

    def name(self, head: int, words: Words) -> int:
        last, _ = halves(words[self.m.chain + head])
        return id_of(words[self.m.copy + last])

    def judge(self, access: Access, d: Driver, words: Words) -> Driver:
        ahead = (d.next - access.value) % self.c.modulus
        if access.kind == "live" and ahead > self.c.size:
            raise Violation("goes on where nothing is available yet")
        return super().judge(access, d, words)

    def inspect(self, request: Request, head: int, words: Words) -> None:
        m, number = self.m, request.number
        _, count = halves(words[m.chain + head])
        if count != self.c.length(number):
            raise Violation(f"request {number} is run with {count} descriptors")
        entry = head
        for i in range(count):
            if words[m.copy_addr + entry] != number:
                raise Violation(f"request {number} is run with the buffer of another")
            if words[m.copy + entry] & (NEXT | WRITTEN) != (NEXT if i < count - 1 else 0):
                raise Violation(f"request {number} is run with an overwritten descriptor")
            entry = words[m.next + entry]
