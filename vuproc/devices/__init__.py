"""The devices that ship with vuproc, one file each."""

from __future__ import annotations

import re

BUILTIN: dict[str, str] = {
    "blk": "vuproc.devices.blk:Blk",
    "can": "vuproc.devices.can:Can",
    "console": "vuproc.devices.console:Console",
    "fs": "vuproc.devices.fs:Fs",
    "gpio": "vuproc.devices.gpio:Gpio",
    "i2c": "vuproc.devices.i2c:I2c",
    "input": "vuproc.devices.input:Input",
    "net": "vuproc.devices.net:Net",
    "rng": "vuproc.devices.rng:Rng",
    "rtc": "vuproc.devices.rtc:Rtc",
    "scsi": "vuproc.devices.scsi:Scsi",
    "sound": "vuproc.devices.sound:Sound",
    "spi": "vuproc.devices.spi:Spi",
    "vsock": "vuproc.devices.vsock:Vsock",
}
"""Name in a device file -> `module:Class`."""

_NAMED = re.compile(rb"\btype:\s*['\"]?(\w+)")


def named_in(content: bytes) -> list[str]:
    """The built-in types that a device file may name: to import one too many does no harm."""
    names = {name.decode() for name in _NAMED.findall(content)}
    return [name for name in BUILTIN if name in names]
