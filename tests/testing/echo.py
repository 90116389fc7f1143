"""Devices that answer on another queue: what the driver sends comes back in a buffer that it keeps
there, as at a console, a network or vsock device. One whose configuration space changes, too.
"""

from __future__ import annotations

from collections import deque
from typing import Annotated, ClassVar

from msgspec import Meta

from vuproc import Device, Options, Request
from vuproc.spec.layout import Layout

RECEIVE, TRANSMIT = 0, 1
VSOCK_HEADER = Layout(
    "virtio_vsock_hdr",
    "<QQIIIHHIII",
    *("src_cid", "dst_cid", "src_port", "dst_port", "len"),
    *("type", "op", "flags", "buf_alloc", "fwd_cnt"),
)
"""Virtio 1.3, 5.10.6."""


class Console(Device):
    """A console's two queues in one worker: what is typed is printed.

    What finds no buffer waits for one. A line b"drop" takes a buffer and writes nothing into it.
    """

    device_id = 3

    def num_queues(self) -> int:
        return 2

    def queue_groups(self) -> list[tuple[int, ...]]:
        return [(RECEIVE, TRANSMIT)]

    def ring_started(self, queue: int) -> None:
        if queue == RECEIVE:
            self._buffers: deque[Request] = deque()
            self._waiting: deque[Request] = deque()

    def ring_stopping(self, queue: int) -> None:
        kept = self._buffers if queue == RECEIVE else self._waiting
        for request in kept:
            request.release()
        kept.clear()

    def handle(self, request: Request) -> None:
        request.defer()
        (self._buffers if request.queue == RECEIVE else self._waiting).append(request)
        while self._buffers and self._waiting:
            buffer, sent = self._buffers.popleft(), self._waiting.popleft()
            buffer.write(self.answer(sent.read()))
            buffer.finish()
            sent.finish()

    def answer(self, sent: bytes) -> bytes:
        """What is written into the buffer."""
        return b"" if sent == b"drop" else sent


class Vsock(Console):
    """As a vsock device whose peer echoes: a header with both sides exchanged, and the data."""

    device_id = 19

    def answer(self, sent: bytes) -> bytes:
        header = VSOCK_HEADER.unpack(sent)
        header["src_cid"], header["dst_cid"] = header["dst_cid"], header["src_cid"]
        header["src_port"], header["dst_port"] = header["dst_port"], header["src_port"]
        return VSOCK_HEADER.pack(**header) + sent[VSOCK_HEADER.size :]


class AnsweringOptions(Options, kw_only=True):
    """How it fails."""

    flaw: Annotated[str, Meta(description="none, content or length.")] = "none"


class Answering(Device):
    """Answers a request on its own queue: b"ok:", and what followed the first four bytes.

    Every tenth answer is wrong: its last byte is another one (`flaw: content`), or it is short of
    it (`flaw: length`).
    """

    device_id = 42
    options_type = AnsweringOptions
    options: AnsweringOptions

    def setup(self, queue: int) -> None:
        self._count = 0

    def handle(self, request: Request) -> None:
        request.skip(4)
        answer = b"ok:" + request.read()
        self._count += 1
        if self._count % 10 == 0:
            if self.options.flaw == "content":
                answer = answer[:-1] + bytes([answer[-1] ^ 1])
            elif self.options.flaw == "length":
                answer = answer[:-1]
        request.write(answer)


class GaugeOptions(Options, kw_only=True):
    """What it shows."""

    live: ClassVar[frozenset[str]] = Options.live | {"level"}
    level: Annotated[int, Meta(ge=0, description="What the configuration space shows.")]


class Gauge(Device):
    """Four bytes of configuration space."""

    device_id = 42
    options_type = GaugeOptions
    options: GaugeOptions

    def config_space(self) -> bytes:
        return self.options.level.to_bytes(4, "little")

    def handle(self, request: Request) -> None:
        request.write(self.config_space())
