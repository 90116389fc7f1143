"""What the host hears: lines on the console, behind the mark that its launcher knows."""

from __future__ import annotations

import functools
from typing import TextIO

MARK = "@ "


@functools.cache
def _console() -> TextIO:
    return open("/told", "w", encoding="utf-8", errors="backslashreplace", buffering=1)


def say(text: str) -> None:
    """A line, or several."""
    for line in text.splitlines():
        _console().write(f"{MARK}{line}\n")
