"""The whole state of one connection as one immutable value, and what the device offers to it."""

from __future__ import annotations

import msgspec

from vuproc.effects import Region
from vuproc.fd import Fd
from vuproc.ring_state import Ring


def extra_bits(value: int, allowed: int) -> int:
    """The bits of `value` that are not in `allowed`.

    The plain way, `value & ~allowed`, is wrong for an IntFlag: its complement knows only its own
    members, so that a bit without a name would pass.
    """
    return int(value) & ~int(allowed)


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """What a device offers to every front-end.

    `features` are device feature bits and include bit 30, `queue_size` is the largest number of
    descriptors that a driver may choose, `config_size` is in bytes, `max_regions` bounds the memory
    table.
    """

    features: int
    protocol_features: int
    num_queues: int
    queue_size: int
    config_size: int
    max_regions: int = 509


class State(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that one front-end has told us and that a fresh worker would have to know.

    `features` is None until SET_FEATURES.
    """

    rings: tuple[Ring, ...]
    owned: bool = False
    features: int | None = None
    protocol_features: int = 0
    status: int = 0
    regions: tuple[Region, ...] = ()
    backend_channel: Fd | None = None

    @staticmethod
    def initial(num_queues: int) -> State:
        """The state of a new connection."""
        return State(rings=tuple(Ring(index=index) for index in range(num_queues)))

    @property
    def started(self) -> tuple[Ring, ...]:
        """The rings that run, broken ones among them."""
        return tuple(ring for ring in self.rings if ring.started)

    def with_ring(self, ring: Ring) -> State:
        """The same state with one ring replaced."""
        rings = self.rings[: ring.index] + (ring,) + self.rings[ring.index + 1 :]
        return msgspec.structs.replace(self, rings=rings)

    def fds(self) -> frozenset[Fd]:
        """Every descriptor that this state keeps open."""
        fds = {region.fd for region in self.regions}
        fds.update(fd for ring in self.rings for fd in ring.fds)
        if self.backend_channel is not None:
            fds.add(self.backend_channel)
        return frozenset(fds)
