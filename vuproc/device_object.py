"""A device object as bytes, and back: how a device that a program has made gets to its workers.

What a class of an importable module is made of is found by its name. A class of `__main__`, of a
notebook or of a function travels as a whole (dill), and so do the functions and globals that it
uses. dill is imported when a device is pickled or unpickled, and not for a device of a device file.
"""

from __future__ import annotations

import fcntl
import importlib.util
import io
import os
import sys
from collections.abc import Iterator
from importlib.machinery import PathFinder
from typing import Any

import msgspec

from vuproc import struct_class, texts
from vuproc.device import Device
from vuproc.errors import DeviceWrong
from vuproc.fd import Fd
from vuproc.options import Options

MAX_BYTES = 64 << 20
"""Bytes of the largest pickled device. What is larger belongs into a file: `shared_files`."""

_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


class _Pickled(msgspec.Struct):
    """`modules`: where to find those that no path leads to, by name."""

    modules: dict[str, str]
    device: bytes


def pickled(device: Device, options: Options | None = None) -> bytes:
    """The device with its class, where that is not to be had by its name, and with these options in
    place of its own. Raises DeviceWrong.
    """
    import dill

    before = device.options

    class Pickler(dill.Pickler):  # type: ignore[misc]
        def reducer_override(self, obj: Any) -> Any:
            if obj is before and options is not None:
                return options.__reduce__()
            return struct_class.parts_of(obj)

    output = io.BytesIO()
    try:
        Pickler(output, byref=False, recurse=True).dump(device)
    except Exception as error:
        name = type(device).__name__
        text = (
            f"{name} cannot be handed to its workers: {texts.described(error)}; keep what belongs "
            "to one process out of the object, and make it in setup"
        )
        raise DeviceWrong(text) from error
    content = msgspec.msgpack.encode(_Pickled(_modules_of(device), output.getvalue()))
    if len(content) > MAX_BYTES:
        text = f"{type(device).__name__} takes {len(content)} bytes, more than {MAX_BYTES}"
        raise DeviceWrong(f"{text}; give its workers a file (Device.shared_files)")
    return content


def unpickled(content: bytes) -> Device:
    """A new device from what `pack` made. Raises DeviceWrong."""
    import dill

    try:
        read = msgspec.msgpack.decode(content, type=_Pickled)
        for name, path in read.modules.items():
            _import_from(name, path)
        device: object = dill.loads(read.device)
    except Exception as error:
        raise DeviceWrong(f"the device cannot be made anew: {texts.described(error)}") from error
    if not isinstance(device, Device):
        raise DeviceWrong(f"what was unpickled is of type {type(device).__name__}, not a device")
    return device


def sealed(content: bytes, name: str) -> Fd:
    """A file in memory that holds `content` and that nobody can change. Raises OSError."""
    file = Fd(os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
    try:
        with open(file.dup().take(), "wb") as writer:
            writer.write(content)
        fcntl.fcntl(file.fileno(), fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        file.close()
        raise
    return file


def content_of(file: Fd) -> bytes:
    """All that is in a sealed file; whoever else has it open is not disturbed. Raises OSError."""
    with open(file.dup().take(), "rb") as reader:
        return os.pread(reader.fileno(), min(file.size, 2 * MAX_BYTES), 0)


# Modules that another interpreter would not find.


def _modules_of(device: Device) -> dict[str, str]:
    """The files of the modules that the device's classes come from, where no path leads there."""
    classes = [*type(device).__mro__, *type(device.options).__mro__]
    return {name: path for name in {cls.__module__ for cls in classes} for path in _lost(name)}


def _lost(name: str) -> Iterator[str]:
    module = sys.modules.get(name)
    path = getattr(module, "__file__", None)
    if name == "__main__" or path is None:
        return
    where: list[str] | None = None
    parts = name.split(".")
    for count in range(1, len(parts) + 1):
        spec = PathFinder.find_spec(".".join(parts[:count]), where)
        if spec is None:
            yield os.path.abspath(path)
            return
        where = list(spec.submodule_search_locations or [])
    if spec is None or spec.origin is None or not os.path.samefile(spec.origin, path):
        yield os.path.abspath(path)


def _import_from(name: str, path: str) -> None:
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
