"""What a daemon of a program is to serve, from what its caller has said: checked, and described."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from vuproc import device_object, place
from vuproc.device import Device
from vuproc.device_file import model
from vuproc.errors import DeviceRefused, DeviceWrong, in_words
from vuproc.fd import HasFileno
from vuproc.program.absolute import absolute
from vuproc.program.place import Place, met_at
from vuproc.program.start import FileStart, ObjectStart

LogLevel = Literal["debug", "info", "warning", "error"]


class WantedObject:
    """A device object, with the place where front-ends meet it and the keys of a device file."""

    def __init__(
        self, device: Device, at: Place, access: Mapping[str, Any], keys: Mapping[str, Any]
    ) -> None:
        """`access` are keys of a device file's `socket`. TypeError or ValueError for what no device
        file could say.
        """
        self.device = checked_device(device)
        path, connects, given = met_at(at)
        self.given: HasFileno | None = given
        """An open socket, the caller's, in place of a path."""
        mode = "client" if connects else "server"
        socket = {"path": path or "", "mode": mode, **access}
        self._keys = _checked({**keys, "socket": socket, "device": {}})
        self.standby = True
        """A keeper is to have a standby master."""
        name = os.path.basename(path or "").partition(".")[0]
        self.name = name or type(device).__name__

    def described(self, device: Device | None = None, *, running: bool = False) -> ObjectStart:
        """What the master is told, with another device if one is given. `running`: it has its
        socket. Raises DeviceRefused or SocketRefused.
        """
        from vuproc.program import object_check  # it needs more than most of a program does

        device, keys = device or self.device, self._keys
        object_check.check_device(device)
        socket = keys.socket
        assert isinstance(socket, model.Socket)
        if self.given is None and not running:
            object_check.check_socket(socket)
        try:
            pickled = device_object.pickled(device, absolute(device.options))
        except DeviceWrong as error:
            raise DeviceRefused(str(error)) from error
        except OSError as error:
            raise DeviceRefused(f"a path of its options is relative: {in_words(error)}") from error
        return ObjectStart(
            name=self.name,
            kind=type(device).__qualname__.rpartition("<locals>.")[2],
            device=pickled,
            keys=keys,
            workers=object_check.grouped(device, keys.workers, postcopy=keys.postcopy),
            standby=self.standby,
        )


class WantedFile:
    """A device file; the master reads it."""

    given = None

    def __init__(self, start: FileStart) -> None:
        self.start = start
        self.name = os.path.splitext(os.path.basename(start.path))[0]

    def described(self) -> FileStart:
        """What the master is told."""
        return self.start


Wanted = WantedObject | WantedFile


def checked_device(device: object) -> Device:
    """TypeError for anything else than a device object."""
    if isinstance(device, Device):
        return device
    advice = f"; write {device.__name__}()" if isinstance(device, type) else ""
    raise TypeError(f"a device object is wanted, not {place.shown(device)}{advice}")


def queues_of(groups: Sequence[Sequence[int]] | None) -> list[list[int]] | None:
    """The key `workers`, as a device file has it."""
    return None if groups is None else [list(group) for group in groups]


def _checked(keys: dict[str, Any]) -> model.File:
    try:
        return msgspec.convert(keys, model.File)
    except msgspec.ValidationError as error:
        raise ValueError(str(error).replace("`", "").replace("$.", "")) from None
