"""The models of the packed ring's protocol, small and large, and the command that looks at them.

python -m tests.model.packed.models [--large] [--mutants]
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from tests.model.command import carry_out, command
from tests.model.packed.driver import PackedGuest
from tests.model.packed.memory import Config, Memory
from tests.model.packed.mutants import MUTANTS
from tests.model.packed.worker import PackedWorker
from tests.model.search import Result, Search
from tests.model.serving import Serving

SMALL = {
    "one slot": Config(size=1, requests=2),
    "flags": Config(requests=2, event_idx=False, origin=3),
    "in order": Config(requests=2, in_order=True, origin=1),
    "chains": Config(requests=2, lengths=(2, 1)),
    "bare": Config(
        size=3, requests=2, lengths=(2, 1), bare=True, origin=2, batch=1, event_idx=False
    ),
    "three requests": Config(requests=3, in_order=True, event_idx=False, batch=1),
    "entries in another order": Config(
        requests=3, lengths=(1, 1, 2), in_order=True, event_idx=False, batch=1
    ),
    "chains over the wrap": Config(
        size=3, requests=2, lengths=(2,), in_order=True, event_idx=False, batch=1
    ),
    "lost": Config(requests=2, lost=1, origin=1),
    "at most once": Config(size=1, requests=2, at_most_once=True),
    "poison": Config(size=1, requests=2, poison=0),
    "stops": Config(size=1, requests=1, batch=1, stops=1, origin=1),
    "stops, two deaths": Config(size=1, requests=1, batch=1, stops=1, crashes=2, origin=1),
    "stops, at most once": Config(size=1, requests=1, batch=1, stops=1, at_most_once=True),
    "gives back": Config(requests=1, batch=1, stops=1, gives_back=True, event_idx=False, origin=1),
    "gives back, at most once": Config(
        size=1, requests=1, batch=1, stops=1, gives_back=True, at_most_once=True
    ),
}
"""Looked at in every run of the tests."""

LARGE = {
    "one slot, two deaths": Config(size=1, requests=3, batch=1, crashes=2),
    "out of order": Config(requests=2),
    "out of order, over the wrap": Config(requests=2, origin=1),
    "in order, three requests": Config(requests=3, in_order=True),
    "chains, three requests": Config(lengths=(2, 1)),
    "batches of three": Config(
        size=3, batch=3, lengths=(2, 1), origin=2, event_idx=False, in_order=True
    ),
    "two deaths": Config(requests=2, crashes=2, origin=1, event_idx=False),
    "chains, two deaths": Config(lengths=(2, 1), crashes=2, event_idx=False, in_order=True),
    "three requests, two deaths": Config(crashes=2, in_order=True, event_idx=False, batch=1),
    "entries in another order, two deaths": Config(
        lengths=(1, 1, 2), crashes=2, in_order=True, event_idx=False
    ),
    "bare, batches of two": Config(size=3, requests=2, lengths=(2, 1), bare=True, origin=2),
    "stops, two requests": Config(size=1, requests=2, batch=1, stops=1),
    "stops, three deaths": Config(size=1, requests=1, batch=1, stops=1, crashes=3, origin=1),
    "two stops, two deaths": Config(size=1, requests=1, batch=1, stops=2, crashes=2, origin=1),
    "stops, two slots": Config(requests=2, batch=1, stops=1, origin=1, event_idx=False),
    "a stop of what was lost": Config(requests=1, batch=1, stops=1, crashes=2, lost=1, origin=1),
    "gives back, at most once, two requests": Config(
        size=1, requests=2, batch=1, stops=1, gives_back=True, at_most_once=True, origin=1
    ),
    "gives back what follows what was lost": Config(
        requests=1, batch=1, stops=1, gives_back=True, lost=1, origin=1
    ),
    "gives back, two requests": Config(
        requests=2, batch=1, stops=1, gives_back=True, in_order=True, event_idx=False
    ),
}
"""Minutes, and gigabytes."""


def look(config: Config, worker: Callable[[Config, Memory], Serving] = PackedWorker) -> Result:
    """Every state of one model."""
    memory = Memory(config)
    return Search(PackedGuest(config, memory), worker(config, memory)).run()


def main(arguments: list[str] | None = None) -> int:
    """Look at models and print what is found; 1 if one is not as it has to be."""
    parser = command("python -m tests.model.packed.models", __doc__)
    return carry_out(parser.parse_args(arguments), look, SMALL, LARGE, MUTANTS)


if __name__ == "__main__":
    sys.exit(main())
