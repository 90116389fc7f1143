"""Text that is not ours, made fit for a log, a message and a terminal: cut, and escaped.

An exception of a device's code says what its author likes, often with bytes of the guest's in it.
As it is, it could be longer than a datagram, hold what no encoding takes (a lone surrogate), steer
a terminal, or look like several lines of the log. Whatever leaves a process goes through here.
"""

from __future__ import annotations

import logging
import traceback

LINE_BYTES = 2048
"""Bytes of the longest `line` in UTF-8: with what a log puts before it, it fits into one write that
a pipe takes as a whole (PIPE_BUF).
"""
ERROR_BYTES = 1024
"""Bytes of an exception in one line: there is room in that for what it is about."""
BLOCK_BYTES = 16384
"""Bytes of the longest `block` in UTF-8: a traceback of some 150 lines, and a quarter of the
largest message between worker and master.
"""
SHORTEST = 64
"""Bytes that a line of a `block` counts for at least, so that many empty ones are too many."""


def line(text: str, limit: int = LINE_BYTES) -> str:
    """`text` as one line of at most `limit` bytes in UTF-8, every character of it printable.

    What is not printable appears as in a Python string: a line feed as `\\n`, an escape as `\\x1b`,
    a lone surrogate as `\\ud800`. A tab stays. What is cut off is counted.
    """
    text = str.__str__(text)  # of a subclass, its characters
    shown = _printable(text[:limit])
    if len(text) <= limit and len(shown.encode()) <= limit:
        return shown
    room = limit - len(f"... ({len(text)} characters)")
    shown = shown.encode()[: max(0, room)].decode(errors="ignore")
    return f"{shown}... ({len(text)} characters)"


def block(text: str, limit: int = BLOCK_BYTES) -> str:
    """`text` as lines that take at most `limit` bytes in UTF-8 together, each as `line`.

    If there are too many, those in the middle are left out and counted: what a traceback is about
    stands at its end, and what a message is about at its beginning.
    """
    raw = str.__str__(text).rstrip().split("\n")
    most = limit // SHORTEST
    beyond = max(0, len(raw) - 2 * most)  # there is no room for these, whatever they say
    if beyond:
        raw = raw[:most] + raw[-most:]
    lines = [line(each) for each in raw]
    if not beyond and sum(map(_room_for, lines)) <= limit:
        return "\n".join(lines)
    half = limit // 2 - SHORTEST
    first = _fitting(lines, half)
    last = len(lines) - _fitting(lines[:first:-1], half)
    notice = f"... ({beyond + last - first} lines are left out)"
    return "\n".join([*lines[:first], notice, *lines[last:]])


def described(error: BaseException) -> str:
    """The class and the text of an exception, as Python prints them, as a `line`."""
    try:
        text = str.__str__(str(error))
    except Exception:
        text = "<exception str() failed>"  # Python's own words
    name = type(error).__name__
    return line(f"{name}: {text}" if text else name, ERROR_BYTES)


def traceback_of(error: BaseException) -> str:
    """The traceback of an exception as Python prints it, as a `block`."""
    try:
        return block("".join(traceback.format_exception(error)))
    except Exception:
        return f"(no traceback can be made) {described(error)}"


def logged(record: logging.LogRecord) -> str:
    """What a log record says, as a `block`, with the traceback of the exception it is about.

    One whose arguments do not fit says so.
    """
    try:
        parts = [record.getMessage()]
    except Exception as bad:
        parts = [f"{record.pathname}:{record.lineno}: cannot be put together: {described(bad)}"]
    error = record.exc_info[1] if record.exc_info else None
    if error is not None:
        parts.append(traceback_of(error))
    if record.stack_info:
        parts.append(record.stack_info)
    return block("\n".join(parts))


def seconds(duration: float) -> str:
    """A duration in seconds, to the millisecond: "2 s", "0.25 s"."""
    return f"{round(duration, 3):g} s"


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() or each == "\t" else each.encode("unicode_escape").decode()
        for each in text
    )


def _room_for(shown: str) -> int:
    return max(SHORTEST, len(shown.encode()) + 1)


def _fitting(lines: list[str], room: int) -> int:
    """How many of the first `lines` take no more than `room` bytes."""
    for count, each in enumerate(lines):
        room -= _room_for(each)
        if room < 0:
            return count
    return len(lines)
