"""A bus of the host: what belongs together is one transaction, by Linux's I2C_RDWR."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vuproc.devices.i2c_request import Segment, answer, parse
from vuproc.errors import RequestFinished
from vuproc.fd import Fd

if TYPE_CHECKING:
    from vuproc.shm.request import Request

MOST_IN_GROUP = 42
"""Segments of one transaction (Linux, i2c-dev.h: I2C_RDWR_IOCTL_MAX_MSGS)."""
TEN_BIT = 0x0010
"""Flag of a message (Linux, i2c.h: I2C_M_TEN)."""


class HostBus:
    """The bus of one worker. Requests are kept until the last one of their group has come."""

    def __init__(
        self,
        file: Fd,
        finish: Callable[[list[Request]], None],
        complain: Callable[[str], None],
    ) -> None:
        """`finish`: `Device.finish_together`. Raises ImportError without smbus2."""
        from smbus2 import SMBus, i2c_msg

        self._bus = SMBus()
        # The descriptor that outlives us, in place of one of its own.
        self._bus.fd = file.fileno()
        self._message = i2c_msg
        self._finish = finish
        self._complain = complain
        self._group: list[tuple[Request, Segment | None]] = []
        self._failing = False
        """Whether the rest of the group is to fail."""

    def begin(self, request: Request) -> None:
        """Keep it; with the last one of a group all are served."""
        segment, grouped = parse(request)
        request.defer()
        self._group.append((request, segment))
        if self._failing or (grouped and len(self._group) == MOST_IN_GROUP):
            # Of a group that has more than there may be none is served.
            self._answer([None] * len(self._group))
            self._failing = grouped
        elif not grouped:
            self._serve()

    def again(self, request: Request) -> None:
        """What was perhaps done on a real bus is not done again: it has failed."""
        grouped = parse(request)[1]
        answer(request, None)
        self._failing = grouped

    def failed(self, request: Request) -> None:
        """Something went wrong: all that was kept has failed with it."""
        if self._group:
            self._answer([None] * len(self._group))
        else:
            answer(request, None)

    @property
    def waits(self) -> bool:
        """Whether the rest of a group is to come."""
        return bool(self._group)

    def serve_part(self) -> None:
        """The rest does not come: what has come is a transaction of its own."""
        if self._group:
            self._serve()

    def let_go(self) -> None:
        """Give back what waits for the rest of its group."""
        for request, _ in self._group:
            if not request.finished:  # as all are if the ring broke
                request.release()
        self._group.clear()

    def reset(self) -> None:
        """Nothing is to fail any more."""
        self._failing = False

    def _serve(self) -> None:
        segments = [segment for _, segment in self._group]
        if None in segments:
            self._answer([None] * len(segments))
            return
        messages = [self._made(segment) for segment in segments if segment is not None]
        try:
            for request, _ in self._group:
                request.resubmit = "fail"
            self._bus.i2c_rdwr(*messages)
        except RequestFinished:
            self._group.clear()  # the ring broke
            return
        except OSError as error:
            # A chip that is not there is everyday's life: i2cdetect asks them all.
            self._complain(f"address {segments[0].address:#x}: {error}" if segments[0] else "")
            self._answer([None] * len(messages))
            return
        self._answer([bytes(message) if message.flags & 1 else b"" for message in messages])

    def _made(self, segment: Segment) -> Any:
        if segment.reads:
            message = self._message.read(segment.address, segment.wanted)
        else:
            message = self._message.write(segment.address, segment.data)
        if segment.ten_bit:
            message.flags |= TEN_BIT
        return message

    def _answer(self, contents: list[bytes | None]) -> None:
        requests = [request for request, _ in self._group]
        self._group.clear()
        for request, content in zip(requests, contents, strict=True):
            answer(request, content)
        self._finish(requests)
