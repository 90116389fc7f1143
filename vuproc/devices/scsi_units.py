"""All logical units of a SCSI host in a worker, and which of them a command is for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from vuproc.devices.blk_storage import Storage
from vuproc.devices.scsi_commands import IN_SPITE_OF_ATTENTION, serve, serve_without_unit
from vuproc.devices.scsi_options import ScsiOptions
from vuproc.devices.scsi_task import CheckCondition, Failed, Task
from vuproc.devices.scsi_unit import Unit, UnitState, address_of
from vuproc.spec.scsi import ScsiResponse
from vuproc.spec.scsi_commands import Key, Op, Sense


class Units:
    """The units by place and address. storages: by place, owned from then on."""

    def __init__(
        self, options: ScsiOptions, states: Sequence[UnitState], storages: Mapping[int, Storage]
    ) -> None:
        cached = options.cache == "writeback"
        self._units = [
            Unit(unit, options.address(place), states[place], storages[place], cached=cached)
            for place, unit in enumerate(options.luns)
        ]
        self._by_address = {unit.address: unit for unit in self._units}
        for unit in self._units:
            unit.neighbours = self.of_target(unit.address[0])

    def __iter__(self) -> Iterator[Unit]:
        return iter(self._units)

    def at(self, address: tuple[int, int] | None) -> Unit | None:
        """The unit that is plugged in there, if there is one."""
        unit = None if address is None else self._by_address.get(address)
        return unit if unit is not None and unit.state.plugged else None

    def of_target(self, target: int) -> list[Unit]:
        """All that a target may have."""
        return [unit for unit in self._units if unit.address[0] == target]

    def here(self, target: int) -> list[Unit]:
        """Those of a target that are plugged in."""
        return [unit for unit in self.of_target(target) if unit.state.plugged]

    def plug(self, unplugged: Sequence[int]) -> list[Unit]:
        """Have all be plugged in but those at these places; the ones that this changes."""
        changed = []
        for place, unit in enumerate(self._units):
            plugged = place not in unplugged
            if bool(unit.state.plugged) != plugged:
                unit.state.plug_due += 1
                unit.state.plugged = plugged
                changed.append(unit)
        return changed

    def serve(self, task: Task, publish: Callable[[], None]) -> None:
        """Serve a command by the unit that it is for. Raises CheckCondition, Failed, OSError.

        publish: show the driver what was answered.
        """
        address = address_of(task.lun)
        unit = self.at(address)
        if unit is None:
            here = [] if address is None else self.here(address[0])
            if address is None or not here:
                raise Failed(ScsiResponse.BAD_TARGET)
            serve_without_unit(address[1], [other.address[1] for other in here], task)
            return
        operation, raised = task.cdb[0], unit.state.raised
        told = raised != unit.state.reported
        if told and operation not in IN_SPITE_OF_ATTENTION:
            task.check(CheckCondition(Key.UNIT_ATTENTION, Sense(unit.state.sense)))
        else:
            serve(unit, task)
        if told and operation not in (Op.INQUIRY, Op.REPORT_LUNS):
            # Told again, should we die before: it does no harm, and to lose it might.
            publish()
            unit.state.reported = raised

    def close(self) -> None:
        """Close all of them."""
        for unit in self._units:
            unit.close()
