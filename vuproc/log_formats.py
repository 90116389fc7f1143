"""How a line of the log is written: as text, as JSON, or to systemd's journal with its fields."""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import struct
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

import msgspec

from vuproc import texts
from vuproc.events import Event
from vuproc.handover.keeper.error_output import LINE_BYTES, ErrorOutput

JOURNAL = "/run/systemd/journal/socket"
PRIORITIES = {"CRITICAL": 2, "ERROR": 3, "WARNING": 4, "INFO": 6, "DEBUG": 7}
"""syslog(3)'s, by the names of levels."""
SHORTEST = 64
"""Bytes of a line's text that is cut to have room; fields are left out then."""
_WORD_BEGINS = re.compile(r"(?<!^)(?=[A-Z])")
_LENGTH = struct.Struct("<Q")


class Line(msgspec.Struct, frozen=True):
    """One event of the log. `fields` are those of what happened, if it is a `vuproc.events.Event`,
    with its name as `event`.
    """

    level: str
    text: str
    logger: str = "vuproc.master"
    fields: Mapping[str, Any] = {}


class LogFormat(Protocol):
    """Where lines go, and how. Nothing waits."""

    def show(self, line: Line) -> None:
        """Write one line."""

    def due(self) -> float | None:
        """Seconds until `say_lost` is worth a try."""

    def say_lost(self) -> None:
        """Say what was lost, if something was."""


def line_of(record: logging.LogRecord) -> Line:
    """A record of the log."""
    return Line(record.levelname, texts.logged(record), record.name, _fields(record))


def event_name(event: Event) -> str:
    """What an event is called in what programs read: `worker_died`."""
    return _WORD_BEGINS.sub("_", type(event).__name__).lower()


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    args = record.args
    event = args[0] if isinstance(args, tuple) and len(args) == 1 else None
    if not isinstance(event, Event):
        return {}
    fields = msgspec.to_builtins(event)
    del fields["type"]
    return {"event": event_name(event), **fields}


class TextFormat:
    """`vuproc NAME: LEVEL: text`; what follows the first line of a text stands further right, so
    that nothing in it can look like a line of this log.
    """

    def __init__(self, name: str, output: ErrorOutput | None = None) -> None:
        self._prefix = f"vuproc {texts.line(name)}: "
        self._output = output or ErrorOutput(f"{self._prefix}WARNING: ")

    def show(self, line: Line) -> None:
        """Write one line."""
        text = line.text.replace("\n", "\n  ")
        self._output.write(f"{self._prefix}{line.level}: {text}")

    def due(self) -> float | None:
        """As `ErrorOutput.due`."""
        return self._output.due()

    def say_lost(self) -> None:
        """As `ErrorOutput.say_lost`."""
        self._output.say_lost()


class JsonFormat:
    """An object a line: `time`, `level`, `device`, `logger`, `text`, and what an event has."""

    def __init__(self, name: str, number: int = 2) -> None:
        self._name = texts.line(name)
        self._output = _JsonOutput(self, number)

    def show(self, line: Line) -> None:
        """Write one line, its text cut to what a pipe takes as a whole."""
        self._output.write(self.encoded(line))

    def encoded(self, line: Line) -> str:
        """The object, of at most `LINE_BYTES`."""
        limit = LINE_BYTES
        shown = self._encoded(line, line.text)
        while len(shown) > LINE_BYTES and limit > SHORTEST:
            limit //= 2
            shown = self._encoded(line, f"{line.text[:limit]}...")
        if len(shown) > LINE_BYTES:
            bare = Line(line.level, "", line.logger)
            shown = self._encoded(bare, texts.line(line.text, SHORTEST))
        return shown

    def due(self) -> float | None:
        """As `ErrorOutput.due`."""
        return self._output.due()

    def say_lost(self) -> None:
        """As `ErrorOutput.say_lost`."""
        self._output.say_lost()

    def _encoded(self, line: Line, text: str) -> str:
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        # What an event has under one of our names has another name in it.
        fields = {
            f"event_{key}" if key in ("device", "level", "text", "time", "logger") else key: value
            for key, value in line.fields.items()
        }
        return json.dumps(
            {
                "time": now,
                "level": line.level.lower(),
                "device": self._name,
                "logger": line.logger,
                "text": text,
                **fields,
            }
        )


class _JsonOutput(ErrorOutput):
    """Whose line on those that were lost is JSON, too."""

    def __init__(self, format: JsonFormat, number: int) -> None:
        super().__init__("", number)
        self._format = format

    def notice(self) -> str:
        """The line that says how many were lost."""
        return self._format.encoded(Line("WARNING", super().notice()))


class JournalFormat:
    """Datagrams to systemd's journal, by its native protocol; text where there is none.

    Fields: MESSAGE, PRIORITY, SYSLOG_IDENTIFIER, VUPROC_DEVICE, VUPROC_LOGGER, and VUPROC_EVENT
    with those of an event (VUPROC_PID, ...); each queue that it is about is a VUPROC_QUEUE.
    """

    def __init__(self, name: str, path: str = JOURNAL) -> None:
        self._name = texts.line(name)
        self._text = TextFormat(name)
        self._lost = 0
        self._socket: socket.socket | None = None
        try:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            self._socket.connect(path)
        except OSError as error:
            self.close()
            why = f"{path}: {error.strerror}: the log goes to standard error"
            self._text.show(Line("WARNING", why))

    def show(self, line: Line) -> None:
        """Send one line."""
        if self._lost and self._sent(Line("WARNING", self._notice())):
            self._lost = 0
        if self._lost or not self._sent(line):
            self._lost += 1

    def due(self) -> float | None:
        """Seconds until `say_lost` is worth a try."""
        return 1.0 if self._lost else self._text.due()

    def say_lost(self) -> None:
        """Say what was lost, if there is room by now."""
        if self._lost and self._sent(Line("WARNING", self._notice())):
            self._lost = 0
        self._text.say_lost()

    def close(self) -> None:
        """Close the socket; what is said from now on goes to standard error."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _notice(self) -> str:
        return f"lines not shown, as the journal had no room: {self._lost}"

    def _sent(self, line: Line) -> bool:
        if self._socket is not None:
            try:
                self._socket.send(datagram(self._name, line), socket.MSG_NOSIGNAL)
                return True
            except BlockingIOError:
                return False
            except OSError:
                self.close()  # the journal has gone
        self._text.show(line)
        return True


def datagram(name: str, line: Line) -> bytes:
    """One event in the journal's native protocol."""
    fields = {
        "MESSAGE": line.text,
        "PRIORITY": PRIORITIES.get(line.level, 6),
        "SYSLOG_IDENTIFIER": "vuproc",
        "SYSLOG_PID": os.getpid(),
        "VUPROC_DEVICE": name,
        "VUPROC_LOGGER": line.logger,
    }
    queues: Sequence[object] = ()
    for key, value in line.fields.items():
        if key == "queues" and isinstance(value, list | tuple):
            queues = value  # a field may come several times: a match finds each
            continue
        shown = json.dumps(value) if isinstance(value, list | tuple | dict) else value
        # What an event has under one of our names has another name here.
        taken = f"VUPROC_{key.upper()}" in fields
        fields[f"VUPROC_EVENT_{key.upper()}" if taken else f"VUPROC_{key.upper()}"] = shown
    named = [("VUPROC_QUEUE", queue) for queue in queues]
    return b"".join(_field(key, str(value)) for key, value in [*fields.items(), *named])


def _field(key: str, value: str) -> bytes:
    data = value.encode("utf-8", "backslashreplace")
    if b"\n" not in data:
        return f"{key}=".encode() + data + b"\n"
    return f"{key}\n".encode() + _LENGTH.pack(len(data)) + data + b"\n"


def make_format(kind: str, name: str) -> LogFormat:
    """That of a device file's `log_format`."""
    match kind:
        case "json":
            return JsonFormat(name)
        case "journald":
            return JournalFormat(name)
    return TextFormat(name)
