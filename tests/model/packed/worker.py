"""The algorithm: what a worker does with a packed ring and its in-flight record, store by store.

What tests/model/worker.py says of the split ring goes for this one, too: each `yield` is one access
to memory that is shared, and the marks at the right are the names of the steps. A request is known
by the first of its entries in the record; what it is run with are the copies there.
"""

from __future__ import annotations

from collections.abc import Generator

from tests.model.access import GONE, Access, Private, Program, broken, load, store
from tests.model.config import passed
from tests.model.packed.memory import (
    AVAIL,
    DISABLE,
    ENABLE,
    PLACE,
    USED,
    WRITTEN,
    Config,
    Memory,
    available_bits,
    both,
    halves,
    has_next,
    id_of,
    is_available,
    is_used,
    made,
    used_bits,
    with_bits,
)
from tests.model.serving import Serving


class PackedWorker(Serving):
    """The programs of one worker of a packed ring. `last` and `used` are places."""

    c: Config
    m: Memory
    needs_base = True

    def __init__(self, config: Config, memory: Memory) -> None:
        self.c = config
        self.m = memory

    def at(self, place: int) -> int:
        """The slot of a place."""
        return place % self.c.size

    def on(self, place: int, by: int) -> int:
        return (place + by) % self.c.modulus

    # ---- the life of a request -------------------------------------------------------------------

    def mark(self, p: Private) -> Program:
        """Take the next available request, the last of `recent` then; the same if there is none."""
        m, size = self.m, self.c.size
        word = yield load(m.slot + self.at(p.last))
        if not is_available(word, p.last, size):
            return p
        head, _ = halves((yield load(m.heads)))
        room = size - (yield from self.held()) - (yield load(m.lead))
        entry = last = head
        count = 0
        while True:
            if count == room:
                yield broken("more descriptors available than the ring has free")
            slot = self.at(p.last + count)
            if count:
                word = yield load(m.slot + slot)
            addr = yield load(m.addr + slot)
            yield store(m.copy + entry, word)  # F1a
            yield store(m.copy_addr + entry, addr)  # F1b
            last = entry
            count += 1
            entry = yield load(m.next + entry)
            if not has_next(word):
                break
        yield store(m.chain + head, both(last, count))  # F2a
        yield store(m.counter + head, p.counter)  # F2b
        if self.c.poison is not None:
            yield store(m.attempts + head, 0)  # F2c
        if self.c.at_most_once:
            yield store(m.stage + head, 0)  # F2d
        yield store(m.inflight + head, 1)  # F3
        yield store(m.heads, both(entry, entry))  # F4
        recent = (*p.recent, head)
        return p._replace(last=self.on(p.last, count), counter=p.counter + 1, recent=recent)

    def held(self) -> Generator[Access, int, int]:
        """Slots of the requests in flight, which a worker knows."""
        held = 0
        free = yield from self.free_list(halves((yield load(self.m.heads)))[0])
        for head in range(self.c.size):
            if head not in free and (yield load(self.m.inflight + head)):
                held += halves((yield load(self.m.chain + head)))[1]
        return held

    def free_list(self, head: int) -> Generator[Access, int, list[int]]:
        """The entries that nobody has. The list ends with an entry that is not there."""
        entries: list[int] = []
        while head < self.c.size:
            if head in entries:
                yield broken("the free list has no end")
            entries.append(head)
            head = yield load(self.m.next + head)
        return entries

    def publish(self, p: Private, heads: tuple[int, ...]) -> Program:
        """Complete a batch: the driver sees all of it at one store."""
        m, size = self.m, self.c.size
        first = m.slot + self.at(p.used)
        word = yield load(first)
        if not is_available(word, p.used, size):  # C0
            word = with_bits(word, available_bits(p.used, size))
            yield store(first, word)
        shown = word & (AVAIL | USED)
        place, published = p.used, 0
        lasts: list[int] = []
        for head in heads:
            last, count = halves((yield load(m.chain + head)))
            buffer = id_of((yield load(m.copy + last)))
            bits = used_bits(place, size)
            word = made(bits, buffer, WRITTEN)
            if not lasts:  # C1f
                published = word
                word = with_bits(word, shown)
            yield store(m.slot + self.at(place), word)  # C1
            lasts.append(last)
            place = self.on(place, count)
        free, old = halves((yield load(m.heads)))
        for head, last in reversed(list(zip(heads, lasts, strict=True))):  # C2
            if (yield load(m.next + last)) != free:  # C2a
                yield store(m.next + last, free)
            free = head
        yield store(m.heads, both(free, old))  # C2b
        yield store(m.word, both(place, p.used))  # C3
        yield store(first, published)  # C4
        for head in heads:  # C5
            yield store(m.inflight + head, 0)
        yield store(m.heads, both(free, free))  # C6
        yield store(m.word, both(place, place))  # C7
        wish = yield load(m.call_wish)  # N1
        if passed(wish, place, p.used, self.c.modulus) if self.c.event_idx else not wish:
            yield store(m.call, 1)  # N2
        return p.published(heads, place)

    # ---- sleeping --------------------------------------------------------------------------------

    def sleep(self, p: Private) -> Program:
        """Ask for a kick, then look once more: one that was not sent will never be."""
        if self.c.event_idx:
            yield store(self.m.kick_wish, p.last)  # S1a
        yield store(self.m.kick_flags, PLACE if self.c.event_idx else ENABLE)  # S1b
        word = yield load(self.m.slot + self.at(p.last))  # S2
        if not is_available(word, p.last, self.c.size):  # S3
            return p._replace(asleep=True)
        yield from self.refuse()
        return p

    def refuse(self) -> Generator[Access, int, None]:
        """Ask for no kicks."""
        yield store(self.m.kick_flags, DISABLE)

    # ---- start, recovery, stop -------------------------------------------------------------------

    def start(self, base: int, fresh: bool) -> Program:
        """Begin at `base`, which the front-end gave, unless the record says more.

        Not `fresh`: in the place of a dead worker, whose ring was well under way. Then nobody knows
        a place but the record.
        """
        if (yield load(self.m.version)):
            p = yield from self.recover()
        elif fresh:
            p = yield from self.begin(*divmod(base, self.c.modulus))
        elif (yield load(self.m.ended)):
            used, _ = halves((yield load(self.m.word)))
            p = yield from self.begin(used, self.on(used, (yield load(self.m.lead))))
        else:
            p = yield from self.begin(0, 0)
        yield store(self.m.kick_flags, ENABLE)
        return p

    def begin(self, used: int, avail: int) -> Program:
        """An empty record."""
        m, size = self.m, self.c.size
        yield store(m.lead, (avail - used) % self.c.modulus)  # V1
        for entry in range(size):  # V2
            yield store(m.next + entry, entry + 1)
            if (yield load(m.inflight + entry)):
                yield store(m.inflight + entry, 0)
        yield store(m.heads, both(0, 0))  # V3
        yield store(m.word, both(used, used))  # V4
        yield store(m.version, 1)  # V5
        yield store(m.ended, 0)  # V6
        return Private(avail, used)

    def recover(self) -> Program:
        """Find what a dead worker had fetched and not completed. May itself die anywhere."""
        m, c = self.m, self.c
        free, first = halves((yield load(m.heads)))
        used, old = halves((yield load(m.word)))
        if used != old:  # R0
            word = yield load(m.slot + self.at(old))
            if is_available(word, old, c.size):  # R1
                used = old
            else:
                first = free
        unused = yield from self.free_list(first)
        live: list[tuple[int, int]] = []
        held, known = (yield load(m.lead)), list(unused)
        for head in range(c.size):
            if head not in unused and (yield load(m.inflight + head)):  # R2
                live.append(((yield load(m.counter + head)), head))
                last, count = halves((yield load(m.chain + head)))
                held += count
                entry = head
                for i in range(count):
                    if i:
                        entry = yield load(m.next + entry)
                    if entry >= c.size:
                        yield broken("an entry is outside of the record")
                    known.append(entry)
                if entry != last:
                    yield broken("a request ends elsewhere")
        if sorted(known) != list(range(c.size)):
            yield broken("an entry is lost, or twice there")
        live.sort()  # R2s
        for head in unused:  # R2c
            if (yield load(m.inflight + head)):
                yield store(m.inflight + head, 0)
        yield store(m.ended, 0)  # R2e
        for i in range(held):  # R3
            place = self.on(used, i)
            word = yield load(m.slot + self.at(place))
            if is_used(word, place, c.size):
                word = with_bits(word, available_bits(place, c.size))
                yield store(m.slot + self.at(place), word)
        yield store(m.heads, both(first, first))  # R4a
        yield store(m.word, both(used, used))  # R4b
        avail = self.on(used, held)  # R4c
        left = tuple(head for _, head in live)
        yield Access("live", value=avail, heads=left)
        yield store(m.call, 1)  # R5
        counter = live[-1][0] + 1 if live else 0  # R6
        recent: tuple[int, ...] = ()
        if c.gives_back and left:
            sure = yield from self.fetched_last(avail, left)
            recent = left[: len(left) - sure]
            if recent:
                recent = (*recent, GONE)  # R8
            recent = (*recent, *left[len(left) - sure :])
        return Private(avail, used, counter, left=left, recent=recent)  # R7

    def fetched_last(self, avail: int, left: tuple[int, ...]) -> Generator[Access, int, int]:
        """How many of these requests the last slots before the next to fetch have, in order."""
        m, place, sure = self.m, avail, 0
        for head in reversed(left):
            _, count = halves((yield load(m.chain + head)))
            place = self.on(place, -count)
            entry = head
            for i in range(count):
                slot = self.at(self.on(place, i))
                word = with_bits((yield load(m.slot + slot)), 0)
                addr = yield load(m.addr + slot)
                same = word == with_bits((yield load(m.copy + entry)), 0)  # R8c
                if not same or addr != (yield load(m.copy_addr + entry)):
                    return sure
                entry = yield load(m.next + entry)
            sure += 1
        return sure

    def stop(self, p: Private) -> Program:
        """Let go of the ring; the answer is the next start's base."""
        m = self.m
        left = self.nobodys(p)
        avail = p.last
        begun = False
        for head in left:
            begun |= (yield load(m.stage + head)) != 0
        if left and left == p.recent and not begun:  # U0
            for head in reversed(left):  # U1
                last, count = halves((yield load(m.chain + head)))
                free, _ = halves((yield load(m.heads)))
                yield store(m.next + last, free)  # U1a
                yield store(m.heads, both(head, head))  # U1b
                yield store(m.inflight + head, 0)  # U2
                avail = self.on(avail, -count)
            left = ()
        if not left:  # Z1
            yield store(m.ended, 1)  # Z1a
            yield store(m.version, 0)  # Z1b
        yield Access("stopped", value=p.used * self.c.modulus + avail, heads=left)
        return p
