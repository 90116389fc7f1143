"""Which devices are served again before the kernel has closed what a dead worker had open.

Those that say so have nothing open but what they share: all that a worker's descriptors lead to,
the master's lead to as well. Some are served in every run, VUPROC_LONG=1 serves all of them.
"""

from __future__ import annotations

import errno
import os
import wave
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from vuproc import Device
from vuproc.device_file.check import load
from vuproc.devices.net_pcap import capture_file
from vuproc.devices.rtc import Rtc
from vuproc.testing import serve
from vuproc.testing.device_file import device_file

NOBODYS = (os.devnull, "anon_inode:[eventfd]", "anon_inode:[eventpoll]", "anon_inode:[timerfd]")
"""What holds nothing, whoever has it."""
LUNS = [{"ram": 65536}, {"image": "disk", "target": 1}]


def files_in(folder: Path) -> None:
    """What the options below name."""
    (folder / "disk").write_bytes(bytes(65536))
    capture_file(str(folder / "replayed"), "path").close()
    with wave.open(str(folder / "played"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(64))
    os.mkfifo(folder / "events")


AT_ONCE: list[dict[str, Any]] = [
    {"type": "blk", "ram": 65536},
    {"type": "blk", "image": "disk"},
    {"type": "rng"},
    {"type": "can"},
    {"type": "console"},
    {"type": "console", "backend": "socket", "path": "port"},
    {"type": "console", "backend": "file", "path": "output"},
    {"type": "gpio", "lines": [{}], "control": "control"},
    {"type": "i2c", "chips": [{"kind": "eeprom", "address": 80}], "control": "control"},
    {"type": "input", "kind": "keyboard", "events": "events"},
    {"type": "net", "backend": "null"},
    {"type": "net", "backend": "loopback", "capture": "captured"},
    {"type": "net", "backend": "datagram", "path": "ours", "peer": "theirs"},
    {"type": "net", "backend": "pcap", "path": "replayed"},
    {"type": "rtc"},
    {"type": "scsi", "luns": LUNS},
    {"type": "sound", "capture": [{"backend": "wav", "path": "played"}]},
    {"type": "spi", "chips": ["loopback", "flash"]},
    {"type": "vsock", "cid": 42, "path": "vsock"},
]
LONG = os.environ.get("VUPROC_LONG", "") not in ("", "0")
SERVED = ("console", "gpio", "scsi", "vsock")
"""Those with the most to share."""
LATER: list[dict[str, Any]] = [
    {"type": "blk", "url": "nbd://127.0.0.1/disk"},
    {"type": "can", "interface": "socketcan", "channel": "can0"},
    {"type": "fs", "tag": "t", "directory": "."},
    {"type": "net", "backend": "stream", "path": "theirs"},
    {"type": "sound", "playback": [{"backend": "card"}]},
    {"type": "spi", "chips": ["/dev/spidev0.0"]},
]


def at(folder: Path, options: Mapping[str, Any]) -> Path:
    path, _ = device_file(folder, options, {"log_level": "debug"}, {})
    return path


def served_ones() -> list[dict[str, Any]]:
    """One of each type is enough for a short run."""
    return list({each["type"]: each for each in AT_ONCE if each["type"] in SERVED}.values())


@pytest.mark.parametrize("options", AT_ONCE, ids=str)
def test_these_are_followed_at_once(options: dict[str, Any], tmp_path: Path) -> None:
    assert device_of(at(tmp_path, options)).follows_at_once()


@pytest.mark.parametrize("options", AT_ONCE if LONG else served_ones(), ids=str)
def test_a_worker_has_nothing_open_but_what_is_shared(
    options: dict[str, Any], tmp_path: Path
) -> None:
    files_in(tmp_path)
    with serve(at(tmp_path, options)) as served, served.guest() as guest:
        assert guest.queues
        status = served.status()
        masters = {what for what, _ in opened(status.pid)}
        for pid in {queue.pid for queue in status.queues}:
            assert pid is not None
            # Its control channel, of which the master has the other end.
            own = [name for what, name in opened(pid) if what not in masters]
            assert len(own) == 1 and own[0].startswith("socket:"), own


@pytest.mark.parametrize("options", LATER, ids=str)
def test_what_a_worker_opens_by_itself_is_waited_for(
    options: dict[str, Any], tmp_path: Path
) -> None:
    assert not device_of(at(tmp_path, options)).follows_at_once()


def test_a_subclass_of_another_author_says_so_itself() -> None:
    class Own(Rtc):
        pass

    assert Rtc(Rtc.options_type()).follows_at_once()
    assert not Own(Own.options_type()).follows_at_once()


def device_of(path: Path) -> Device:
    return load(path, look=False).make_device()


def opened(pid: int) -> list[tuple[tuple[int, int], str]]:
    """Which file each descriptor of a process leads to, by device and inode, and what it is called,
    but for what is anybody's.
    """
    found = []
    for number in os.listdir(f"/proc/{pid}/fd"):
        path = f"/proc/{pid}/fd/{number}"
        try:
            name, status = os.readlink(path), os.stat(path)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM):
                pytest.skip("a worker's descriptors are shown to a privileged user only")
            continue  # closed meanwhile
        if name not in NOBODYS:
            found.append(((status.st_dev, status.st_ino), name))
    return found
