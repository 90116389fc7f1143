"""Bits of a ring and of its record flip at any moment: it goes on, or breaks and says why (C37).

Each seed is a history that can be run again: requests, deaths, and flips before, between and inside
all of them. VUPROC_LONG=1 takes other seeds in each run, and more.
"""

from __future__ import annotations

import os
import random
import re
from collections import Counter
from collections.abc import Callable

import pytest

from tests.shm.flips import SIZE, Flipped, FlippedPacked, FlippedSplit
from tests.shm.guest import F_EVENT_IDX, F_INDIRECT, fail
from vuproc.errors import RingError
from vuproc.shm.request import Request
from vuproc.shm.ring import Ring

LONG = os.environ.get("VUPROC_LONG", "") not in ("", "0")
HISTORIES = 4000 if LONG else 100
STEPS = 100
FEATURES = (0, F_INDIRECT, F_EVENT_IDX, F_INDIRECT | F_EVENT_IDX)

_NUMBER = re.compile(r"0x[0-9a-f]+|[0-9]+")

Maker = Callable[[random.Random, int], Flipped]


class History:
    """What happens to one ring, step by step, as a seed has it."""

    def __init__(self, make: Maker, seed: int) -> None:
        self.choose = random.Random(seed)
        self.stage = make(self.choose, self.choose.choice(FEATURES))
        self.seen: Counter[str] = Counter()
        """Causes of breaks; and how often a request was served, and a ring recovered."""
        self.held: list[Request] = []
        # Now and then nothing flips for long, so that there is something to destroy.
        self.density = self.choose.choice((0.02, 0.2, 0.6))

    def run(self) -> Counter[str]:
        with self.stage as stage:
            ring = stage.start()
            for _ in range(STEPS):
                self._flip()
                try:
                    ring = self._step(ring)
                except RingError as error:
                    assert error.cause
                    self.seen[_NUMBER.sub("#", error.cause)] += 1
                    self._stays_broken(ring, error)
                    self.held.clear()
                    ring = stage.start()
                assert stage.intact()
        return self.seen

    def _flip(self) -> None:
        if self.choose.random() < self.density:
            self.stage.flip(self.choose.randint(1, 3))

    def _step(self, ring: Ring) -> Ring:
        match self.choose.randrange(8):
            case 0 | 1 | 2:
                self.stage.send()
            case 3 | 4:
                ring.drain(self._handle, fail, self.choose.randint(1, SIZE))
            case 5:
                self._finish_some(ring)
            case 6:
                ring.arm()
                self._flip()
                ring.disarm()
            case 7:
                return self._dies(ring)
        return ring

    def _handle(self, request: Request) -> None:
        self.seen["served"] += 1
        self._flip()
        assert sum(part.nbytes for part in request.readable_segments) == request.readable_total
        assert sum(part.nbytes for part in request.writable_segments) == request.writable_total
        data = request.read(1 << 12)
        assert len(data) == min(request.readable_total, 1 << 12)
        request.write(data)
        if self.choose.random() < 0.4:
            request.defer()
            self.held.append(request)

    def _finish_some(self, ring: Ring) -> None:
        self.choose.shuffle(self.held)
        for _ in range(self.choose.randint(0, len(self.held))):
            self.held.pop().finish()
            self._flip()
        ring.publish()

    def _dies(self, ring: Ring) -> Ring:
        """The worker is gone with what it held; its successor has the record, such as it is."""
        self.held.clear()
        ring.stop(keep=True)
        self._flip()
        successor = self.stage.restart()
        self.seen["recovered"] += 1
        # What it has found in order it must not look at again.
        self._flip()
        return successor

    def _stays_broken(self, ring: Ring, error: RingError) -> None:
        """Nothing of it is touched any more, if it broke and not its successor."""
        if ring.broken is None:
            assert ring.stopped
            return
        assert ring.broken.args == error.args
        before = self.stage.guest.bytes[:], self.stage.record.bytes[:]
        with pytest.raises(RingError):
            ring.drain(self._handle, fail, SIZE)
        ring.publish()
        assert (self.stage.guest.bytes[:], self.stage.record.bytes[:]) == before


@pytest.mark.timeout(3600 if LONG else 240)
@pytest.mark.parametrize("make", [FlippedSplit, FlippedPacked], ids=["split", "packed"])
def test_c37_a36_bits_that_flip_at_any_moment(make: Maker) -> None:
    seen: Counter[str] = Counter()
    first = random.SystemRandom().getrandbits(48) if LONG else 0
    for seed in range(first, first + HISTORIES):
        try:
            seen += History(make, seed).run()
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
    # The flips were not all fatal, and not all harmless.
    assert seen["served"] > HISTORIES and seen["recovered"] > HISTORIES // 4
    assert len(seen) > 10, seen
