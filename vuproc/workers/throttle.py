"""The limits of a queue: how many of its requests may be served now, and when the next may.

What is granted has been taken from the limits' buckets, which the workers of a device share. Bytes
are known once they have passed: they are taken then, and those that follow wait for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from mmap import mmap

from vuproc.options import Options
from vuproc.shm.counters import QueueCounters
from vuproc.shm.rate import WORD_BYTES, Rate

WORDS_EACH = 2
"""Of each set of limits: requests, and bytes."""
BYTES_TURN = 16
"""Requests of one turn where bytes are limited: so many may go beyond, once."""
NS = 1_000_000_000


def words(num_queues: int) -> int:
    """Bytes of the memory which the workers of a device share for its limits."""
    return WORD_BYTES * WORDS_EACH * (1 + num_queues)


class Throttle:
    """The limits of one queue: `requests` and `transfer` are the buckets that it draws from.

    `in_flight` says how many of its requests the device has.
    """

    def __init__(
        self,
        in_flight: Callable[[], int],
        counters: QueueCounters,
        requests: Sequence[Rate],
        transfer: Sequence[Rate],
    ) -> None:
        self._in_flight = in_flight
        self._counters = counters
        self._requests = requests
        self._transfer = transfer
        self._begun, self._passed = self._seen()
        self._until_ns = 0
        """When to try again; 0: it does not wait."""

    def grant(self, most: int) -> int:
        """How many requests may be served in this turn, of `most`: 0, and then `due` says when to
        ask again.
        """
        self.account(0)
        if self._transfer:
            most = min(most, BYTES_TURN)
        granted = most
        wait = max((rate.wait_ns() for rate in self._transfer), default=0)
        if not wait:
            taken: list[tuple[Rate, int]] = []
            for rate in self._requests:
                got = rate.grant(granted)
                for other, had in taken:
                    other.spend(got - had)
                taken = [(other, got) for other, _ in taken] + [(rate, got)]
                granted = got
                if not got:
                    wait = max(1, rate.wait_ns())
                    break
        if wait:
            self._until_ns = time.monotonic_ns() + wait
            return 0
        self._until_ns = 0
        return granted

    def account(self, granted: int) -> None:
        """A turn is over for which `granted` were, or time has passed: give back what was not used,
        and take the bytes of what was completed.
        """
        begun, passed = self._seen()
        unused = granted - max(0, begun - self._begun)
        if granted and unused > 0:
            for rate in self._requests:
                rate.spend(-unused)
        if passed != self._passed:
            for rate in self._transfer:
                rate.spend(passed - self._passed)
        self._begun, self._passed = begun, passed

    @property
    def waits(self) -> bool:
        """Nothing may be served before `due`."""
        return self._until_ns > time.monotonic_ns()

    def due(self) -> float | None:
        """Seconds until to ask again; None: it does not wait."""
        if not self._until_ns:
            return None
        return max(0, self._until_ns - time.monotonic_ns()) / NS

    def over(self) -> bool:
        """Whether a wait has ended since this was asked last."""
        if not self._until_ns or self.waits:
            return False
        self._until_ns = 0
        return True

    def _seen(self) -> tuple[int, int]:
        """Requests begun on this queue, and bytes that have passed."""
        seen = self._counters.snapshot()
        return seen.requests + self._in_flight(), seen.bytes_read + seen.bytes_written


def throttle_of(
    queue: int,
    in_flight: Callable[[], int],
    counters: QueueCounters | None,
    options: Options,
    shared: mmap | None,
) -> Throttle | None:
    """The limits of a queue; None: it has none. `shared` has `words` bytes."""
    if counters is None or shared is None:
        return None
    requests: list[Rate] = []
    transfer: list[Rate] = []
    for place, limits in (0, options.limits), (1 + queue, options.queue_limits):
        if limits is None:
            continue
        at = WORDS_EACH * place
        if limits.requests is not None:
            requests.append(Rate(shared, at, *limits.requests))
        if limits.transfer is not None:
            transfer.append(Rate(shared, at + 1, *limits.transfer))
    if not requests and not transfer:
        return None
    return Throttle(in_flight, counters, requests, transfer)
