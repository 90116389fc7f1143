"""The driver's part of virtio-blk: requests as a guest's kernel makes them (virtio 1.3, 5.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vuproc.spec.blk import CONFIG, DISCARD_SEGMENT, ID_BYTES, REQUEST_HEADER, BlkType
from vuproc.testing.guest import Guest
from vuproc.testing.queue import Completion

NO_STATUS = -1
"""`Outcome.status` of a request without a status byte."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a request: the status byte, the data read, and the used length."""

    status: int
    data: bytes
    written: int


class Block:
    """Block requests on the queues of a guest. Sectors are of 512 bytes."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest

    @staticmethod
    def header(kind: int, sector: int = 0) -> bytes:
        """The first readable segment of a request."""
        return REQUEST_HEADER.pack(type=kind, sector=sector)

    def config(self) -> dict[str, Any]:
        """The configuration space."""
        return CONFIG.unpack(self.guest.front_end.get_config(0, CONFIG.size))

    def request(
        self,
        kind: int,
        sector: int = 0,
        out: Sequence[bytes] = (),
        in_: Sequence[int] = (),
        *,
        queue: int = 0,
        indirect: bool = False,
        timeout_s: float | None = None,
    ) -> Outcome:
        """Any request: `out` and `in_` are the data's segments between header and status byte."""
        token = self.submit(kind, sector, out, in_, queue=queue, indirect=indirect)
        return outcome(self.guest.wait(token, timeout_s))

    def submit(
        self,
        kind: int,
        sector: int = 0,
        out: Sequence[bytes] = (),
        in_: Sequence[int] = (),
        *,
        queue: int = 0,
        indirect: bool = False,
    ) -> tuple[int, int]:
        """As `request`, without waiting; pass the token to the guest's `wait`."""
        header = self.header(kind, sector)
        return self.guest.submit(queue, [header, *out], [*in_, 1], indirect=indirect)

    def read(self, sector: int, size: int, *, queue: int = 0) -> bytes:
        """`size` bytes from `sector` on. OSError if the device says so."""
        return _checked(self.request(BlkType.IN, sector, in_=[size], queue=queue)).data

    def write(self, sector: int, data: bytes, *, queue: int = 0) -> None:
        """Write `data` from `sector` on. OSError if the device says so."""
        _checked(self.request(BlkType.OUT, sector, [data], queue=queue))

    def flush(self, *, queue: int = 0) -> None:
        """Make all that was written durable. OSError if the device says so."""
        _checked(self.request(BlkType.FLUSH, queue=queue))

    def get_id(self, *, queue: int = 0) -> str:
        """The serial number."""
        answer = _checked(self.request(BlkType.GET_ID, in_=[ID_BYTES], queue=queue))
        return answer.data.rstrip(b"\0").decode("ascii")

    def discard(self, *ranges: tuple[int, int], queue: int = 0) -> Outcome:
        """DISCARD of (sector, sectors) ranges."""
        return self.request(BlkType.DISCARD, out=[_ranges(ranges, 0)], queue=queue)

    def write_zeroes(
        self, *ranges: tuple[int, int], unmap: bool = False, queue: int = 0
    ) -> Outcome:
        """WRITE_ZEROES of (sector, sectors) ranges."""
        data = _ranges(ranges, int(unmap))
        return self.request(BlkType.WRITE_ZEROES, out=[data], queue=queue)


def outcome(completion: Completion) -> Outcome:
    """A completion of a block request as status and data."""
    *data, status = completion.data or (b"",)
    return Outcome(status[0] if status else NO_STATUS, b"".join(data), completion.written)


def _checked(result: Outcome) -> Outcome:
    if result.status != 0:
        raise OSError(f"block request failed with status {result.status}")
    return result


def _ranges(ranges: Sequence[tuple[int, int]], flags: int) -> bytes:
    return b"".join(
        DISCARD_SEGMENT.pack(sector=sector, num_sectors=count, flags=flags)
        for sector, count in ranges
    )
