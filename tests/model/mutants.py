"""The split ring's algorithm with one mistake in it, again and again: each has to be found out."""

from __future__ import annotations

from typing import Any

from tests.model import worker
from tests.model.mutation import Mistake, after, before, change, drop, swap, then


class Mutant(Mistake):
    """A mistake in worker.py."""

    def worker(self) -> type[Any]:
        """The algorithm with it."""
        return self.mutated(worker, "Worker")


MUTANTS = (
    # Taking a request.
    Mutant("no counter", "in order, three requests", drop("F1")),
    Mutant("the counter behind the mark", "in order, three requests", swap("F1", "F3")),
    Mutant("no mark", "at most once", drop("F3")),
    Mutant("attempts of the request before", "poison", drop("F2a")),
    Mutant("the stage of the request before", "at most once", drop("F2b")),
    Mutant(
        "attempts reset behind the mark",
        "poison",
        after("F3", "F2a", "yield store(self.m.attempts + head, 0)"),
    ),
    Mutant(
        "the stage reset behind the mark",
        "at most once",
        after("F3", "F2b", "yield store(self.m.stage + head, 0)"),
    ),
    # Running it.
    Mutant("attempts not counted", "poison", drop("X1")),
    Mutant(
        "attempts counted afterwards",
        "poison",
        after("X", "X1", "yield store(self.m.attempts + head, attempts + 1)"),
    ),
    Mutant("no stage", "at most once", drop("X2")),
    Mutant(
        "the stage noted afterwards",
        "at most once",
        after("X", "X2", "yield store(self.m.stage + head, 1)"),
    ),
    Mutant("attempts not taken back", "poison behind another", drop("X3")),
    # Completing a batch.
    Mutant("used.idx before the elements", "in order", swap("C1", "C3")),
    Mutant("no list of the batch", "in order", drop("C2")),
    Mutant("no links in the list", "out of order", drop("C2a")),
    Mutant("no head of the list", "in order", drop("C2b")),
    Mutant("a head of the list before its link", "in order", swap("C2a", "C2b")),
    Mutant("the list behind used.idx", "in order", swap("C2", "C3")),
    Mutant(
        "used.idx element by element",
        "in order",
        change(
            "C3",
            "yield store(self.m.used_idx, used)",
            "for i in range(len(heads)):\n"
            "            yield store(self.m.used_idx, (p.used + i + 1) % self.c.modulus)",
        ),
    ),
    Mutant("marks cleared before used.idx", "in order", swap("C3", "C4")),
    Mutant("marks not cleared", "one slot", drop("C4")),
    Mutant("the record's used index before the marks", "one slot", swap("C4", "C5")),
    Mutant("the record's used index not moved", "one slot, two deaths", drop("C5")),
    Mutant(
        "fetching before the marks are cleared",
        "one slot",
        before("C4", "p = yield from self.fetch(p)"),
    ),
    Mutant(
        "fetching before the record's used index",
        "one slot",
        before("C5", "p = yield from self.fetch(p)"),
    ),
    # Kicks and interrupts.
    Mutant(
        "the driver's wish read too early",
        "one slot",
        then(drop("N1"), before("C3", "wish = yield load(self.m.call_wish)")),
    ),
    Mutant("no interrupt", "one slot", drop("N2")),
    Mutant("kicks not asked for", "one slot", drop("S1")),
    Mutant("kicks not asked for again", "flags", drop("S1")),
    Mutant("kicks asked for after the last look", "one slot", swap("S1", "S2")),
    Mutant("no last look", "one slot", change("S3", "idx == p.last", "True")),
    # Starting and stopping.
    Mutant("a record that begins at index 0", "one slot", drop("V1")),
    Mutant("marks of a ring that is no more", "stops", drop("V2")),
    Mutant("a record in force before its used index", "one slot", swap("V1", "V3")),
    Mutant("a record in force before its marks are cleared", "stops, two deaths", swap("V2", "V3")),
    Mutant("a record never in force", "one slot", drop("V3")),
    Mutant("a second worker at the old base", "stops", change("V4", " if fresh else used", "")),
    Mutant("an answer before all is drained", "stops", change("Z0", "not p.ran", "True")),
    Mutant("a record in force after the stop", "stops", drop("Z1")),
    Mutant(
        "requests forgotten at the stop",
        "stops, at most once",
        change("Z1", "not left", "True"),
    ),
    Mutant(
        "fetches taken back oldest first",
        "gives back",
        change("U1", "reversed(left)", "left"),
    ),
    Mutant(
        "fetches taken back that others have followed",
        "gives back",
        change("U0", "left == p.recent", "True"),
    ),
    Mutant(
        "what a dead worker left is taken for the last fetches",
        "gives back",
        drop("R8"),
    ),
    Mutant(
        "fetches taken back of what was begun",
        "gives back, at most once",
        change("U0", "not begun", "True"),
    ),
    # Recovery.
    Mutant("marks of the last batch kept", "one slot", drop("R1")),
    Mutant(
        "only the last head's mark cleared",
        "in order",
        change("R1", "range(count)", "range(min(count, 1))"),
    ),
    Mutant("recovery's used index not moved", "one slot, two deaths", drop("R2")),
    Mutant("recovery's used index moved first", "in order", swap("R1", "R2")),
    Mutant("requests run again in any order", "in order, three requests", drop("R3")),
    Mutant(
        "going on at the avail index",
        "one slot",
        change("R4", "(used + len(live)) % self.c.modulus", "yield load(self.m.avail_idx)"),
    ),
    Mutant("going on at the used index", "one slot", change("R4", " + len(live)", "")),
    Mutant("no interrupt after recovery", "one slot", drop("R5")),
    Mutant(
        "counters from 0 again",
        "in order, three requests, two deaths",
        change("R6", "live[-1][0] + 1 if live else 0", "0"),
    ),
    Mutant(
        "waiting for a kick after recovery",
        "one slot",
        change("R7", "left=left", "left=left, asleep=True"),
    ),
    Mutant("what was found counts as run", "one slot", change("R7", "left=left", "ran=left")),
    Mutant("poison run for ever", "poison", change("A1", "attempts >= self.c.attempts", "False")),
    Mutant(
        "the stage not looked at",
        "at most once",
        change("A2", "(yield load(self.m.stage + head))", "False"),
    ),
    Mutant(
        "never run again",
        "at most once",
        change("A2", " and (yield load(self.m.stage + head))", ""),
    ),
    Mutant(
        "what is not run again is not completed",
        "poison",
        change("A3", "ran=(*p.ran, head)", "ran=p.ran"),
    ),
)
