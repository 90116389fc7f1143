"""The commands of disks and CD drives (SPC-4, SBC-3, MMC-5), each a function of unit and task."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Mapping
from types import MappingProxyType

from vuproc.devices import scsi_pages as pages
from vuproc.devices.scsi_cd import event_status, get_configuration, read_toc
from vuproc.devices.scsi_task import CheckCondition, Task, invalid_field, sense_data, write_failed
from vuproc.devices.scsi_unit import Unit
from vuproc.spec.scsi_commands import (
    READ_CAPACITY_16,
    REPORT_LUNS_UNIT,
    WCE,
    CdbFlag,
    DeviceKind,
    Key,
    Op,
    Page,
    PageControl,
    Sense,
)

Serve = Callable[[Unit, Task], None]

_BLOCKS_6 = 256
"""Of READ(6) and WRITE(6), if the command says none."""
_RANGE = struct.Struct(">QI4x")
_UNMAP_HEADER = 8
_PATTERN_BYTES = 1 << 20
"""Bytes of a WRITE SAME's pattern that are written at a time."""
_EVPD, _FUA, _UNMAP, _NDOB = (
    int(each) for each in (CdbFlag.EVPD, CdbFlag.FUA, CdbFlag.UNMAP, CdbFlag.NDOB)
)
_PROTECT, _ANCHOR = int(CdbFlag.PROTECT), int(CdbFlag.ANCHOR)
_START, _LOAD_EJECT = 0x01, 0x02


def _number(data: bytes, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], "big")


# What any unit has.


def _test_unit_ready(unit: Unit, task: Task) -> None:
    unit.check_medium()
    task.done()


def _request_sense(unit: Unit, task: Task) -> None:
    """What no command has told: the attention is the caller's to take back."""
    if task.cdb[1] & 1:
        raise invalid_field()  # descriptors
    key, sense = Key.NO_SENSE, int(Sense.NONE)
    if unit.attention:
        key, sense = Key.UNIT_ATTENTION, unit.state.sense
    elif unit.state.ejected:
        key, sense = Key.NOT_READY, int(Sense.NO_MEDIUM)
    task.reply(sense_data(key, Sense(sense)), task.cdb[4])


def _inquiry(unit: Unit, task: Task) -> None:
    page, allocated = task.cdb[2], _number(task.cdb, 3, 2)
    if task.cdb[1] & _EVPD:
        data = pages.vital(unit.options, unit.address, page)
    else:
        data = None if page else pages.inquiry(unit.options)
    if data is None:
        raise invalid_field()
    task.reply(data, allocated)


def _report_luns(unit: Unit, task: Task) -> None:
    report_luns([each.address[1] for each in unit.neighbours if each.state.plugged], task)


def report_luns(numbers: list[int], task: Task) -> None:
    """The units of a target, by their numbers."""
    allocated = _number(task.cdb, 6, 4)
    data = pages.luns(numbers, task.cdb[2])
    if data is None or allocated < 16:
        raise invalid_field()
    task.reply(data, allocated)


def _mode_sense(unit: Unit, task: Task) -> None:
    long = task.cdb[0] == Op.MODE_SENSE_10
    control = PageControl(task.cdb[2] >> 6)
    if control is PageControl.SAVED:
        raise CheckCondition(Key.ILLEGAL_REQUEST, Sense.SAVING_NOT_SUPPORTED)
    page, subpage = task.cdb[2] & 0x3F, task.cdb[3]
    current = control is PageControl.CURRENT
    cached = bool(unit.state.cached) if current else unit.cached_by_default
    found = pages.mode_pages(unit.options, page, control, cached=cached)
    if found is None or subpage not in (0, 0xFF if page == Page.ALL else 0):
        raise invalid_field()
    bare = bool(task.cdb[1] & CdbFlag.NO_BLOCK_DESCRIPTORS)
    data = pages.mode_header(unit.options, unit.blocks, found, long=long, bare=bare)
    task.reply(data, _number(task.cdb, 7, 2) if long else task.cdb[4])


def _mode_select(unit: Unit, task: Task) -> None:
    """The write cache is switched; whatever else would change is refused."""
    long = task.cdb[0] == Op.MODE_SELECT_10
    if task.cdb[1] & CdbFlag.SAVE_PAGES or not task.cdb[1] & CdbFlag.PAGE_FORMAT:
        raise invalid_field()
    length = _number(task.cdb, 7, 2) if long else task.cdb[4]
    data = task.data(length)
    header = 8 if long else 4
    if length == 0:
        task.done()
        return
    if length < header:
        raise CheckCondition(Key.ILLEGAL_REQUEST, Sense.PARAMETER_LIST_LENGTH)
    descriptors = _number(data, 6, 2) if long else data[3]
    rest = data[header + descriptors :]
    if descriptors not in (0, 8) or length < header + descriptors:
        raise CheckCondition(Key.ILLEGAL_REQUEST, Sense.PARAMETER_LIST_LENGTH)
    if descriptors and _number(data, header + 5, 3) != unit.block:
        raise CheckCondition(Key.ILLEGAL_REQUEST, Sense.INVALID_FIELD_IN_PARAMETERS)
    cached = bool(unit.state.cached)
    while rest:
        page = rest[: 2 + rest[1]] if len(rest) >= 2 else b""
        if not page or len(page) < 2 + rest[1]:
            raise CheckCondition(Key.ILLEGAL_REQUEST, Sense.PARAMETER_LIST_LENGTH)
        rest = rest[len(page) :]
        with_cache = pages.caching(unit.options, PageControl.CURRENT, cached=True)
        without = pages.caching(unit.options, PageControl.CURRENT, cached=False)
        ours = pages.mode_pages(unit.options, page[0], PageControl.CURRENT, cached=cached)
        if page in (with_cache, without) and not unit.options.fixed:
            cached = bool(page[2] & WCE)
        elif page[0] == Page.ALL or page != ours:
            raise CheckCondition(Key.ILLEGAL_REQUEST, Sense.INVALID_FIELD_IN_PARAMETERS)
    was_cached, unit.state.cached = unit.state.cached, cached
    if was_cached and not cached:
        # What was written until now is to be safe, too: by the other workers as well, which write
        # through the cache from here on.
        _changing(unit.storage.flush)
    task.done(length)


def _start_stop(unit: Unit, task: Task) -> None:
    action = task.cdb[4]
    if action & _LOAD_EJECT and not action >> 4:
        if not unit.removable:
            raise invalid_field()
        if not action & _START and unit.state.prevented:
            raise CheckCondition(Key.ILLEGAL_REQUEST, Sense.REMOVAL_PREVENTED)
        if not action & _START and not unit.options.fixed:
            _changing(unit.storage.flush)  # nobody can ask for it later (SBC-3, 5.25)
        unit.state.ejected = not action & _START
    task.done()


def _prevent_removal(unit: Unit, task: Task) -> None:
    unit.state.prevented = task.cdb[4] & 1
    task.done()


# The medium.


def _read_capacity_10(unit: Unit, task: Task) -> None:
    unit.check_medium()
    if any(task.cdb[2:6]) or task.cdb[8] & 1:
        raise invalid_field()
    task.reply(pages.capacity_10(unit.options, unit.blocks))


def _service_action_in(unit: Unit, task: Task) -> None:
    if task.cdb[1] & 0x1F != READ_CAPACITY_16:
        raise invalid_field()
    unit.check_medium()
    allocated = _number(task.cdb, 10, 4)
    task.reply(pages.capacity_16(unit.options, unit.blocks), allocated)


def _extent_6(unit: Unit, task: Task) -> tuple[int, int]:
    lba = _number(task.cdb, 1, 3) & 0x1FFFFF
    return unit.extent(lba, task.cdb[4] or _BLOCKS_6)


_FIELDS: Mapping[int, tuple[int, int, int, int]] = MappingProxyType(
    {1: (2, 4, 7, 2), 2: (2, 4, 7, 2), 4: (2, 8, 10, 4), 5: (2, 4, 6, 4)}
)
"""By the group of a command, its first three bits: where its first block and their number are."""


def _extent(unit: Unit, task: Task) -> tuple[int, int]:
    cdb = task.cdb
    if cdb[1] & _PROTECT:
        raise invalid_field()
    at, size, count_at, count_size = _FIELDS[cdb[0] >> 5]
    return unit.extent(_number(cdb, at, size), _number(cdb, count_at, count_size))


def _read_6(unit: Unit, task: Task) -> None:
    unit.check_medium()
    task.read(unit.file, *_extent_6(unit, task), unit.block)


def _read(unit: Unit, task: Task) -> None:
    unit.check_medium()
    task.read(unit.file, *_extent(unit, task), unit.block)


def _write_6(unit: Unit, task: Task) -> None:
    unit.check_medium()
    unit.check_writable()
    task.write(unit.file, *_extent_6(unit, task), unit.block, durable=unit.durable)


def _write(unit: Unit, task: Task) -> None:
    unit.check_medium()
    unit.check_writable()
    durable = unit.durable or bool(task.cdb[1] & _FUA)
    task.write(unit.file, *_extent(unit, task), unit.block, durable=durable)


def _verify(unit: Unit, task: Task) -> None:
    """That the blocks are there; they are not compared with data."""
    unit.check_medium()
    if task.cdb[1] & CdbFlag.BYTE_CHECK:
        raise invalid_field()
    _extent(unit, task)
    task.done()


def _synchronize(unit: Unit, task: Task) -> None:
    unit.check_medium()
    _extent(unit, task)
    if not unit.options.fixed:
        _changing(unit.storage.flush)
    task.done()


def _unmap(unit: Unit, task: Task) -> None:
    unit.check_medium()
    unit.check_writable()
    if task.cdb[1] & 1:
        raise invalid_field()  # to be anchored
    length = _number(task.cdb, 7, 2)
    if length > _UNMAP_HEADER + pages.MAX_UNMAP_RANGES * _RANGE.size:
        raise invalid_field()
    data = task.data(length)
    if 0 < length < _UNMAP_HEADER:
        raise CheckCondition(Key.ILLEGAL_REQUEST, Sense.PARAMETER_LIST_LENGTH)
    listed = data[_UNMAP_HEADER:][: _number(data, 2, 2)] if data else b""
    whole = len(listed) // _RANGE.size * _RANGE.size
    # All are checked before the first one goes.
    ranges = [(lba, count) for lba, count in _RANGE.iter_unpack(listed[:whole]) if count]
    if sum(count for _, count in ranges) * unit.block > pages.MAX_UNMAP_BYTES:
        raise CheckCondition(Key.ILLEGAL_REQUEST, Sense.INVALID_FIELD_IN_PARAMETERS)
    for offset, size in [unit.extent(lba, count) for lba, count in ranges]:
        _changing(unit.storage.discard, offset, size)
    if unit.durable and ranges:
        _changing(unit.storage.flush)
    task.done(length)


def _write_same(unit: Unit, task: Task) -> None:
    unit.check_medium()
    unit.check_writable()
    flags, long = task.cdb[1], task.cdb[0] == Op.WRITE_SAME_16
    offset, length = _extent(unit, task)
    no_data = bool(long and flags & _NDOB)
    # A length of 0 would be all that follows. Logical block data (obsolete) are not had.
    if flags & (_ANCHOR | 0x06) or not 0 < length <= pages.MAX_SAME_BYTES:
        raise invalid_field()
    block = bytes(unit.block) if no_data else task.data(unit.block)
    if any(block):
        _changing(_write_pattern, unit.file, block, offset, length)
    else:
        unmap = bool(flags & _UNMAP)
        _changing(lambda: unit.storage.write_zeroes(offset, length, unmap=unmap))
    if unit.durable:
        _changing(unit.storage.flush)
    task.done(0 if no_data else unit.block)


def _write_pattern(file: int, block: bytes, offset: int, length: int) -> None:
    chunk = memoryview(block * max(1, min(length, _PATTERN_BYTES) // len(block)))
    end = offset + length
    while offset < end:
        offset += os.pwrite(file, chunk[offset % len(block) :][: end - offset], offset)


def _changing(call: Callable[..., None], *arguments: object) -> None:
    """Call what changes the store; an OSError of it is a write that has failed."""
    try:
        call(*arguments)
    except OSError as error:
        raise write_failed(error) from error


_ANY: Mapping[int, Serve] = {
    Op.TEST_UNIT_READY: _test_unit_ready,
    Op.REQUEST_SENSE: _request_sense,
    Op.INQUIRY: _inquiry,
    Op.REPORT_LUNS: _report_luns,
    Op.MODE_SENSE_6: _mode_sense,
    Op.MODE_SENSE_10: _mode_sense,
    Op.MODE_SELECT_6: _mode_select,
    Op.MODE_SELECT_10: _mode_select,
    Op.START_STOP_UNIT: _start_stop,
    Op.PREVENT_ALLOW_MEDIUM_REMOVAL: _prevent_removal,
    Op.READ_CAPACITY_10: _read_capacity_10,
    Op.READ_6: _read_6,
    Op.READ_10: _read,
    Op.READ_12: _read,
    Op.VERIFY_10: _verify,
    Op.SYNCHRONIZE_CACHE_10: _synchronize,
}
DISK: Mapping[int, Serve] = MappingProxyType(
    {int(op): serve for op, serve in _ANY.items()}
    | {
        int(Op.READ_16): _read,
        int(Op.WRITE_6): _write_6,
        int(Op.WRITE_10): _write,
        int(Op.WRITE_12): _write,
        int(Op.WRITE_16): _write,
        int(Op.VERIFY_16): _verify,
        int(Op.SYNCHRONIZE_CACHE_16): _synchronize,
        int(Op.UNMAP): _unmap,
        int(Op.WRITE_SAME_10): _write_same,
        int(Op.WRITE_SAME_16): _write_same,
        int(Op.SERVICE_ACTION_IN_16): _service_action_in,
    }
)
"""What a disk has, by the first byte of a command."""
CD: Mapping[int, Serve] = MappingProxyType(
    {int(op): serve for op, serve in _ANY.items()}
    | {
        int(Op.READ_TOC): read_toc,
        int(Op.GET_CONFIGURATION): get_configuration,
        int(Op.GET_EVENT_STATUS): event_status,
    }
)
"""What a CD drive has."""
IN_SPITE_OF_ATTENTION = frozenset((int(Op.INQUIRY), int(Op.REPORT_LUNS), int(Op.REQUEST_SENSE)))
"""Commands that are served though there is something to tell (SAM-5, 5.14)."""


def serve(unit: Unit, task: Task) -> None:
    """Serve one command. Raises CheckCondition and Failed."""
    served = (CD if unit.options.is_cd else DISK).get(task.cdb[0])
    if served is None:
        raise CheckCondition(Key.ILLEGAL_REQUEST, Sense.INVALID_OPERATION_CODE)
    served(unit, task)


def serve_without_unit(number: int, units: list[int], task: Task) -> None:
    """Serve a command to a LUN of a target that has others, or to its well-known unit."""
    known = number == REPORT_LUNS_UNIT
    match task.cdb[0]:
        case Op.INQUIRY if not task.cdb[1] & _EVPD:
            kind = DeviceKind.WELL_KNOWN if known else DeviceKind.ABSENT
            task.reply(pages.inquiry_of(kind), _number(task.cdb, 3, 2))
        case Op.REPORT_LUNS if known or number == 0:
            report_luns(units, task)
        case Op.REQUEST_SENSE:
            absent = sense_data(Key.ILLEGAL_REQUEST, Sense.UNIT_NOT_SUPPORTED)
            found = sense_data(Key.NO_SENSE, Sense.NONE) if known else absent
            task.reply(found, task.cdb[4])
        case Op.TEST_UNIT_READY if known:
            task.done()
        case _:
            sense = Sense.INVALID_OPERATION_CODE if known else Sense.UNIT_NOT_SUPPORTED
            raise CheckCondition(Key.ILLEGAL_REQUEST, sense)
