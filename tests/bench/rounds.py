"""Takes turns: every side of a comparison once a round, forth and back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from subprocess import SubprocessError
from typing import Generic, TypeVar

from tests.bench.backends import Missing, Unfit
from tests.bench.contenders import Side
from tests.bench.findings import Finding, Row
from vuproc.errors import VuprocError

PROBE_S = 0.02
"""Length of the probe that the number of a sample's requests is reckoned from."""
LEAST = 16

S = TypeVar("S", bound=Side)

_FAILURES = Missing, OSError, VuprocError, SubprocessError


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured. count: requests of a sample on each queue, None: for `seconds`."""

    rounds: int
    seconds: float
    count: int | None
    tries: int
    give_up: float
    """Time (CLOCK_MONOTONIC) from which a disturbed sample is not repeated any more."""


@dataclass(frozen=True, slots=True)
class Entry(Generic[S]):
    """A side that is not opened yet."""

    name: str
    opened: AbstractContextManager[S]


def compare(
    name: str,
    title: str,
    client: str,
    entries: Sequence[Entry[S]],
    effort: Effort,
    report: Callable[[str], None],
    profile: Callable[[str, S, int], None] | None = None,
) -> Finding:
    """Open all sides, which stay open, and run them in turn. A side that fails is left out.

    `profile(name, side, count)` gets each of them once more afterwards. It may raise Missing.
    """
    missing: dict[str, str] = {}
    turns: list[tuple[S, Row, int]] = []
    with ExitStack() as stack:
        for entry in entries:
            # What goes wrong at its end is its own fault too, and not the bench's.
            stack.enter_context(_noted(missing, entry.name))
            try:
                contender = stack.enter_context(entry.opened)
                count = effort.count or _count(contender, effort.seconds)
            except Unfit:
                continue
            except _FAILURES as failure:
                missing[entry.name] = str(failure)
                continue
            turns.append((contender, _row(contender), count))
        for number in range(effort.rounds):
            report(f"{name}: round {number + 1} of {effort.rounds}, {len(turns)} sides")
            for turn in turns if number % 2 == 0 else turns[::-1]:
                contender, row, count = turn
                if contender.name in missing:
                    continue
                tries = effort.tries if time.monotonic() < effort.give_up else 1
                try:
                    row.samples[number] = contender.take(count, tries)
                except _FAILURES as failure:
                    missing[contender.name] = str(failure)
        for contender, _, count in turns if profile is not None else ():
            assert profile is not None
            try:
                profile(name, contender, count)
            except _FAILURES as failure:
                report(f"no flame graph of {contender.name}: {failure}")
    return Finding(name, title, client, [row for _, row, _ in turns], missing)


@contextmanager
def _noted(missing: dict[str, str], name: str) -> Iterator[None]:
    try:
        yield
    except _FAILURES as failure:
        missing.setdefault(name, str(failure))


def _row(contender: Side) -> Row:
    return Row(contender.name, contender.family, contender.queues)


def _count(contender: Side, seconds: float) -> int:
    """Requests on each queue which take about so long. It warms everything up as well."""
    count = max(LEAST, 2 * contender.depth)
    while True:
        began = time.monotonic()
        contender.take(count, 1)
        spent = time.monotonic() - began
        if spent >= PROBE_S:
            return max(LEAST, int(count * seconds / spent))
        count *= 4
