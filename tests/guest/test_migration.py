"""A guest moves from one QEMU to another and back, with its disk in use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.guest import load
from tests.guest.migrating import Machine
from vuproc.testing.serve import Served, serve
from vuproc.testing.vms.linux import LinuxGuest

pytestmark = pytest.mark.timeout(180)

LOAD_S = 120 if load.LONG else 20
CPUS = 2


def boot_on(served: Served) -> Callable[[list[str]], LinuxGuest]:
    """A way to boot on this disk."""

    def boot(extra: list[str]) -> LinuxGuest:
        return load.qemu(served.socket, LOAD_S, extra=extra)

    return boot


def test_a_guest_that_writes_moves_forth_and_back(tmp_path: Path) -> None:
    image, device = load.new_disk(tmp_path, CPUS, "auto")
    # Each has it open while the other serves it; never do both.
    device["locking"] = "off"
    verbose = ["--log-level", "debug"]
    with (
        serve(device, arguments=verbose) as one,
        serve(device, arguments=verbose) as two,
        Machine(tmp_path / "first", boot_on(one)) as first,
    ):
        first.guest.wait_for(load.BEGINS)
        with Machine(tmp_path / "second", boot_on(two), waits=True) as second:
            first.migrate_to(second)
            first.kill()
            assert not second.guest.said(load.ENDED)
            with Machine(tmp_path / "third", boot_on(one), waits=True) as third:
                second.migrate_to(third)
                second.kill()
                assert not third.guest.said(load.ENDED)
                report = third.guest.finish()
        for served in (one, two):
            assert any("SET_LOG_BASE" in line for line in served.lines)
    load.check(report, image, CPUS)
