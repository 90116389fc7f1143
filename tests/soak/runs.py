"""Runs that together are one soak: a file with a line each, which every run adds to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec

from tests.soak.history import History


def load(path: Path) -> list[History]:
    """All that were added, oldest first; none if there is no such file.

    Raises msgspec.DecodeError for a file of something else.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().splitlines()
    return [msgspec.json.decode(line, type=History) for line in lines]


def add(path: Path, run: History) -> None:
    """Write one more line, in one piece: runs may go on at the same time."""
    with path.open("ab", buffering=0) as file:
        file.write(msgspec.json.encode(run) + b"\n")


def done(runs: Sequence[History]) -> Counter[str]:
    """Faults of all of them, by name."""
    return sum((run.done for run in runs), Counter[str]())
