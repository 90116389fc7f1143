from collections.abc import Iterable
from typing import Self, final

from typing_extensions import Buffer

from vuproc.testing.ring import DriverRing

def packed_layout(size: int) -> tuple[int, int, int, int]: ...

@final
class PackedDriverRing(DriverRing):
    def __new__(
        cls,
        memory: Buffer,
        size: int,
        *,
        desc: int,
        driver_event: int,
        device_event: int,
        base: int = 0x80008000,
        event_idx: bool = False,
    ) -> Self: ...
    def offer_descriptors(
        self, descriptors: Iterable[tuple[int, int, int]], id: int | None = None
    ) -> int: ...
    def set_descriptor(
        self, slot: int, address: int, length: int, id: int = 0, flags: int = 0
    ) -> None: ...
    def descriptor(self, slot: int) -> tuple[int, int, int, int]: ...
    avail_position: int
    used_position: int
    driver_event: tuple[int, int]
    device_event: tuple[int, int]
