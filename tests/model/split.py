"""The models of the split ring's protocol, small and large, and the command that looks at them.

python -m tests.model.split [--large] [--mutants]
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from tests.model.command import carry_out, command, report
from tests.model.config import Config, Memory
from tests.model.driver import SplitGuest
from tests.model.mutants import MUTANTS
from tests.model.search import Result, Search
from tests.model.serving import Serving
from tests.model.worker import Worker

__all__ = ("LARGE", "SMALL", "look", "main", "report")

SMALL = {
    "one slot": Config(size=1, requests=2),
    "one slot, two deaths": Config(size=1, requests=3, batch=1, crashes=2),
    "flags": Config(requests=2, event_idx=False),
    "out of order": Config(requests=2),
    "in order": Config(requests=2, in_order=True, crashes=2),
    "in order, three requests": Config(requests=3, in_order=True),
    "at most once": Config(size=1, requests=2, at_most_once=True),
    "poison": Config(size=1, requests=2, poison=0),
    "poison behind another": Config(requests=2, in_order=True, poison=1, crashes=0),
    "stops": Config(size=1, requests=2, batch=1, stops=1),
    "stops, two deaths": Config(size=1, requests=1, batch=1, stops=1, crashes=2),
    "stops, at most once": Config(size=1, requests=2, batch=1, stops=1, at_most_once=True),
    "gives back": Config(requests=2, batch=1, stops=1, gives_back=True),
    "gives back, at most once": Config(
        size=1, requests=1, batch=1, stops=1, gives_back=True, at_most_once=True
    ),
}
"""Looked at in every run of the tests."""

LARGE = {
    "three requests": Config(requests=3),
    "three requests, flags": Config(requests=3, event_idx=False),
    "two deaths": Config(requests=2, crashes=2),
    "two deaths, flags": Config(requests=2, event_idx=False, crashes=2),
    "in order, three requests, two deaths": Config(requests=3, in_order=True, crashes=2),
    "in order, four requests": Config(requests=4, in_order=True, crashes=1),
    "in order, four requests, two deaths, flags": Config(
        requests=4, in_order=True, event_idx=False, crashes=2
    ),
    "batches of three": Config(size=4, requests=3, batch=3, in_order=True, modulus=16, origin=14),
    "batches of three, out of order": Config(
        size=4, requests=3, batch=3, event_idx=False, modulus=16, origin=14
    ),
    "bursts": Config(requests=3, in_order=True, bursts=True),
    "at most once, three requests": Config(requests=3, at_most_once=True),
    "at most once, two deaths": Config(requests=2, at_most_once=True, crashes=2),
    "poison among others": Config(requests=3, in_order=True, poison=1, crashes=0),
    "poison and a death": Config(requests=2, poison=0),
    "two stops": Config(requests=2, in_order=True, stops=2, crashes=2),
    "a stop, out of order": Config(requests=2, stops=1),
    "gives back, two deaths": Config(requests=2, batch=1, stops=1, gives_back=True, crashes=2),
    "gives back, three requests": Config(requests=3, batch=1, stops=1, gives_back=True),
}
"""Minutes, and gigabytes."""


def look(config: Config, worker: Callable[[Config, Memory], Serving] = Worker) -> Result:
    """Every state of one model."""
    memory = Memory(config)
    return Search(SplitGuest(config, memory), worker(config, memory)).run()


def main(arguments: list[str] | None = None) -> int:
    """Look at models and print what is found; 1 if one is not as it has to be."""
    parser = command("python -m tests.model.split", __doc__)
    return carry_out(parser.parse_args(arguments), look, SMALL, LARGE, MUTANTS)


if __name__ == "__main__":
    sys.exit(main())
