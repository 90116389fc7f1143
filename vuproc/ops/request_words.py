"""What a traced request was, in words, by the type of its device."""

from __future__ import annotations

from collections.abc import Callable

from vuproc.shm.trace_layout import Traced
from vuproc.spec.blk import REQUEST_HEADER, BlkType

_WORDS = {BlkType.IN: "read", BlkType.OUT: "write"}


def described(device: str, request: Traced) -> str:
    """A request of a device of this type (as the device file has it); "" if nothing is known."""
    if request.readable < len(request.first):
        return ""
    describe = _KNOWN.get(device)
    return request.first.hex() if describe is None else describe(request.first)


def outcome(request: Traced, workers: int) -> str:
    """What became of a request, in a queue that has had so many workers."""
    if request.ended:
        return f"done, {request.written} bytes written"
    return "in flight" if request.worker == workers else "in flight when its worker ended"


def _blk(first: bytes) -> str:
    fields = REQUEST_HEADER.unpack(first)
    number, sector = fields["type"], fields["sector"]
    try:
        kind = BlkType(number)
    except ValueError:
        return f"type {number:#x} sector {sector}"
    name = _WORDS.get(kind)
    return kind.name.lower() if name is None else f"{name} sector {sector}"


_KNOWN: dict[str, Callable[[bytes], str]] = {"blk": _blk}
