"""The files that all workers of a device share: opened in the master, kept over its death."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack

from vuproc.device import Device
from vuproc.device_file.shared_check import open_shared
from vuproc.errors import FileRefused
from vuproc.fd import Fd
from vuproc.handover.fd_store import SESSION, SHARED, FdStore

log = logging.getLogger("vuproc.master")


class SharedFiles:
    """Those of one device, in `fds` by name. `device` has them from now on."""

    def __init__(
        self,
        device: Device,
        fd_store: FdStore,
        stack: ExitStack,
        opens: Callable[[Device], dict[str, Fd]] = open_shared,
    ) -> None:
        """Go on with those of a predecessor if the device does, else have it make new ones.

        `opens` asks it for them, and `stack` closes them. Raises what `opens` does, and FileRefused
        if they cannot be had.
        """
        self._fd_store = fd_store
        inherited = self._inherited(stack)
        if inherited and device.goes_on_with(inherited):
            device.shared = self.fds = inherited
            _warn_of_replaced(device)
        else:
            for name, fd in inherited.items():
                fd_store.discard(f"{SHARED}{name}", fd)
            device.shared = self.fds = opens(device)
            for fd in self.fds.values():
                stack.callback(fd.close)
            if inherited or self.fds:
                self._end_session()
        self.keep()

    def keep(self) -> None:
        """Have them kept for a successor."""
        for name, fd in self.fds.items():
            self._fd_store.keep(f"{SHARED}{name}", fd)

    def drop(self) -> None:
        """Have a successor make new ones."""
        for name in self.fds:
            self._fd_store.drop(f"{SHARED}{name}")

    def _inherited(self, stack: ExitStack) -> dict[str, Fd]:
        inherited = {}
        for stored in self._fd_store.names(SHARED):
            fd = self._fd_store.take(stored)
            if fd is not None:
                inherited[stored.removeprefix(SHARED)] = fd
                stack.callback(fd.close)
        return inherited

    def _end_session(self) -> None:
        """A front-end is not to go on with a disk, say, that is another one by now."""
        if self._fd_store.names(SESSION):
            log.error("the session of the last master is lost: the device's files are not the same")
            self._fd_store.forget(SESSION)


def _warn_of_replaced(device: Device) -> None:
    going_on = "going on with the one that is open"
    try:
        for option, what in device.replaced_files():
            log.warning("device.%s: %s; %s", option, what, going_on)
    except FileRefused as refused:
        log.warning("%s; %s", refused, going_on)
