from typing import Self

from typing_extensions import Buffer

from vuproc.testing.job import Job, Stats
from vuproc.testing.ring import DriverRing

class LoadGenerator:
    def __new__(
        cls,
        ring: DriverRing,
        memory: Buffer,
        *,
        arena: int,
        address: int,
        kick: int,
        call: int,
        job: Job,
    ) -> Self: ...
    def run(self) -> Stats: ...
    def stop(self) -> None: ...
    @property
    def completed(self) -> int: ...
