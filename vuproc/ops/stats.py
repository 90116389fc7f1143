"""What `vuproc stats` shows: all numbers of a device at a moment, and rates between two of them."""

from __future__ import annotations

import msgspec

from vuproc.shm.counter_table import percentile


class QueueStats(msgspec.Struct, kw_only=True):
    """One virtqueue. `counters` grow while the device is served, over deaths of workers and masters
    (vuproc.shm.counter_table); `latency` has the requests by the log2 of their ns.
    """

    queue: int
    state: str
    in_flight: int
    oldest_s: float
    counters: dict[str, int]
    latency: list[int]


class Stats(msgspec.Struct, kw_only=True):
    """One device. `at`: seconds of the monotonic clock."""

    device: str
    at: float
    connected: bool
    counters: dict[str, int]
    queues: list[QueueStats]
    files: dict[str, list[int]] = {}
    """Size and allocated bytes by name."""
    traced: bool = False
    """Whether the last requests are remembered."""


class QueueRates(msgspec.Struct, kw_only=True):
    """What a queue does in a second, and how long its requests of an interval took (ns; upper
    bounds of powers of two).
    """

    queue: int
    state: str
    in_flight: int
    rates: dict[str, float]
    mean_ns: float
    p50_ns: int
    p99_ns: int


def rates(before: Stats, after: Stats) -> list[QueueRates]:
    """Of each queue that both have, between two looks. One whose counters have begun anew counts
    from 0.
    """
    seconds = max(after.at - before.at, 1e-9)
    known = {queue.queue: queue for queue in before.queues}
    found = []
    for queue in after.queues:
        old = known.get(queue.queue)
        if old is None:
            continue
        begun_anew = queue.counters["requests"] < old.counters["requests"]
        counters = {
            name: value - (0 if begun_anew else old.counters.get(name, 0))
            for name, value in queue.counters.items()
        }
        latency = [
            now - (0 if begun_anew else then)
            for now, then in zip(queue.latency, old.latency, strict=True)
        ]
        requests = sum(latency)
        found.append(
            QueueRates(
                queue=queue.queue,
                state=queue.state,
                in_flight=queue.in_flight,
                rates={name: value / seconds for name, value in counters.items()},
                mean_ns=counters["latency_total_ns"] / requests if requests else 0.0,
                p50_ns=percentile(latency, 0.5),
                p99_ns=percentile(latency, 0.99),
            )
        )
    return found
