from collections.abc import Sequence

from typing_extensions import Buffer

from vuproc.shm.native import NativeDevice
from vuproc.shm.request import Request

WORDS: tuple[str, ...]
"""Words of a record whose places it is to know, in this order."""
HEAD_WORDS: tuple[str, ...]
"""And of the head."""

class NativeVsock(NativeDevice):
    """Passes on the data of the streams of a table, from the receive queue and the transmit queue,
    from which it pulls when it is asked to.

    memory: the table. places: those of WORDS in a record, in words; head_places: of HEAD_WORDS.
    commits: where a step is written down, behind the number of its words. records: where each
    record begins. to_host, to_guest: where the areas of each begin in bytes, and their sizes.
    buffer: bytes that may wait for their reader, for each direction. ValueError if something of
    that is not inside the memory.
    """

    @property
    def beyond_credit(self) -> bool:
        """What `take` gave last is data that the guest had no credit for."""

    def __init__(
        self,
        memory: Buffer,
        *,
        places: Sequence[int],
        head_places: Sequence[int],
        commits: int,
        records: Sequence[int],
        to_host: Sequence[tuple[int, int]],
        to_guest: Sequence[tuple[int, int]],
        cid: int,
        buffer: int,
    ) -> None: ...
    def know(self, slot: int, fd: int) -> None:
        """The connection in a slot has this socket, borrowed; -1: it has none any more."""

    def take(self, most: int) -> tuple[Request | None, bool]:
        """Pass on what the guest has sent on streams, up to `most` packets: the first that is not
        such a one, if there is one, as `Device.take` has it; and whether there may be more.
        """

    def take_fed(self) -> list[int]:
        """The slots with something left to do after what was taken since the last time: bytes that
        the program does not take yet, bytes for the guest, its credit.
        """

    def deliver(self, slot: int, most: int) -> int:
        """Give the guest what there is for it on a stream, or its credit, in at most so many
        packets; their number. 0: nothing, or something that is not for here.
        """
