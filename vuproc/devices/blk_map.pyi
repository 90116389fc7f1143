from typing import Any

from vuproc.devices.blk_native import NativeBlk

def is_memory(fd: int) -> bool:
    """Whether an open file lies in memory: on tmpfs, ramfs or hugetlbfs, or mapped past the page
    cache (DAX). Raises OSError.
    """

class MapBlk(NativeBlk):
    """Serves an open image by copies between its mapping and guest memory.

    What is missing of either is an I/O error of the request. SIGBUS is handled for that, once a
    process.
    """

    def __init__(self, fd: int, size: int, *, readonly: bool = False, **rest: Any) -> None:
        """As those of `NativeBlk`. Raises OSError if the image cannot be mapped."""
