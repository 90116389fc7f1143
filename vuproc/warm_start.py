"""What a standby master prepares for its turn: all imports, and a forkserver with its own.

Nothing of the device is looked at, and no code of its author's is imported: both may be others by
the time of its turn.
"""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass

from vuproc.device_file.yaml_text import MAX_BYTES, MapValue, ScalarValue, YamlUnreadable, read
from vuproc.devices import BUILTIN
from vuproc.fd import Fd
from vuproc.handover.sd_notify import InheritError
from vuproc.handover.standby_master import NotHandedOver, StandbyMaster
from vuproc.pool.forkserver import CannotStart, Forkserver

IMPORTS = ("vuproc.serve", "vuproc.device_file.check", "encodings.ascii", "encodings.utf_8_sig")
"""Modules that have, by their own imports, all that a master imports before it serves."""


@dataclass(frozen=True)
class WarmStart:
    """The start of a master that was forked, or of a standby whose turn has come."""

    left: dict[str, tuple[Fd, ...]]
    """What the last master has left, as `sd_notify.inherit` has it."""
    forkserver: Forkserver
    file: str | None = None
    """The device file, if the command line names more than one device."""


def wait_for_turn() -> WarmStart | None:
    """Prepare and wait, if this process was started as a standby master; None if it was not.

    Ends the process if it is not wanted any more.
    """
    try:
        standby = StandbyMaster.from_environment()
        if standby is None:
            return None
        device_type = _builtin_type(standby.device_file)
        for name in (*IMPORTS, *(name.partition(":")[0] for name in device_type)):
            importlib.import_module(name)
        forkserver = Forkserver(device_type)
        try:
            forkserver.launch()
        except CannotStart:
            pass  # it is tried again for the first worker, and said then
        return WarmStart(standby.wait(), forkserver)
    except (InheritError, NotHandedOver) as error:
        sys.exit(f"vuproc standby: {error}")


def _builtin_type(content: bytes) -> tuple[str, ...]:
    """A device file's type as `module:Class`, if it is one of ours."""
    if len(content) > MAX_BYTES:
        return ()
    try:
        keys = read(content.decode(), lambda _mark, _problem: None)
    except (UnicodeDecodeError, YamlUnreadable):
        return ()  # a device object, say
    device = keys.items.get("device") if isinstance(keys, MapValue) else None
    named = device.items.get("type") if isinstance(device, MapValue) else None
    if not isinstance(named, ScalarValue) or named.text not in BUILTIN:
        return ()
    return (BUILTIN[named.text],)
