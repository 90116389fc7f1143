"""From the `type` of a device file to the class; imported by workers, so it imports little."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import zlib
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import msgspec

from vuproc.device import Device
from vuproc.devices import BUILTIN
from vuproc.errors import DeviceLoadError
from vuproc.options import Options

ENTRY_POINTS = "vuproc.devices"
"""The entry point group in which an installed package names its devices."""
MAX_DEVICE_ID = 63
"""Largest virtio device id: PCI ids of modern devices are 0x1040 + id, up to 0x107f."""


def load(ref: str, base_dir: str | Path) -> type[Device]:
    """Import the device class which `ref` names.

    `ref` is the name of a built-in device or of an entry point, `./file.py:Class` (a relative path
    is relative to `base_dir`) or `module:Class`. Raises DeviceLoadError.
    """
    if ":" in ref:
        return _load(ref, Path(base_dir))
    if ref in BUILTIN:
        return _load(BUILTIN[ref], None)
    installed = _entry_points()
    if ref in installed:
        try:
            return _load(installed[ref], None)
        except DeviceLoadError as error:
            raise DeviceLoadError(ref, f"{error.ref}: {error.reason}") from error
    hint = suggestion(ref, [*BUILTIN, *installed]) or "; write ./file.py:Class for one of your own"
    raise DeviceLoadError(ref, f"no such device type{hint}")


def _load(ref: str, base_dir: Path | None) -> type[Device]:
    """The class of a reference with a colon. `base_dir` None: it is installed, and needs nothing
    from the folder of a device file.
    """
    source, _, attribute = ref.rpartition(":")
    return _class_of(ref, _module_of(ref, source, base_dir), attribute)


def build(ref: str, base_dir: str | Path, options: bytes) -> Device:
    """Make the device `ref` from its options, the msgpack of its options struct."""
    device_type = load(ref, base_dir)
    return device_type(msgspec.msgpack.decode(options, type=device_type.options_type))


def available() -> dict[str, str]:
    """Every device type with a name of its own: name -> `module:Class`, built-in ones first."""
    return {**BUILTIN, **{k: v for k, v in _entry_points().items() if k not in BUILTIN}}


def file_of(ref: str, base_dir: Path) -> Path | None:
    """The file which a `./file.py:Class` names, absolute; None for other kinds of reference."""
    source, colon, _ = ref.rpartition(":")
    if colon and (source.endswith(".py") or "/" in source):
        return (base_dir / Path(source).expanduser()).resolve()
    return None


def suggestion(name: str, known: Iterable[str]) -> str:
    """`; did you mean X?` if one of `known` is close to `name`, else an empty string."""
    import difflib  # for mistakes only, and workers are started often

    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def _entry_points() -> dict[str, str]:
    from importlib.metadata import entry_points  # slow to import, and a worker seldom needs it

    return {point.name: point.value for point in entry_points(group=ENTRY_POINTS)}


def _module_of(ref: str, source: str, base_dir: Path | None) -> ModuleType:
    path = None if base_dir is None else file_of(ref, base_dir)
    if base_dir is not None:
        _allow_siblings(base_dir if path is None else path.parent)
    try:
        if path is None:
            return importlib.import_module(source)
        return _import_file(ref, path)
    except DeviceLoadError:
        raise
    except SyntaxError as error:
        where = f"{error.filename}:{error.lineno}" if error.filename else source
        raise DeviceLoadError(ref, f"{where}: {error.msg}") from error
    except ModuleNotFoundError as error:
        # A missing parent package is as much "no such module" as the module itself.
        if path is None and error.name and f"{source}.".startswith(f"{error.name}."):
            raise DeviceLoadError(ref, f"no module named {error.name}") from error
        raise DeviceLoadError(ref, _blame(error)) from error
    except (Exception, SystemExit) as error:
        raise DeviceLoadError(ref, _blame(error)) from error


def _import_file(ref: str, path: Path) -> ModuleType:
    try:
        status = path.stat()
    except OSError as error:
        raise DeviceLoadError(ref, f"{path}: {_lower(error.strerror)}") from error
    # The name holds the file's identity: one module a version of the file, found again by pickle
    # and by msgspec when it resolves annotations.
    key = f"{path}:{status.st_mtime_ns}:{status.st_size}"
    name = f"vuproc_file_{path.stem}_{zlib.crc32(key.encode()):08x}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise DeviceLoadError(ref, f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _allow_siblings(folder: Path) -> None:
    """Let a device's file import modules beside it. Last in the path, so that it hides nothing."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _class_of(ref: str, module: ModuleType, attribute: str) -> type[Device]:
    found: object = module
    for name in attribute.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            devices = [
                key
                for key, value in vars(module).items()
                if isinstance(value, type) and issubclass(value, Device) and value is not Device
            ]
            hint = suggestion(name, devices) or (
                f"; it has {', '.join(sorted(devices))}" if devices else ""
            )
            raise DeviceLoadError(ref, f"no class {attribute}{hint}") from None
    if not isinstance(found, type) or not issubclass(found, Device):
        raise DeviceLoadError(ref, f"{attribute} is not a subclass of vuproc.Device")
    _check_class(ref, found)
    return found


def _check_class(ref: str, device: type[Device]) -> None:
    found = class_problem(device)
    if found is not None:
        from vuproc import place  # for mistakes only

        where = place.of_attribute(device, found[0])
        raise DeviceLoadError(ref, place.at(where, f"{device.__name__}{found[1]}"))


def class_problem(device: type[Device]) -> tuple[str, str] | None:
    """What is wrong with a class, and the attribute where."""
    others = ("handle_batch", "native", "pulls")
    if device.handle is Device.handle and not any(
        getattr(device, name) is not getattr(Device, name) for name in others
    ):
        return "handle", " has no method handle"
    number = getattr(device, "device_id", None)
    if number is None:
        near = suggestion("device_id", vars(device)).replace("did you mean", "is it meant by")
        return "device_id", f" sets no device_id{near}"
    if type(number) is not int or not 1 <= number <= MAX_DEVICE_ID:
        return "device_id", f".device_id is {number!r}, not one of 1 to {MAX_DEVICE_ID}"
    options: object = device.options_type
    if not (isinstance(options, type) and issubclass(options, Options)):
        return "options_type", ".options_type is not a subclass of vuproc.Options"
    return None


def _blame(error: BaseException) -> str:
    """The error with the line of the author's code that raised it."""
    from vuproc import place  # for mistakes only

    return place.blame(error)


def _lower(text: str | None) -> str:
    return (text or "cannot be read").lower()
