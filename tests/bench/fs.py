"""A directory of the host beside virtiofsd: `python -m tests.bench.fs`.

The driver is our own for all sides. It sends the READs that Linux sends, 4 KiB at random and larger
ones in order, of one open file. It watches its ring, so that the back-end is what is measured; with
`--waits sleep` it sleeps, as a guest does. With `--guest` a Linux guest reads instead. Run it from
the root of the checkout.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from tests.bench import fs_guest, text
from tests.bench.backends import Missing, Running
from tests.bench.bars import Bar, judge
from tests.bench.clients import Outcome, percentile_ns
from tests.bench.contenders import Contender
from tests.bench.findings import Finding
from tests.bench.fs_guest import TAG, Serving
from tests.bench.peers import debian, uml_relay
from tests.bench.rounds import Effort, Entry, compare
from tests.bench.scale_point import workers
from tests.bench.work import KIB, MIB, Case, Work
from tests.devices.fuse_driver import REQUESTS, Fuse, FuseError
from vuproc.devices.fs import Fs
from vuproc.shm.request import Request
from vuproc.spec.fuse import IN_HEADER, OUT_HEADER, READ_IN, Opcode
from vuproc.testing.guest import Guest
from vuproc.testing.job import Job, Kind
from vuproc.testing.serve import reference, serve

OURS, SLEEPS, PYTHON = "vuproc", "vuproc poll=off", "vuproc in Python"
RUST, C = "virtiofsd", "virtiofsd in C"
QUEUE_SIZE = 128
MEMORY = 96 * MIB
SPAN = 64 * MIB
STALL_S = 60.0
UNIQUE = 1 << 40
NAME = "file"
FLAGS = 1 << 0 | 1 << 5 | 1 << 22
"""Of INIT: ASYNC_READ, BIG_WRITES and MAX_PAGES, as far as READ is concerned."""

RANDOM = Work("random", "4 KiB random READ", 4 * KIB)
SEQUENTIAL = Work("sequential", "128 KiB sequential READ", 128 * KIB, sequential=True)
LARGE = Work("large", "1 MiB sequential READ", MIB, sequential=True)
CASES = [
    Case(RANDOM, depth=1, span=SPAN),
    Case(RANDOM, depth=32, span=SPAN),
    Case(SEQUENTIAL, depth=1, span=SPAN),
    Case(SEQUENTIAL, depth=16, span=SPAN),
    Case(LARGE, depth=4, span=SPAN),
]
"""Linux reads ahead 128 KiB as a rule, and a driver has no more than 1 MiB in a READ."""
AT_LEAST = {RANDOM.name: 1.2, SEQUENTIAL.name: 1.0, LARGE.name: 1.0}
"""Of what virtiofsd does."""


class InPython(Fs):
    """All of it by `handle`."""

    def handle(self, request: Request) -> None:
        """Serve one request of FUSE."""
        super().handle(request)


class Reads:
    """READs of one open file, which is mounted by `running`."""

    def __init__(self, guest: Guest, case: Case) -> None:
        self._guest = guest
        size = case.work.block
        try:
            fuse = Fuse(guest, FLAGS)
            node = fuse.lookup(NAME)
            body = READ_IN.pack(fh=fuse.open(node), size=size)
        except FuseError as error:
            raise Missing(f"it does not open a file: {error}") from error
        length = IN_HEADER.size + len(body)
        header = IN_HEADER.pack(len=length, opcode=Opcode.READ, unique=UNIQUE, nodeid=node)
        self._job: dict[str, Any] = {
            "kind": Kind.PLAIN,
            "depth": case.depth,
            "header": header + body,
            "place_at": IN_HEADER.size + READ_IN.offsets["offset"],
            "block_size": size,
            "span": case.span,
            "sequential": case.work.sequential,
            "out_size": length,
            "in_size": OUT_HEADER.size + size,
            "expect": OUT_HEADER.pack(len=OUT_HEADER.size + size, unique=UNIQUE),
            "indirect": False,
            "poll": case.polls,
            "stall_s": STALL_S,
        }

    def pids(self) -> list[int]:
        return []

    def run(self, count: int) -> Outcome:
        stats = self._guest.load(REQUESTS, Job(count=count, **self._job))
        return Outcome(
            stats.completed,
            stats.corrupt,
            stats.seconds,
            percentile_ns(stats.latency, 50),
            percentile_ns(stats.latency, 99),
        )


@contextmanager
def ours(
    directory: Path, socket: Path, tag: str, kind: str = "fs", poll: str = "auto"
) -> Iterator[Running]:
    """Our own, as it comes."""
    device = {"type": kind, "tag": tag, "directory": str(directory), "poll": poll}
    with serve(device) as served:
        yield Running(served.socket, lambda: [served.pid, *workers(served)])


SIDES: dict[str, Serving] = {
    OURS: ours,
    SLEEPS: partial(ours, poll="off"),
    PYTHON: partial(ours, kind=reference(InPython)),
    RUST: debian.virtiofsd,
    C: debian.virtiofsd_in_c,
}


@contextmanager
def side(name: str, directory: Path, case: Case) -> Iterator[Contender]:
    """One of SIDES, with a guest that has the file open. Raises Missing."""
    with ExitStack() as stack:
        sockets = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vuproc-bench-")))
        running = stack.enter_context(SIDES[name](directory, sockets / "fs.sock", TAG))
        guest = Guest(running.socket, queues=2, queue_size=QUEUE_SIZE, memory=MEMORY)
        reads = Reads(stack.enter_context(guest), case)
        # In Python it is another side of ours, and not what the peers are compared with.
        yield Contender(name, name, case, reads, running.pids)


def measure(
    cases: Sequence[Case], effort: Effort, say: Callable[[str], None] = lambda _line: None
) -> list[Finding]:
    """Each case with all sides in turn."""
    with shared() as directory:
        return [
            compare(
                case.name,
                case.title,
                "builtin",
                [Entry(name, side(name, directory, case)) for name in SIDES],
                effort,
                say,
            )
            for case in cases
        ]


@contextmanager
def shared() -> Iterator[Path]:
    """A directory with the file, in memory: of a disk it would be the disk's time."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="vuproc-bench-") as made:
        directory = Path(made)
        with (directory / NAME).open("wb") as file:
            for _ in range(SPAN // MIB):
                file.write(bytes(range(256)) * (MIB // 256))
        yield directory


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 1 if a bar is not met or could not be measured."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.fs", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="of each side (5)")
    parser.add_argument("--seconds", type=float, default=0.2, help="length of a sample (0.2)")
    parser.add_argument("--tries", type=int, default=3, help="of a disturbed sample (3)")
    parser.add_argument("--waits", choices=("poll", "sleep"), default="poll", help="the driver")
    parser.add_argument("--only", default="", help="cases whose names begin so")
    parser.add_argument("--guest", action="store_true", help="a Linux guest reads instead")
    options = parser.parse_args(arguments)
    if options.guest:
        return _in_guest(options.rounds, options.seconds)
    polls = options.waits == "poll"
    cases = [Case(c.work, depth=c.depth, span=c.span, polls=polls) for c in CASES]
    cases = [case for case in cases if case.name.startswith(options.only)]
    give_up = time.monotonic() + 30.0
    effort = Effort(options.rounds, options.seconds, None, options.tries, give_up)
    found = measure(cases, effort)
    for finding in found:
        print("\n".join(text.lines(finding)))
    bars = [
        Bar(case.name, case.name, _held(case), (RUST,), AT_LEAST[case.work.name]) for case in cases
    ]
    return 0 if judge(bars, found) else 1


def _in_guest(rounds: int, seconds: float) -> int:
    """Print what a Linux guest gets of each side; 1 if one of them could not be measured."""
    sides = {OURS: ours, SLEEPS: SIDES[SLEEPS], RUST: _behind_uml}
    with shared() as directory:
        found, missing = fs_guest.measure(sides, directory, NAME, rounds, seconds)
    print("\n".join(fs_guest.lines(found, missing, RUST)))
    return 1 if missing else 0


@contextmanager
def _behind_uml(directory: Path, path: Path, tag: str) -> Iterator[Running]:
    with debian.virtiofsd(directory, path.with_suffix(".peer"), tag) as running:
        with uml_relay.relayed(running, path) as reached:
            yield reached


def _held(case: Case) -> str:
    """Which side of ours: virtiofsd sleeps at once, and at depth 1 that is most of it."""
    return SLEEPS if case.depth == 1 and not case.polls else OURS


if __name__ == "__main__":
    sys.exit(main())
