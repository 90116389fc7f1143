"""The files which a device gives its workers to share."""

from __future__ import annotations

import os
from collections.abc import Mapping

from vuproc import place
from vuproc.device import Device
from vuproc.errors import DeviceWrong, FileRefused
from vuproc.fd import Fd

MAX_SHARED_FILES = 252
"""Files that a device may share: they go to a worker in one message (the kernel's SCM_MAX_FD), with
the device itself if that is a program's object.
"""
MAX_SHARED_NAME = 200
"""Characters of such a file's name: it is part of a name in the descriptor store (255)."""


def open_shared(device: Device) -> dict[str, Fd]:
    """What the device gives its workers to share, owned by the caller.

    Raises DeviceWrong, and FileRefused if the device does.
    """
    try:
        found: object = device.shared_files()
    except FileRefused:
        raise
    except (Exception, SystemExit) as error:
        raise DeviceWrong(place.raised(type(device), "shared_files", error)) from error
    problem = _shared_problem(found)
    if problem:
        _close(found)
        text = place.about(type(device), "shared_files", f"shared_files() {problem}")
        raise DeviceWrong(text)
    assert isinstance(found, Mapping)
    owned = {}
    for name, file in found.items():
        owned[name] = file if isinstance(file, Fd) else Fd(os.dup(file.fileno()))
        if not isinstance(file, Fd):
            file.close()
    return owned


def _shared_problem(found: object) -> str | None:
    if not isinstance(found, Mapping):
        return f"is of type {type(found).__name__}, not a dict of names and files"
    if len(found) > MAX_SHARED_FILES:
        return f"has {len(found)} files, more than {MAX_SHARED_FILES}"
    if len({id(file) for file in found.values()}) < len(found):
        return "gives one file two names"
    for name, file in found.items():
        if not isinstance(name, str) or not 0 < len(name) <= MAX_SHARED_NAME:
            return f"names a file {place.shown(name)}, not text of 1 to {MAX_SHARED_NAME} letters"
        if not all(" " <= letter < "\x7f" and letter != ":" for letter in name):
            return f"names a file {place.shown(name)}: a name is of ASCII letters, without a colon"
        try:
            file.fileno()
        except Exception:
            return f"has {place.shown(file)} for {name}, not an open file such as Fd(...)"
    return None


def _close(found: object) -> None:
    """Close what was given, as far as it can be."""
    for file in found.values() if isinstance(found, Mapping) else ():
        if hasattr(file, "close"):
            file.close()
