"""The files that all workers of a device share: opened in the master, kept over its death."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from contextlib import ExitStack

from vuproc.device import Device
from vuproc.errors import FileRefused
from vuproc.estate import SESSION, SHARED, Estate
from vuproc.fd import Fd

log = logging.getLogger("vuproc.master")


class SharedFiles:
    """Those of one device, in `fds` by name. `device` has them from now on."""

    def __init__(self, device: Device, estate: Estate, stack: ExitStack) -> None:
        """Go on with those of a predecessor if the device does, else have it make new ones.

        `stack` closes them. Raises FileRefused if they cannot be had.
        """
        self._estate = estate
        left = self._left(stack)
        if left and device.goes_on_with(left):
            device.shared = self.fds = left
            _tell_replaced(device)
        else:
            for name, fd in left.items():
                estate.discard(f"{SHARED}{name}", fd)
            device.shared = self.fds = _owned(device.shared_files(), stack)
            if left or self.fds:
                self._end_session()
        self.keep()

    def keep(self) -> None:
        """Have them kept for a successor."""
        for name, fd in self.fds.items():
            self._estate.keep(f"{SHARED}{name}", fd)

    def drop(self) -> None:
        """Have a successor make new ones."""
        for name in self.fds:
            self._estate.drop(f"{SHARED}{name}")

    def _left(self, stack: ExitStack) -> dict[str, Fd]:
        left = {}
        for stored in self._estate.names(SHARED):
            fd = self._estate.take(stored)
            if fd is not None:
                left[stored.removeprefix(SHARED)] = fd
                stack.callback(fd.close)
        return left

    def _end_session(self) -> None:
        """A front-end is not to go on with a disk, say, that is another one by now."""
        if self._estate.names(SESSION):
            log.error("the session of the last master is lost: the device's files are not the same")
            self._estate.forget(SESSION)


def _owned(files: Mapping[str, Fd], stack: ExitStack) -> dict[str, Fd]:
    """What `shared_files` has returned: a device's author may have used files of any kind."""
    owned = {}
    for name, file in files.items():
        owned[name] = fd = file if isinstance(file, Fd) else Fd(os.dup(file.fileno()))
        stack.callback(fd.close)
        if file is not fd:
            file.close()
    return owned


def _tell_replaced(device: Device) -> None:
    going_on = "going on with the one that is open"
    try:
        for option, what in device.replaced_files():
            log.warning("device.%s: %s; %s", option, what, going_on)
    except FileRefused as refused:
        log.warning("%s; %s", refused, going_on)
