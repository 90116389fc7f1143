"""The device file of a device that a test serves."""

from __future__ import annotations

import inspect
import json
import os
import tempfile
from collections.abc import Mapping
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from vuproc.device import Device


def device_file(
    folder: Path,
    device: type[Device] | Mapping[str, Any] | str | os.PathLike[str],
    file: Mapping[str, Any] | None,
    options: Mapping[str, Any],
) -> tuple[Path, Path]:
    """The device file, made in `folder` if it is not there yet, and the socket it names."""
    if isinstance(device, (str, os.PathLike)):
        if options or file:
            raise ValueError("a device file says everything already, options go into it")
        return Path(device), _socket_of(Path(device))
    described = dict(device) if isinstance(device, Mapping) else {"type": reference(device)}
    path, socket = folder / "device.yaml", folder / "device.sock"
    keys = {**sandbox_for(str(described.get("type"))), **(file or {})}
    content = {"socket": str(socket), "device": {**described, **options}, **keys}
    # JSON is YAML.
    path.write_text(json.dumps(content, default=os.fspath), encoding="utf-8")
    return path, socket


def sandbox_for(type_ref: str) -> dict[str, Any]:
    """What a device file of a test says of the sandbox, unless it says something itself: a class of
    its author's may use the folder for temporary files, where tests have theirs.
    """
    return {"sandbox": {"files": [tempfile.gettempdir()]}} if ":" in type_ref else {}


def reference(device: type[Device]) -> str:
    """What a device file's `type` says for a class: `module:Class`, or `file.py:Class`.

    ValueError if the class is not at the top level of a module.
    """
    if "." in device.__qualname__:
        raise ValueError(f"{device.__qualname__} must stand at the top level of its module")
    source = inspect.getfile(device)
    if _importable(device.__module__, source):
        return f"{device.__module__}:{device.__name__}"
    return f"{os.path.abspath(source)}:{device.__name__}"


def _importable(module: str, source: str) -> bool:
    """Whether another process with the same sys.path finds the module, and the same one."""
    where: list[str] | None = None
    spec = None
    parts = module.split(".")
    for count in range(1, len(parts) + 1):
        spec = PathFinder.find_spec(".".join(parts[:count]), where)
        if spec is None:
            return False
        where = list(spec.submodule_search_locations or [])
    return spec is not None and spec.origin == source


def _socket_of(path: Path) -> Path:
    """The device's socket; in client mode the VMM makes it."""
    from ruamel.yaml import YAML  # slow to import, and seldom needed

    said = YAML(typ="safe").load(path)["socket"]
    keys = said if isinstance(said, dict) else {"path": said}
    return (path.parent / Path(keys["path"]).expanduser()).resolve()
