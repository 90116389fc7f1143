"""What of a SCSI host goes along in a migration: what the driver has set, and is to be told."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from vuproc.devices.scsi_unit import Unit
from vuproc.spec.scsi_commands import Sense


class UnitLeft(msgspec.Struct, array_like=True, frozen=True):
    """A unit that was plugged in. `attention`: the sense of one that was not told, or 0; `size` is
    in bytes.
    """

    target: int
    lun: int
    size: int
    cached: bool
    ejected: bool
    prevented: bool
    attention: int


class Left(msgspec.Struct, array_like=True, frozen=True):
    """The host: the sizes that the driver has chosen, and its units."""

    sense_size: int
    cdb_size: int
    units: tuple[UnitLeft, ...]


def pack(sense_size: int, cdb_size: int, units: Sequence[Unit]) -> bytes:
    """The state as it is now."""
    left = tuple(
        UnitLeft(
            *unit.address,
            unit.state.size,
            bool(unit.state.cached),
            bool(unit.state.ejected),
            bool(unit.state.prevented),
            unit.state.sense if unit.attention else 0,
        )
        for unit in units
        if unit.state.plugged
    )
    return msgspec.msgpack.encode(Left(sense_size, cdb_size, left))


def unpack(data: bytes, units: Sequence[Unit]) -> Left:
    """The state in there, if these units can go on from it. ValueError, with nothing done."""
    left = msgspec.msgpack.decode(data, type=Left)
    ours = {unit.address: unit for unit in units if unit.state.plugged}
    for one in left.units:
        unit = ours.get((one.target, one.lun))
        if unit is None:
            raise ValueError(f"there is no lun {one.target}:{one.lun} here")
        if (one.ejected or one.prevented) and not unit.removable:
            raise ValueError(f"lun {one.target}:{one.lun} has no tray here")
        if one.attention:
            Sense(one.attention)
    return left


def go_on(left: Left, units: Sequence[Unit]) -> None:
    """Have the units be as they were. What is another here, the driver is told: a size, or a unit
    that it does not know of.
    """
    by_address = {(one.target, one.lun): one for one in left.units}
    for unit in units:
        one = by_address.get(unit.address)
        state = unit.state
        if one is None:
            state.plug_due += state.plugged
            continue
        state.cached, state.ejected, state.prevented = one.cached, one.ejected, one.prevented
        if one.attention:
            unit.raise_attention(Sense(one.attention))
        if one.size != state.size:
            unit.raise_attention(Sense.CAPACITY_CHANGED)
            state.size_due += 1
