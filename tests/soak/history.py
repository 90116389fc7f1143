"""What a soak has seen: each fault with its stall, and samples over time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import median

from tests.soak.sample import Sample


@dataclass(frozen=True)
class Event:
    """A fault that is over."""

    at_s: float
    fault: str
    stall_s: float
    """The longest time without a completion on a queue that had requests in flight."""
    took_s: float
    """Until every queue had got on after it."""
    paused_s: float = 0.0
    """How long the machine itself stood still meanwhile: no such stall is the device's."""


@dataclass
class History:
    """One run. `samples` is by act."""

    seed: int
    planned: dict[str, int] = field(default_factory=dict)
    """How often the whole soak has each kind, over all its runs."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Faults that cannot be had here, and why."""
    events: list[Event] = field(default_factory=list)
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    requests: int = 0
    refused: int = 0
    """Writes that failed while the disk was full."""
    seconds: float = 0.0
    failure: str | None = None
    """What ended it early, in words."""

    @property
    def done(self) -> Counter[str]:
        """Faults, by name."""
        return Counter(event.fault for event in self.events)


def joined(runs: Sequence[History]) -> History:
    """Several runs as if they had come one after the other, to be drawn."""
    whole = History(runs[-1].seed, planned=runs[-1].planned)
    for number, run in enumerate(runs, 1):
        began = whole.seconds
        whole.events += [replace(event, at_s=began + event.at_s) for event in run.events]
        for act, samples in run.samples.items():
            moved = [replace(sample, at_s=began + sample.at_s) for sample in samples]
            whole.samples[f"{act}, run {number}"] = moved
        whole.requests += run.requests
        whole.seconds += run.seconds
    return whole


def rows(runs: Sequence[History]) -> list[tuple[str, ...]]:
    """A row each kind: name, how many of how many, median and longest stall in ms, seconds in all.

    Stalls in which the machine stood still do not count.
    """
    events = [event for run in runs for event in run.events]
    found: list[tuple[str, ...]] = []
    for name, count in runs[-1].planned.items():
        mine = [event for event in events if event.fault == name]
        stalls = [event.stall_s * 1000 for event in mine if not event.paused_s]
        took = sum(event.took_s - event.paused_s for event in mine)
        found.append(
            (
                name,
                f"{len(mine)}",
                f"{count}",
                f"{median(stalls):.1f}" if stalls else "-",
                f"{max(stalls):.0f}" if stalls else "-",
                f"{took:.0f}",
            )
        )
    return found
