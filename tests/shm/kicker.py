"""A guest process that submits small requests until its input ends, and fails if one gets lost.

Run as `python kicker.py FD RING_OFFSET ARENA_OFFSET ARENA_ADDRESS KICK CALL EVENT_IDX POLL`; the
ring has SIZE entries. Prints the number of requests and of kicks.
"""

from __future__ import annotations

import mmap
import os
import select
import sys
import threading

from vuproc.testing.job import Job, Kind
from vuproc.testing.load import LoadGenerator
from vuproc.testing.split_ring import SplitDriverRing

SIZE = 16
DEPTH = 3
LOST_S = 15.0
"""A completion, or its call, that takes longer is lost."""


def poll_for(
    driver: SplitDriverRing, memory: mmap.mmap, arena: int, address: int, kick: int
) -> tuple[int, int]:
    """Watch the used ring from native code and never sleep; (requests, kicks)."""
    job = Job(
        count=1 << 40,
        depth=DEPTH,
        kind=Kind.PLAIN,
        out_size=16,
        in_size=16,
        poll=True,
        stall_s=LOST_S,
    )
    load = LoadGenerator(driver, memory, arena=arena, address=address, kick=kick, call=-1, job=job)

    def stop_at_end_of_input() -> None:
        sys.stdin.buffer.read()
        load.stop()

    threading.Thread(target=stop_at_end_of_input, daemon=True).start()
    stats = load.run()
    return stats.completed, stats.kicks


def sleep_for(driver: SplitDriverRing, address: int, kick: int, call: int) -> tuple[int, int]:
    """Sleep on the call descriptor whenever there is nothing, and trust it; (requests, kicks)."""
    poller = select.poll()
    poller.register(call, select.POLLIN)
    going = select.poll()
    going.register(0, select.POLLIN)
    completed = kicks = flying = 0
    while True:
        while flying < DEPTH and not going.poll(0):
            driver.add([(address, 16, False), (address + 64, 16, True)])
            flying += 1
        if driver.publish():
            os.eventfd_write(kick, 1)
            kicks += 1
        if not flying:
            return completed, kicks
        while not (done := driver.reap()):
            if not driver.arm():
                if not poller.poll(LOST_S * 1000):
                    raise TimeoutError(f"no call after {completed} requests")
                os.eventfd_read(call)
        completed += len(done)
        flying -= len(done)


def main(
    fd: int,
    ring: int,
    arena: int,
    address: int,
    kick: int,
    call: int,
    event_idx: int,
    poll: int,
) -> None:
    memory = mmap.mmap(fd, os.fstat(fd).st_size)
    used = (ring + 18 * SIZE + 6 + 3) & ~3
    driver = SplitDriverRing(
        memory, SIZE, desc=ring, avail=ring + 16 * SIZE, used=used, event_idx=bool(event_idx)
    )
    if poll:
        driver.disarm()
        print(*poll_for(driver, memory, arena, address, kick), flush=True)
    else:
        print(*sleep_for(driver, address, kick, call), flush=True)


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
