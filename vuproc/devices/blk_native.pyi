from vuproc.shm.native import NativeDevice

MAX_RANGES: int
"""Most ranges of one DISCARD or WRITE_ZEROES request."""

class NativeBlk(NativeDevice):
    """Serves an open image of `size` bytes, all by blocking calls. `fd` is borrowed."""

    cached: bool
    """Data need be safe at a flush only; False: at each write."""

    @property
    def syncs(self) -> int:
        """How often the image was synced."""

    def __init__(
        self,
        fd: int,
        size: int,
        *,
        block_size: int = 512,
        block_device: bool = False,
        readonly: bool = False,
        cached: bool = True,
        buffered: int = -1,
        serial: bytes = b"",
        discard: tuple[int, int] = (0, 0),
        write_zeroes: tuple[int, int] = (0, 0),
    ) -> None:
        """`buffered` is the same image without O_DIRECT, for memory which that does not take; -1:
        `fd` is open without. `discard`, `write_zeroes`: most sectors of one range, and most ranges
        of a request.
        """
