from typing import final

@final
class PackedRecord:
    """One queue's in-flight record (vhost-user, "Inflight I/O tracking", packed virtqueue), mapped.

    It may be the front-end's memory: nothing in it is trusted.
    """

    queue_size: int
    def __init__(self, fd: int, offset: int, queue_size: int) -> None:
        """Map the record at byte `offset` (a multiple of 8) of `fd` (borrowed); -1: in memory of
        our own, which nobody else will see.

        Raises MemoryFault if the file does not hold all of it, if it cannot be mapped read-write
        or is not aligned; ValueError if `queue_size` is not in 1..32768.
        """

    @property
    def version(self) -> int:
        """0: nothing to recover, the next ring starts at its base; 1: in use."""
