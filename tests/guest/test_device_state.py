"""QEMU migrates a device's own state, which only the device can read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from tests.guest.migrating import Machine
from tests.guest.qemus import newer
from tests.guest.stateful import Word
from vuproc.testing.serve import Served, serve
from vuproc.testing.vms import HaltedQemu, Qemu, VhostUserDevice

pytestmark = pytest.mark.timeout(180)

VERBOSE = {"log_level": "debug"}


def halted_on(served: Served, qemu: Qemu) -> Callable[[list[str]], HaltedQemu]:
    """A way to start a machine with this device, in which nothing runs."""
    disk = VhostUserDevice(
        socket=served.socket, driver="vhost-user-fs-pci", properties={"tag": "words"}
    )
    return lambda extra: HaltedQemu([disk], extra, qemu=qemu)


@pytest.mark.proves(
    "SET_DEVICE_STATE_FD",
    "CHECK_DEVICE_STATE",
    "PROTOCOL_F_DEVICE_STATE",
    front_end="QEMU 10.0",
)
@pytest.mark.parametrize("qemu", newer())
def test_a_device_takes_its_state_along(
    tmp_path: Path, qemu: Qemu, shown: Callable[[Iterable[str]], None]
) -> None:
    with (
        serve(Word, word="hello", file=VERBOSE) as one,
        serve(Word, file=VERBOSE) as two,
        Machine(tmp_path / "first", halted_on(one, qemu)) as first,
    ):
        with Machine(tmp_path / "second", halted_on(two, qemu), waits=True) as second:
            first.migrate_at_once(second)
            two.wait_for_line("the word is hello")
            first.kill()
            # And back, from a device that knows it only from there.
            with Machine(tmp_path / "third", halted_on(one, qemu), waits=True) as third:
                before = len(one.lines)
                second.migrate_at_once(third)
                one.wait_for_line("the word is hello", after=before)
    for served in (one, two):
        shown(served.lines)


def test_a_device_that_refuses_it_ends_the_migration(tmp_path: Path) -> None:
    """The guest stays where it is."""
    with (
        serve(Word, word="unwelcome") as one,
        serve(Word) as two,
        Machine(tmp_path / "first", halted_on(one, Qemu.TRIXIE)) as first,
        Machine(tmp_path / "second", halted_on(two, Qemu.TRIXIE), waits=True) as second,
    ):
        first.begin_to(second)
        two.wait_for_line("refused CHECK_DEVICE_STATE: load_state: ValueError: not this one")
        assert not any("the word is" in line for line in two.lines)
