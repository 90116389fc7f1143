"""Streams between guest and host beside vhost-device-vsock: `python -m tests.bench.vsock`.

The guest is our own driver for all sides, in native code, and the program of the host is the same:
a thread that reads, or writes, 256 KiB at a time. It sleeps, as a guest does, for with the program
there are three at work. With `--guest` a program in a Linux guest of each side sends and receives
instead. Run it from the root of the checkout.
"""

from __future__ import annotations

import argparse
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from tests.bench import extension, streams, text, vsock_guest
from tests.bench.backends import Missing, Running
from tests.bench.bars import Bar, judge
from tests.bench.clients import Outcome
from tests.bench.contenders import Contender
from tests.bench.findings import Finding
from tests.bench.peers import debian, uml_relay
from tests.bench.rounds import Effort, Entry, compare
from tests.bench.scale_point import workers
from tests.bench.streams import PORT, STALL_S, TO_HOST, UNIT, WORKS
from tests.bench.vsock_guest import Serving
from tests.bench.work import Case
from vuproc.spec.vsock import CID_MIN, RX, TX, Op
from vuproc.testing.guest import Guest
from vuproc.testing.queue import DriverQueue
from vuproc.testing.serve import serve

OURS, SLEEPS = "vuproc", "vuproc poll=off"
RUST = "vhost-device-vsock"
QUEUE_SIZE = 128
MEMORY = 16 << 20
AT_LEAST = 1.5
"""Of what the peer does."""

_native = extension.load(
    "stream",
    [
        extension.ROOT / "vuproc" / each
        for each in ("shm/clock.pxd", "shm/atomics.pxd", "shm/atomics.h", "testing/ring.pxd")
    ],
)


class Bulk:
    """One connection of a guest with a program of the host, which `program` is the socket of."""

    def __init__(self, stream: Any, program: socket.socket, case: Case) -> None:
        self._stream = stream
        self._program = program
        self._case = case

    def pids(self) -> list[int]:
        return []

    def run(self, count: int) -> Outcome:
        size = count * UNIT
        failed: list[OSError] = []
        there = self._case.work is TO_HOST
        move = streams.read if there else streams.write
        thread = threading.Thread(target=_noted, args=(failed, move, self._program, size))
        began = time.perf_counter()
        thread.start()
        try:
            (self._stream.send if there else self._stream.receive)(size)
        except RuntimeError as error:
            raise Missing(str(error)) from error
        finally:
            thread.join(STALL_S)
        seconds = time.perf_counter() - began
        return Outcome(count, count if failed or thread.is_alive() else 0, seconds)


def _noted(
    failed: list[OSError],
    move: Callable[[socket.socket, int], None],
    program: socket.socket,
    size: int,
) -> None:
    try:
        move(program, size)
    except OSError as error:
        failed.append(error)


@contextmanager
def connected(guest: Guest, path: Path, case: Case) -> Iterator[Bulk]:
    """A connection that the guest has made. Raises Missing."""
    queues = guest.queues[RX], guest.queues[TX]
    arena = guest.ram.allocate(_native.MEMORY, 4096)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{path}_{PORT}")
        listener.listen(1)
        listener.settimeout(STALL_S)
        stream = _native.Stream(
            *(queue.ring for queue in queues),
            arena.region.buffer,
            arena=arena.offset,
            address=arena.guest_addr,
            kicks=list(map(_kick, queues)),
            calls=[queue.call_bell.ours.fileno() for queue in queues],
            polls=case.polls,
            cid=CID_MIN,
            port=1 << 20,
            peer_port=PORT,
            stall_s=STALL_S,
        )
        try:
            stream.say(Op.REQUEST)
            stream.await_op(Op.RESPONSE)
        except RuntimeError as error:
            raise Missing(f"it does not connect: {error}") from error
        program, _ = listener.accept()
        with program:
            program.settimeout(STALL_S)
            yield Bulk(stream, program, case)


def _kick(queue: DriverQueue) -> int:
    assert queue.kick_bell is not None
    return queue.kick_bell.ours.fileno()


@contextmanager
def ours(path: Path, _: Path, poll: str = "auto") -> Iterator[Running]:
    """As it comes."""
    with serve({"type": "vsock", "path": str(path), "cid": CID_MIN, "poll": poll}) as served:
        yield Running(served.socket, lambda: [served.pid, *workers(served)])


SIDES: dict[str, Serving] = {
    OURS: ours,
    SLEEPS: partial(ours, poll="off"),
    RUST: partial(debian.vhost_device_vsock, cid=CID_MIN),
}


@contextmanager
def side(name: str, case: Case) -> Iterator[Contender]:
    """One of SIDES, with a connection. Raises Missing."""
    with ExitStack() as stack:
        made = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vuproc-bench-")))
        path = made / "programs"
        running = stack.enter_context(SIDES[name](path, made / "vsock.sock"))
        guest = stack.enter_context(
            Guest(running.socket, queues=2, queue_size=QUEUE_SIZE, memory=MEMORY)
        )
        bulk = stack.enter_context(connected(guest, path, case))
        yield Contender(name, name, case, bulk, running.pids)


def measure(
    cases: Sequence[Case], effort: Effort, say: Callable[[str], None] = lambda _line: None
) -> list[Finding]:
    """Each case with all sides in turn."""
    return [
        compare(
            case.name,
            f"{case.work.title}, the driver {'polls' if case.polls else 'sleeps'}",
            "builtin",
            [Entry(name, side(name, case)) for name in SIDES],
            effort,
            say,
        )
        for case in cases
    ]


@contextmanager
def _behind_uml(path: Path, at: Path) -> Iterator[Running]:
    with SIDES[RUST](path, at.with_suffix(".peer")) as running:
        with uml_relay.relayed(running, at) as reached:
            yield reached


IN_GUEST = {
    OURS: (OURS, SIDES[OURS]),
    SLEEPS: (OURS, SIDES[SLEEPS]),
    RUST: (RUST, _behind_uml),
}
"""Family and how it is served, by its name."""


def measure_in_guests(
    cases: Sequence[Case], effort: Effort, say: Callable[[str], None] = lambda _line: None
) -> list[Finding]:
    """Each case with a Linux guest of each side, in turn."""
    return [
        compare(
            case.name,
            case.work.title,
            "User-Mode Linux",
            [Entry(name, vsock_guest.side(name, *how, case)) for name, how in IN_GUEST.items()],
            effort,
            say,
        )
        for case in cases
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 1 if a bar is not met or could not be measured, with `--guest`, which has
    no bars, if a side could not be.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.bench.vsock", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="of each side (5)")
    parser.add_argument("--seconds", type=float, default=0.3, help="length of a sample (0.3)")
    parser.add_argument("--tries", type=int, default=3, help="of a disturbed sample (3)")
    parser.add_argument("--waits", choices=("sleep", "poll"), default="sleep", help="the driver")
    parser.add_argument("--only", default="", help="cases whose names begin so")
    parser.add_argument("--guest", action="store_true", help="Linux guests instead of our driver")
    options = parser.parse_args(arguments)
    if options.guest and options.waits == "poll":
        parser.error("a Linux guest's driver sleeps: --guest goes without --waits poll")
    cases = [Case(work, depth=1, polls=options.waits == "poll") for work in WORKS]
    cases = [case for case in cases if case.name.startswith(options.only)]
    effort = Effort(options.rounds, options.seconds, None, options.tries, time.monotonic() + 30.0)
    found = (measure_in_guests if options.guest else measure)(cases, effort)
    for finding in found:
        said = text.lines(finding, "MB/s", "CPU ms/MB")
        print("\n".join(said + vsock_guest.spent(finding) if options.guest else said))
    if options.guest:
        return 1 if any(finding.missing for finding in found) else 0
    bars = [Bar(case.name, case.name, OURS, (RUST,), AT_LEAST) for case in cases]
    return 0 if judge(bars, found) else 1


if __name__ == "__main__":
    sys.exit(main())
