"""What the sandbox costs: `python -m tests.bench.sandbox`.

Starts: a worker is forked by a forkserver that is there already, makes its device and takes its
queue; without a sandbox and with each mode in turn. Requests: those of `tests.bench.wake`, one at a
time, so that every one has all of its system calls, and many at a time. What a filter adds to one
system call is less than such figures can tell, and is measured by itself. Ratios are of one run.
A start is to take 2 ms more at most, and a request 1 %, or what two disks without a sandbox differ
by if that is more; exit code 1 if it is not so. Run it from the root of the checkout.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import msgspec

from tests.bench.scale_point import workers
from tests.bench.wake import BLOCK, ENGINES, HEADER, IMAGE_BYTES, Side, disk
from vuproc.devices.rng import Rng
from vuproc.fd import Fd
from vuproc.pool.forkserver import Forkserver
from vuproc.pool.process import WorkerHost, WorkerProcess
from vuproc.sandbox.lockdown import Lockdown
from vuproc.sandbox.make import make_policy
from vuproc.sandbox.needs import NOTHING
from vuproc.sandbox.policy import Mode
from vuproc.testing import serve
from vuproc.workers.control import Prepare

MODES: tuple[Mode, ...] = ("off", "standard", "strict")
AGAIN = "off again"
"""What two that are the same differ by: no finer than that is what is measured here."""
START_BAR_MS = 2.0
REQUEST_BAR = 1.01
EXIT_S = 5.0
CALLS = 2000
"""System calls of a sample."""
DEPTH = 16
"""Requests at a time of a disk that is busy."""


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


def starts(rounds: int) -> dict[str, list[float]]:
    """The samples of each mode, taken in turn."""
    found: dict[str, list[float]] = {mode: [] for mode in MODES}
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


@contextmanager
def busy(engine: str, image: Path, **keys: Any) -> Iterator[Side]:
    """As `wake.disk`, with `DEPTH` requests at a time."""
    device = {"type": "blk", "image": str(image), "readonly": True, "engine": engine, "poll": "off"}
    with serve(device, file=keys) as served, served.guest() as guest:

        def run(count: int) -> None:
            for _ in range(0, count, DEPTH):
                begun = [guest.submit(0, [HEADER], [BLOCK, 1]) for _ in range(DEPTH)]
                for each in begun:
                    guest.wait(each)

        (pid,) = workers(served)
        yield Side(f"vuproc {engine}", pid, run)


def requests(
    made: Callable[..., AbstractContextManager[Side]],
    engine: str,
    image: Path,
    count: int,
    rounds: int,
) -> dict[str, list[float]]:
    """Microseconds of the worker's CPU time a request, of a disk of each mode, which are there at
    the same time: taken in turn, forwards and backwards.
    """
    with ExitStack() as stack:
        sides = {
            name: stack.enter_context(made(engine, image, sandbox=name.partition(" ")[0]))
            for name in (*MODES, AGAIN)
        }
        found: dict[str, list[float]] = {name: [] for name in sides}
        for side in sides.values():
            side.measure(count)
        for round_ in range(rounds):
            for name in sides if round_ % 2 else reversed(sides):
                found[name].append(sides[name].measure(count).cpu_us)
    return found


def call_ns(samples: int) -> tuple[float, float]:
    """Nanoseconds of a cheap system call, the least, before and after a process is locked in."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        file = os.memfd_create("bench")
        before = _least_ns(partial(os.lseek, file, 0, 0), samples)
        policy = make_policy("standard", NOTHING)
        assert policy is not None
        Lockdown(policy).close()
        after = _least_ns(partial(os.lseek, file, 0, 0), samples)
        os.write(theirs, msgspec.json.encode((before, after)))
        os._exit(0)
    os.close(theirs)
    with open(ours, "rb") as reader:
        found = msgspec.json.decode(reader.read(), type=tuple[float, float])
    os.waitpid(pid, 0)
    return found


def _least_ns(call: Callable[[], object], samples: int) -> float:
    least = float("inf")
    for _ in range(samples):
        before = time.perf_counter_ns()
        for _ in range(CALLS):
            call()
        least = min(least, (time.perf_counter_ns() - before) / CALLS)
    return least


def show(what: str, unit: str, found: Mapping[str, Sequence[float]]) -> None:
    """A line a mode: the median, the least, and the median of how the samples of one round stand to
    that of `off`.
    """
    base = found["off"]
    for mode, samples in found.items():
        pairs = list(zip(samples, base, strict=True))
        more = median(sample - other for sample, other in pairs)
        ratio = median(sample / other for sample, other in pairs)
        print(
            f"{what:27} {mode:9} {unit} {median(samples):7.3f} (least {min(samples):.3f}), "
            f"{more:+.3f}, {ratio:.3f} of off"
        )


def start_kept(found: Mapping[str, Sequence[float]]) -> bool:
    """Whether a start costs no more than it may, in either mode."""
    more = max(
        median(sample - other for sample, other in zip(found[mode], found["off"], strict=True))
        for mode in ("standard", "strict")
    )
    kept = more <= START_BAR_MS
    print(f"bar: a start takes {START_BAR_MS:g} ms more at most: {more:+.2f} ms, {_word(kept)}")
    return kept


def request_kept(found: Mapping[str, Sequence[float]]) -> bool:
    """Whether a request does, as far as it can be told."""
    ratio = {
        mode: median(sample / other for sample, other in zip(samples, found["off"], strict=True))
        for mode, samples in found.items()
    }
    # What the middle half of the rounds differ by between two that are the same.
    low, _, high = quantiles(
        [sample / other for sample, other in zip(found[AGAIN], found["off"], strict=True)]
    )
    noise = (high - low) / 2
    most = max(ratio["standard"], ratio["strict"])
    kept = most <= max(REQUEST_BAR, 1.0 + noise)
    print(
        f"bar: a request takes {REQUEST_BAR:g} at most: {most:.3f}, where two that are the same "
        f"differ by {noise:.3f}: {_word(kept)}"
    )
    return kept


def _word(kept: bool) -> str:
    return "kept" if kept else "not kept"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and judge; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.sandbox", description=__doc__)
    parser.add_argument("--starts", type=int, default=40, help="workers of each mode (40)")
    parser.add_argument("--count", type=int, default=300, help="requests of a sample (300)")
    parser.add_argument("--rounds", type=int, default=60, help="samples of each mode (60)")
    parser.add_argument("--engine", action="append", choices=ENGINES, help="default: all")
    options = parser.parse_args(arguments)
    found = starts(options.starts)
    show("a worker's start", "ms", found)
    kept = start_kept(found)
    before, after = call_ns(options.rounds)
    print(f"a system call of Python ns {before:.0f}, and {after - before:+.0f} in the sandbox")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        image = Path(folder, "image")
        image.write_bytes(bytes(IMAGE_BYTES))
        for engine in options.engine or ENGINES:
            for how, made in (("woken for it", disk), (f"of {DEPTH}", busy)):
                found = requests(made, engine, image, options.count, options.rounds)
                show(f"{engine}, a request {how}", "CPU us", found)
                kept = request_kept(found) and kept
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
