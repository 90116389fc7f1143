"""What a program wants to have served: an object of its own, or a device file."""

from __future__ import annotations

from pathlib import Path

import msgspec

from vuproc import device_object
from vuproc.device_file import check
from vuproc.device_file.check import DeviceFile
from vuproc.device_file.model import File
from vuproc.errors import ConfigError, ConfigErrors
from vuproc.fd import Fd


class ObjectStart(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A device object. `device` is pickled, `name` what the log calls it, `kind` its class; `keys`
    are those of a device file, `workers` as they are understood.
    """

    name: str
    kind: str
    device: bytes
    keys: File
    workers: tuple[tuple[int, ...], ...]
    standby: bool = True
    """A keeper is to have a standby master."""

    def described(self, content: bytes) -> DeviceFile:
        """The same as a device file would be understood. Raises DeviceWrong."""
        device = device_object.unpickled(self.device)
        return DeviceFile(
            path=Path(self.name),
            base_dir=Path("/"),
            keys=self.keys,
            workers=self.workers,
            type_ref=self.kind,
            device_type=type(device),
            options=device.options,
            content=content,
            pickled=self.device,
            type_at=(self.kind, 0, 0),
        )


class FileStart(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A device file with its absolute path; what is not None replaces what the file says."""

    path: str
    socket: str | None = None
    log_level: str | None = None
    standby: bool = True
    """As that of `ObjectStart`."""

    def load(self, content: bytes | None = None, *, look: bool = True) -> DeviceFile:
        """Read and check it, as `check.load` does. Raises ConfigErrors."""
        file = check.load(self.path, content, look=look)
        if self.socket is not None:
            problems = check.check_socket_path(self.socket, file.socket.mode, look=look)
            if problems:
                raise ConfigErrors(tuple(ConfigError(self.path, 0, 0, text) for text in problems))
            moved = msgspec.structs.replace(file.socket, path=self.socket)
            file = file.with_keys(socket=moved)
        if self.log_level is not None:
            file = file.with_keys(log_level=self.log_level)
        return file


AnyStart = ObjectStart | FileStart


def sealed(start: AnyStart) -> Fd:
    """A file in memory from which it can be `read`. Raises OSError."""
    return device_object.sealed(msgspec.msgpack.encode(start), "vuproc-start")


def read(file: Fd) -> tuple[AnyStart, bytes]:
    """What `sealed` was given, and the bytes of it. Raises OSError or msgspec.MsgspecError."""
    content = device_object.content_of(file)
    return decode(content), content


def decode(content: bytes) -> AnyStart:
    """The same from the bytes."""
    found: AnyStart = msgspec.msgpack.decode(content, type=AnyStart)
    return found
