"""The judge of a model: what the driver has asked for, and what it must never see."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

from tests.model.access import Access
from tests.model.config import Layout, Limits


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
Words = tuple[int, ...]


class Driver(NamedTuple):
    """`sent`: requests submitted; `told`: the place when a kick was last thought about;

    `seen`: the place up to which completions are taken; `irq`: where its handler is; `held`: the
    outstanding request of each name that the driver has for one; `next`: the place where it
    submits, of a ring whose memory does not say so.
    """

    sent: int
    told: int
    seen: int
    irq: str
    held: Held
    next: int = 0


class Judge(ABC):
    """The rules for one model. A worker's `head` is its own name of a request."""

    c: Limits
    m: Layout

    @abstractmethod
    def name(self, head: int, words: Words) -> int:
        """The driver's name of a worker's request."""

    @abstractmethod
    def inspect(self, request: Request, head: int, words: Words) -> None:
        """Raises Violation if a worker runs this request with something else in its hands."""

    def judge(self, access: Access, d: Driver, words: Words) -> Driver:
        """What is remembered of a worker's step; raises Violation if it must not be."""
        if access.kind == "broken":
            raise Violation(f"an honest ring was found broken: {access.why}")
        if access.kind == "live":
            names = [self.name(head, words) for head in access.heads]
            numbers = [self._request(d, name).number for name in names]
            if numbers != sorted(numbers):
                raise Violation(f"requests {numbers} are run again in this order")
        elif access.kind == "store" and access.value and not access.why:
            name = self.name((access.at - self.m.notes.start) % self.c.size, words)
            return self._changed(d, name, begun=self._request(d, name).begun + 1)
        elif access.kind == "run":
            return self._ran(d, access.heads[0], words)
        elif access.kind == "skip":
            return self._skipped(d, self.name(access.heads[0], words), access.why)
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

    def is_poison(self, d: Driver, head: int, words: Words) -> bool:
        """Whether a worker that runs this request dies of it."""
        request = d.held[self.name(head, words)]
        return request is not None and request.number == self.c.poison

    def _ran(self, d: Driver, head: int, words: Words) -> Driver:
        name = self.name(head, words)
        request = self._request(d, name)
        self.inspect(request, head, words)
        if request.number == self.c.poison:
            if request.runs == self.c.attempts:
                raise Violation(f"request {request.number} runs once more")
            return self._changed(d, name, runs=request.runs + 1)
        if request.runs:
            raise Violation(f"request {request.number} runs once more")
        survived = self.c.poison is not None and request.begun > 0
        return self._changed(d, name, runs=1, answered=True, begun=request.begun - survived)

    def _skipped(self, d: Driver, name: int, why: str) -> Driver:
        request = self._request(d, name)
        if request.begun < (self.c.attempts if why == "poison" else 1):
            raise Violation(f"{why} of request {request.number}, begun {request.begun} times")
        return self._changed(d, name, answered=True)

    def completed(self, d: Driver, name: int) -> Request:
        """The request that the ring shows as completed; raises Violation if it cannot be."""
        request = d.held[name]
        if request is None:
            raise Violation(f"{name} completed twice")
        if not request.answered:
            raise Violation(f"request {request.number} completed but never run")
        return request

    def _changed(self, d: Driver, name: int, **changes: Any) -> Driver:
        request = self._request(d, name)._replace(**changes)
        return d._replace(held=replaced(d.held, name, request))

    def _request(self, d: Driver, name: int) -> Request:
        request = d.held[name]
        if request is None:
            raise Violation(f"{name} is worked on, but no request is there")
        return request


def replaced(held: Held, name: int, request: Request | None) -> Held:
    """All as it was, but for one."""
    return held[:name] + (request,) + held[name + 1 :]
