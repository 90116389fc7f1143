"""Devices that share objects with other devices of the guest, each named by a UUID."""

from __future__ import annotations

import os
from uuid import UUID

import msgspec

from vuproc.device import Device
from vuproc.fd import Fd, HasFileno

NIL = UUID(int=0)
"""No object has it (vhost-user, "Shared objects")."""


class ShareObject(msgspec.Struct, frozen=True, tag=True):
    """The file that the device's workers know as `file` is to be had by others as `uuid`."""

    uuid: bytes
    file: str


class ShareFile(msgspec.Struct, frozen=True, tag=True):
    """A file that the device has made itself is to be had by others as `uuid`.

    The descriptor is a copy, and whoever receives it owns it.
    """

    uuid: bytes
    file: Fd


class UnshareObject(msgspec.Struct, frozen=True, tag=True):
    """It is not to be had any more."""

    uuid: bytes


class LookUpObject(msgspec.Struct, frozen=True, tag=True):
    """Ask the front-end for an object of another device."""

    uuid: bytes


ObjectAsk = ShareObject | ShareFile | UnshareObject | LookUpObject
"""What a device asks of the master about objects; nobody waits for an answer."""


class SharingDevice(Device):
    """A device that shares objects, and may look up those of others, by the front-end.

    All of it is for the worker of queue 0. What is shared are files of `shared_files`, or any that
    the device opens as it runs: of those the master keeps a copy. An object stays shared, whatever
    becomes of the worker and of the front-end, until `unshare_object`.
    """

    def share_object(self, uuid: UUID, file: str | HasFileno) -> None:
        """Let others have a file as `uuid`, instead of any other: the shared file of this name, or
        an open file, which stays the device's own to close.

        Raises ValueError for a name that is not in `shared`, and for the nil UUID.
        """
        number = _checked(uuid)
        if not isinstance(file, str):
            with Fd(os.dup(file.fileno())) as copy:
                self._running_in().ask(ShareFile(number, copy))
            return
        if file not in self.shared:
            raise ValueError(f"{file!r} is none of the shared files: {', '.join(self.shared)}")
        self._running_in().ask(ShareObject(number, file))

    def unshare_object(self, uuid: UUID) -> None:
        """Let nobody have it any more; who has it keeps it."""
        self._running_in().ask(UnshareObject(_checked(uuid)))

    def look_up_object(self, uuid: UUID) -> None:
        """Ask the front-end for an object of another device: `object_found` has the answer, once a
        ring runs. There may be none if worker or master die meanwhile; `recovered` tells the next.
        """
        self._running_in().ask(LookUpObject(_checked(uuid)))

    def object_found(self, uuid: UUID, file: Fd | None) -> None:
        """The answer to `look_up_object`: the file, which is the device's own from then on, or None
        if there is no such object.
        """
        if file is not None:
            file.close()


def _checked(uuid: UUID) -> bytes:
    if uuid == NIL:
        raise ValueError("the nil UUID is no object's")
    return uuid.bytes
