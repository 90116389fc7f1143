"""What a soak has in store, in random order: first with one master, then with many."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.soak.fault import Fault

FIRST = 0.5
"""How much of what spares the master comes in the first act."""


@dataclass(frozen=True)
class Act:
    """Faults, one after the other."""

    name: str
    faults: tuple[Fault, ...]


def planned(kinds: Sequence[type[Fault]], scale: float) -> dict[str, int]:
    """Each kind as often as the whole soak has it, times `scale`, and once at least; by name."""
    return {kind.name: max(1, round(kind.full * scale)) for kind in kinds}


def acts(
    kinds: Sequence[type[Fault]], counts: Mapping[str, int], chance: random.Random
) -> list[Act]:
    """So many of each kind, by name."""
    all_of_it = Counter({kind: counts[kind.name] for kind in kinds})
    early = Counter({kind: round(n * FIRST) for kind, n in all_of_it.items() if kind.spares_master})
    parts = {"one master": early, "many masters": all_of_it - early}
    found = []
    for name, part in parts.items():
        faults = [kind() for kind, count in part.items() for _ in range(count)]
        chance.shuffle(faults)
        found.append(Act(name, tuple(faults)))
    return found
