from typing import final

from vuproc.shm.memory import Mapping

@final
class XenDevice:
    """An open /dev/xen/privcmd or /dev/xen/gntdev, opened once more for this process."""

    def __init__(self, fd: int) -> None:
        """`fd` is borrowed. Raises OSError."""

@final
class OnDemand:
    """A region of grants that are mapped while a request needs them, and no longer."""

    def __init__(self, guest_addr: int, size: int, device: XenDevice, domid: int) -> None: ...
    @property
    def guest_addr(self) -> int:
        """The first of its guest addresses."""

    @property
    def size(self) -> int:
        """Its bytes."""

def foreign(device: XenDevice, domid: int, guest_addr: int, size: int) -> Mapping:
    """Map `size` bytes of a domain at a guest-physical address (IOCTL_PRIVCMD_MMAPBATCH_V2).

    Raises MemoryFault, also if a single page of them cannot be mapped.
    """

def granted(device: XenDevice, domid: int, guest_addr: int, size: int) -> Mapping:
    """Map grants of a domain for reading and writing (IOCTL_GNTDEV_MAP_GRANT_REF).

    The bits of `guest_addr` between 12 and 62 are the number of the first. Raises MemoryFault.
    """
