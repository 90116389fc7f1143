"""What the sandbox costs: `python -m tests.bench.sandbox`.

Starts: a worker is forked by a forkserver that is there already, makes its device and takes its
queue; without a sandbox and with each mode in turn. Requests: `tests.bench.sandbox_requests`. What
a filter adds to one system call is measured by itself. Figures are medians of what was one after
the other, with the interval in which they lie with a probability of 95 %. A start is to take 2 ms
more at most, and a request 1 %: exit code 1 if all of an interval is above that. Run it from the
root of the checkout.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from statistics import median
from typing import TypeVar

import msgspec

from tests.bench import sandbox_requests
from tests.bench.intervals import LEAST, Interval, of_median
from tests.bench.sandbox_requests import AGAIN, LOCKED, WAYS, Found
from tests.bench.wake import IMAGE_BYTES
from vuproc.devices.rng import Rng
from vuproc.fd import Fd
from vuproc.pool.forkserver import Forkserver
from vuproc.pool.process import WorkerHost, WorkerProcess
from vuproc.sandbox.lockdown import Lockdown
from vuproc.sandbox.make import make_policy
from vuproc.sandbox.needs import NOTHING
from vuproc.sandbox.policy import Mode
from vuproc.workers.control import Prepare

MODES: tuple[Mode, ...] = ("off", *LOCKED)
START_BAR_MS = 2.0
REQUEST_BAR = 1.01
EXIT_S = 5.0
CALLS = 2000
"""System calls of a sample."""
CALL_SAMPLES = 60
PROCESS_S = 1.5
"""Seconds in which one process measures."""

T = TypeVar("T")


def start_ms(host: WorkerHost, files: Mapping[str, Fd], mode: Mode) -> float:
    """Until a worker of this mode has its queue."""
    options = Rng.options_type()
    prepare = Prepare(
        type_ref="rng",
        base_dir="/",
        options=msgspec.msgpack.encode(options),
        chain_limit=options.queue_size,
        counters=None,
        shared=dict(files),
        log_level=logging.WARNING,
        sandbox=make_policy(mode, NOTHING),
    )
    before = time.perf_counter()
    worker = WorkerProcess(host, prepare, lambda _said: None)
    worker.assign((0,), recovered=False)
    worker.settle()
    spent = time.perf_counter() - before
    worker.exit(EXIT_S)
    return spent * 1e3


def starts(rounds: int) -> dict[Mode, list[float]]:
    """The samples of each mode, taken in turn."""
    found: dict[Mode, list[float]] = {mode: [] for mode in MODES}
    with closing(Forkserver(("vuproc.devices.rng:Rng",), 30.0)) as forkserver, ExitStack() as stack:
        files = Rng(Rng.options_type()).shared_files()
        for file in files.values():
            stack.enter_context(file)
        forkserver.launch()
        host = WorkerHost(forkserver, lambda _queue: None, lambda _queue: 0, 30.0)
        for round_ in range(rounds + 1):
            for mode in MODES:
                spent = start_ms(host, files, mode)
                if round_:  # the first has to warm up
                    found[mode].append(spent)
    return found


def of_a_child(work: Callable[[], T], kind: type[T]) -> T:
    """What `work` gives in a process of its own, with which all ends that it gives up there."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            with open(theirs, "wb") as writer:
                writer.write(msgspec.json.encode(work()))
            os._exit(0)
        finally:
            traceback.print_exc()
            os._exit(1)
    os.close(theirs)
    with open(ours, "rb") as reader:
        said = reader.read()
    os.waitpid(pid, 0)
    return msgspec.json.decode(said, type=kind)


def call_ns() -> tuple[float, float]:
    """Nanoseconds of a cheap system call, the least, before and after a process is locked in."""
    file = os.memfd_create("bench")
    before = _least_ns(partial(os.lseek, file, 0, 0))
    policy = make_policy("standard", NOTHING)
    assert policy is not None
    Lockdown(policy).close()
    return before, _least_ns(partial(os.lseek, file, 0, 0))


def _least_ns(call: Callable[[], object]) -> float:
    least = float("inf")
    for _ in range(CALL_SAMPLES):
        before = time.perf_counter_ns()
        for _ in range(CALLS):
            call()
        least = min(least, (time.perf_counter_ns() - before) / CALLS)
    return least


def show_starts(found: Mapping[Mode, Sequence[float]]) -> bool:
    """A line a mode; whether a start takes no more than it may."""
    kept = True
    print(f"a worker's start: {median(found['off']):.2f} ms without a sandbox")
    for mode in LOCKED:
        pairs = zip(found[mode], found["off"], strict=True)
        more = of_median([sample - other for sample, other in pairs])
        kept = kept and more.low <= START_BAR_MS
        print(
            f"  {mode:9} {more.middle:+.2f} ms ({more.low:+.2f} to {more.high:+.2f}); "
            f"{START_BAR_MS:g} ms: {_word(more, START_BAR_MS)}"
        )
    return kept


def requests(image: Path, seconds: float, ways: Collection[str]) -> Found:
    """The median of each side in each of as many processes as fit into so many seconds: what of a
    thread is by chance, such as where its stack lies, is another in each.
    """
    found: Found = {way: {} for way in ways}
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        work = partial(sandbox_requests.measure, image, PROCESS_S, ways)
        for way, samples in of_a_child(work, Found).items():
            for side, values in samples.items():
                found[way].setdefault(side, []).append(median(values))
    return found


def show_requests(found: Found) -> bool:
    """A line each way and mode; whether a request takes no more than it may."""
    kept = True
    for way, samples in found.items():
        off, again = samples["off"], samples[AGAIN]
        bases = [(one + other) / 2 for one, other in zip(off, again, strict=True)]
        print(
            f"{way}: {median(bases) / 1e3:.2f} us of CPU time without a sandbox, in {len(bases)} "
            "processes"
        )
        for name, base in ((AGAIN, off), *((mode, bases) for mode in LOCKED)):
            pairs = list(zip(samples[name], base, strict=True))
            times = of_median([sample / other for sample, other in pairs])
            more = of_median([sample - other for sample, other in pairs])
            word = ""
            if name in LOCKED:
                kept = kept and times.low <= REQUEST_BAR
                word = f"; {REQUEST_BAR:g}: {_word(times, REQUEST_BAR)}"
            print(
                f"  {name:9} {times.middle:.4f} of it ({times.low:.4f} to {times.high:.4f}), "
                f"{more.middle:+.0f} ns ({more.low:+.0f} to {more.high:+.0f}){word}"
            )
    return kept


def _word(found: Interval, bar: float) -> str:
    if found.high <= bar:
        return "kept"
    return "not kept" if found.low > bar else "cannot be told"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and judge; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.sandbox", description=__doc__)
    parser.add_argument("--starts", type=int, default=60, help="workers of each mode (60); or 0")
    parser.add_argument("--seconds", type=float, default=120, help="of requests (120); or 0")
    parser.add_argument("--way", action="append", choices=WAYS, help="of requests; default: all")
    options = parser.parse_args(arguments)
    kept = True
    if options.starts:
        kept = show_starts(starts(max(LEAST, options.starts)))
    before, after = of_a_child(call_ns, tuple[float, float])
    print(f"a system call of Python: {before:.0f} ns, and {after - before:+.0f} in the sandbox")
    if options.seconds:
        with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
            image = Path(folder, "image")
            image.write_bytes(bytes(IMAGE_BYTES))
            found = requests(image, options.seconds, options.way or list(WAYS))
        kept = show_requests(found) and kept
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
