"""Device classes as their files are now: a module that has changed since its import is imported
anew, with all that came from beside it.

For the master alone, which lives long. A worker imports once, when it starts.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterable
from importlib import invalidate_caches
from importlib.util import cache_from_source
from pathlib import Path
from types import ModuleType

from msgspec import Struct, field

from vuproc import loader, place
from vuproc.device import Device

NATIVE = (".so",)
"""Endings of modules that a process can import once only; new workers have the new ones."""

Version = tuple[int, int]
"""A file as it was: its modification time in nanoseconds, and its size in bytes."""
UNKNOWN = (0, -1)
"""Of a file that was written while it was imported, or after: it counts as changed."""
GONE = (0, 0)
"""Of a file that is not there."""


class _Code(Struct):
    """The modules of a device, by name, with their files as they were when they were imported."""

    modules: dict[str, ModuleType] = field(default_factory=dict)
    versions: dict[str, Version] = field(default_factory=dict)

    def note(self, modules: Iterable[ModuleType], started: int) -> None:
        """Count these, which were imported after `started`, a time in nanoseconds."""
        for module in modules:
            self.modules.setdefault(module.__name__, module)
            path = getattr(module, "__file__", None)
            if path is not None:
                version = _version(path)
                # What was written meanwhile may not be what was imported.
                meanwhile = started <= version[0] <= time.time_ns()
                self.versions.setdefault(path, UNKNOWN if meanwhile else version)

    def changed(self) -> list[str]:
        """The files that are not as they were."""
        return [path for path, version in self.versions.items() if _version(path) != version]


_known: dict[tuple[str, Path], _Code] = {}
"""What was loaded in this process: (source of the reference, folder of the device file) -> code."""


def load(ref: str, base_dir: Path) -> type[Device]:
    """As `loader.load`, with the device's code as it is in its files. Raises DeviceLoadError.

    What counts as the device's code is what came from its folder or that of the device file, or was
    imported with it, and is not of an installed package. If something of it has changed, all is
    imported anew; if that fails, this process has what it had.
    """
    key = _key(ref, base_dir)
    old = _known.get(key, _Code())
    changed = old.changed()
    if changed:
        _forget(old, changed)
    before, started = set(sys.modules), time.time_ns()
    try:
        found = loader.load(ref, base_dir)
    except BaseException:
        if changed:
            _put_back(old, before)
        raise
    new = _Code() if changed else old
    if changed:
        new.note(filter(_is_native, old.modules.values()), started)
    new.note(_of_authors(before, _folders(ref, base_dir)), started)
    _known[key] = new
    return found


def note(ref: str, base_dir: Path) -> None:
    """Count what the device has imported since, from its folders: it was asked to describe itself.

    `load` must have been called.
    """
    found = _of_authors(set(sys.modules), _folders(ref, base_dir))
    _known[_key(ref, base_dir)].note(found, time.time_ns())


def is_installed(ref: str, base_dir: Path) -> bool:
    """Whether all of a device's code is of installed packages, which a reload does not look at.

    `load` must have been called, unless the device is built in.
    """
    code = _known.get(_key(ref, base_dir))
    return code is None or not code.modules


def _forget(code: _Code, changed: list[str]) -> None:
    for name, module in code.modules.items():
        if not _is_native(module) and sys.modules.get(name) is module:
            del sys.modules[name]
    for path in changed:
        _forget_compiled(path, code.versions[path])
    invalidate_caches()


def _forget_compiled(path: str, was: Version) -> None:
    """Python goes by whole seconds and the size: what it compiled may look as if it were new."""
    now = _version(path)
    if path.endswith(".py") and (was == UNKNOWN or _as_python_sees(now) == _as_python_sees(was)):
        with contextlib.suppress(OSError):  # there is none, or it cannot be helped
            os.unlink(cache_from_source(path))


def _as_python_sees(version: Version) -> Version:
    return version[0] // 1_000_000_000, version[1]


def _put_back(code: _Code, before: set[str]) -> None:
    """Have again what was there, in place of what was imported by half."""
    for module in _of_authors(before, ()):
        sys.modules.pop(module.__name__, None)
    sys.modules.update(code.modules)


def _of_authors(before: set[str], folders: tuple[str, ...]) -> list[ModuleType]:
    """What was imported since `before`, or came from one of `folders`; no installed package."""
    return [
        module
        for name, module in list(sys.modules.items())
        if name != "__main__"
        and (home := _home(module))
        and (name not in before or home.startswith(folders))
        and not place.is_of_others(home)
    ]


def _home(module: ModuleType) -> str:
    """The file of a module, or the folder of a package without one."""
    path = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), None)
    return "" if path is None else str(path)


def _is_native(module: ModuleType) -> bool:
    return str(getattr(module, "__file__", "")).endswith(NATIVE)


def _key(ref: str, base_dir: Path) -> tuple[str, Path]:
    return ref.rpartition(":")[0], base_dir


def _folders(ref: str, base_dir: Path) -> tuple[str, ...]:
    """How the paths of the files in a device's folders begin."""
    path = loader.file_of(ref, base_dir)
    folders = (base_dir,) if path is None else (base_dir, path.parent)
    return tuple(os.path.join(folder, "") for folder in folders)


def _version(path: str) -> Version:
    try:
        status = os.stat(path)
    except OSError:
        return GONE
    return status.st_mtime_ns, status.st_size
