"""From a session's state to what a fresh worker has to be told of it."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from vuproc.vhost_user.effects import (
    AddRegion,
    Effect,
    ForWorkers,
    Region,
    SetDisplay,
    SetFeatures,
    SetMemory,
    SetMtu,
    StartRing,
)
from vuproc.vhost_user.memory_table import TABLE_REGIONS_MAX
from vuproc.vhost_user.state import State


def replay(state: State, queues: Collection[int] | None = None) -> Iterator[ForWorkers]:
    """The effects that bring a fresh worker of `queues` (None: all) to this state.

    Rings that broke are among the started ones: `state.rings[i].broken` tells. The base is the one
    with which the ring was started, not where it is by now.
    """
    if state.ring_features is not None:
        yield SetFeatures(state.ring_features)
    if state.mtu:
        yield SetMtu(state.mtu)
    if state.display is not None and (queues is None or 0 in queues):
        yield SetDisplay(state.display)
    yield from memory_of(state)
    if state.logging.area is not None:
        # Before the rings: what they are to recover is marked, too.
        yield state.logging
    for ring in state.started:
        if queues is None or ring.index in queues:
            yield StartRing(ring.setup())


def memory_of(state: State) -> list[ForWorkers]:
    """The effects that make the state's memory table, and none if there is none.

    A table of one message never outgrows its descriptors: the rest comes singly.
    """
    if not state.regions:
        return []
    first, rest = state.regions[:TABLE_REGIONS_MAX], state.regions[TABLE_REGIONS_MAX:]
    return [SetMemory(first), *map(AddRegion, rest)]


def regions_of(effect: Effect) -> tuple[Region, ...]:
    """The regions which an effect adds to the table."""
    if isinstance(effect, SetMemory):
        return effect.regions
    return (effect.region,) if isinstance(effect, AddRegion) else ()
