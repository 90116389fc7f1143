"""What the in-flight record costs a request: `python -m tests.bench.record`.

Rings with a record and rings without one take turns in one process, 32 requests at a time; the
driver's part is not measured. CPU time, so that other processes disturb it little.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from tests.bench.lane import BLOCK, Cost, Lane, cost, null
from vuproc.shm.request import Request


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("--depth", type=int, default=32)
    parser.add_argument("--lanes", type=int, default=4, help="rings of each kind")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--requests", type=int, default=10000, help="of a round")
    options = parser.parse_args(arguments)
    costs = measure(options.depth, options.lanes, options.rounds, options.requests)
    for name, found in costs.items():
        what = f"{name} device, depth {options.depth}"
        print(found.line(what, "without a record", "with"))
    return 0


def measure(
    depth: int = 32, lanes: int = 4, rounds: int = 20, requests: int = 10000
) -> dict[str, Cost]:
    """What the record costs the null device and the one that reads, with `lanes` rings of each kind
    in turn.
    """
    image = os.memfd_create("image", os.MFD_CLOEXEC)

    def read(request: Request) -> None:
        """A block device that reads 4 KiB."""
        request.read(16)
        request.preadv(image, 0, BLOCK)
        request.put(-1, b"\0")

    try:
        os.ftruncate(image, BLOCK)
        return {
            name: cost(
                lambda recorded: Lane(recorded=recorded),
                handler,
                lanes=lanes,
                rounds=rounds,
                requests=requests,
                depth=depth,
            )
            for name, handler in (("null", null), ("read", read))
        }
    finally:
        os.close(image)


if __name__ == "__main__":
    raise SystemExit(main())
