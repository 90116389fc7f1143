"""Files by which management software finds programs of back-ends (QEMU, docs/interop/
vhost-user.json, `VhostUserBackend`).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from vuproc.cli.program import PREFIX, QEMU_TYPES

ORDER = "50"
"""Files are taken in the order of their names; those of a system's own packages have this, too."""


class DiscoveryError(Exception):
    """There is nothing to tell of; says why."""


def write(folder: Path | None, programs: Path | None = None) -> Iterator[Path]:
    """Write a file a type into `folder`, or where this user's belong; their paths. The programs are
    beside this one, or will be in `programs` once a package is installed. Raises OSError,
    DiscoveryError.
    """
    folder = folder or _usual_folder()
    there = programs or Path(os.path.abspath(sys.argv[0])).parent
    folder.mkdir(parents=True, exist_ok=True)
    for name, qemu_type in QEMU_TYPES.items():
        program = there / f"{PREFIX}{name}"
        if programs is None and not os.access(program, os.X_OK):
            raise DiscoveryError(f"{program} is not there: install vuproc by pip")
        said = {
            "description": f"vuproc {name}",
            "type": qemu_type,
            "binary": str(program),
        }
        path = folder / f"{ORDER}-{PREFIX}{name}.json"
        draft = path.with_suffix(".part")
        draft.write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
        draft.rename(path)
        yield path


def _usual_folder() -> Path:
    if os.geteuid() == 0:
        return Path("/etc/qemu/vhost-user")
    config = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(config) / "qemu" / "vhost-user"
