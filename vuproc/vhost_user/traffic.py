"""The lines of `log_level: debug`: each front-end message, and each command to a worker, in one.

    SET_VRING_NUM index=0 num=128 NEED_REPLY fds=[] -> value=0 (0.21 ms)
    worker 4711 of queue 0: EnableRing index=0 enabled=true -> 0 (0.35 ms)

Nothing here is called unless the level is that low.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from vuproc.errors import MessageRefused
from vuproc.fd import Fd
from vuproc.spec.layout import LayoutError
from vuproc.spec.vhost_user import HEADER, Reply
from vuproc.vhost_user.wire import Message

log = logging.getLogger("vuproc.worker")

BYTES_SHOWN = 32
"""Of a field of bytes; what is more is counted."""
ITEMS_SHOWN = 16
"""Of a table, such as that of memory regions; what is more is counted."""
HEX_FROM = 4096
"""Numbers from here on are addresses, sizes or feature bits, and shown in hexadecimal."""


def message_line(message: Message) -> str:
    """What the front-end has sent: name, fields, whether it asks for an answer, descriptors."""
    try:
        shown = fields_line(message.fields())
    except MessageRefused:
        shown = f"payload={_value(message.payload)}"
    asks = "NEED_REPLY" if message.need_reply else ""
    return " ".join(filter(None, (message.name, shown, asks, fds_line(message.fds))))


def answer_line(message: Message, reply: bytes | None, fds: int, refused: str) -> str:
    """What we answer: the reply's fields, the number of descriptors that go with it, and why it
    says no, if it does.
    """
    row = message.spec
    shown = "no reply"
    if reply is not None and row is not None:
        payload = reply[HEADER.size :]
        try:
            shown = fields_line(row.reply_payload.decode(payload)) or "an empty reply"
        except LayoutError:
            shown = f"payload={_value(payload)}"
        if row.reply is Reply.OWN and row.reply_fds[1]:
            shown = f"{shown} fds={fds}"
    return f"{shown}, refused: {refused}" if refused else shown


class CommandLog:
    """The lines of the commands to one worker, each written when its answer comes."""

    def __init__(self) -> None:
        self._asked: dict[int, tuple[str, float]] = {}

    def posted(self, serial: int, command: msgspec.Struct) -> None:
        """A command goes out."""
        if log.isEnabledFor(logging.DEBUG):
            self._asked[serial] = command_line(command), time.monotonic()

    def answered(self, worker: str, serial: int, answer: object) -> None:
        """It was carried out, with this value, or refused, for this reason."""
        asked = self._asked.pop(serial, None)
        if asked is not None:
            took_ms = (time.monotonic() - asked[1]) * 1000
            log.debug("%s: %s -> %s (%.2f ms)", worker, asked[0], answer, took_ms)

    def lost(self, worker: str, cause: str) -> None:
        """No answer comes any more."""
        for serial in list(self._asked):
            self.answered(worker, serial, cause)


def command_line(command: msgspec.Struct) -> str:
    """What the master has a worker do: name and fields, with the descriptors in them."""
    fields = {name: getattr(command, name) for name in command.__struct_fields__}
    return " ".join(filter(None, (type(command).__name__, fields_line(fields))))


def fields_line(fields: Mapping[str, Any]) -> str:
    """Fields by name, in their order."""
    return " ".join(f"{name}={_value(value)}" for name, value in fields.items())


def fds_line(fds: Iterable[Fd]) -> str:
    """Descriptors by number and kind."""
    return f"fds=[{', '.join(map(_fd, fds))}]"


def _fd(fd: Fd) -> str:
    return "closed" if fd.closed else f"{fd.fileno()} {fd.kind.value}"


def _value(value: object) -> str:
    match value:
        case bool() | None:
            return str(value).lower()
        case int():
            return hex(value) if abs(value) >= HEX_FROM else str(value)
        case bytes():
            shown = value[:BYTES_SHOWN].hex() or '""'
            more = len(value) - BYTES_SHOWN
            return f"{shown}+{more} bytes" if more > 0 else shown
        case Fd():
            return f"[{_fd(value)}]"
        case msgspec.Struct():
            fields = {name: getattr(value, name) for name in value.__struct_fields__}
            return f"({fields_line(fields)})"
        case Mapping():
            return f"({fields_line(value)})"
        case list() | tuple():
            items = [_value(item) for item in value[:ITEMS_SHOWN]]
            more = len(value) - ITEMS_SHOWN
            return f"[{', '.join(items + [f'and {more} more'] * (more > 0))}]"
        case _:
            return repr(value)
