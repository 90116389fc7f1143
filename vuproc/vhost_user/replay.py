"""From a session's state to what a fresh worker has to be told of it."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from vuproc.vhost_user.effects import (
    AddRegion,
    Effect,
    ForWorkers,
    Region,
    SetFeatures,
    SetMemory,
    StartRing,
)
from vuproc.vhost_user.memory_table import TABLE_REGIONS_MAX
from vuproc.vhost_user.state import State


def replay(state: State, queues: Collection[int] | None = None) -> Iterator[ForWorkers]:
    """The effects that bring a fresh worker of `queues` (None: all) to this state.

    Rings that broke are among the started ones: `state.rings[i].broken` tells. The base is the one
    with which the ring was started, not where it is by now.
    """
    if state.features is not None:
        yield SetFeatures(state.features)
    if state.regions:
        # A table never outgrows the descriptors of one message: the rest comes singly.
        yield SetMemory(state.regions[:TABLE_REGIONS_MAX])
        yield from map(AddRegion, state.regions[TABLE_REGIONS_MAX:])
    for ring in state.started:
        if queues is None or ring.index in queues:
            yield StartRing(ring.setup())


def regions_of(effect: Effect) -> tuple[Region, ...]:
    """The regions which an effect adds to the table."""
    if isinstance(effect, SetMemory):
        return effect.regions
    return (effect.region,) if isinstance(effect, AddRegion) else ()
