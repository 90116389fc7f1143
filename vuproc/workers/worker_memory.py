"""The guest memory of a worker, as the master's orders have it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from vuproc.fd import Fd
from vuproc.shm.memory import GuestMemory
from vuproc.shm.xen import OnDemand, XenDevice, foreign, granted
from vuproc.vhost_user.effects import Region, XenKind
from vuproc.workers.control import Refusal
from vuproc.workers.userfault import Userfault


class WorkerMemory:
    """The table that the rings of a worker use, and in postcopy the one that they are about to.

    `rebind` has the rings use another table; the one before is given up once that has returned.
    Where a method raises, MemoryFault and OSError among others, the table is the one from before.
    """

    def __init__(self, rebind: Callable[[GuestMemory], None]) -> None:
        self.table = GuestMemory()
        self._rebind = rebind
        self._staged: GuestMemory | None = None
        """Mapped, and neither touched nor used."""
        self._userfault: Userfault | None = None

    @property
    def unacknowledged(self) -> bool:
        """Whether the front-end is about to say that it knows of a new table."""
        return self._staged is not None

    def replace(self, regions: Iterable[Region]) -> None:
        """Another table."""
        self._use(_mapped(GuestMemory(), regions))

    def add(self, region: Region) -> None:
        """One region more."""
        self._use(_mapped(self.table, (region,)))

    def remove(self, region: Region) -> None:
        """One region less; nothing if it is not there."""
        key = region.guest_addr, region.size, region.user_addr
        # A worker that was started after a region lost its file never had it.
        if region.on_demand:
            self._use(self.table.with_on_demand(_without(self.table.on_demand, region)))
        elif key in self.table.regions:
            self._use(self.table.without_region(*key))

    def drop(self) -> None:
        """The session is over, and no ring left."""
        self._end_userfault()
        self.table = GuestMemory()

    # Postcopy.

    def open_userfault(self) -> Fd:
        """A new userfaultfd, for the answer: it stays ours."""
        self._end_userfault()
        self._userfault = Userfault()
        return self._userfault.fd

    def stage(self, regions: tuple[Region, ...]) -> tuple[int, ...]:
        """Map a table beside the one that is in use: where each region is. Raises Refusal."""
        self._needed_userfault()
        memory = self._staged = _mapped(GuestMemory(), regions)
        hosts = {fields[0]: host for fields, host in zip(memory.regions, memory.hosts, strict=True)}
        return tuple(hosts[region.guest_addr] for region in regions)

    def guard(self) -> None:
        """Use the staged table. The one before it is given up first: nobody knows its pages now.
        Raises Refusal.
        """
        userfault, memory = self._needed_userfault(), self._staged
        if memory is None:
            raise Refusal("no memory was staged")
        self._staged = None
        userfault.guard(memory)
        self._use(memory)

    def close_userfault(self) -> None:
        """All of the memory is there. Raises Refusal."""
        self._needed_userfault()
        self._end_userfault()

    def _use(self, memory: GuestMemory) -> None:
        self._rebind(memory)
        self.table = memory

    def _needed_userfault(self) -> Userfault:
        if self._userfault is None:
            raise Refusal("this worker has no userfaultfd: it is not the one that made it")
        return self._userfault

    def _end_userfault(self) -> None:
        self._staged = None
        userfault, self._userfault = self._userfault, None
        if userfault is not None:
            userfault.close()


def _mapped(memory: GuestMemory, regions: Iterable[Region]) -> GuestMemory:
    """The table with these regions, too."""
    for region in regions:
        place = region.guest_addr, region.size
        if region.xen is None:
            memory = memory.with_region(
                *place, region.user_addr, region.mmap_offset, region.fd.fileno()
            )
            continue
        device, domain = XenDevice(region.fd.fileno()), region.xen.domain
        match region.xen.kind:
            case XenKind.ON_DEMAND:
                more = OnDemand(*place, device, domain)
                memory = memory.with_on_demand((*memory.on_demand, more))
            case XenKind.GRANT:
                mapping = granted(device, domain, *place)
                memory = memory.with_mapping(region.guest_addr, region.user_addr, mapping)
            case XenKind.FOREIGN:
                mapping = foreign(device, domain, *place)
                memory = memory.with_mapping(region.guest_addr, region.user_addr, mapping)
    return memory


def _without(known: tuple[OnDemand, ...], region: Region) -> tuple[OnDemand, ...]:
    """All but this one."""
    place = region.guest_addr, region.size
    return tuple(each for each in known if (each.guest_addr, each.size) != place)
