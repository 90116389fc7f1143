"""The base class: its defaults, and what importing it brings along."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import cast

import pytest

import vuproc
from vuproc.device import Device, Loop
from vuproc.fd import HasFileno
from vuproc.options import Options


class Least(Device):
    device_id = 4


def test_defaults_describe_one_queue_a_worker() -> None:
    device = Least(Options(queues=3, queue_size=64))
    assert (device.num_queues(), device.queue_size()) == (3, 64)
    assert device.queue_groups() == [(0,), (1,), (2,)]
    assert (device.offered_features(), device.config_space()) == (0, b"")
    assert device.shared_files() == {}
    assert dict(device.shared) == {}


def test_options_default_to_those_of_the_type() -> None:
    assert Least().options == Options()


def test_config_space_is_read_only_unless_a_device_says_otherwise() -> None:
    with pytest.raises(ValueError, match="Least has no writable configuration fields"):
        Least().config_written(0, b"\0")


def test_watch_goes_to_the_worker() -> None:
    class Recorder:
        def __init__(self) -> None:
            self.calls: list[tuple[object, ...]] = []

        def watch(self, fd: int | HasFileno, callback: Callable[[], None], *, write: bool) -> None:
            self.calls.append(("watch", fd, callback, write))

        def unwatch(self, fd: int | HasFileno) -> None:
            self.calls.append(("unwatch", fd))

    device, recorder = Least(), Recorder()
    with pytest.raises(RuntimeError, match="in a worker only"):
        device.watch(0, print)
    device.attach(cast(Loop, recorder))
    device.watch(5, print)
    device.watch(6, print, write=True)
    device.unwatch(5)
    assert recorder.calls == [("watch", 5, print, False), ("watch", 6, print, True), ("unwatch", 5)]


def test_every_public_name_is_there() -> None:
    assert set(dir(vuproc)) >= set(vuproc.__all__)
    for name in vuproc.__all__:
        assert getattr(vuproc, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = vuproc.nothing


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        ("import vuproc", ["msgspec", "vuproc.device"]),
        ("import vuproc.spec.blk", ["msgspec", "vuproc.device", "vuproc.shm"]),
        (
            "from vuproc import Device, Request; import vuproc.loader, vuproc.devices.blk",
            [
                "argparse",
                "ruamel",
                "vuproc.cli.main",
                "vuproc.device_file.check",
                "vuproc.vhost_user.session",
                "vuproc.vhost_user.wire",
            ],
        ),
    ],
)
def test_importing_brings_no_more_than_needed(statement: str, unwanted: list[str]) -> None:
    code = f"{statement}; import sys; print(*sys.modules, sep='\\n')"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30
    ).stdout.split()
    heavy = [
        name for name in found if any(name == no or name.startswith(f"{no}.") for no in unwanted)
    ]
    assert heavy == []
