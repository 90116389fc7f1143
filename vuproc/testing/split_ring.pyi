from typing import Self, final

from typing_extensions import Buffer

from vuproc.testing.ring import DriverRing

def split_layout(size: int) -> tuple[int, int, int, int]: ...

@final
class SplitDriverRing(DriverRing):
    def __new__(
        cls,
        memory: Buffer,
        size: int,
        *,
        desc: int,
        avail: int,
        used: int,
        base: int = 0,
        event_idx: bool = False,
    ) -> Self: ...
    def take_descriptors(self, count: int) -> int: ...
    def offer_head(self, head: int) -> None: ...
    def link(self, index: int) -> int: ...
    def set_descriptor(
        self, index: int, address: int, length: int, flags: int = 0, next: int = 0
    ) -> None: ...
    avail_index: int
    avail_flags: int
    used_event: int
    used_index: int
    used_flags: int
    avail_event: int
    def used_element(self, slot: int) -> tuple[int, int]: ...
