"""The algorithm: what a worker does with a split ring and its in-flight record, store by store.

This is the specification of the native ring code. Each `yield` is one access to memory that is
shared; between two of them the driver may move and the worker may die. All else is private to the
worker and dies with it. The marks at the right are the names of the steps in docs/recovery.md and,
as far as they store, in the ring code; mutants.py takes them out or changes their order.

It leaves more open than the ring code does: when a batch is published, in which order requests are
finished, whether the worker sleeps in between. Whatever the ring code chooses is among it.
"""

from __future__ import annotations

from collections.abc import Generator

from tests.model.access import GONE, Access, Private, Program, broken, load, store
from tests.model.config import Config, Memory, passed
from tests.model.serving import Serving


class Worker(Serving):
    """The programs of one worker of a split ring."""

    c: Config
    m: Memory

    def __init__(self, config: Config, memory: Memory) -> None:
        self.c = config
        self.m = memory

    # ---- the life of a request -------------------------------------------------------------------

    def mark(self, p: Private) -> Program:
        """Take the next available request, the last of `recent` then; the same if there is none."""
        idx = yield load(self.m.avail_idx)
        if (idx - p.last) % self.c.modulus > self.c.size:
            yield broken("avail index is further on than the ring is long")
        if idx == p.last:
            return p
        head = yield load(self.m.avail_ring + p.last % self.c.size)
        if (yield load(self.m.inflight + head)):
            yield broken("descriptor head is in flight already")
        yield store(self.m.counter + head, p.counter)  # F1
        if self.c.poison is not None:
            yield store(self.m.attempts + head, 0)  # F2a
        if self.c.at_most_once:
            yield store(self.m.stage + head, 0)  # F2b
        yield store(self.m.inflight + head, 1)  # F3
        recent = (*p.recent, head)
        last = (p.last + 1) % self.c.modulus
        return p._replace(last=last, counter=p.counter + 1, recent=recent)

    def publish(self, p: Private, heads: tuple[int, ...]) -> Program:
        """Complete a batch: the driver sees all of it at one store."""
        used = (p.used + len(heads)) % self.c.modulus
        for i, head in enumerate(heads):  # C1
            yield store(self.m.used_ring + (p.used + i) % self.c.size, head)
        for head in heads:  # C2
            yield store(self.m.next + head, (yield load(self.m.last_batch_head)))  # C2a
            yield store(self.m.last_batch_head, head)  # C2b
        yield store(self.m.used_idx, used)  # C3
        for head in heads:  # C4
            yield store(self.m.inflight + head, 0)
        yield store(self.m.record_used_idx, used)  # C5
        wish = yield load(self.m.call_wish)  # N1
        if passed(wish, used, p.used, self.c.modulus) if self.c.event_idx else not wish:
            yield store(self.m.call, 1)  # N2
        return p.published(heads, used)

    # ---- sleeping --------------------------------------------------------------------------------

    def sleep(self, p: Private) -> Program:
        """Ask for a kick, then look once more: one that was not sent will never be."""
        yield store(self.m.kick_wish, p.last if self.c.event_idx else 0)  # S1
        idx = yield load(self.m.avail_idx)  # S2
        if idx == p.last:  # S3
            return p._replace(asleep=True)
        yield from self.refuse()
        return p

    def refuse(self) -> Generator[Access, int, None]:
        """Ask for no kicks. An event index needs nothing: the driver has passed it."""
        if not self.c.event_idx:
            yield store(self.m.kick_wish, 1)

    # ---- start, recovery, stop -------------------------------------------------------------------

    def start(self, base: int, fresh: bool) -> Program:
        """Begin at `base`, which the front-end gave; not `fresh`: in the place of a dead worker."""
        used = yield load(self.m.used_idx)
        if (yield load(self.m.version)):
            return (yield from self.recover(used))
        yield store(self.m.record_used_idx, used)  # V1
        for head in range(self.c.size):  # V2
            if (yield load(self.m.inflight + head)):
                yield store(self.m.inflight + head, 0)
        yield store(self.m.version, 1)  # V3
        last = base if fresh else used  # V4
        return Private(last, used)

    def recover(self, used: int) -> Program:
        """Find what a dead worker had fetched and not completed. May itself die anywhere."""
        count = (used - (yield load(self.m.record_used_idx))) % self.c.modulus
        if count > self.c.size:
            yield broken("more was completed at once than the ring holds")
        head = yield load(self.m.last_batch_head)
        for _ in range(count):  # R1
            yield store(self.m.inflight + head, 0)
            head = yield load(self.m.next + head)
        yield store(self.m.record_used_idx, used)  # R2
        live: list[tuple[int, int]] = []
        for head in range(self.c.size):
            if (yield load(self.m.inflight + head)):
                live.append(((yield load(self.m.counter + head)), head))
        live.sort()  # R3
        last = (used + len(live)) % self.c.modulus  # R4
        if ((yield load(self.m.avail_idx)) - last) % self.c.modulus > self.c.size:
            yield broken("more is in flight than was made available")
        left = tuple(head for _, head in live)
        yield Access("live", heads=left)
        yield store(self.m.call, 1)  # R5
        counter = live[-1][0] + 1 if live else 0  # R6
        recent: tuple[int, ...] = ()
        if self.c.gives_back and left:
            # How many of them were fetched last is to be seen in the avail ring.
            sure = 0
            for head in reversed(left):
                slot = (last - sure - 1) % self.c.modulus % self.c.size
                if (yield load(self.m.avail_ring + slot)) != head:
                    break
                sure += 1
            recent = left[: len(left) - sure]
            if recent:
                recent = (*recent, GONE)  # R8
            recent = (*recent, *left[len(left) - sure :])
        return Private(last, used, counter, left=left, recent=recent)  # R7

    def stop(self, p: Private) -> Program:
        """Let go of the ring; the answer is the next start's base.

        All is drained, and the record is of no use any more; or a dead worker left requests that
        nobody has begun again, and they stay in the record for whoever starts the ring there. If
        they were the last to be fetched, and the device has not begun them, their fetches are taken
        back instead.
        """
        left = self.nobodys(p)
        base = (p.last - len(left)) % self.c.modulus
        begun = False
        for head in left:
            begun |= (yield load(self.m.stage + head)) != 0
        if left and left == p.recent and not begun:  # U0
            for head in reversed(left):  # U1
                yield store(self.m.inflight + head, 0)
            left = ()
        if not left:  # Z1
            yield store(self.m.version, 0)
        yield Access("stopped", value=base, heads=left)
        return p
