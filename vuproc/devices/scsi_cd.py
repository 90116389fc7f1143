"""Commands that only a CD drive has (MMC-5): one session with one track of data."""

from __future__ import annotations

import struct

from vuproc.devices.scsi_task import Task, invalid_field
from vuproc.devices.scsi_unit import Unit
from vuproc.spec.scsi_commands import CdbFlag

_DATA_TRACK = 0x14
_FIRST, _LEAD_OUT = 1, 0xAA
_MINUTE, _SECOND, _LEAD_IN = 60 * 75, 75, 150
"""Blocks; a disc begins after the last of these."""
_MAX_MINUTES = 255
_TOC, _SESSIONS = 0, 1

_CD_ROM, _DVD_ROM = 0x0008, 0x0010
_MOST_OF_A_CD = 100 * _MINUTE
"""Blocks; whatever has more is a DVD."""
_PROFILES, _CORE, _REMOVABLE = 0x0000, 0x0001, 0x0003
_ALL, _CURRENT, _ONE = 0, 1, 2
_PERSISTENT, _IS_CURRENT = 0x02, 0x01
_TRAY = 0x29

_MEDIA = 4
_PRESENT, _NONE_AVAILABLE = 0x02, 0x80


def read_toc(unit: Unit, task: Task) -> None:
    """The track and its end, or the session (MMC-5, 6.26)."""
    unit.check_medium()
    cdb = task.cdb
    in_minutes = bool(cdb[1] & CdbFlag.MSF)
    wanted = (cdb[2] & 0x0F) or cdb[9] >> 6
    first = _track(_FIRST, 0, in_minutes)
    match wanted:
        case _ if wanted == _TOC and (cdb[6] <= _FIRST or cdb[6] == _LEAD_OUT):
            tracks = [_track(_LEAD_OUT, unit.blocks, in_minutes)]
            if cdb[6] <= _FIRST:
                tracks.insert(0, first)
        case _ if wanted == _SESSIONS:
            tracks = [first]
        case _:
            raise invalid_field()
    content = bytes((_FIRST, _FIRST)) + b"".join(tracks)
    data = struct.pack(">H", len(content)) + content
    task.reply(data, int.from_bytes(cdb[7:9], "big"))


def _track(number: int, block: int, in_minutes: bool) -> bytes:
    if in_minutes:
        minutes, rest = divmod(block + _LEAD_IN, _MINUTE)
        at = bytes((0, min(minutes, _MAX_MINUTES), rest // _SECOND, rest % _SECOND))
    else:
        at = struct.pack(">I", min(block, 0xFFFFFFFF))
    return bytes((0, _DATA_TRACK, number, 0)) + at


def get_configuration(unit: Unit, task: Task) -> None:
    """Whether the disc is a CD or a DVD, and that it can be removed (MMC-5, 6.6)."""
    asked, begin = task.cdb[1] & 3, int.from_bytes(task.cdb[2:4], "big")
    if asked not in (_ALL, _CURRENT, _ONE):
        raise invalid_field()
    large = unit.blocks > _MOST_OF_A_CD
    profile = 0 if unit.state.ejected else _DVD_ROM if large else _CD_ROM
    kept = _PERSISTENT | _IS_CURRENT
    profiles = b"".join(struct.pack(">HBx", each, profile == each) for each in (_DVD_ROM, _CD_ROM))
    features = {
        _PROFILES: struct.pack(">HBB", _PROFILES, kept, len(profiles)) + profiles,
        # Behind a SCSI bus; the second version.
        _CORE: struct.pack(">HBBIB3x", _CORE, 2 << 2 | kept, 8, 1, 1),
        _REMOVABLE: struct.pack(">HBBB3x", _REMOVABLE, kept, 4, _TRAY),
    }
    found = [
        feature
        for number, feature in features.items()
        if (number == begin if asked == _ONE else number >= begin)
    ]
    content = struct.pack(">2xH", profile) + b"".join(found)
    data = struct.pack(">I", len(content)) + content
    task.reply(data, int.from_bytes(task.cdb[7:9], "big"))


def event_status(unit: Unit, task: Task) -> None:
    """Whether there is a disc; nothing is announced (MMC-5, 6.7)."""
    if not task.cdb[1] & CdbFlag.POLLED:
        raise invalid_field()
    if task.cdb[4] & 1 << _MEDIA:
        present = 0 if unit.state.ejected else _PRESENT
        data = struct.pack(">HBBBBxx", 4, _MEDIA, 1 << _MEDIA, 0, present)
    else:
        data = struct.pack(">HBB", 0, _NONE_AVAILABLE, 1 << _MEDIA)
    task.reply(data, int.from_bytes(task.cdb[7:9], "big"))
