"""A device over the lives of its serving processes, with a driver that goes on."""

from __future__ import annotations

import os
import signal

from tests.systemd.inside import disks
from tests.systemd.inside.disks import device_file, disk, driver, under_load
from tests.systemd.inside.manager import ctl, main_pid, prop, show, texts, wait_for_another

KILLS = 5
WATCHDOG = "[Service]\nWatchdogSec=3\n"


def step_killed() -> None:
    """SIGKILL to the serving process: systemd starts another, which has all descriptors."""
    with disk("killed") as unit, driver("killed") as guest:
        with under_load(guest) as one_more:
            one_more()
            for _ in range(KILLS):
                before = main_pid(unit)
                os.kill(before, signal.SIGKILL)
                wait_for_another(unit, before)
                one_more()
        assert prop(unit, "NRestarts") == str(KILLS)
        went_on = [line for line in texts(unit) if "went on with the session" in line]
        assert len(went_on) == KILLS, texts(unit)


def step_restarted() -> None:
    """`systemctl restart`: the front-end stays, and the device file is read anew."""
    with disk("restarted") as unit, driver("restarted") as guest:
        with under_load(guest) as one_more:
            for _ in range(KILLS):
                one_more()
                before = main_pid(unit)
                ctl("restart", unit)
                assert main_pid(unit) not in (0, before)
            one_more()
            path = device_file("restarted", extra="log_level: debug\n", kept=True)
            ctl("restart", unit)
            one_more()
            assert any("DEBUG" in line for line in texts(unit))
            path.write_text(path.read_text() + "nonsense: 1\n")
            ctl("restart", unit)
            one_more()
        found = show(unit, "ActiveState", "Result", "NRestarts")
        assert found == {"ActiveState": "active", "Result": "success", "NRestarts": "0"}, found
        said = texts(unit)
        assert not [line for line in said if "Failed with" in line], said
        assert not [line for line in said if "disconnected" in line], said
        assert any("goes on with the device file of before" in line for line in said), said
        stored = int(prop(unit, "NFileDescriptorStore"))
        path = device_file("restarted", kept=True)
        ctl("restart", unit)
        assert int(prop(unit, "NFileDescriptorStore")) <= stored


def step_made_way_unasked() -> None:
    """SIGUSR1 from anybody: another serving process all the same."""
    with disk("way") as unit, driver("way") as guest, under_load(guest) as one_more:
        one_more()
        before = main_pid(unit)
        os.kill(before, signal.SIGUSR1)
        wait_for_another(unit, before)
        one_more()
        assert prop(unit, "NRestarts") == "1"


def step_watched() -> None:
    """A serving process that shows no life is killed and replaced."""
    with disk("watched", conf=WATCHDOG) as unit, driver("watched") as guest:
        with under_load(guest) as one_more:
            one_more()
            before = main_pid(unit)
            os.kill(before, signal.SIGSTOP)
            wait_for_another(unit, before)
            one_more()
        assert any("Watchdog timeout" in line for line in texts(unit))
        assert not [line for line in texts(unit) if "disconnected" in line], texts(unit)
    assert not disks.socket_of("watched").exists()
