"""What a changed device file means for the device that is running: a pure comparison.

Nothing is applied here. A file that is not valid never comes this far: `check.load` raises.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args

import msgspec
from msgspec import Meta

from vuproc.device import Device
from vuproc.device_file.check import DeviceFile
from vuproc.device_file.description import units_of
from vuproc.device_file.model import RELOAD, File, Socket
from vuproc.device_file.yaml_text import (
    MAX_BYTES,
    START,
    MapValue,
    Mark,
    Value,
    YamlUnreadable,
    read,
)
from vuproc.errors import ConfigError, ConfigErrors, FileRefused
from vuproc.fd import Fd
from vuproc.mapping import regions_of
from vuproc.options import KIND, PATH, Options
from vuproc.spec.virtio import Feature
from vuproc.vhost_user.hooks import protocol_features_of


class Scope(Enum):
    """When a change takes effect, and what it costs."""

    NOW = "applied"
    WORKERS = "applied by new workers, one queue at a time"
    SESSION = "takes effect with the next front-end"
    RESTART = "takes effect after a restart"


def _scopes(struct: type[msgspec.Struct], prefix: str = "") -> dict[str, Scope]:
    """When a change of each key takes effect, as its row in the table of keys says."""
    found = {}
    for field in msgspec.structs.fields(struct):
        metas = [meta for meta in getattr(field.type, "__metadata__", ()) if isinstance(meta, Meta)]
        names = [meta.extra[RELOAD] for meta in metas if meta.extra and RELOAD in meta.extra]
        found[f"{prefix}{field.encode_name}"] = Scope[names[0]] if names else Scope.SESSION
    return found


_SCOPES: Mapping[str, Scope] = MappingProxyType({**_scopes(File), **_scopes(Socket, "socket.")})
"""Of the keys outside `device`."""
_ELSEWHERE = frozenset({"socket", "device", "workers"})
"""Keys of `DeviceFile.keys` that have a field of their own."""
_DEVICE_FIELDS = frozenset({"type_ref", "device_type", "options", "pickled"})
_SOURCE_FIELDS = frozenset({"path", "base_dir", "content", "type_at"})


class Change(msgspec.Struct, frozen=True):
    """One key that has another value or another meaning; `text` is a line for the operator."""

    key: str
    scope: Scope
    text: str


class Plan(msgspec.Struct, frozen=True):
    """What is to be done about a new device file, and what has to wait."""

    changes: tuple[Change, ...]
    now: DeviceFile
    """What is in force once the plan is carried out: the old file with what can be applied."""
    later: DeviceFile | None
    """The new file, if some of it has to wait."""
    new_workers: bool
    """Every worker is to be replaced by one of `now`."""
    config: bytes | None
    """The new content of the configuration space, of which the driver is to be told."""
    replaced: bool = False
    """Files that the device has open are to be opened anew, with what has to wait."""


def compare(
    old: DeviceFile,
    new: DeviceFile,
    places: Mapping[str, Mark],
    *,
    config: bytes,
    shared: Mapping[str, Fd] = MappingProxyType({}),
) -> Plan:
    """Compare what runs with a new file; `config` is what the running device has in its
    configuration space, without the driver's writes, and `shared` are its files.

    The `device` part changes as a whole: at once if all of it can, else with the next front-end.
    Raises ConfigErrors if a file cannot be had, and whatever the device's own code does.
    """
    device = new.make_device()
    device.shared = shared
    # Before the configuration is asked for: a device may look anew at what is far away.
    replaced = list(_replaced(device, new.path, places))
    new_config = device.config_space()
    outside = list(_outside(old, new))
    inside = [*_inside(old, new), *replaced]
    live = not inside or (
        all(scope is Scope.WORKERS for _, scope, _ in inside)
        and _same_kind(old.make_device(), device)
        and len(config) == len(new_config)
    )
    if not live:
        inside = [(key, Scope.SESSION, what) for key, _, what in inside]
    elif new_config != config and not inside:
        # The file says what it said, but not the same of the world: an image that has grown.
        inside = [(_path_key(new.options), Scope.WORKERS, "it is not what it was")]
    changes = tuple(
        Change(key, scope, f"{_at(new.path, places, key)}: {key}: {what}: {scope.value}")
        for key, scope, what in sorted(
            [*outside, *inside], key=lambda change: _place(places, change[0])
        )
    )
    waits = any(change.scope in (Scope.SESSION, Scope.RESTART) for change in changes)
    now = _merged(old, new, {key for key, scope, _ in outside if scope is Scope.NOW}, live)
    return Plan(
        changes=changes,
        now=now if waits else msgspec.structs.replace(now, content=new.content),
        later=new if waits else None,
        new_workers=live and bool(inside),
        config=new_config if live and inside and new_config != config else None,
        replaced=bool(replaced),
    )


def places(path: Path) -> dict[str, Mark]:
    """Where each key of a device file stands, such as "device.image"; what is not there is not.

    The file has been read and found good before: whatever is wrong by now leads to fewer places.
    """
    try:
        with open(path, "rb") as file:
            root = read(file.read(MAX_BYTES).decode("utf-8-sig"), lambda _mark, _message: None)
    except (OSError, UnicodeDecodeError, YamlUnreadable):
        return {}
    return dict(_keys("", root)) if isinstance(root, MapValue) else {}


def _keys(prefix: str, value: Value) -> Iterator[tuple[str, Mark]]:
    if isinstance(value, MapValue):
        for key, item in value.items.items():
            yield f"{prefix}{key}", value.keys[key]
            yield from _keys(f"{prefix}{key}.", item)


_Found = tuple[str, Scope, str]


def _outside(old: DeviceFile, new: DeviceFile) -> Iterator[_Found]:
    """What differs outside `device`."""
    for name in DeviceFile.__struct_fields__:
        if name in _DEVICE_FIELDS | _SOURCE_FIELDS:
            continue
        before, after = getattr(old, name), getattr(new, name)
        if isinstance(before, File):
            for key, pair in _different(old.socket, new.socket):
                yield _found(f"socket.{key}", *pair)
            for key, pair in _different(before, after):
                if key not in _ELSEWHERE:
                    yield _found(key, *pair)
        elif before != after and not (name == "workers" and _by_default(old, new)):
            yield _found(name, before, after)


def _by_default(*files: DeviceFile) -> bool:
    """Whether the workers only follow from the devices."""
    return all(
        file.workers == tuple(units_of(file.make_device(), postcopy=file.keys.postcopy))
        for file in files
    )


def _found(key: str, before: object, after: object) -> _Found:
    if key == "socket.permissions":
        before, after = f"{before:03o}", f"{after:03o}"
    return key, _SCOPES[key], _becomes(before, after)


def _inside(old: DeviceFile, new: DeviceFile) -> Iterator[_Found]:
    """What differs inside `device`."""
    if old.type_ref != new.type_ref:
        yield "device.type", Scope.SESSION, _becomes(old.type_ref, new.type_ref)
    elif new.pickled:
        # A class that travels with its object is another one each time that it arrives.
        if old.pickled != new.pickled and not list(_different(old.options, new.options)):
            yield "device", Scope.WORKERS, "the object has changed"
    elif old.device_type is not new.device_type:
        yield "device.type", Scope.WORKERS, "its code has changed"
    for key, (before, after) in _different(old.options, new.options):
        live = key in type(new.options).live
        scope = Scope.WORKERS if live else Scope.SESSION
        yield f"device.{key}", scope, _becomes(before, after)


def _replaced(device: Device, path: Path, places: Mapping[str, Mark]) -> Iterator[_Found]:
    """The files that are open and not what the options name any more."""
    try:
        for option, what in device.replaced_files():
            yield f"device.{option}", Scope.SESSION, what
    except FileRefused as refused:
        mark = _place(places, f"device.{refused.option}")
        message = f"{refused.option}: {refused.reason}"
        error = ConfigError(str(path), mark.line, mark.column, message)
        raise ConfigErrors((error,)) from refused


def _different(old: msgspec.Struct, new: msgspec.Struct) -> Iterator[tuple[str, tuple[Any, Any]]]:
    before, after = msgspec.to_builtins(old), msgspec.to_builtins(new)
    for key in {**before, **after}:
        if before.get(key) != after.get(key):
            yield key, (before.get(key), after.get(key))


def _same_kind(old: Device, new: Device) -> bool:
    """Whether what a front-end may have negotiated holds for the new device, too."""
    return _kind(old) == _kind(new)


def _kind(device: Device) -> tuple[object, ...]:
    return (
        device.device_id,
        # Without IN_ORDER, which the rings keep whatever the device does.
        device.offered_features() & ~int(Feature.IN_ORDER),
        device.num_queues(),
        device.queue_size(),
        device.queue_groups(),
        protocol_features_of(device),
        regions_of(device),
    )


def _merged(old: DeviceFile, new: DeviceFile, keys: set[str], live: bool) -> DeviceFile:
    values = {key: getattr(new.keys, key) for key in keys if "." not in key}
    access = {key.removeprefix("socket.") for key in keys if key.startswith("socket.")}
    if access:
        ours = {key: getattr(new.socket, key) for key in access}
        values["socket"] = msgspec.structs.replace(old.socket, **ours)
    fields: dict[str, Any] = {"keys": msgspec.structs.replace(old.keys, **values)}
    if live:
        fields |= {name: getattr(new, name) for name in _DEVICE_FIELDS}
    return msgspec.structs.replace(old, **fields)


def _path_key(options: Options) -> str:
    """The key whose file must have changed, since nothing else has."""
    for name in type(options).kept_in:
        if getattr(options, name) is not None:
            return f"device.{name}"
    for field in msgspec.structs.fields(options):
        if _is_path(field.type) and getattr(options, field.name) is not None:
            return f"device.{field.encode_name}"
    return "device"


def _is_path(wanted: Any) -> bool:
    metas = [extra for extra in getattr(wanted, "__metadata__", ()) if isinstance(extra, Meta)]
    if any((meta.extra or {}).get(KIND) == PATH for meta in metas):
        return True
    return any(_is_path(inner) for inner in get_args(wanted) if not isinstance(inner, Meta))


def _becomes(before: object, after: object) -> str:
    return f"{_shown(before)} becomes {_shown(after)}"


def _shown(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return str([list(each) if isinstance(each, tuple) else each for each in value])
    return str(value) if value != "" else '""'


def _place(places: Mapping[str, Mark], key: str) -> Mark:
    """Where the key stands, or what it would stand in."""
    while key:
        if key in places:
            return places[key]
        key = key.rpartition(".")[0]
    return START


def _at(path: Path, places: Mapping[str, Mark], key: str) -> str:
    mark = _place(places, key)
    return f"{path}:{mark.line}:{mark.column}"
