"""What a fresh worker is to be told: the session's committed state, and where its rings are."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec.structs import replace

from vuproc.fd import FdKind
from vuproc.pool.inflight_file import InflightFile, is_blank
from vuproc.pool.pool_state import PoolState
from vuproc.pool.shared_objects import SharedObjects
from vuproc.pool.shmem_table import ShmemTable
from vuproc.spec.ring_layout import record_room
from vuproc.spec.virtio import Feature
from vuproc.vhost_user.config_space import ConfigSpace
from vuproc.vhost_user.effects import (
    AddRegion,
    Region,
    RingSetup,
    SetLog,
    SetMemory,
    StartRing,
    WriteConfig,
)
from vuproc.vhost_user.replay import regions_of, replay
from vuproc.vhost_user.state import Postcopy, State
from vuproc.workers.control import CONFIG_QUEUE, AnyOrder, AskConfig, ShmemKnown


class KeptBases:
    """The bases of rings that were stopped with requests in their record, by queue."""

    def __init__(self, known: tuple[tuple[int, int], ...] = ()) -> None:
        self._bases = dict(known)
        self._known: tuple[tuple[int, int], ...] | None = known

    def note(self, queue: int, base: int) -> None:
        """This ring was."""
        self._bases[queue], self._known = base, None

    def take(self, queue: int) -> int | None:
        """The base of this ring, which is forgotten; None if there is none."""
        if queue not in self._bases:
            return None
        self._known = None
        return self._bases.pop(queue)

    def clear(self) -> None:
        """None was."""
        self._bases.clear()
        self._known = ()

    def known(self) -> tuple[tuple[int, int], ...]:
        """All of them in order, for a successor: asked for at each message."""
        if self._known is None:
            self._known = tuple(sorted(self._bases.items()))
        return self._known


class History:
    """Everything that the workers of one device have been told, as the session's state has it.

    The master hands each committed state down. `broken` are the causes by queue of the rings that
    nobody serves until they are set up anew; `stopped` the rings that the message under way has
    stopped; `bases` where rings are to begin that the front-end has started and no worker has yet;
    `kept` the bases of rings that were stopped with requests in their record.
    """

    def __init__(self, config: ConfigSpace, num_queues: int, queue_size: int) -> None:
        self.config = config
        self.state = State.initial(num_queues)
        self.broken: dict[int, str] = {}
        self.stopped: set[int] = set()
        self.bases: dict[int, int] = {}
        self.kept = KeptBases()
        self.objects = SharedObjects()
        self.shmem = ShmemTable()
        self.userfault_lost = ""
        """Why nobody can wait for the pages that guest memory lacks; "" if that can be done."""
        self.ending = False
        """The front-end is gone: no page of its comes any more."""
        self.records: InflightFile | None = None
        """Our own in-flight records, as long as there is a session."""
        self._num_queues = num_queues
        self._queue_size = queue_size

    def begin(self, state: State) -> None:
        """A session begins. Raises OSError if there is no room for its records."""
        self.state = state
        self.userfault_lost, self.ending = "", False
        if self.records is None:
            room = record_room(Feature.RING_PACKED, self._queue_size)
            self.records = InflightFile.create(self._num_queues, self._queue_size, room)

    def end(self) -> None:
        """The session is over: a fresh worker is told nothing of it."""
        self.state = State.initial(self._num_queues)
        self.userfault_lost, self.ending = "", False
        self.broken.clear()
        self.stopped.clear()
        self.config.reset()
        self.shmem.forget()

    def drop_records(self) -> None:
        """No worker of the session is left."""
        self.forget_positions()
        records, self.records = self.records, None
        if records is not None:
            records.close()

    def snapshot(self) -> PoolState:
        """What a successor must know of the session; its files stay ours."""
        records = None if self.records is None else self.records.file
        return PoolState(
            tuple(self.config.written()),
            self.kept.known(),
            records,
            self.config.said,
            self.objects.names(),
            self.objects.made(),
            self.shmem.known(),
        )

    def restore(self, state: State, known: PoolState) -> None:
        """Go on from what a predecessor knew."""
        self.state = state
        for offset, data in known.config:
            self.config.write(offset, data)
        if known.said is not None:
            self.config.say(known.said)
        self.kept = KeptBases(known.kept)
        self.objects.restore(known.objects, known.made)
        self.shmem.restore(known.shmem)
        if known.records is not None:
            self.records = InflightFile(known.records, self._num_queues, self._queue_size)
        self.broken = {ring.index: ring.broken for ring in state.rings if ring.broken}

    @property
    def in_postcopy(self) -> bool:
        """Whether pages of guest memory may be missing that the front-end will send."""
        return self.state.postcopy is not Postcopy.OFF and not self.ending

    def forget_positions(self) -> None:
        """No ring goes on where it was."""
        self.kept.clear()
        self.bases.clear()

    @property
    def own_records(self) -> InflightFile:
        """Our own in-flight records; only during a session."""
        assert self.records is not None, "no session"
        return self.records

    def setup(self, queue: int) -> RingSetup | None:
        """How a ring is set up that the state has as started."""
        ring = self.state.rings[queue]
        return ring.setup() if ring.started else None

    def start_of(self, setup: RingSetup, base: int | None) -> StartRing:
        """The order that starts a ring with its record: the front-end's, or one of ours.

        The record decides by itself whether there is something to recover. `base` is where an empty
        one begins; None: where the ring stopped, for the base of a ring that was started before is
        not where it is by now.
        """
        inflight = setup.inflight or self.own_records.at(setup.index)
        return StartRing(replace(setup, inflight=inflight, base=base))

    def of(self, queues: tuple[int, ...], hold: int = -1) -> Iterator[AnyOrder]:
        """What a fresh worker of `queues` is told: each of its rings goes on from its record.

        `hold` names a ring that is not to run again before the order that its worker died over.
        """
        for offset, data in self.config.written():
            yield WriteConfig(offset, data)
        if CONFIG_QUEUE in queues and self.shmem.mapped:
            yield ShmemKnown(self.shmem.known()[0])
        lacks_pages = self.state.postcopy is Postcopy.LISTENING
        lost_memory = any(queue in self.broken for queue in queues)
        for effect in replay(self.state, queues):
            match effect:
                case SetMemory() | AddRegion() | StartRing() | SetLog() if lacks_pages:
                    pass  # it would read zeros where a page is missing
                case StartRing(setup=setup):
                    if setup.index not in self.broken and setup.index not in self.stopped:
                        enabled = setup.enabled and setup.index != hold
                        base = self._base_of(setup)
                        yield self.start_of(replace(setup, enabled=enabled), base)
                case SetMemory() | AddRegion() if lost_memory:
                    for region in regions_of(effect):
                        if truncation(region) is None:
                            yield AddRegion(region)
                case SetLog() if lost_memory and log_truncation(self.state):
                    pass
                case _:
                    yield effect
        if CONFIG_QUEUE in queues:
            # After the rings, for which drivers wait.
            yield AskConfig(self.config.said is not None)

    def _base_of(self, setup: RingSetup) -> int | None:
        """Where a ring that the front-end has started is to begin if its record is empty."""
        base = self.bases.get(setup.index)
        if base is None and self.state.translated:
            # Behind an IOMMU a worker may have had it, and never have found where it lies.
            record = setup.inflight or self.own_records.at(setup.index)
            return setup.base if is_blank(record) else None
        return base

    def truncation(self) -> str | None:
        """What is missing of the files of guest memory and of the dirty log, in words; None if
        nothing is.
        """
        cause = next(filter(None, map(truncation, self.state.regions)), None)
        if cause is None:
            return log_truncation(self.state)
        return f"guest memory was truncated: {cause}"


def log_truncation(state: State) -> str | None:
    """What the file of the dirty log lacks by now, in words; None if nothing, or without a log."""
    log = state.logging.area
    end = 0 if log is None else log.offset + log.size
    if log is None or log.fd.size >= end:
        return None
    return f"the dirty log was truncated: it needs {end:#x} bytes, its file has {log.fd.size:#x}"


def truncation(region: Region) -> str | None:
    """What the region's file lacks by now, in words; None if it is whole or has no size."""
    if region.xen is not None:
        return None
    size, end = region.fd.size, region.mmap_offset + region.size
    if size >= end or (size == 0 and region.fd.kind is not FdKind.FILE):
        return None
    return f"region at {region.guest_addr:#x} needs {end:#x} bytes, its file has {size:#x}"
