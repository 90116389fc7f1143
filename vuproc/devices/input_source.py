"""Where events come from: bytes that are read from a descriptor, and what they say."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from typing import Protocol

from vuproc.devices.input_backlog import packed
from vuproc.devices.input_kind import Kind
from vuproc.errors import FileRefused
from vuproc.fd import Fd
from vuproc.spec.input import SYN_REPORT, InputType
from vuproc.spec.input_codes import KEYS, NAMES, key_of

REPORT = packed(InputType.SYN, SYN_REPORT, 0)
"""The event that ends what belongs together."""
PERMISSIONS = 0o600
"""Of a named pipe that is made."""
PRESSED, RELEASED = 1, 0
MOST_TYPED = 1024
"""Events of one text: some 200 words."""
_TYPES = {kind.name.lower(): kind for kind in NAMES}


class Source(Protocol):
    """Makes events of bytes, which may end anywhere."""

    @property
    def waits(self) -> bool:
        """Whether what comes while there is no driver is kept for one."""

    def length(self, data: bytes) -> int:
        """How many of the bytes have come: zeros follow."""

    def frames(self, data: bytes) -> Iterator[tuple[int, list[int]]]:
        """Yield for all that belongs together where it ends, and its events."""

    def overlong(self, data: bytes) -> list[int]:
        """The events of as many bytes as there is room for, in which nothing ends."""

    def status(self, kind: int, code: int, value: int) -> None:
        """The driver says something, such as that a light is on."""


class Lines:
    """Lines of text: `key a`, `key a 1`, `rel x -5`, `abs y 100`, `syn`, `type some words`."""

    waits = True

    def __init__(self, kind: Kind, complain: Callable[[str], None]) -> None:
        self._kind = kind
        self._complain = complain

    def length(self, data: bytes) -> int:
        """Text has no zero byte."""
        end = data.find(0)
        return len(data) if end < 0 else end

    def frames(self, data: bytes) -> Iterator[tuple[int, list[int]]]:
        """What stands before a `syn` belongs together; a whole key, or text, needs none."""
        end = 0
        events: list[int] = []
        while (newline := data.find(b"\n", end)) >= 0:
            line, end = data[end:newline].decode(errors="replace"), newline + 1
            try:
                more, whole = self._events(line)
            except ValueError as error:
                self._complain(f"{line.strip()[:80]!r}: {error}")
                more, whole = [], False
            events += more
            if whole or not events:
                yield end, events
                events = []

    def overlong(self, data: bytes) -> list[int]:
        """Such lines are not taken."""
        self._complain(f"{len(data)} bytes without a syn or the end of a line are left out")
        return []

    def status(self, kind: int, code: int, value: int) -> None:
        """Nobody hears of it."""

    def _events(self, line: str) -> tuple[list[int], bool]:
        """The events of a line, and whether they are whole by themselves. ValueError if it is no
        line of these.
        """
        word, _, rest = line.strip().partition(" ")
        if not word or word.startswith("#"):
            return [], False
        if word == "syn":
            return [REPORT], True
        if word == "type":
            return self.typed(rest), True
        kind = _TYPES.get(word)
        if kind is None or kind == InputType.LED:
            raise ValueError("it begins with none of key, rel, abs, sw, syn, type")
        name, *values = rest.split()[:4] or [""]
        code = code_of(kind, name)
        if not self._kind.has(kind, code):
            raise ValueError(f"{self._kind.name} has no {word} {name}")
        if kind == InputType.KEY and not values:
            return hit(code), True
        if len(values) != 1:
            raise ValueError("one value is wanted")
        return [packed(kind, code, _number(values[0]))], False

    def typed(self, text: str) -> list[int]:
        """The keys of a text, one after the other. ValueError for what has no key."""
        events: list[int] = []
        for character in text:
            key = key_of(character)
            if key is None or not self._kind.has(InputType.KEY, key[0]):
                raise ValueError(f"{self._kind.name} has no key for {character!r}")
            code, shift = key
            events += hit(code, held=KEYS["leftshift"]) if shift else hit(code)
            if len(events) > MOST_TYPED:
                raise ValueError("the text is too long: write it in several pieces")
        return events


def code_of(kind: InputType, name: str) -> int:
    """The code of a name, or of a number as 0x1e. ValueError if there is none."""
    name = name.lower()
    if name.startswith("0x"):
        return int(name, 16)
    known = NAMES[kind]
    prefix = f"{kind.name.lower()}_"
    code = known.get(name, known.get(name.removeprefix(prefix)))
    if code is None:
        raise ValueError(f"there is no {kind.name.lower()} {name[:40]!r}")
    return code


def hit(code: int, *, held: int | None = None) -> list[int]:
    """A key goes down and up, while another is held."""
    down, up = ([packed(InputType.KEY, code, value), REPORT] for value in (PRESSED, RELEASED))
    if held is None:
        return down + up
    before, after = ([packed(InputType.KEY, held, value), REPORT] for value in (PRESSED, RELEASED))
    return before + down + up + after


def _number(text: str) -> int:
    """A value: 32 bits, with a sign or without."""
    value = int(text, 0)
    if not -(1 << 31) <= value < 1 << 32:
        raise ValueError(f"{text[:40]} has more than 32 bits")
    return value


def open_pipe(path: str) -> Fd:
    """The named pipe at `path`, which is made if nothing is there; it never ends. Raises
    FileRefused, of `events`.
    """
    try:
        try:
            os.mkfifo(path, PERMISSIONS)
        except FileExistsError:
            if not stat.S_ISFIFO(os.stat(path).st_mode):
                raise FileRefused("events", f"{path}: not a named pipe") from None
        # With our own writing end there is no end of file.
        return Fd(os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        raise FileRefused("events", f"{path}: {error.strerror}") from error
