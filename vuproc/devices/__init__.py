"""The devices that ship with vuproc, one file each."""

from __future__ import annotations

BUILTIN: dict[str, str] = {
    "blk": "vuproc.devices.blk:Blk",
    "net": "vuproc.devices.net:Net",
    "rng": "vuproc.devices.rng:Rng",
}
"""Name in a device file -> `module:Class`."""
