"""What it costs to be looked at: `python -m tests.bench.scrape`.

Three things. Requests of null devices, whose handlers are in Python and native, with their last
requests traced and without: rings of both kinds take turns in one process, and CPU time is
compared. Requests of a disk that is served, with a client that scrapes again and again and without
one, in turn. And a page: its time, and the master's CPU time for it.
"""

from __future__ import annotations

import argparse
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from tests.bench import quiet
from tests.bench.devices import NativeNull
from tests.bench.lane import Lane, cost, null
from vuproc.testing import Job, serve

ROOM = 64
"""Requests of a trace."""
GET = b"GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n"


def trace_cost(rounds: int, requests: int, depth: int, native: bool) -> str:
    """A line: without a trace, with one, and the median of the pairs."""
    found = cost(
        lambda traced: Lane(traced=ROOM if traced else 0),
        NativeNull.handle if native else null,
        lanes=2,
        rounds=rounds,
        requests=requests,
        depth=depth,
    )
    kind = "native" if native else "Python"
    what = f"null device, {kind} handler, depth {depth}"
    return found.line(what, "without a trace", "traced")


@contextmanager
def scraping(place: Path, pause_s: float) -> Iterator[list[float]]:
    """A client that scrapes with pauses; the seconds that each scrape took."""
    done, taken = threading.Event(), list[float]()

    def go_on() -> None:
        while not done.wait(pause_s):
            taken.append(scrape(place))

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield taken
    finally:
        done.set()
        thread.join()


def scrape(place: Path) -> float:
    """Seconds of one."""
    begun = time.monotonic()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.connect(str(place))
        sock.sendall(GET)
        page = b""
        while more := sock.recv(1 << 16):
            page += more
    if not page.endswith(b"# EOF\n"):
        raise RuntimeError("no whole page")
    return time.monotonic() - begun


def scrape_cost(rounds: int, count: int, pause_s: float) -> str:
    """A line: the worker's CPU time of a request without scrapes and with them, in turn."""
    with tempfile.TemporaryDirectory(prefix="vuproc-bench-") as folder:
        place = Path(folder, "m")
        file = {"metrics": f"unix:{place}"}
        disk = {"type": "blk", "ram": "64MiB", "poll": "off"}
        with serve(disk, file=file) as served, served.guest(memory=32 << 20) as guest:
            worker = served.wait_worker(0)
            job = Job(count=count, depth=32, span=16 << 20, poll=True)

            def run() -> float:
                before = quiet.times(worker).ran
                guest.load(0, job)
                # A short run may be less than the clock of processes tells.
                return max(quiet.times(worker).ran - before, 1) / count

            run()
            ratios, pages = [], 0
            for _ in range(rounds):
                without = run()
                with scraping(place, pause_s) as taken:
                    ratios.append(run() / without)
                pages += len(taken)
    return (
        f"disk in memory, a scrape each {pause_s * 1e3:.0f} ms: {median(ratios) - 1:+.2%} CPU time "
        f"of the worker a request, in the median of {rounds} pairs ({pages} pages)"
    )


def page_cost(queues: int, count: int) -> str:
    """A line: how long a page takes, and the master's CPU time for it."""
    with tempfile.TemporaryDirectory(prefix="vuproc-bench-") as folder:
        place = Path(folder, "m")
        disk = {"type": "blk", "ram": "1MiB", "queues": queues}
        with serve(disk, file={"metrics": f"unix:{place}"}) as served:
            master = served.status().pid
            scrape(place)
            before = quiet.times(master).ran
            taken = [scrape(place) for _ in range(count)]
            cpu_ns = (quiet.times(master).ran - before) / count
    return (
        f"a page of {queues} queues: {median(taken) * 1e3:.1f} ms to the client, of which at least "
        f"20 from the page before; {cpu_ns / 1e6:.2f} ms of the master's CPU time"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--requests", type=int, default=20000, help="of a round of null devices")
    parser.add_argument("--count", type=int, default=100_000, help="requests of a disk's run")
    parser.add_argument("--pause", type=float, default=0.1, help="seconds between two scrapes")
    parser.add_argument("--queues", type=int, nargs="*", default=[1, 16])
    parser.add_argument("--only", choices=("trace", "scrape", "page"))
    options = parser.parse_args(arguments)
    parts: dict[str, Callable[[], list[str]]] = {
        "trace": lambda: [
            trace_cost(options.rounds, options.requests, 32, native) for native in (False, True)
        ],
        "scrape": lambda: [scrape_cost(options.rounds, options.count, options.pause)],
        "page": lambda: [page_cost(queues, 30) for queues in options.queues],
    }
    for name, measure in parts.items():
        if options.only in (None, name):
            print("\n".join(measure()), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
