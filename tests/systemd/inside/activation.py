"""A device that starts when a VMM connects, by `vuproc@.socket`."""

from __future__ import annotations

import os
import signal

from tests.systemd.inside.disks import device_file, driver, reads_and_writes, socket_of, under_load
from tests.systemd.inside.manager import (
    ctl,
    dropped_in,
    main_pid,
    prop,
    texts,
    wait_for_another,
    wait_state,
)

SOCKET = "[Socket]\nSocketUser=vmm\nSocketMode=0660\n"


def step_activated() -> None:
    """The first connection starts it; later ones, restarts and deaths change nothing of that."""
    path = device_file("woken")
    unit, socket = "vuproc@woken.service", "vuproc@woken.socket"
    try:
        with dropped_in(socket, SOCKET):
            _wake(unit, socket)
    finally:
        path.unlink()
    assert not socket_of("woken").exists()


def _wake(unit: str, socket: str) -> None:
    try:
        ctl("start", socket)
        assert prop(unit, "ActiveState") == "inactive"
        found = socket_of("woken").stat()
        assert (found.st_uid, found.st_mode & 0o777) == (990, 0o660)
        with driver("woken") as guest:
            reads_and_writes(guest)
            wait_state(unit, "active")
            with under_load(guest) as one_more:
                one_more()
                before = main_pid(unit)
                os.kill(before, signal.SIGKILL)
                wait_for_another(unit, before)
                one_more()
                ctl("restart", unit)
                one_more()
        with driver("woken") as guest:
            reads_and_writes(guest)
        ctl("stop", unit)
        assert socket_of("woken").exists()
        assert prop(unit, "NFileDescriptorStore") == "0"
        with driver("woken") as guest:
            reads_and_writes(guest)
        assert not [line for line in texts(unit) if "of no use" in line], texts(unit)
    finally:
        ctl("stop", socket, unit)
