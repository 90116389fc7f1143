"""What a model is of: its dimensions, and the words of memory that the driver and workers share."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """One model. Everything is as large as `size` and `requests` say and no larger.

    `batch`: most completions that one store publishes. `in_order`: they come in the
    order in which the requests were fetched. `event_idx`: how kicks and interrupts are suppressed,
    by event indices or by flags. `at_most_once`: the device drops a request that may have run.
    `poison`: the request that kills every worker which runs it. `bursts`: the driver may submit
    several requests before it thinks of a kick. `crashes`: deaths at any instant. `stops`: how
    often the ring is drained, stopped and started again. `gives_back`: the device may give a
    request back; it comes again later, or the ring stops with it.
    """

    size: int = 2
    requests: int = 3
    batch: int = 2
    in_order: bool = False
    event_idx: bool = True
    at_most_once: bool = False
    poison: int | None = None
    bursts: bool = False
    crashes: int = 1
    stops: int = 0
    gives_back: bool = False
    attempts: int = 2
    """A request that was begun so often is not run again."""

    def lengths_of(self) -> str:
        """What is to be said of the requests' lengths."""
        return ""

    def __str__(self) -> str:
        order = "in order" if self.in_order else "out of order"
        requests = f"{self.requests} requests{self.lengths_of()}"
        parts = [
            f"{self.size} slots, {requests}, {order}, batch {self.batch}",
            f"{'event index' if self.event_idx else 'flags'}, crashes {self.crashes}",
        ]
        parts += ["at most once"] if self.at_most_once else []
        parts += [f"poison {self.poison}"] if self.poison is not None else []
        parts += [f"stops {self.stops}"] if self.stops else []
        parts += ["gives back"] if self.gives_back else []
        parts += ["bursts"] if self.bursts else []
        return ", ".join(parts)


class Config(Limits, frozen=True, kw_only=True):
    """A model of a split ring."""

    modulus: int = 8
    """Stands for 2^16. A power of two, at least four times the size, more than the requests."""
    origin: int = 6
    """Where the indices begin, so that they wrap around soon."""


class Layout:
    """Where each shared word is in the tuple that stands for memory.

    Up to `record` lies what driver and worker share, eventfds among it; from there on, the
    in-flight record, which only workers touch. `version` says whether it is in force, and `notes`
    are the words in which a worker says what it is about to do with a request.
    """

    kick: int
    call: int
    call_wish: int
    record: int
    version: int
    attempts: int
    stage: int
    notes: range

    def __init__(self) -> None:
        self.names: list[str] = []

    def show(self, at: int, value: int) -> str:
        """The value of a word, for who reads a history."""
        return str(value)

    def _word(self, name: str) -> int:
        return self._add([name])

    def _row(self, pattern: str, size: int) -> int:
        return self._add(pattern.format(i) for i in range(size))

    def _add(self, names: Iterable[str]) -> int:
        start = len(self.names)
        self.names.extend(names)
        return start


class Memory(Layout):
    """A split ring and its record."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.avail_idx = self._word("avail.idx")
        self.avail_ring = self._row("avail.ring[{}]", config.size)
        self.used_idx = self._word("used.idx")
        self.used_ring = self._row("used.ring[{}]", config.size)
        # used.avail_event or used.flags; avail.used_event or avail.flags.
        self.kick_wish = self._word("avail_event" if config.event_idx else "used.flags")
        self.call_wish = self._word("used_event" if config.event_idx else "avail.flags")
        self.kick = self._word("kick eventfd")
        self.call = self._word("call eventfd")
        self.record = len(self.names)
        self.version = self._word("record.version")
        self.record_used_idx = self._word("record.used_idx")
        self.last_batch_head = self._word("record.last_batch_head")
        self.inflight = self._row("desc[{}].inflight", config.size)
        self.attempts = self._row("desc[{}].attempts", config.size)
        self.stage = self._row("desc[{}].stage", config.size)
        self.notes = range(self.attempts, self.stage + config.size)
        self.next = self._row("desc[{}].next", config.size)
        self.counter = self._row("desc[{}].counter", config.size)

    def initial(self, config: Config, origin: int, before: tuple[int, ...] = ()) -> tuple[int, ...]:
        """An empty ring whose indices begin at `origin`; the record is as it was `before`."""
        words = [0] * self.record
        words[self.avail_idx] = words[self.used_idx] = origin
        if config.event_idx:
            words[self.kick_wish] = words[self.call_wish] = origin
        return (*words, *(before[self.record :] or (0,) * (len(self.names) - self.record)))


def put(words: tuple[int, ...], at: int, value: int) -> tuple[int, ...]:
    """The memory after one store."""
    return words[:at] + (value,) + words[at + 1 :]


def passed(event: int, new: int, old: int, modulus: int) -> bool:
    """Whether an index moved past `event` on its way from `old` to `new` (virtio 1.3, 2.7.7.2)."""
    return (new - event - 1) % modulus < (new - old) % modulus
