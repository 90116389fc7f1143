"""All devices that are enabled, by `vuproc.target`."""

from __future__ import annotations

from tests.systemd.inside.disks import device_file, driver, reads_and_writes, socket_of
from tests.systemd.inside.manager import ctl, prop, wait_state

TARGET = "vuproc.target"
NAMES = ("one", "two", "three")


def step_target() -> None:
    """They start, restart and stop with it; one that is not enabled does not."""
    paths = [device_file(name) for name in (*NAMES, "other", "late")]
    units = [f"vuproc@{name}.service" for name in NAMES]
    every = [*units, "vuproc@late.socket"]
    try:
        ctl("enable", *every, TARGET)
        ctl("start", TARGET)
        for unit in every:
            assert prop(unit, "ActiveState") == "active", unit
        assert prop("vuproc@other.service", "ActiveState") == "inactive"
        guests = [driver(name) for name in NAMES]
        with guests[0] as first, guests[1] as second, guests[2] as third:
            pids = [prop(unit, "MainPID") for unit in units]
            ctl("restart", TARGET)
            for unit in units:
                assert prop(unit, "ActiveState") == "active", unit
            assert not set(pids) & {prop(unit, "MainPID") for unit in units}
            for guest in (first, second, third):
                reads_and_writes(guest)
        with driver("late") as guest:
            reads_and_writes(guest)
        ctl("stop", TARGET)
        for unit in (*every, "vuproc@late.service"):
            wait_state(unit, "inactive")
        assert not socket_of("late").exists()
    finally:
        ctl("disable", *every, TARGET)
        ctl("stop", TARGET, *every)
        for path in paths:
            path.unlink()
