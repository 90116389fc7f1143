"""A guest moves from one QEMU to another and back, with its disk in use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.guest import load
from tests.guest.migrating import Machine
from vuproc.testing.serve import Served, serve
from vuproc.testing.vms.linux import LinuxGuest

pytestmark = pytest.mark.timeout(240)

CPUS = 2


def boot_on(served: Served, packed: bool) -> Callable[[list[str]], LinuxGuest]:
    """A way to boot on this disk."""
    return lambda extra: load.qemu_until_told(served.socket, extra, packed=packed)


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_a_guest_that_reads_and_writes_moves_forth_and_back(tmp_path: Path, packed: bool) -> None:
    image, device = load.new_disk(tmp_path, CPUS, "auto")
    # Both have it open at the same time, and only one is told to serve it.
    device["locking"] = "off"
    verbose = ["--log-level", "debug"]
    with (
        serve(device, arguments=verbose) as one,
        serve(device, arguments=verbose) as two,
        Machine(tmp_path / "first", boot_on(one, packed)) as first,
    ):
        first.guest.wait_for(load.BEGINS)
        for _ in range(CPUS):
            first.guest.wait_for("pass=1")
        with Machine(tmp_path / "second", boot_on(two, packed), waits=True) as second:
            first.migrate_to(second)
            first.kill()
            second.guest.wait_for("pass=")
            with Machine(tmp_path / "third", boot_on(one, packed), waits=True) as third:
                second.migrate_to(third)
                for left in (first, second):
                    assert not left.guest.said("different")
                second.kill()
                third.tell()
                report = third.guest.finish()
        for served in (one, two):
            assert any("SET_LOG_BASE" in line for line in served.lines)
    load.check(report, image, load.packed if packed else load.qemu)
