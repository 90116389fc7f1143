"""The packed ring's algorithm with one mistake in it, again and again: each has to be found out.

What is no mistake, and is not among them: the order of F1, F2 and F3, as nobody looks there before
F4; the batch's order in C2, as long as each link is seen to; C3 before C2, or its index before its
wrap counter, as only C4 decides whether the way is back or forward; C5 after C6, or after C7 and
C6, as a mark on the free list counts for nothing; V6 or R2e left out, as the last end is asked
about only while the record is not in force; R4b left out, as the next recovery finds the same until
C3 writes there.
"""

from __future__ import annotations

from typing import Any

from tests.model.mutation import Mistake, before, change, drop, swap, then
from tests.model.packed import worker


class Mutant(Mistake):
    """A mistake in worker.py."""

    def worker(self) -> type[Any]:
        """The algorithm with it."""
        return self.mutated(worker, "PackedWorker")


MUTANTS = (
    # Taking a request.
    Mutant("no copy of the descriptor", "chains", drop("F1a")),
    Mutant("no copy of the address", "one slot", drop("F1b")),
    Mutant("no end of the chain", "one slot", drop("F2a")),
    Mutant("no counter", "three requests", drop("F2b")),
    Mutant("attempts of the request before", "poison", drop("F2c")),
    Mutant("the stage of the request before", "at most once", drop("F2d")),
    Mutant("no mark", "one slot", drop("F3")),
    Mutant("the entries stay on the free list", "one slot", drop("F4")),
    Mutant("off the free list before the mark", "one slot", swap("F3", "F4")),
    Mutant("off the free list before the copy's end", "one slot", swap("F2a", "F4")),
    # Completing a batch.
    Mutant("a chain's later slot for the next completion", "bare", drop("C0")),
    Mutant(
        "the first flags with the rest",
        "one slot",
        change("C1f", "word = with_bits(word, shown)", "pass"),
    ),
    Mutant("no links in the free list", "bare", drop("C2a")),
    Mutant(
        "only the link of a batch's last request seen to",
        "flags",
        change("C2a", "!= free", "!= free and head == heads[-1]"),
    ),
    Mutant("no head of the free list", "one slot", drop("C2b")),
    Mutant("a head of the free list before its links", "one slot", swap("C2", "C2b")),
    Mutant("the free list behind the flags", "one slot", swap("C2b", "C4")),
    Mutant("no intent", "one slot", drop("C3")),
    Mutant("the flags before the intent", "one slot", swap("C3", "C4")),
    Mutant("marks cleared before the flags", "one slot", swap("C4", "C5")),
    Mutant("marks not cleared", "entries in another order", drop("C5")),
    Mutant("the old free list kept", "one slot", drop("C6")),
    Mutant("the intent kept", "one slot", drop("C7")),
    Mutant("the intent ended before the old free list", "one slot", swap("C6", "C7")),
    Mutant(
        "the end of the intent: index before wrap counter",
        "chains over the wrap",
        before("C7", "yield store(m.word, both(place, place % size + p.used // size * size))"),
    ),
    # Kicks and interrupts.
    Mutant(
        "the driver's wish read too early",
        "one slot",
        then(drop("N1"), before("C4", "wish = yield load(m.call_wish)")),
    ),
    Mutant("no interrupt", "one slot", drop("N2")),
    Mutant("kicks asked for at an old place", "one slot", drop("S1a")),
    Mutant("kicks not asked for", "one slot", drop("S1b")),
    Mutant("kicks asked for after the last look", "one slot", swap("S1b", "S2")),
    Mutant(
        "no last look",
        "one slot",
        change("S3", "not is_available(word, p.last, self.c.size)", "True"),
    ),
    # Starting and stopping.
    Mutant("what was lost is forgotten", "lost", drop("V1")),
    Mutant("entries of a ring that is no more", "one slot", drop("V2")),
    Mutant("the free list of a ring that is no more", "stops, two deaths", drop("V3")),
    Mutant("a record that begins at place 0", "stops", drop("V4")),
    Mutant("a record in force before its place", "stops", swap("V4", "V5")),
    Mutant("a record in force before its free list", "stops", swap("V3", "V5")),
    Mutant("a record in force before its entries", "one slot", swap("V2", "V5")),
    Mutant("a record never in force", "one slot", drop("V5")),
    Mutant(
        "the last end forgotten before the record is in force",
        "stops, two deaths",
        swap("V5", "V6"),
    ),
    Mutant("a record in force after the stop", "stops", drop("Z1b")),
    Mutant("no end noted at the stop", "stops", drop("Z1a")),
    Mutant("an end noted after the record is out of force", "stops", swap("Z1a", "Z1b")),
    Mutant("requests forgotten at the stop", "stops", change("Z1", "not left", "True")),
    Mutant(
        "fetches taken back oldest first",
        "gives back, two requests",
        change("U1", "reversed(left)", "left"),
    ),
    Mutant(
        "marks cleared before the fetch is taken back",
        "gives back, at most once",
        swap("U1b", "U2"),
    ),
    Mutant("fetches taken back without their entries", "gives back, at most once", drop("U1b")),
    Mutant("fetches taken back without their links", "gives back, two requests", drop("U1a")),
    Mutant(
        "fetches taken back that others have followed",
        "stops",
        change("U0", "left == p.recent", "True"),
    ),
    Mutant(
        "fetches taken back of what was begun",
        "gives back, at most once",
        change("U0", "not begun", "True"),
    ),
    Mutant("what a dead worker left is taken for the last fetches", "gives back", drop("R8")),
    Mutant(
        "the last fetches known by their addresses",
        "gives back",
        change("R8c", "word == with_bits((yield load(m.copy + entry)), 0)", "True"),
    ),
    # Recovery.
    Mutant(
        "positions compared without their wrap counters",
        "one slot",
        change("R0", "used != old", "self.at(used) != self.at(old)"),
    ),
    Mutant(
        "always back to the old place",
        "one slot",
        change("R1", "is_available(word, old, c.size)", "True"),
    ),
    Mutant("always forward", "one slot", change("R1", "is_available(word, old, c.size)", "False")),
    Mutant("the free list not rolled back", "one slot", before("R1", "first = free")),
    Mutant(
        "a free list without an intent kept",
        "one slot",
        before("R0", "first = free if used == old else first"),
    ),
    Mutant(
        "marks of free entries believed", "one slot", change("R2", "head not in unused and ", "")
    ),
    Mutant("marks of free entries kept", "entries in another order, two deaths", drop("R2c")),
    Mutant(
        "only the first free entry's mark cleared",
        "entries in another order, two deaths",
        change("R2c", "in unused", "in unused[:1]"),
    ),
    Mutant("requests run again in any order", "three requests", drop("R2s")),
    Mutant("what was not published is not taken back", "in order", drop("R3")),
    Mutant("recovery's free list kept", "one slot", drop("R4a")),
    Mutant("recovery's place before its free list", "stops, two deaths", swap("R4a", "R4b")),
    Mutant("going on at the used place", "one slot", change("R4c", "self.on(used, held)", "used")),
    Mutant("no interrupt after recovery", "one slot", drop("R5")),
    Mutant(
        "counters from 0 again",
        "three requests, two deaths",
        change("R6", "live[-1][0] + 1 if live else 0", "0"),
    ),
    Mutant(
        "waiting for a kick after recovery",
        "one slot",
        change("R7", "left=left", "left=left, asleep=True"),
    ),
)
