"""A device file, read, checked and typed: all that `run` needs, or all that is wrong."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from msgspec import NODEFAULT, Struct, structs

from vuproc import device_object, place
from vuproc.device import Device
from vuproc.device_file import imported
from vuproc.device_file.convert import FAILED, Converter
from vuproc.device_file.description import (
    OPTIONAL,
    description_problems,
    grouping_problems,
    ignored,
    units_of,
)
from vuproc.device_file.device_class import class_problems
from vuproc.device_file.fixed import fixed_options
from vuproc.device_file.model import MAX_SOCKET_PATH, File, Socket
from vuproc.device_file.options_class import travel_problem
from vuproc.device_file.owner import owner_problems
from vuproc.device_file.shared_check import open_shared
from vuproc.device_file.yaml_text import (
    MAX_BYTES,
    START,
    ListValue,
    MapValue,
    Mark,
    ScalarValue,
    Value,
    YamlUnreadable,
    read,
)
from vuproc.errors import ConfigError, ConfigErrors, DeviceLoadError, DeviceWrong, FileRefused
from vuproc.fd import Fd
from vuproc.listener import draft_of
from vuproc.options import Options
from vuproc.unix_path import ADMIN_SUFFIX, LOCK_SUFFIX

_WHOLE = Mark(0, 0)
_WRITTEN = ("content", "pickled", "type_at")
"""Fields of a device file that say how it was written, not what."""


class DeviceFile(Struct, frozen=True, eq=False):
    """A device file without a known error. Paths are absolute."""

    path: Path
    """The device file itself."""
    base_dir: Path
    """Its folder: where relative paths in it begin."""
    keys: File
    """What the file says outside of the device; its `socket` is a Socket."""
    workers: tuple[tuple[int, ...], ...]
    """Queues a worker, for each worker: every queue of the device once."""
    type_ref: str
    """The device's type as written; with `base_dir`, what `loader.load` takes."""
    device_type: type[Device]
    options: Options
    """Of the type `device_type.options_type`."""
    content: bytes = b""
    """What was read."""
    pickled: bytes = b""
    """The device itself, if it is a program's object and of no file (`vuproc.device_object`)."""
    type_at: tuple[str, int, int] = ("", 0, 0)
    """The file as it was named, and the line and column of its `type`."""

    def __eq__(self, other: object) -> bool:
        """Whether it says the same, however that is written."""
        if not isinstance(other, DeviceFile):
            return NotImplemented
        said = [name for name in self.__struct_fields__ if name not in _WRITTEN]
        return all(getattr(self, name) == getattr(other, name) for name in said)

    def __hash__(self) -> int:
        return hash((self.path, self.type_ref))

    def __repr__(self) -> str:
        """Its content may be long, and confidential."""
        return f"DeviceFile({str(self.path)!r})"

    @property
    def socket(self) -> Socket:
        """Where the VMM is met."""
        assert isinstance(self.keys.socket, Socket)
        return self.keys.socket

    def with_keys(self, **values: Any) -> DeviceFile:
        """The same with other keys."""
        return structs.replace(self, keys=structs.replace(self.keys, **values))

    def make_device(self) -> Device:
        """A new instance of the device."""
        if self.pickled:
            return device_object.unpickled(self.pickled)
        return self.device_type(self.options)

    def open_shared(self, device: Device) -> dict[str, Fd]:
        """The files that `device` gives its workers to share, owned by the caller.

        Raises ConfigErrors if they are not what the device class says.
        """
        try:
            return open_shared(device)
        except DeviceWrong as error:
            raise ConfigErrors((ConfigError(*self.type_at, f"type: {error}"),)) from error


def load(
    path: str | Path,
    content: bytes | None = None,
    *,
    look: bool = True,
    makes_socket: bool = True,
) -> DeviceFile:
    """Read and check a device file. Raises ConfigErrors with everything that is wrong in it.

    `content`: take this for what is in the file, and do not read it. `look`: at what the file names
    as well, such as images; not for a device that runs already, whatever has become of them.
    `makes_socket`: something is to be made where the file says that the socket is.
    """
    return _Check(str(path), content, look, look and makes_socket).file()


def check_shared(file: DeviceFile) -> None:
    """Ask an author's device for the files that its workers share, and close them.

    Raises ConfigErrors. Of a built-in device they are known to be right, and a file that is locked
    is the matter of the process that serves it.
    """
    device = file.make_device()
    if _is_ours(type(device).shared_files):
        return
    try:
        shared = file.open_shared(device)
    except ConfigErrors as errors:
        wrong = errors.__cause__
        if wrong is not None and isinstance(wrong.__cause__, BlockingIOError):
            return
        raise
    except FileRefused as refused:
        if isinstance(refused.__cause__, BlockingIOError):
            return
        name, line, column = file.type_at
        message = f"type: {refused}"
        raise ConfigErrors((ConfigError(name, line, column, message),)) from refused
    for fd in shared.values():
        fd.close()


def check_socket_path(path: str, mode: str = "server", *, look: bool = True) -> list[str]:
    """What is wrong with the absolute `path` of a socket; empty if nothing is.

    The admin socket lies beside it, and a lock beside each of those that are ours. `look`: at what
    is there.
    """
    length = len(os.fsencode(path))
    if length > MAX_SOCKET_PATH:
        limit = f"{MAX_SOCKET_PATH}, which leaves room for the admin socket's {ADMIN_SUFFIX}"
        return [f"the socket's path has {length} bytes, more than {limit}: {path}"]
    return _beside_problems(path, mode) if look else []


def _beside_problems(path: str, mode: str) -> list[str]:
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        return [f"the socket's folder {folder} does not exist"]
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
        return [f"the socket's folder {folder} is not writable"]
    sockets = (path, f"{path}{ADMIN_SUFFIX}")
    ours = sockets[1:] if mode == "client" else sockets
    locks = tuple(f"{name}{LOCK_SUFFIX}" for name in ours)
    drafts = tuple(str(draft_of(Path(name))) for name in ours)
    expected = (
        ((*sockets, *drafts), stat.S_ISSOCK, "socket"),
        (locks, stat.S_ISREG, "regular file"),
    )
    return [
        problem
        for names, is_kind, kind in expected
        for name in names
        if (problem := _other_kind(name, is_kind, kind)) is not None
    ]


def _other_kind(path: str, is_kind: Callable[[int], bool], kind: str) -> str | None:
    try:
        there = os.lstat(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"{path}: {(error.strerror or 'not accessible').lower()}"
    return None if is_kind(there.st_mode) else f"{path} exists and is not a {kind}"


class _Check:
    """One pass over one device file."""

    def __init__(self, name: str, content: bytes | None, look: bool, look_beside: bool) -> None:
        self._name = name
        self._content = content
        self._look = look
        self._look_beside = look_beside
        self._path = Path(os.path.abspath(name))
        self._errors: list[ConfigError] = []
        self._converter = Converter(self._report, self._path.parent)

    def file(self) -> DeviceFile:
        root = self._root()
        fields = self._converter.struct(root, File, skip=("device",))
        socket = self._socket(root, fields.get("socket", FAILED))
        device, type_ref = self._device(root)
        workers = self._workers(root, fields, device)
        self._look_for_contradictions(root, fields)
        self._stop_on_errors()
        assert isinstance(socket, Socket)
        assert device is not None
        imported.note(type_ref, self._path.parent)
        return DeviceFile(
            path=self._path,
            base_dir=self._path.parent,
            keys=File(**{**fields, "socket": socket, "device": {}}),
            workers=workers,
            type_ref=type_ref,
            device_type=type(device),
            options=device.options,
            content=self._content or b"",
            type_at=(self._name, *_place_of_type(root)),
        )

    def _report(self, mark: Mark, message: str) -> None:
        self._errors.append(ConfigError(self._name, mark.line, mark.column, message))

    def _stop_on_errors(self) -> None:
        if self._errors:
            self._errors.sort(key=lambda error: (error.line, error.column))
            raise ConfigErrors(tuple(self._errors))

    def _root(self) -> MapValue:
        """The file's mapping; raises ConfigErrors if there is none to go on with."""
        try:
            text = self._text()
            root = None if text is None else read(text, self._report)
        except YamlUnreadable:
            root = None
        self._stop_on_errors_unless(isinstance(root, MapValue), root)
        assert isinstance(root, MapValue)
        return root

    def _stop_on_errors_unless(self, usable: bool, root: Value | None) -> None:
        if usable:
            return
        if not self._errors:
            where = START if root is None else root.mark
            self._report(where, "expected a mapping with the keys socket and device")
        self._stop_on_errors()

    def _text(self) -> str | None:
        try:
            if self._content is None:
                with open(self._path, "rb") as file:
                    self._content = file.read(MAX_BYTES + 1)
        except OSError as error:
            self._report(_WHOLE, (error.strerror or "cannot be read").lower())
            return None
        data = self._content
        if len(data) > MAX_BYTES:
            self._report(_WHOLE, f"more than {MAX_BYTES} bytes, too much for a device file")
            return None
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            before = data[: error.start]
            line_start = before.rfind(b"\n") + 1
            column = len(before[line_start:].decode("utf-8", "replace")) + 1
            self._report(Mark(before.count(b"\n") + 1, column), "not UTF-8 text")
            return None

    def _socket(self, root: MapValue, socket: Any) -> Any:
        if socket is FAILED:
            return FAILED
        if isinstance(socket, str):
            socket = Socket(path=socket)
        for problem in check_socket_path(socket.path, socket.mode, look=self._look_beside):
            self._report(_mark_in(root.items["socket"], "path"), problem)
        for key, problem in owner_problems(socket):
            self._report(_mark_in(root.items["socket"], key), f"{key}: {problem}")
        return socket

    def _device(self, root: MapValue) -> tuple[Device | None, str]:
        section = root.items.get("device")
        if section is None:
            self._report(root.mark, "missing key device")
            return None, ""
        if not isinstance(section, MapValue):
            self._report(section.mark, "device: expected a mapping with the key type")
            return None, ""
        type_value = section.items.get("type")
        if type_value is None:
            self._report(section.mark, "missing key type")
            return None, ""
        if not isinstance(type_value, ScalarValue) or not isinstance(type_value.value, str):
            self._report(type_value.mark, "type: expected the name of a device type")
            return None, ""
        try:
            device_type = imported.load(type_value.value, self._path.parent)
        except DeviceLoadError as error:
            self._report(type_value.mark, f"type: {error}")
            return None, ""
        problems = [] if _is_ours(device_type) else list(class_problems(device_type))
        if problems:
            self._report_type(type_value.mark, problems)
            return None, ""
        fixed = self._report_fixed(section, device_type)
        options = self._options(section, device_type.options_type, fixed)
        if options is None or fixed:
            return None, ""
        return self._describe(section, device_type, options), type_value.value

    def _report_fixed(self, section: MapValue, device_type: type[Device]) -> tuple[str, ...]:
        """The keys of options which the class itself has decided on."""
        names = _keys_of(device_type.options_type)
        wrong = []
        for option, words in fixed_options(device_type).items():
            key = names[option]
            if key in section.items:
                self._report(section.items[key].mark, f"{key}: {words}; leave the line out")
                wrong.append(key)
        return tuple(wrong)

    def _options(
        self, section: MapValue, options_type: type[Options], skip: tuple[str, ...]
    ) -> Options | None:
        fields = self._converter.struct(section, options_type, skip=("type", *skip))
        bad = {name for name, value in fields.items() if value is FAILED}
        good = {name: value for name, value in fields.items() if name not in bad}
        required = _required(options_type)
        if bad & required:
            return None  # nothing to make the rest of the checks with
        before = len(self._errors)
        options = self._converter.make(options_type, good, section.mark)
        if not isinstance(options, Options):
            return None
        names = _keys_of(options_type)
        try:
            for name, message in options.problems() if self._look else ():
                # What is said of the whole may only follow from a field that is wrong already.
                if name not in bad and (name or not bad):
                    key = names.get(name, name)
                    mark = _mark_in(section, key) if key in section.items else section.mark
                    self._report(mark, f"{key}: {message}" if key else message)
        except (Exception, SystemExit) as error:
            self._report(section.mark, place.raised(options_type, "problems", error))
        if not bad and len(self._errors) == before:
            problem = travel_problem(options)
            if problem:
                self._report(section.mark, problem)
        return None if bad or len(self._errors) > before else options

    def _describe(
        self, section: MapValue, device_type: type[Device], options: Options
    ) -> Device | None:
        """Make the device and hear what it says of itself: an author's code, so anything goes."""
        before = len(self._errors)
        mark = section.items["type"].mark
        try:
            device = device_type(options)
        except (Exception, SystemExit) as error:
            self._report_type(mark, [place.raised(device_type, "__init__", error)])
            return None
        self._report_type(mark, kept_options_problems(device))
        if self._look and len(self._errors) == before:
            self._report_type(mark, description_problems(device))
        if self._look and len(self._errors) == before:
            self._report_ignored(section, device)
        return device if len(self._errors) == before else None

    def _report_type(self, mark: Mark, problems: Iterable[str]) -> None:
        for problem in problems:
            self._report(mark, f"type: {problem}")

    def _report_ignored(self, section: MapValue, device: Device) -> None:
        """An option that every device has, and this one takes no notice of."""
        keys = _keys_of(type(device.options))
        for name, (method, *_) in OPTIONAL.items():
            if keys[name] in section.items and ignored(device, name):
                says = f"{type(device).__name__}.{method}() is {getattr(device, method)()}"
                text = f"{keys[name]}: {says} whatever this says; leave the line out"
                self._report(section.items[keys[name]].mark, text)

    def _look_for_contradictions(self, root: MapValue, fields: Mapping[str, Any]) -> None:
        """A worker that waits for a translation may not be able to say so while it waits for a
        page; and memory of Xen is neither behind an IOMMU of ours nor in a userfaultfd.
        """
        postcopy, iommu = fields.get("postcopy") is True, fields.get("iommu") is True
        if postcopy and iommu:
            self._report(root.items["postcopy"].mark, "postcopy: not together with iommu: true")
        if fields.get("xen") in ("on", "auto") and (postcopy or iommu):
            other = "postcopy" if postcopy else "iommu"
            self._report(root.items["xen"].mark, f"xen: not together with {other}: true")

    def _workers(
        self, root: MapValue, fields: Mapping[str, Any], device: Device | None
    ) -> tuple[tuple[int, ...], ...]:
        wanted = fields.get("workers")
        if device is None or wanted is FAILED:
            return ()
        units = units_of(device, postcopy=fields.get("postcopy") is True)
        if wanted is None:
            return tuple(units)
        section = root.items["workers"]
        for spot, message in grouping_problems(wanted, units):
            self._report(_mark_at(section, spot), f"workers: {message}")
        for number, group in enumerate(wanted):
            if not group:
                self._report(_mark_at(section, (number, 0)), "workers: a worker needs a queue")
        return tuple(tuple(group) for group in wanted)


def _keys_of(struct: type[Struct]) -> dict[str, str]:
    """How its fields are written, by name. `msgspec.structs.fields` evaluates their annotations,
    which takes as long as all else here.
    """
    return dict(zip(struct.__struct_fields__, struct.__struct_encode_fields__, strict=True))


def _required(struct: type[Struct]) -> set[str]:
    """The names of its fields without a default: defaults are those of the last fields."""
    names, defaults = struct.__struct_fields__, struct.__struct_defaults__
    first = len(names) - len(defaults)
    later = zip(names[first:], defaults, strict=True)
    return {*names[:first], *(name for name, default in later if default is NODEFAULT)}


def _is_ours(what: object) -> bool:
    """Whether a class or a method came with vuproc: it is known to be right."""
    return str(getattr(what, "__module__", "")).startswith("vuproc.")


def kept_options_problems(device: Device) -> Iterator[str]:
    """Whether the device keeps options that can be had by the workers."""
    kept, wanted = getattr(device, "options", None), type(device).options_type
    if kept is None:
        text = "__init__ keeps no options; write super().__init__(options)"
        yield place.about(type(device), "__init__", text)
    elif not isinstance(kept, wanted):
        text = f"__init__ keeps {place.shown(kept)} for its options, not what it was given"
        yield place.about(type(device), "__init__", text)
    else:
        problem = travel_problem(kept)
        if problem:
            yield place.at(place.of_class(type(kept)), problem)


def _place_of_type(root: MapValue) -> tuple[int, int]:
    mark = _mark_in(root.items["device"], "type")
    return mark.line, mark.column


def _mark_in(value: Value, key: str) -> Mark:
    if isinstance(value, MapValue) and key in value.items:
        return value.items[key].mark
    return value.mark


def _mark_at(section: Value, place: tuple[int, int] | None) -> Mark:
    """The mark of item `place` of a list of lists, or of what is nearest to it."""
    if place is None or not isinstance(section, ListValue):
        return section.mark
    group = section.items[place[0]]
    if isinstance(group, ListValue) and place[1] < len(group.items):
        return group.items[place[1]].mark
    return group.mark
