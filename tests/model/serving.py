"""What a worker does with a ring of either layout, and which of its programs may follow which.

The layouts add the programs of their own: split in worker.py, packed in packed/worker.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from itertools import permutations

from tests.model.access import Access, Choice, Private, Program, load, store
from tests.model.config import Layout, Limits


class Serving(ABC):
    """The programs of one worker."""

    c: Limits
    m: Layout
    needs_base = False
    """Whether it cannot begin without one if nobody has begun before, as the ring does not tell."""

    @abstractmethod
    def start(self, base: int, fresh: bool) -> Program:
        """Begin at `base`, which the front-end gave; not `fresh`: in the place of a dead worker."""

    @abstractmethod
    def mark(self, p: Private) -> Program:
        """Take the next available request, the last of `recent` then; the same if there is none."""

    @abstractmethod
    def refuse(self) -> Generator[Access, int, None]:
        """Ask for no kicks."""

    def program(self, choice: Choice) -> Program:
        program: Program = getattr(self, choice.name)(*choice.given)
        return program

    def choices(self, p: Private, stopping: bool) -> Iterator[Choice]:
        """What a worker may do next, when no program is under way."""
        for heads in self.batches(p.ran):
            yield Choice("publish", (p, heads))
        if p.left or p.back:
            # Readmitted, in the order of the fetches.
            yield Choice("again", (p._replace(left=self.nobodys(p), back=()),))
        if stopping:
            if not p.ran:  # Z0
                yield Choice("stop", (p,))
        elif p.asleep:
            yield Choice("wake", (p,))
        elif not p.left:
            yield Choice("fetch", (p,))
            if self.c.gives_back:
                yield Choice("give_back", (p,))
            if not (p.ran and self.c.in_order):
                yield Choice("sleep", (p,))

    def batches(self, ran: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        for count in range(1, min(len(ran), self.c.batch) + 1):
            yield from [ran[:count]] if self.c.in_order else permutations(ran, count)

    def nobodys(self, p: Private) -> tuple[int, ...]:
        """What a dead worker or the device has left, in the order of the fetches."""
        return tuple(h for h in p.recent if h in p.left or h in p.back) if p.back else p.left

    def fetch(self, p: Private) -> Program:
        """Take the next available request, mark it and run it."""
        known = p
        p = yield from self.mark(p)
        if p == known:
            return p
        head = p.recent[-1]
        yield from self.run(head, 0)
        recent = p.recent if self.c.gives_back else ()
        return p._replace(ran=(*p.ran, head), recent=recent)

    def give_back(self, p: Private) -> Program:
        """As `fetch`, by a device that has nothing to do with it yet."""
        known = p
        p = yield from self.mark(p)
        if p == known:
            return p
        head = p.recent[-1]
        if self.c.at_most_once:
            yield store(self.m.stage + head, 1)  # X2b
            yield store(self.m.stage + head, 0)  # G1
        return p._replace(back=(*p.back, head))

    def run(self, head: int, attempts: int) -> Generator[Access, int, None]:
        if self.c.poison is not None:
            yield store(self.m.attempts + head, attempts + 1)  # X1
        if self.c.at_most_once:
            yield store(self.m.stage + head, 1)  # X2
        yield Access("run", heads=(head,))  # X
        if self.c.poison is not None:
            yield store(self.m.attempts + head, attempts, "survived")  # X3

    def wake(self, p: Private) -> Program:
        yield Access("wait", self.m.kick)
        yield from self.refuse()
        return p._replace(asleep=False)

    def again(self, p: Private) -> Program:
        """Run a dead worker's request again, unless that must not be."""
        head, *left = p.left
        attempts = yield load(self.m.attempts + head)
        if self.c.poison is not None and attempts >= self.c.attempts:  # A1
            yield Access("skip", heads=(head,), why="poison")
        elif self.c.at_most_once and (yield load(self.m.stage + head)):  # A2
            yield Access("skip", heads=(head,), why="drop")
        else:
            yield from self.run(head, attempts)
        return p._replace(left=tuple(left), ran=(*p.ran, head))  # A3
