"""What it takes to stop a queue of which the device holds 256 buffers: `python -m
tests.bench.give_back`.

Run it from the root of the checkout. Times are those of the front-end, from the message to its
answer; the buffers are with the device again before the next one.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from statistics import median

from tests.devices.holding import RX, TX, Keeps
from vuproc.testing import Guest, serve

HELD, SIZE = 256, 64
BAR_MS = 20.0
"""What each is to take at most, in the median."""


def get_vring_base(guest: Guest) -> float:
    """GET_VRING_BASE."""
    took = timed(lambda: guest.stop_queue(RX))
    queue = guest.queues[RX]
    guest.front_end.request("SET_VRING_CALL", [queue.call_bell.theirs], value=RX)
    guest.kick_queue(queue)
    return took


def set_mem_table(guest: Guest) -> float:
    """SET_MEM_TABLE."""
    return timed(lambda: guest.front_end.set_memory(guest.ram.regions))


def disable(guest: Guest) -> float:
    """SET_VRING_ENABLE with 0: the device keeps what it has."""
    took = timed(lambda: guest.enable_queue(RX, False))
    guest.enable_queue(RX, True)
    return took


def reset_device(guest: Guest) -> float:
    """RESET_DEVICE; the queues are set up anew after it."""
    took = timed(lambda: guest.front_end.request("RESET_DEVICE"))
    guest.front_end.set_features(guest.front_end.features)
    for index in (RX, TX):
        guest.start_queue(index, size=guest.queues[index].size)
    fill(guest)
    return took


MESSAGES: tuple[Callable[[Guest], float], ...] = (
    get_vring_base,
    set_mem_table,
    disable,
    reset_device,
)


def timed(message: Callable[[], object]) -> float:
    """Milliseconds until it is answered."""
    began = time.perf_counter()
    message()
    return (time.perf_counter() - began) * 1000


def fill(guest: Guest) -> None:
    """Have the device hold all the buffers there are."""
    guest.keep_filled(RX, count=HELD, size=SIZE)
    hold(guest)


def hold(guest: Guest) -> None:
    """See that it does."""
    held = int(guest.do(TX, [b"count"], [SIZE]).content.rstrip(b"\0"))
    if held != HELD:
        raise RuntimeError(f"the device holds {held} buffers")


def measure(rounds: int) -> dict[str, float]:
    """The median of each, by the message's name."""
    taken: dict[str, list[float]] = {}
    with serve(Keeps) as served, served.guest(queues=2, queue_size=HELD) as guest:
        fill(guest)
        pid = served.status().queues[RX].pid
        for _ in range(rounds):
            for message in MESSAGES:
                taken.setdefault(message.__name__.upper(), []).append(message(guest))
                hold(guest)
        if served.status().queues[RX].pid != pid:
            raise RuntimeError("a worker was killed over it")
    return {name: median(values) for name, values in taken.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 1 if the bar is not met."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.give_back", description=__doc__)
    parser.add_argument("--rounds", type=int, default=21, help="of each message (21)")
    options = parser.parse_args(arguments)
    found = measure(options.rounds)
    print(f"with {HELD} buffers held, median of {options.rounds}:")
    for name, took in found.items():
        print(f"  {name:<15} {took:6.2f} ms")
    met = max(found.values()) <= BAR_MS
    print(f"each is to take at most {BAR_MS:g} ms: {'met' if met else 'NOT met'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
