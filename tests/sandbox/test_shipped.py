"""Each device that comes with vuproc, in its sandbox: it is set up and its rings start, and again
after a death. What it does is in tests/devices, where all of it runs in the standard sandbox.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vuproc.testing.plugin import ServeDevice

DEVICES: list[dict[str, Any]] = [
    {"type": "blk", "ram": 1 << 20},
    {"type": "blk", "base": "{folder}/image"},
    {"type": "can"},
    {"type": "console"},
    {"type": "fs", "tag": "t", "directory": "{folder}"},
    {"type": "fs", "tag": "t", "directory": "{folder}", "readonly": False, "xattrs": True},
    {"type": "gpio", "lines": [{"name": "a"}, {"name": "b"}], "control": "{folder}/control"},
    {"type": "i2c", "chips": [{"address": 80, "kind": "eeprom", "file": "{folder}/eeprom"}]},
    {"type": "input", "events": "{folder}/events"},
    {"type": "net", "backend": "loopback"},
    {"type": "net", "backend": "loopback", "engine": "python", "capture": "{folder}/capture"},
    {"type": "rng"},
    {"type": "rtc"},
    {"type": "scsi", "luns": [{"image": "{folder}/image"}]},
    {"type": "sound", "playback": [{"backend": "wav", "path": "{folder}/wav"}]},
    {"type": "spi", "chips": ["loopback", "flash"]},
    {"type": "vsock", "path": "{folder}/vsock"},
]


def filled(value: Any, folder: Path) -> Any:
    """With the folder in its texts."""
    if isinstance(value, str):
        return value.replace("{folder}", str(folder))
    if isinstance(value, list):
        return [filled(each, folder) for each in value]
    if isinstance(value, dict):
        return {key: filled(each, folder) for key, each in value.items()}
    return value


@pytest.mark.parametrize("mode", ["standard", "strict"])
@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_it_is_set_up_and_its_rings_start(
    vuproc_device: ServeDevice, tmp_path: Path, device: dict[str, Any], mode: str
) -> None:
    (tmp_path / "image").write_bytes(bytes(1 << 20))
    served = vuproc_device(filled(device, tmp_path), file={"sandbox": mode})
    with served.guest(queues=len(served.status().queues)):
        for _ in range(2):
            worker = served.kill_worker()
            served.wait_worker(other_than=worker)
        status = served.status()
        assert {queue.state for queue in status.queues} == {"running"}
    assert status.queues[0].restarts == 2
    assert status.sandbox_lacks == []
    assert not [line for line in served.lines if "ERROR" in line or "SIGSYS" in line]
