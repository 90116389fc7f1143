"""Catalogue rows C37 and A36 with real workers: bits flip under a ring while it is served.

Whatever the ring is made of by then: no worker dies of it, nothing outside the guest's memory is
written, the ring goes on or is broken with a cause, and the other queue does not notice.
VUPROC_LONG=1 has more rounds, other ones each time.
"""

from __future__ import annotations

import os
import random
import re

import pytest

from tests.conformance.checks import BROKEN_WITHIN_S, LAYOUTS, serves_newcomer, works
from tests.conformance.flips import OTHER, VICTIM, FlippedGuest
from vuproc.ops.status import QueueStatus
from vuproc.testing.errors import ServeFailed
from vuproc.testing.serve import Served, serve

LONG = os.environ.get("VUPROC_LONG", "") not in ("", "0")
ROUNDS = 200 if LONG else 12
FLIPS = 40
KILLS = 3
"""Workers that are killed in a row, so that their successors read a record that was hit."""
_CRASH = re.compile(r"SIG(SEGV|BUS|ABRT|FPE|ILL|TRAP)")


def shown(served: Served) -> QueueStatus:
    """The first queue: it runs, or it is broken and the status says why."""
    queue = served.status().queues[VICTIM]
    assert queue.state in ("running", "broken", "disabled"), queue
    assert (queue.state == "broken") == bool(queue.cause), queue
    return queue


def killed(served: Served) -> bool:
    """Kill the first queue's worker; False if the ring breaks before that."""
    if shown(served).state == "broken":
        return False
    try:
        served.kill_worker(VICTIM)
    except ServeFailed:
        assert shown(served).state == "broken"
        return False
    return True


def unharmed(served: Served, victim: FlippedGuest) -> None:
    """No worker has crashed, the other queue's is the one that it was, and no byte is where none
    may be.
    """
    assert not [line for line in served.lines if _CRASH.search(line)]
    assert served.status().queues[OTHER].restarts == 0
    assert victim.intact()


@pytest.mark.timeout(3600 if LONG else 300)
@pytest.mark.parametrize("engine", ["auto", "python"])
@LAYOUTS
def test_c37_bits_flip_while_requests_are_served(packed: bool, engine: str) -> None:
    choose = random.Random(None if LONG else 37)
    device = {"type": "blk", "ram": "16MiB", "queues": 2, "queue_size": 256, "engine": engine}
    states = set()
    with serve(device) as served:
        with FlippedGuest(served, choose, packed=packed) as victim:
            for _ in range(ROUNDS):
                victim.send()
                victim.disturb(FLIPS)
                states.add(shown(served).state)
                victim.set_up_anew()
                unharmed(served, victim)
                assert served.status().queues[VICTIM].restarts == 0
            victim.reset()
            works(victim.guest)
        serves_newcomer(served)
    assert states == {"running", "broken"}, "the flips were all fatal, or all harmless"


@pytest.mark.timeout(3600 if LONG else 300)
@LAYOUTS
@pytest.mark.parametrize("seed", range(20 if LONG else 2))
def test_a36_bits_flip_while_workers_die(packed: bool, seed: int) -> None:
    choose = random.Random(None if LONG else seed)
    device = {"type": "blk", "ram": "16MiB", "queues": 2, "queue_size": 256}
    with serve(device) as served:
        with FlippedGuest(served, choose, packed=packed) as victim:
            kills = 0
            while kills < KILLS:
                victim.send()
                victim.disturb(choose.randrange(FLIPS))
                if killed(served):
                    kills += 1
                    victim.disturb(choose.randrange(FLIPS))
                    # Answered once the new worker has the ring, or cannot go on with it.
                    victim.guest.enable_queue(VICTIM)
                    shown(served)
                    works(victim.guest, OTHER)
                victim.set_up_anew()
                unharmed(served, victim)
                assert served.status().queues[VICTIM].restarts == kills
            victim.reset()
            works(victim.guest)
        serves_newcomer(served)


@LAYOUTS
def test_a36_a_record_that_is_spoilt_breaks_its_ring_and_nothing_else(packed: bool) -> None:
    """At once, not after so many workers, and the connection goes on: with a stop, and a start."""
    device = {"type": "blk", "ram": "16MiB", "queues": 2, "queue_size": 256}
    with serve(device) as served, FlippedGuest(served, random.Random(0), packed=packed) as victim:
        works(victim.guest)
        victim.record[7] ^= 0x40  # a feature that is none
        served.kill_worker(VICTIM)
        assert victim.guest.queues[VICTIM].err_bell.wait(BROKEN_WITHIN_S)
        queue = shown(served)
        assert queue.cause is not None and "features 0x4000000000000000" in queue.cause
        assert queue.restarts == 1
        works(victim.guest, OTHER)
        assert not victim.set_up_anew(), "the record is as it was"
        works(victim.guest)
        assert shown(served).state == "running"
        unharmed(served, victim)
