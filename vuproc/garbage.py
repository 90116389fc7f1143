"""What Python keeps for later that nobody may need: cyclic garbage, and its free lists.

A free list has up to 2000 dropped tuples of one length, for the next of that length. One that is
made of a generator is cut to its length when it is whole, and is taken from no list: so each of
these adds to a list, until that is full. Python empties them with a search of its oldest
generation, which a master never comes to: it drops about as much as it makes.
"""

from __future__ import annotations

import gc

TURNS = 256
"""Of the loop, between two searches: a dozen connections."""


class Garbage:
    """A chore. All that is there when it is made stays, and is not searched."""

    def __init__(self) -> None:
        self._turns = 0
        # A search writes to all that it looks at, which would be a copy of what a fork shares.
        gc.freeze()

    def due(self) -> float | None:
        """Nobody needs to be woken for it."""
        return None

    def tend(self) -> None:
        """A turn of the loop is over."""
        self._turns += 1
        if self._turns >= TURNS:
            self._turns = 0
            gc.collect()

    def close(self) -> None:
        """The loop is over."""
