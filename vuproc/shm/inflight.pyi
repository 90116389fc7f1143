from typing import Final, NamedTuple, final

POISON_ATTEMPTS: Final[int]
"""Deaths of a worker inside `handle` of one request after which it is not run again."""

def record_bytes(queue_size: int) -> int:
    """Bytes of the in-flight record of a split queue: 16 + 16 * queue_size, up to a multiple of 64.

    Records of several queues lie one behind the other, so this is their stride too. Raises
    ValueError if `queue_size` is not in 1..32768.
    """

class Recovered(NamedTuple):
    """A request which an earlier worker had fetched and not completed."""

    head: int
    attempts: int
    """Deaths inside `handle` of it, as far as the record tells."""
    stage: int
    """0: it is run again. 1, and what is not said here: its side effect may have happened, and the
    ring's `resubmit` tells. 2, 3, 4: run, drop, fail, as the request's own `resubmit` was set."""

@final
class SplitRecord:
    """One queue's in-flight record (vhost-user, "Inflight I/O tracking", split virtqueue), mapped.

    It may be the front-end's memory: nothing in it is trusted.
    """

    queue_size: int
    def __init__(self, fd: int, offset: int, queue_size: int) -> None:
        """Map the record at byte `offset` (a multiple of 8) of `fd` (borrowed).

        Raises MemoryFault if the file does not hold all of it, if it cannot be mapped read-write
        or is not aligned; ValueError if `queue_size` is not in 1..32768.
        """

    @property
    def version(self) -> int:
        """0: nothing to recover, the next ring starts at its base; 1: in use."""
