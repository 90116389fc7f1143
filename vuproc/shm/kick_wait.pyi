from typing import final

from vuproc.shm.counters import QueueCounters
from vuproc.shm.ring import Ring
from vuproc.shm.spin import Spin

@final
class KickWait:
    """The sleep of a worker that serves one ring, and what a kick ends it for, without Python.

    `epoll` is the descriptor (borrowed) of a poll set that has the ring's kick descriptor in it, by
    its number, and all else that is to end a sleep.
    """

    def __init__(self, epoll: int) -> None: ...
    def wait(
        self, counters: QueueCounters | None, kick: int, spin: Spin, due: float | None, hits: int
    ) -> bool:
        """Sleep until something happens, at most `due` seconds. True: kicks have come, were read
        from `kick` and counted; what is there besides ends the next sleep. False: whoever asks the
        poll set finds what it is, or nothing.

        `counters` say meanwhile that the worker sleeps; `spin` learns how long that was, and that
        looks have found something `hits` times.
        """

    def serve(
        self, ring: Ring, kick: int, spin: Spin, due: float | None, budget: int, slice_ns: int
    ) -> bool:
        """The same again and again, and what the kicks announce served in between by the ring's
        native device. Returns as soon as there is something else: False, as `wait`, and if a
        request has failed, or after 0.1 s or `due` with kicks all the time; True, the ring has more
        to do, and a turn is over (`Ring.serve_native`).

        Raises RingError if the driver broke the ring, and RuntimeError if that is not `quiet`.
        """
