"""What a soak has seen: each fault with its stall, and samples over time."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from statistics import median

from tests.soak.sample import Sample


@dataclass(frozen=True)
class Event:
    """A fault that is over."""

    at_s: float
    fault: str
    stall_s: float
    """The longest time without a completion on a queue that had requests in flight."""


@dataclass
class History:
    """All of it. `samples` is by act."""

    seed: int
    planned: Counter[str] = field(default_factory=Counter)
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

    def rows(self) -> list[tuple[str, ...]]:
        """A row each kind: name, how many of how many, median and longest stall in ms."""
        stalls: dict[str, list[float]] = {}
        for event in self.events:
            stalls.setdefault(event.fault, []).append(event.stall_s * 1000)
        done = self.done
        found: list[tuple[str, ...]] = []
        for name, count in self.planned.items():
            mine = stalls.get(name, [0.0])
            found.append(
                (name, f"{done[name]}", f"{count}", f"{median(mine):.1f}", f"{max(mine):.0f}")
            )
        return found
