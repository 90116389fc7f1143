"""The session's rules told once more and plainly, and workers that notice a wrong order.

`Model` says whether a message is legal and what it makes of the state, without descriptors, effects
or immutability. `Workers` carries out effects and fails the test on one that makes no sense.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field

from msgspec.structs import replace

from tests.vhost_user.dialogue import FEATURES, OFFER, PROTOCOL_FEATURES
from vuproc.spec.vhost_user import ProtocolFeature
from vuproc.spec.virtio import Feature
from vuproc.vhost_user import effects as fx
from vuproc.vhost_user.effects import Effect, Region
from vuproc.vhost_user.session import State

PROTOCOL = (
    PROTOCOL_FEATURES
    | ProtocolFeature.DEVICE_STATE
    | ProtocolFeature.GET_VRING_BASE_INFLIGHT
    | ProtocolFeature.GET_VRING_BASE_SKIP_DRAIN
)
OFFERED = replace(OFFER, protocol_features=int(PROTOCOL))
"""What the sessions are offered."""

Range = tuple[int, int, int]
"""Guest address, user address, size."""


def covered(regions: list[Range], size: int, areas: tuple[int, int, int]) -> bool:
    """Whether the descriptor table, available and used ring of `areas` lie in one region each."""
    desc, avail, used = areas
    lengths = ((desc, 16 * size), (avail, 6 + 2 * size), (used, 6 + 8 * size))
    return all(
        any(user <= start and start + length <= user + room for _, user, room in regions)
        for start, length in lengths
    )


@dataclass
class RingModel:
    size: int = 0
    areas: tuple[int, int, int] | None = None
    base: int = 0
    base_known: bool = False
    kicked: bool = False
    enabled: bool = False
    started: bool = False
    broken: bool = False
    used_log: int | None = None

    @property
    def live(self) -> bool:
        return self.started and not self.broken

    def stop(self, position: int | None = None) -> None:
        if self.started and position is not None:
            self.base, self.base_known = position, True
        self.started = self.broken = self.kicked = False


@dataclass
class Model:
    """Each method returns whether the message is legal; only then has it changed anything."""

    position: int = 0
    """The next avail index at which every ring is found when it is stopped."""
    owned: bool = False
    lacks_memory: bool = False
    """The message before would have started a ring, had there been memory."""
    features: int | None = None
    protocol: int = 0
    status: int = 0
    transferring: bool = False
    log: tuple[int, int] | None = None
    """Offset and size of the dirty log."""
    regions: list[Range] = field(default_factory=list)
    rings: list[RingModel] = field(
        default_factory=lambda: [RingModel() for _ in range(OFFER.num_queues)]
    )

    def attempt(self, name: str, *arguments: object) -> tuple[bool, Model]:
        """Try a message on a copy; the copy counts once the real session has committed."""
        after = copy.deepcopy(self)
        after.lacks_memory = False
        legal = bool(getattr(after, name)(*arguments))
        return legal, after if legal else self

    def _start_if_ready(self, ring: RingModel, *, told: bool = False) -> bool:
        """Start a ring that has all; False if memory is there but not where the ring lies."""
        ready = ring.size and ring.areas and ring.kicked and (ring.base_known or told)
        if not ring.started and ready and not self.regions:
            self.lacks_memory = True
        if ring.started or not ready or not self.regions or ring.areas is None:
            return True
        ring.started = covered(self.regions, ring.size, ring.areas)
        self.transferring = self.transferring and not ring.started
        return ring.started

    def set_protocol_features(self, value: int) -> bool:
        if value & ~int(PROTOCOL):
            return False
        self.protocol = value
        return True

    def set_features(self, value: int) -> bool:
        if value & ~int(FEATURES):
            return False
        changed = value ^ (self.features or 0)
        if any(ring.started for ring in self.rings) and changed not in (0, int(Feature.LOG_ALL)):
            return False
        self.features = value
        if not value & Feature.PROTOCOL_FEATURES:
            for ring in self.rings:
                ring.enabled = True
        return True

    def set_log(self, offset: int, size: int, room: int, able: bool) -> bool:
        self.log = (offset, size)
        shared = self.protocol & ProtocolFeature.LOG_SHMFD
        return bool(shared) and able and size > 0 and offset + size <= room

    def log_call(self, able: bool) -> bool:
        return able

    def set_owner(self) -> bool:
        legal = not self.owned
        self.owned = True
        return legal

    def reset_owner(self) -> bool:
        self.owned = False
        for ring in self.rings:
            ring.stop(self.position)
            ring.enabled = False
        return True

    def reset_device(self) -> bool:
        self.features, self.status, self.transferring = None, 0, False
        self.rings = [RingModel() for _ in self.rings]
        return bool(self.protocol & ProtocolFeature.RESET_DEVICE)

    def set_status(self, value: int) -> bool:
        if value > 0xFF or not self.protocol & ProtocolFeature.STATUS:
            return False
        if value:
            self.status = value | self.status & 0x40
            return True
        self.features, self.status = None, 0
        says_reset = self.protocol & ProtocolFeature.RESET_DEVICE
        moves = self.protocol & ProtocolFeature.DEVICE_STATE
        self.transferring = bool(self.transferring and says_reset and moves)
        for ring in self.rings:
            ring.stop(self.position)
        return True

    def move_state(self, direction: int, phase: int, able: bool) -> bool:
        moves = self.protocol & ProtocolFeature.DEVICE_STATE
        self.transferring = True
        suspended = not any(ring.started for ring in self.rings)
        return bool(moves) and suspended and direction < 2 and not phase and able

    def check_state(self) -> bool:
        legal = self.transferring and self.protocol & ProtocolFeature.DEVICE_STATE
        self.transferring = False
        return bool(legal)

    def _memory(self, regions: list[Range]) -> bool:
        spans = [sorted((r[space], r[space] + r[2]) for r in regions) for space in (0, 1)]
        for span in spans:
            if any(a[1] > b[0] for a, b in itertools.pairwise(span)):
                return False
        self.regions = regions
        for ring in self.rings:
            self._start_if_ready(ring)
        return True

    def set_memory(self, regions: list[Range]) -> bool:
        return 0 < len(regions) <= 64 and self._memory(regions)

    def add_region(self, region: Range) -> bool:
        slots = self.protocol & ProtocolFeature.CONFIGURE_MEM_SLOTS
        return (
            bool(slots)
            and len(self.regions) < OFFER.max_regions
            and self._memory([*self.regions, region])
        )

    def remove_region(self, region: Range) -> bool:
        slots = self.protocol & ProtocolFeature.CONFIGURE_MEM_SLOTS
        if not slots or region not in self.regions:
            return False
        self.regions.remove(region)
        return True

    def _configure(self, ring: RingModel) -> bool:
        """After NUM, BASE or ADDR; `ring` is not live."""
        if ring.broken:
            ring.stop()
            return True
        return self._start_if_ready(ring)

    def num(self, index: int, num: int) -> bool:
        if index >= len(self.rings) or num not in (1, 2, 4, 8, 16, 32, 64, 128, 256):
            return False
        ring = self.rings[index]
        if ring.live:
            return False
        if ring.broken:
            ring.base, ring.base_known = self.position, True
        ring.size = num
        return self._configure(ring)

    def base(self, index: int, base: int) -> bool:
        if index >= len(self.rings) or base > 65535:
            return False
        ring = self.rings[index]
        if ring.live:
            legal = not ring.base_known and base == ring.base
            ring.base_known = True
            return legal
        ring.base, ring.base_known = base, True
        return self._configure(ring)

    def address(self, index: int, desc: int, avail: int, used: int, log: int | None) -> bool:
        if index >= len(self.rings) or desc % 16 or avail % 2 or used % 4:
            return False
        ring, areas = self.rings[index], (desc, avail, used)
        if log is not None and log + 6 + 8 * (ring.size or 1) > 1 << 64:
            return False
        ring.used_log = log
        if ring.live:
            return areas == ring.areas
        if self.regions and not covered(self.regions, ring.size or 1, areas):
            return False
        if ring.broken:
            ring.base, ring.base_known = self.position, True
        ring.areas = areas
        return self._configure(ring)

    def kick(self, index: int, able: bool) -> bool:
        if index >= len(self.rings) or not able:
            return False
        ring = self.rings[index]
        ring.kicked = True
        return self._start_if_ready(ring)

    def signal(self, index: int, able: bool) -> bool:
        """CALL and ERR."""
        return index < len(self.rings) and able

    def enable(self, index: int, num: int) -> bool:
        if index >= len(self.rings) or num > 1:
            return False
        ring = self.rings[index]
        ring.enabled = num == 1
        return self._start_if_ready(ring, told=True) if num else True

    def get_base(self, index: int) -> bool:
        if index >= len(self.rings):
            return False
        self.rings[index].stop(self.position)
        return True

    def skip_drain(self, index: int) -> bool:
        needed = (
            ProtocolFeature.GET_VRING_BASE_SKIP_DRAIN
            | ProtocolFeature.GET_VRING_BASE_INFLIGHT
            | ProtocolFeature.INFLIGHT_SHMFD
        )
        return self.protocol & needed == needed and self.get_base(index)

    def set_config(self, offset: int, size: int, flags: int) -> bool:
        config = self.protocol & ProtocolFeature.CONFIG
        return bool(config) and offset + size <= OFFER.config_size and flags <= 3

    def channel(self, able: bool) -> bool:
        return bool(self.protocol & ProtocolFeature.BACKEND_REQ) and able

    def broken(self, index: int) -> bool:
        ring = self.rings[index]
        if ring.live:
            ring.broken = True
            if self.protocol & ProtocolFeature.STATUS:
                self.status |= 0x40
        return True

    def check(self, state: State) -> None:
        """The session's state is this one."""
        assert state.owned == self.owned
        assert state.features == self.features
        assert state.protocol_features == self.protocol
        assert state.status == self.status
        assert state.transferring == self.transferring
        ranges = [(r.guest_addr, r.user_addr, r.size) for r in state.regions]
        assert ranges == self.regions
        assert (state.log and (state.log.offset, state.log.size)) == self.log
        logging = self.log is not None and bool((self.features or 0) & Feature.LOG_ALL)
        assert (state.logging.area is not None) == logging
        for real, ring in zip(state.rings, self.rings, strict=True):
            where = real.addresses
            assert (real.size, real.base, real.base_known) == (
                ring.size,
                ring.base,
                ring.base_known,
            )
            assert (where and (where.desc, where.avail, where.used)) == ring.areas
            assert (real.started, bool(real.broken)) == (ring.started, ring.broken)
            assert (real.kicked, real.enabled) == (ring.kicked, ring.enabled)
            assert where is None or where.used_log == ring.used_log


class Workers:
    """What all workers together would have after some effects; asserts that each effect is due."""

    def __init__(self, broken: Iterable[int] = ()) -> None:
        """`broken`: the rings that are not to be served though the state counts them as started."""
        self.features: int | None = None
        self.log = fx.SetLog(None)
        self.regions: list[Region] = []
        self.rings: dict[int, fx.RingSetup] = {}
        self.broken = set(broken)

    def covers(self, setup: fx.RingSetup) -> bool:
        ranges = [(r.guest_addr, r.user_addr, r.size) for r in self.regions]
        return covered(ranges, setup.size, (setup.desc, setup.avail, setup.used))

    def bereft(self) -> list[int]:
        """The rings that broke just now because memory was taken from under them."""
        lost = [i for i, setup in self.rings.items() if not self.covers(setup)]
        news = [index for index in lost if index not in self.broken]
        self.broken.update(news)
        return news

    def carry_out(self, effect: Effect) -> None:
        match effect:
            case fx.SetFeatures(features):
                self.features = features
            case fx.SetLog():
                assert effect != self.log, "no news"
                self.log = effect
            case fx.LogUsedRing(index, address):
                assert self.rings[index].used_log != address, "no news"
                self.rings[index] = replace(self.rings[index], used_log=address)
            case fx.SetMemory(regions):
                self.regions = list(regions)
            case fx.AddRegion(region):
                assert region not in self.regions
                self.regions.append(region)
            case fx.RemoveRegion(region):
                self.regions.remove(region)
            case fx.StartRing(setup):
                assert setup.index not in self.rings, "started twice"
                assert setup.index in self.broken or self.covers(setup)
                self.rings[setup.index] = setup
            case fx.StopRing(index):
                del self.rings[index]
                self.broken.discard(index)
            case fx.EnableRing(index) | fx.SetKick(index) | fx.SetCall(index) | fx.SetErr(index):
                assert index in self.rings, "the ring is not started"
            case fx.ResetDevice():
                assert not self.rings, "a ring runs"
                self.features = None
            case fx.ReadConfig(offset, size) | fx.WriteConfig(offset, size):
                length = len(size) if isinstance(size, bytes) else size
                assert 0 < length <= OFFER.config_size - offset
            case fx.SaveState() | fx.LoadState():
                assert not self.rings, "a ring runs"
                assert not effect.fd.closed
            case fx.SetBackendChannel(fd):
                assert not fd.closed

    def check(self, state: State) -> None:
        """The workers are where the committed state says."""
        assert self.features == state.ring_features
        assert self.log == state.logging
        for index, setup in self.rings.items():
            ring = state.rings[index]
            # A broken ring has nobody that would be told.
            assert ring.broken or setup.used_log == ring.setup().used_log
        assert self.regions == list(state.regions)
        assert set(self.rings) == {ring.index for ring in state.started}
