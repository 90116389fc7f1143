"""The two directions of a console's port, with a death at each of their steps, twice."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from vuproc.devices import console_streams as module
from vuproc.devices.console_spool import SPOOL_BYTES, SpoolState
from vuproc.devices.console_streams import PIPE_BYTES, Inward, Outward

pytestmark = pytest.mark.timeout(120)


class Killed(BaseException):
    """The worker is dead."""


class Steps:
    """Counts what outlives a worker, and kills it at one of these steps."""

    def __init__(self, last: int) -> None:
        self.left = last

    def step(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise Killed


class State:
    """A SpoolState whose stores are steps: a death comes before or after one."""

    def __init__(self, state: SpoolState, steps: Steps) -> None:
        self.__dict__.update(state=state, steps=steps)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.state, name)

    def __setattr__(self, name: str, value: int) -> None:
        self.steps.step()
        setattr(self.state, name, value)
        self.steps.step()


class Chain:
    """A request or a buffer of the driver's, as a device sees it."""

    def __init__(self, ring: Ring, head: int, data: bytes, room: int = 0) -> None:
        self.ring, self.head, self.data, self.room = ring, head, data, room
        self.at, self.came = 0, b""

    readable = property(lambda self: len(self.data) - self.at)
    readable_total = property(lambda self: len(self.data))
    writable = property(lambda self: self.room - len(self.came))

    def skip(self, count: int) -> None:
        assert count >= 0
        self.at += count

    def read(self, count: int) -> bytes:
        self.at += count
        return self.data[self.at - count : self.at]

    def write(self, data: bytes) -> None:
        self.ring.steps.step()
        self.came += data
        self.ring.steps.step()

    def finish(self, written: int) -> None:
        assert written == len(self.came)
        self.ring.finished = self


class Ring:
    """A driver's queue: what it has seen as done is gone from `chains`, and heads come again."""

    def __init__(self, chains: list[tuple[bytes, int]]) -> None:
        self.waiting = [(number % 2, *chain) for number, chain in enumerate(chains)]
        self.taken: Chain | None = None
        self.finished: Chain | None = None
        self.steps = Steps(0)
        self.seen = b""

    def take(self) -> Chain | None:
        if self.taken is None and self.waiting:
            self.taken = Chain(self, *self.waiting.pop(0))
        return self.taken

    def publish(self) -> None:
        assert self.finished is not None and self.finished is self.taken
        self.steps.step()
        self.seen += self.finished.came
        self.taken = self.finished = None
        self.steps.step()

    def recover(self) -> frozenset[int]:
        """A worker has died: the heads of what it had begun."""
        self.finished = None
        if self.taken is None:
            return frozenset()
        self.taken.at, self.taken.came = 0, b""
        return frozenset({self.taken.head})


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe2(os.O_NONBLOCK)
    yield ends
    for end in ends:
        os.close(end)


@contextmanager
def stepping(steps: Steps) -> Iterator[None]:
    """Each system call that moves bytes is a step, too."""

    def stepped(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            steps.step()
            result = call(*arguments, **options)
            steps.step()
            return result

        return run

    with pytest.MonkeyPatch.context() as patch:
        calls = ("write", "readv", "splice", "read")
        names = {name: stepped(getattr(os, name)) for name in calls}
        fake = type("os", (), {**vars(os), **{n: staticmethod(c) for n, c in names.items()}})
        patch.setattr(module, "os", fake)
        yield


def live(work: Callable[[Steps], None], deaths: tuple[int, ...]) -> bool:
    """Let workers do the work, each dying at its step; whether one came to the end before."""
    for death in deaths:
        steps = Steps(death)
        with stepping(steps), suppress(Killed):
            work(steps)
            return True
    steps = Steps(-1)
    with stepping(steps):
        work(steps)
    return False


def outward(pipe: tuple[int, int], chains: list[bytes], deaths: tuple[int, ...]) -> bool:
    ring, state = Ring([(chain, 0) for chain in chains]), SpoolState()
    out, sink = os.pipe2(os.O_NONBLOCK)
    came = b""

    def work(steps: Steps) -> None:
        nonlocal came
        ring.steps = steps
        unfinished = ring.recover()
        stream = Outward(State(state, steps), pipe, ring.publish)  # type: ignore[arg-type]
        stream.settle(unfinished)
        while (chain := ring.take()) is not None or not stream.empty:
            if chain is not None:
                stream.take_in(chain)  # type: ignore[arg-type]
            while not stream.pass_on(sink):
                came += os.read(out, 1 << 20)

    ended = live(work, deaths)
    with suppress(BlockingIOError):
        while True:
            came += os.read(out, 1 << 20)
    os.close(out)
    os.close(sink)
    assert came == b"".join(chains)
    return ended


def inward(pipe: tuple[int, int], data: bytes, rooms: list[int], deaths: tuple[int, ...]) -> bool:
    ring, state = Ring([(b"", room) for room in rooms]), SpoolState()
    source, feed = os.pipe2(os.O_NONBLOCK)
    os.write(feed, data)
    os.close(feed)

    def work(steps: Steps) -> None:
        ring.steps = steps
        unfinished = ring.recover()
        stream = Inward(State(state, steps), pipe, ring.publish)  # type: ignore[arg-type]
        stream.settle(unfinished)
        while stream.waiting or (stream.take_in(source) and stream.waiting):
            buffer = ring.take()
            assert buffer is not None
            stream.give(buffer)  # type: ignore[arg-type]

    ended = live(work, deaths)
    os.close(source)
    assert ring.seen == data
    return ended


@pytest.mark.parametrize("way", ["outward", "inward"])
def test_a_death_at_any_step_and_another_one_after_it(way: str, pipe: tuple[int, int]) -> None:
    texts = [b"one", b"", b"two" * 2000, b"three"]

    def ends(*deaths: int) -> bool:
        if way == "outward":
            return outward(pipe, texts, deaths)
        return inward(pipe, b"".join(texts), [3, 0, 100, 5000, 4096, 4096], deaths)

    first = 1
    while not ends(first):
        second = 1
        while not ends(first, second):
            second += 1
        assert second > 1
        first += 1
    # Each store and each call are two of them.
    assert first > 40


def test_a_request_longer_than_a_spool_over_a_death_at_any_step(pipe: tuple[int, int]) -> None:
    texts = [os.urandom(2 * SPOOL_BYTES + 100), b"next", os.urandom(SPOOL_BYTES)]
    with pytest.MonkeyPatch.context() as patch:
        # What is between two parts is shown above, in smaller pieces.
        patch.setattr(module, "PIPE_BYTES", SPOOL_BYTES)
        death = 1
        while not outward(pipe, texts, (death,)):
            death += 1
    assert death > 40


def test_what_is_thrown_away_is_gone(pipe: tuple[int, int]) -> None:
    ring, state = Ring([(b"x" * 10000, 0), (b"y", 0)]), SpoolState()
    stream = Outward(state, pipe, ring.publish)
    out, sink = os.pipe2(os.O_NONBLOCK)
    chain = ring.take()
    assert chain is not None and stream.take_in(chain)  # type: ignore[arg-type]
    os.close(out)
    with pytest.raises(BrokenPipeError):
        stream.pass_on(sink)
    os.close(sink)
    assert module.inside(pipe[0]) == PIPE_BYTES and not stream.empty
    stream.discard()
    assert stream.empty
