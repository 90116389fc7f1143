"""The guest's driver, and the judge: what it has asked for, and what it must never see.

The driver trusts interrupts and never polls. It submits while it has free descriptors, kicks if the
device wishes it, and takes completions in its interrupt handler only.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from tests.model.config import Config, Memory, passed, put
from tests.model.worker import Access


class Violation(Exception):
    """What was seen and must never be; `step`: in which step of a worker, if in one."""

    def __init__(self, what: str, step: str = "") -> None:
        super().__init__(what)
        self.step = step


class Request(NamedTuple):
    """An outstanding request.

    `begun`: how often a worker noted that it runs it, and did not survive that where `attempts`
    are counted; `runs`: how often one did, since the last death where that sets no limit;
    `answered`: its result or an error is written.
    """

    number: int
    begun: int = 0
    runs: int = 0
    answered: bool = False


Held = tuple[Request | None, ...]


class Driver(NamedTuple):
    """`sent`: requests submitted; `told`: the avail index when a kick was last thought about;

    `seen`: the used index up to which completions are taken; `irq`: where its handler is;
    `held`: the outstanding request of each descriptor.
    """

    sent: int
    told: int
    seen: int
    irq: str
    held: Held


Words = tuple[int, ...]
Move = tuple[str, Words, Driver]


class Guest:
    """The driver's moves and the judge's rules for one model."""

    def __init__(self, config: Config, memory: Memory) -> None:
        self.c = config
        self.m = memory

    def initial(self, origin: int, sent: int = 0) -> Driver:
        return Driver(sent, origin, origin, "idle", (None,) * self.c.size)

    def idle(self, d: Driver) -> bool:
        """Whether the driver is through with all that it has asked for."""
        return d.irq == "idle" and not any(d.held)

    def finished(self, d: Driver) -> bool:
        return d.sent == self.c.requests and not any(d.held)

    # ---- moves -----------------------------------------------------------------------------------

    def moves(self, words: Words, d: Driver) -> Iterator[Move]:
        """Everything that the driver may do next."""
        m, modulus = self.m, self.c.modulus
        idx = words[m.avail_idx]
        may = self.c.bursts or d.told == idx
        if may and d.sent < self.c.requests and None in d.held:
            head = d.held.index(None)
            after = put(words, m.avail_ring + idx % self.c.size, head)
            after = put(after, m.avail_idx, (idx + 1) % modulus)
            held = _with(d.held, head, Request(d.sent))
            yield f"submits {d.sent} at {head}", after, d._replace(sent=d.sent + 1, held=held)
        if d.told != idx:
            wish = words[m.kick_wish]
            wanted = passed(wish, idx, d.told, modulus) if self.c.event_idx else not wish
            after = put(words, m.kick, 1) if wanted else words
            yield "kicks" if wanted else "need not kick", after, d._replace(told=idx)
        yield from self._interrupt(words, d)

    def _interrupt(self, words: Words, d: Driver) -> Iterator[Move]:
        """The handler, as Linux has it: refuse more, take all, ask again, look once more."""
        m = self.m
        if d.irq == "idle" and words[m.call]:
            after = put(words, m.call, 0)
            if not self.c.event_idx:
                after = put(after, m.call_wish, 1)
            yield "is interrupted", after, self._take(words, d)
        elif d.irq == "ask":
            after = put(words, m.call_wish, d.seen if self.c.event_idx else 0)
            yield "asks for interrupts", after, d._replace(irq="look")
        elif d.irq == "look":
            if words[m.used_idx] == d.seen:
                yield "has taken all", words, d._replace(irq="idle")
            else:
                after = words if self.c.event_idx else put(words, m.call_wish, 1)
                yield "finds more", after, self._take(words, d)

    def _take(self, words: Words, d: Driver) -> Driver:
        held, seen, used = d.held, d.seen, words[self.m.used_idx]
        if (used - seen) % self.c.modulus > sum(request is not None for request in held):
            raise Violation("more completions than requests")
        while seen != used:
            head = words[self.m.used_ring + seen % self.c.size]
            request = held[head]
            if request is None:
                raise Violation(f"head {head} completed twice")
            if not request.answered:
                raise Violation(f"request {request.number} completed but never run")
            held = _with(held, head, None)
            seen = (seen + 1) % self.c.modulus
        return d._replace(held=held, seen=seen, irq="ask")

    # ---- the judge -------------------------------------------------------------------------------

    def judge(self, access: Access, d: Driver) -> Driver:
        """What is remembered of a worker's step; raises Violation if it must not be."""
        if access.kind == "broken":
            raise Violation(f"an honest ring was found broken: {access.why}")
        if access.kind == "live":
            numbers = [self._request(d, head).number for head in access.heads]
            if numbers != sorted(numbers):
                raise Violation(f"requests {numbers} are run again in this order")
        elif access.kind == "store" and access.value and not access.why:
            head = (access.at - self.m.notes.start) % self.c.size
            return self._changed(d, head, begun=self._request(d, head).begun + 1)
        elif access.kind == "run":
            return self._ran(d, access.heads[0])
        elif access.kind == "skip":
            return self._skipped(d, access.heads[0], access.why)
        return d

    def died(self, d: Driver) -> Driver:
        """The worker is dead: another may run all of it again, where that sets no limit."""
        if self.c.at_most_once:
            return d
        held = (
            each if each is None or each.number == self.c.poison else each._replace(runs=0)
            for each in d.held
        )
        return d._replace(held=tuple(held))

    def _ran(self, d: Driver, head: int) -> Driver:
        request = self._request(d, head)
        if request.number == self.c.poison:
            if request.runs == self.c.attempts:
                raise Violation(f"request {request.number} runs once more")
            return self._changed(d, head, runs=request.runs + 1)
        if request.runs:
            raise Violation(f"request {request.number} runs once more")
        survived = self.c.poison is not None and request.begun > 0
        return self._changed(d, head, runs=1, answered=True, begun=request.begun - survived)

    def _skipped(self, d: Driver, head: int, why: str) -> Driver:
        request = self._request(d, head)
        if request.begun < (self.c.attempts if why == "poison" else 1):
            raise Violation(f"{why} of request {request.number}, begun {request.begun} times")
        return self._changed(d, head, answered=True)

    def _changed(self, d: Driver, head: int, **changes: Any) -> Driver:
        request = self._request(d, head)._replace(**changes)
        return d._replace(held=_with(d.held, head, request))

    def _request(self, d: Driver, head: int) -> Request:
        request = d.held[head]
        if request is None:
            raise Violation(f"head {head} is worked on, but no request is there")
        return request


def _with(held: Held, head: int, request: Request | None) -> Held:
    return held[:head] + (request,) + held[head + 1 :]
