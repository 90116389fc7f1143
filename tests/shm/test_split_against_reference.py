"""The native split ring and the plain-Python one do the same with any driver, byte for byte.

With an in-flight record, too, and when worker after worker dies over it.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.shm.guest import (
    BOUNDARY,
    DATA,
    END,
    F_EVENT_IDX,
    F_INDIRECT,
    HOLE,
    INDIRECT,
    NEXT,
    NO_INTERRUPT,
    WRITE,
    Guest,
    descriptor,
)
from tests.shm.record import Record
from tests.shm.reference import Broken, Chain, ReferenceRing
from vuproc.errors import RingError
from vuproc.shm.request import Request
from vuproc.shm.split import SplitRing

BATCH = 64
READ_MAX = 4096
TABLES = BOUNDARY + 0x10000
"""Where lawful drivers keep their indirect tables: 256 bytes a head."""
BUFFERS = 0x3000
"""Lawful buffers lie around the border of two regions, in this many bytes."""

Action = tuple[str, int]
"""What the device does with a request: a verb and a number."""


class Failure(Exception):
    """Raised by the device under test's handler."""


class Twins:
    """Two guests that get the same writes: one for the native ring, one for the reference."""

    def __init__(
        self, size: int, base: int, features: int, chain_limit: int, recorded: bool
    ) -> None:
        self.record = Record(size) if recorded else None
        self.features = features
        self.chain_limit = chain_limit
        self.left = Guest(size, base)
        self.right = Guest(size, base)
        self.take_up()

    def take_up(self) -> None:
        """Make both rings, at the live used index."""
        self.native = self.make(fresh=True)
        self.reference = ReferenceRing(
            self.right,
            self.right.size,
            self.right.desc,
            self.right.avail,
            self.right.used,
            self.right.used_idx,
            event_idx=bool(self.features & F_EVENT_IDX),
            indirect=bool(self.features & F_INDIRECT),
            chain_limit=self.chain_limit,
        )
        self.open: list[tuple[Request, Chain]] = []
        self.calls = False

    def make(self, *, base: int | None = None, fresh: bool = False) -> SplitRing:
        record = None if self.record is None else self.record.map()
        return self.left.ring(
            self.features, base=base, chain_limit=self.chain_limit, record=record, fresh=fresh
        )

    def die(self) -> None:
        """The native ring goes as if its process were killed; another one goes on."""
        if self.record is None:
            return
        self.open = []
        reference = self.reference
        tampered = self.left.used_idx != reference.last_used
        ahead = (self.left.word(self.left.avail + 2) - reference.last_avail) & 0xFFFF
        try:
            self.native = self.make()
        except RingError as error:
            assert "in-flight record" in error.cause
            assert tampered or ahead > self.left.size
        else:
            if not tampered:
                assert ahead <= self.left.size
                reference.restart()
                assert [found.head for found in self.native.recovered] == reference.again
                return
        # A record and indices that contradict each other are made anew.
        self.take_up()

    def stop(self) -> None:
        """The ring is stopped, with work left or without, and started again."""
        if self.record is None or self.left.used_idx != self.reference.last_used:
            return
        kept = self.reference.stop()
        clean = not self.reference.in_flight
        assert self.native.stop() == self.reference.last_avail
        assert self.native.kept == kept
        self.calls |= self.reference.wanted
        self.reference.wanted = False
        assert self.record.header.version == (0 if clean else 1)
        assert all(request.finished for request, _ in self.open)
        if not clean:
            self.die()
            return
        self.native = self.make(base=self.reference.last_avail)
        self.reference.restart(clean=True)

    def __enter__(self) -> Twins:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.left.__exit__(kind, error, traceback)
        self.right.__exit__(kind, error, traceback)
        if self.record is not None:
            self.record.__exit__(kind, error, traceback)

    def both(self, write: Callable[[Guest], object]) -> None:
        """Do the same to both guests."""
        write(self.left)
        write(self.right)

    # The device.

    def drain(self, actions: list[Action], budget: int) -> str | None:
        """Drain both; the cause, if the ring broke (in both, and for the same reason)."""
        deferred: list[Request] = []
        native_cause = reference_cause = None
        native_seen: list[bytes] = []
        steps = iter(actions * (budget // len(actions) + 1))

        unpublished: list[int] = []

        def handle(request: Request) -> None:
            unpublished.append(self.native.unpublished)
            act_native(request, next(steps), deferred, native_seen)

        try:
            fetched = self.native.drain(handle, on_error, budget)
            assert fetched == len(native_seen)
        except RingError as error:
            native_cause = error.cause
            assert error.index == self.reference_index(len(native_seen))
        held, reference_seen, reference_cause = self.drain_reference(actions, budget, unpublished)
        assert native_seen == reference_seen
        assert native_cause == reference_cause
        assert [request.head for request in deferred] == [chain.head for chain in held]
        if native_cause is None:
            self.open += zip(deferred, held, strict=True)
        else:
            assert self.native.broken is not None
            assert all(request.finished for request in deferred)
        return native_cause

    def reference_index(self, fetched: int) -> int:
        new = max(0, fetched - len(self.reference.again))
        return (self.reference.last_avail + new) & 0xFFFF

    def drain_reference(
        self, actions: list[Action], budget: int, unpublished: list[int]
    ) -> tuple[list[Chain], list[bytes], str | None]:
        # The native ring publishes by the clock too, and a head that is published is free again:
        # `unpublished` says where it did, so that the reference does it there.
        ring = self.reference
        held: list[Chain] = []
        seen: list[bytes] = []
        steps = iter(actions * (budget // len(actions) + 1))
        self.calls |= ring.begin()
        cause = None
        try:
            while len(seen) < budget:
                if len(seen) < len(unpublished) and unpublished[len(seen)] == 0:
                    self.calls |= ring.publish()
                chain = ring.fetch()
                if chain is None:
                    break
                self.act_reference(chain, next(steps), held, seen)
                if len(ring.finished) == BATCH:
                    self.calls |= ring.publish()
        except Broken as error:
            cause = error.cause
        self.calls |= ring.publish()
        return held, seen, cause

    def act_reference(
        self, chain: Chain, action: Action, held: list[Chain], seen: list[bytes]
    ) -> None:
        verb, number = action
        data = self.reference.load(chain)
        seen.append(data[:READ_MAX])
        if verb == "defer":
            held.append(chain)
            return
        if verb == "release":
            self.reference.release(chain.head)
            return
        if verb == "fail":
            self.reference.finish(chain.head, 0)
            return
        wrote = self.reference.store(chain, answer(data[:READ_MAX], number))
        self.reference.finish(chain.head, wrote if verb == "write" else wrote // 2)

    def finish(self, which: int, length: int) -> None:
        """Finish one of the deferred requests."""
        if not self.open:
            return
        request, chain = self.open.pop(which % len(self.open))
        length = min(length, request.writable_total)
        request.finish(length)
        self.reference.finish(chain.head, length)
        if len(self.reference.finished) == BATCH:
            self.calls |= self.reference.publish()

    def take(self) -> str | None:
        """Pull one request from both; the cause, if the ring broke (in both alike)."""
        native_cause = reference_cause = None
        request = chain = None
        try:
            request = self.native.take()
        except RingError as error:
            native_cause = error.cause
        self.calls |= self.reference.begin()
        try:
            chain = self.reference.take()
        except Broken as error:
            reference_cause = error.cause
            self.calls |= self.reference.publish()
        self.calls |= self.reference.wanted
        self.reference.wanted = False
        assert native_cause == reference_cause
        if request is None or chain is None:
            assert request is None and chain is None
            return native_cause
        assert request.deferred and request.head == chain.head
        assert request.read(READ_MAX) == self.reference.load(chain)[:READ_MAX]
        self.open.append((request, chain))
        return None

    def release(self, which: int) -> None:
        """Give one of the deferred requests back."""
        if not self.open:
            return
        request, chain = self.open.pop(which % len(self.open))
        request.release()
        assert request.finished
        self.reference.release(chain.head)

    def readmit(self) -> None:
        assert self.native.readmit() == self.reference.readmit()

    def publish(self) -> None:
        assert self.native.publish() == len(self.reference.finished)
        self.calls |= self.reference.publish()

    def arm(self) -> None:
        try:
            native: object = self.native.arm()
        except RingError as error:
            native = error.cause
        try:
            reference: object = self.reference.arm()
        except Broken as error:
            self.calls |= self.reference.publish()
            reference = error.cause
        assert native == reference

    def check(self) -> None:
        """Every byte of both guests is the same, and the drivers were woken alike."""
        # Page by page: whole copies would take most of the tests' time.
        for at in range(0, len(self.left.bytes), 0x1000):
            assert self.left.bytes[at : at + 0x1000] == self.right.bytes[at : at + 0x1000]
        assert bool(self.left.calls()) == self.calls
        self.calls = False
        if self.native.broken is not None:
            return
        assert self.native.next_avail == self.reference.last_avail
        assert self.native.next_used == self.reference.last_used
        assert self.native.unpublished == len(self.reference.finished)
        waiting = len(self.reference.in_flight) - len(self.reference.finished)
        assert self.native.outstanding == waiting
        held = waiting - len(self.reference.again) - len(self.reference.released)
        assert self.native.in_flight == held
        assert self.native.released == len(self.reference.released)
        ahead = (self.left.word(self.left.avail + 2) - self.reference.last_avail) & 0xFFFF
        assert self.native.waiting == len(self.reference.again) + min(ahead, self.left.size)
        assert self.native.pending == bool(self.native.waiting)
        if self.record is not None:
            self.check_record(self.record)

    def check_record(self, record: Record) -> None:
        """What a worker that took over now would find."""
        assert record.header.version == 1
        assert record.header.used_idx == self.reference.last_used
        assert record.live == list(self.reference.in_flight)
        assert not any(record[head].attempts or record[head].stage for head in record.live)


def answer(data: bytes, number: int) -> bytes:
    return (data[:number] + bytes([number])) * 3


def act_native(
    request: Request, action: Action, deferred: list[Request], seen: list[bytes]
) -> None:
    verb, number = action
    data = request.read(READ_MAX)
    seen.append(data)
    if verb == "defer":
        request.defer()
        deferred.append(request)
        return
    if verb == "release":
        request.release()
        return
    if verb == "fail":
        raise Failure
    wrote = request.write(answer(data, number))
    if verb == "half":
        request.finish(wrote // 2)


def on_error(request: Request, error: BaseException) -> None:
    assert isinstance(error, Failure)


class Driver:
    """The part of a lawful driver that knows which descriptors are free."""

    def __init__(self, twins: Twins) -> None:
        self.twins = twins
        self.free = list(range(twins.left.size))
        self.chains: dict[int, list[int]] = {}

    def submit(self, parts: list[tuple[int, int]], readable: int, indirect: bool) -> None:
        twins = self.twins
        flags = [WRITE if i >= readable else 0 for i in range(len(parts))]
        indirect = indirect and bool(twins.features & F_INDIRECT)
        if not indirect:
            count = min(len(parts), len(self.free))
            parts, flags = parts[:count], flags[:count]
        if not parts or not self.free:
            return
        if indirect:
            head = self.free.pop()
            self.chains[head] = [head]
            table = b"".join(
                descriptor(addr, length, flag | NEXT, i + 1)
                for i, ((addr, length), flag) in enumerate(zip(parts, flags, strict=True))
            )
            table = table[:-4] + flags[-1].to_bytes(2, "little") + b"\xff\xff"
            at = TABLES + 256 * head
            twins.both(lambda guest: guest.write(at, table))
            twins.both(lambda guest: guest.set_desc(head, at, len(table), INDIRECT))
        else:
            indices = [self.free.pop() for _ in parts]
            head = indices[0]
            self.chains[head] = indices
            for i, index in enumerate(indices):
                (addr, length), flag = parts[i], flags[i]
                more = i + 1 < len(indices)
                set_desc = (index, addr, length, flag | (NEXT if more else 0))
                next_ = indices[i + 1] if more else 0
                twins.both(lambda guest, a=set_desc, n=next_: guest.set_desc(*a, n))  # type: ignore[misc]
        twins.both(lambda guest: guest.offer(head))

    def reap(self) -> None:
        done = self.twins.left.reap()
        assert self.twins.right.reap() == done
        for head, _ in done:
            self.free += self.chains.pop(head)


sizes = st.sampled_from([1, 2, 4, 8, 16])
bases = st.sampled_from([0, 1, 65534, 65535, 40000])
all_features = st.sampled_from([0, F_INDIRECT, F_EVENT_IDX, F_INDIRECT | F_EVENT_IDX])
buffers = st.tuples(
    st.integers(0, BUFFERS).map(lambda at: BOUNDARY - BUFFERS // 2 + at),
    st.one_of(st.integers(0, 20), st.integers(0, 300)),
)
actions = st.lists(
    st.tuples(
        st.sampled_from(["write", "write", "half", "defer", "fail", "release"]), st.integers(0, 255)
    ),
    min_size=1,
    max_size=5,
)
give_all_back = st.tuples(st.just("drain"), st.just([("release", 0)]), st.just(20))
lawful_steps = st.one_of(
    st.tuples(
        st.just("submit"),
        st.lists(buffers, min_size=1, max_size=6),
        st.integers(0, 6),
        st.booleans(),
    ),
    st.tuples(st.just("drain"), actions, st.integers(1, 20)),
    st.tuples(st.just("finish"), st.integers(0, 20), st.integers(0, 400)),
    st.tuples(st.just("event"), st.integers(-3, 5)),
    st.tuples(st.just("flags"), st.sampled_from([0, NO_INTERRUPT])),
    st.tuples(st.just("release"), st.integers(0, 20)),
    st.tuples(st.sampled_from(["publish", "arm", "disarm", "reap", "reap"])),
    st.tuples(st.sampled_from(["die", "stop", "stop", "take", "take", "readmit"])),
    give_all_back,
)


# Requests that come to the device, go back to the ring, and come again, over deaths and stops.
one_request = st.tuples(
    st.just("submit"), st.lists(buffers, min_size=1, max_size=2), st.integers(0, 2), st.booleans()
)
some_go_back = st.tuples(
    st.just("drain"),
    st.lists(
        st.tuples(st.sampled_from(["write", "defer", "release", "release"]), st.just(3)),
        min_size=1,
        max_size=3,
    ),
    st.integers(1, 6),
)
goings = st.one_of(
    one_request,
    one_request,
    some_go_back,
    give_all_back,
    st.tuples(st.sampled_from(["take", "take", "readmit", "die", "reap", "publish"])),
    st.tuples(st.just("release"), st.integers(0, 20)),
    st.tuples(st.just("finish"), st.integers(0, 20), st.integers(0, 400)),
)
ends = st.sampled_from(
    [[("stop",)], [("stop",)], [("die",), ("stop",)], [("readmit",), ("stop",)], [("die",)]]
)
goings_and_ends = st.lists(
    st.tuples(
        st.lists(one_request, max_size=4),
        some_go_back,
        st.lists(goings, max_size=4),
        st.sampled_from([[("drain", [("release", 0)], 20)], [("take",), ("release", 0)], []]),
        ends,
    ).map(lambda parts: [("reap",), *parts[0], parts[1], *parts[2], *parts[3], *parts[4]]),
    min_size=1,
    max_size=5,
).map(lambda rounds: [step for steps in rounds for step in steps])


@pytest.mark.timeout(300)
@settings(max_examples=200, deadline=None)
@given(sizes, bases, all_features, st.booleans(), st.lists(lawful_steps, min_size=5, max_size=40))
def test_lawful_drivers(
    size: int, base: int, features: int, recorded: bool, steps: list[tuple[object, ...]]
) -> None:
    run_lawful(size, base, features, recorded, steps)


ONE_OF_TWO_COMES_AGAIN: list[tuple[object, ...]] = [
    *[("submit", [(1304576, 0)], 0, False)] * 3,
    ("drain", [("defer", 3), ("write", 3)], 2),
    ("drain", [("release", 0)], 20),
    ("stop",),
    ("reap",),
    ("drain", [("write", 3)], 1),
    ("drain", [("release", 0)], 20),
    ("stop",),
]
"""What is left at the end was fetched last, and is all that is taken back."""


@pytest.mark.timeout(300)
@settings(max_examples=200, deadline=None)
@given(sizes, bases, all_features, goings_and_ends)
@example(4, 0, 0, ONE_OF_TWO_COMES_AGAIN)
def test_devices_that_give_back(
    size: int, base: int, features: int, steps: list[tuple[object, ...]]
) -> None:
    run_lawful(size, base, features, True, steps)


def run_lawful(
    size: int, base: int, features: int, recorded: bool, steps: list[tuple[object, ...]]
) -> None:
    with Twins(size, base, features, chain_limit=8, recorded=recorded) as twins:
        driver = Driver(twins)
        for name, *values in steps:
            match name, values:
                case "submit", [list() as parts, int() as readable, bool() as indirect]:
                    driver.submit(parts, readable, indirect)
                case "drain", [list() as todo, int() as budget]:
                    assert twins.drain(todo, budget) is None
                case "finish", [int() as which, int() as length]:
                    twins.finish(which, length)
                case "event", [int() as by]:
                    event = twins.left.used_idx + by
                    twins.both(lambda guest, event=event: guest.set_used_event(event))  # type: ignore[misc]
                case "flags", [int() as flags]:
                    twins.both(lambda guest, flags=flags: guest.set_avail_flags(flags))  # type: ignore[misc]
                case "publish", _:
                    twins.publish()
                case "arm", _:
                    twins.arm()
                case "disarm", _:
                    twins.native.disarm()
                    twins.reference.disarm()
                case "reap", _:
                    driver.reap()
                case "die", _:
                    twins.die()
                case "stop", _:
                    twins.stop()
                case "take", _:
                    assert twins.take() is None
                case "release", [int() as which]:
                    twins.release(which)
                case "readmit", _:
                    twins.readmit()
            twins.check()
        # Whatever happened, all of it comes to an end.
        twins.readmit()
        twins.drain([("write", 3)], 100)
        while twins.open:
            twins.finish(0, 1)
        twins.publish()
        driver.reap()
        twins.check()
        assert len(driver.free) == size and not driver.chains


# A hostile driver: any value in any field, likely ones more often.

addresses = st.one_of(
    st.sampled_from([DATA, DATA + 8, BOUNDARY - 8, HOLE - 16, HOLE, END - 1, 0, (1 << 64) - 1]),
    st.integers(0, 64).map(lambda i: DATA + 16 * i),
)
lengths = st.sampled_from([0, 1, 8, 15, 16, 32, 48, 64, 80, 160, 0x8000, 0x80000000, 0xFFFFFFFF])
flag_words = st.one_of(
    st.sampled_from([0, NEXT, WRITE, NEXT | WRITE, INDIRECT, NEXT]), st.integers(0, 0xFFFF)
)
descriptors = st.tuples(
    addresses, lengths, flag_words, st.one_of(st.integers(0, 9), st.integers(0, 0xFFFF))
)
hostile_steps = st.one_of(
    st.tuples(st.just("desc"), st.integers(0, 7), descriptors),
    st.tuples(st.just("table"), st.integers(0, 64), st.lists(descriptors, max_size=6)),
    st.tuples(st.just("offer"), st.lists(st.integers(0, 8), min_size=1, max_size=4)),
    st.tuples(st.just("offer"), st.lists(st.integers(0, 3), min_size=1, max_size=2)),
    st.tuples(st.just("index"), st.integers(-3, 12)),
    st.tuples(st.just("slot"), st.integers(0, 7), st.integers(0, 0xFFFF)),
    st.tuples(st.just("used"), st.integers(0, 0xFFFF)),
    st.tuples(st.just("event"), st.integers(-3, 5)),
    st.tuples(st.just("drain"), actions, st.integers(1, 20)),
    st.tuples(st.just("finish"), st.integers(0, 20), st.integers(0, 400)),
    st.tuples(st.just("release"), st.integers(0, 20)),
    st.tuples(st.sampled_from(["publish", "arm", "die", "stop"])),
    st.tuples(st.sampled_from(["die", "stop", "stop", "take", "take", "readmit"])),
    give_all_back,
)


@pytest.mark.timeout(300)
@settings(max_examples=250, deadline=None)
@given(sizes, bases, all_features, st.booleans(), st.lists(hostile_steps, min_size=5, max_size=40))
def test_hostile_drivers(
    size: int, base: int, features: int, recorded: bool, steps: list[tuple[object, ...]]
) -> None:
    with Twins(size, base, features, chain_limit=5, recorded=recorded) as twins:
        for name, *values in steps:
            hostile_step(twins, name, values)
            twins.check()
            if twins.native.broken is not None:
                # What a reset does: new rings, over whatever lies there.
                twins.take_up()
                twins.check()
        assert twins.left.intact()


def hostile_step(twins: Twins, name: object, values: list[object]) -> None:
    size = twins.left.size
    match name, values:
        case "desc", [int() as index, tuple() as fields]:
            twins.both(lambda guest: guest.set_desc(index % size, *fields))
        case "table", [int() as at, list() as entries]:
            data = b"".join(descriptor(*entry) for entry in entries)
            twins.both(lambda guest: guest.write(DATA + 16 * at, data))
        case "offer", [list() as heads]:
            twins.both(lambda guest: guest.offer(*heads))
        case "index", [int() as by]:
            idx = twins.reference.last_avail + by
            twins.both(lambda guest: guest.set_avail_idx(idx))
        case "slot", [int() as slot, int() as value]:
            twins.both(lambda guest: guest.set_word(guest.avail + 4 + 2 * (slot % size), value))
        case "used", [int() as value]:
            twins.both(lambda guest: guest.set_used_idx(value))
        case "event", [int() as by]:
            event = twins.reference.last_used + by
            twins.both(lambda guest: guest.set_used_event(event))
        case "drain", [list() as todo, int() as budget]:
            twins.drain(todo, budget)
        case "finish", [int() as which, int() as length]:
            twins.finish(which, length)
        case "publish", _:
            twins.publish()
        case "arm", _:
            twins.arm()
        case "die", _:
            twins.die()
        case "stop", _:
            twins.stop()
        case "take", _:
            twins.take()
        case "release", [int() as which]:
            twins.release(which)
        case "readmit", _:
            twins.readmit()
