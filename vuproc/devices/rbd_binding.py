"""Ceph's own Python modules, rados and rbd, which come with its libraries and not from PyPI.

They are compiled for one version of Python, the distribution's. So a virtual environment of that
version finds them here without being told; for another there are none to be found.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from typing import Any

from vuproc import texts

NAMES = ("rados", "rbd")
"""In the order in which they are loaded: the second asks for the first."""
_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
FOLDERS = (
    "/usr/lib/python3/dist-packages",
    f"/usr/lib64/python{_VERSION}/site-packages",
    f"/usr/lib/python{_VERSION}/site-packages",
)
"""Where distributions have them: Debian and Ubuntu; Fedora, RHEL and openSUSE; Arch."""
REMEDY = (
    "they are Ceph's own, of the packages python3-rados and python3-rbd (Debian, Ubuntu, Fedora), "
    f"for the distribution's Python; this one is {_VERSION}"
)


class RbdUnavailable(Exception):
    """The image is not to be had, or the binding is not; the text says why."""


def load() -> tuple[Any, Any]:
    """The modules rados and rbd. Raises RbdUnavailable, which says how to get them."""
    rados, rbd = map(_module, NAMES)
    return rados, rbd


def reason_of(error: BaseException) -> str:
    """What the binding, or this module, says of it."""
    number = getattr(error, "errno", None)
    said = texts.line(str(error))
    if isinstance(number, int) and number:
        return f"{said} ({os.strerror(abs(number)).lower()})"
    return said or type(error).__name__


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise RbdUnavailable(f"the module {name} does not load: {error}; {REMEDY}") from error
    except ImportError as error:
        raise RbdUnavailable(f"the module {name} does not load: {error}; {REMEDY}") from error
    for folder in FOLDERS:
        for suffix in EXTENSION_SUFFIXES:
            path = os.path.join(folder, name + suffix)
            if os.path.exists(path):
                return _loaded(name, path)
    raise RbdUnavailable(f"there is no module {name} here: {REMEDY}")


def _loaded(name: str, path: str) -> Any:
    """The one file, and no other package of its folder, which is not for this environment."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    try:
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    except ImportError as error:
        sys.modules.pop(name, None)
        raise RbdUnavailable(f"{path} does not load: {error}; {REMEDY}") from error
    return module
