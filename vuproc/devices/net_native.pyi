from collections.abc import Callable, Iterable, Iterator

from vuproc.shm.native import NativeDevice

NULL_KIND: int
LOOPBACK_KIND: int
TAP_KIND: int
FRAMES_KIND: int
BOUNDS: tuple[int, int, int, int, int]
"""Bytes of a header and of the largest frame; receive buffers of one frame, and those looked at for
its first; addresses of a table: as in Python."""

class Frames:
    """Frames that the driver has sent and that came together, or a copy of `frames`: whole Ethernet
    frames, which stay what they are for as long as anybody keeps them. Raises ValueError for one
    that is empty or too long.
    """

    def __init__(self, frames: Iterable[bytes | bytearray | memoryview] = ()) -> None: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[memoryview]: ...
    def __getitem__(self, index: int) -> memoryview:
        """The bytes of one. Raises IndexError."""

    @property
    def data(self) -> memoryview:
        """All of them, one behind the other."""

    @property
    def ends(self) -> tuple[int, ...]:
        """Where in `data` each of them ends, and the next begins."""

class NativePair(NativeDevice):
    """Serves the receive queue, from which it pulls, and the transmit queue behind it.

    kind: what becomes of the driver's frames. on_lost: counts a frame that was thrown away for a
    queue that has no ring at the moment. fd: of the tap, open without waiting and with headers
    of 12 bytes. down: 4 bytes of memory which are not zero while the link is down. on_frames:
    called with what the driver has sent, of FRAMES_KIND.
    """

    def __init__(
        self,
        receive: int,
        kind: int,
        on_lost: Callable[[int], None],
        fd: int = -1,
        down: object = None,
        on_frames: Callable[[Frames], None] | None = None,
    ) -> None: ...
    def merge(self, most: int) -> None:
        """A frame may take so many receive buffers, 1 to 64."""

    def want_all(self) -> None:
        """The driver is to have all frames."""

    def want(
        self,
        broadcast: bool,
        unicast: Iterable[bytes] | None,
        multicast: Iterable[bytes] | None,
        vlans: bytes | None,
    ) -> None:
        """The driver is to have frames to these addresses, None for all, and of the VLANs with a
        bit in these 512 bytes, None for all. Raises ValueError for more than there is room for.
        """

    def pump(self, budget: int) -> int:
        """Give the driver what the tap has; how many frames were read, `budget` at most."""

    def send(self, frames: Frames | Iterable[bytes | bytearray | memoryview]) -> int:
        """Give the driver these frames; how many it got. Raises ValueError for one without bytes or
        of more than MAX_FRAME.
        """

    def give_all_back(self) -> None:
        """Give back the receive buffers that were too few for the last frame."""
