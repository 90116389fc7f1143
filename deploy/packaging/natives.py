"""Imports every native module of an installed vuproc, and counts them.

    PYTHON natives.py

Less than `smoke.py`, for where processes start too slowly: under an emulator of a machine.
"""

from __future__ import annotations

import importlib
import platform
import sysconfig
from pathlib import Path

import vuproc


def main() -> None:
    """Exits with 1 if one cannot be imported, or there is none."""
    root = Path(vuproc.__file__).parent
    ending = str(sysconfig.get_config_var("EXT_SUFFIX"))
    found = sorted(root.rglob(f"*{ending}"))
    assert found, f"no native module below {root}"
    names = [
        ".".join(("vuproc", *path.relative_to(root).parts)).removesuffix(ending) for path in found
    ]
    # A library for another program, which Python only builds.
    names.remove("vuproc.testing.vms.uml_registers")
    for name in names:
        importlib.import_module(name)
    print(f"{len(names)} native modules of {platform.machine()} are loaded")


if __name__ == "__main__":
    main()
