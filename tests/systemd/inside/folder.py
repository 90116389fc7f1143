"""All devices of a folder in one service, by `vuproc.service`."""

from __future__ import annotations

import os
import signal

from tests.systemd.inside.disks import (
    ETC,
    device_file,
    driver,
    reads_and_writes,
    socket_of,
    status,
    under_load,
)
from tests.systemd.inside.manager import (
    ctl,
    exposure,
    main_pid,
    prop,
    refused,
    run,
    texts,
    wait_for,
    wait_for_another,
)
from tests.systemd.inside.service import EXPOSURE_BELOW

UNIT = "vuproc.service"


def step_folder() -> None:
    """Start, a master's death, a new file, a reload that fails, the parent's death, stop."""
    for path in ETC.iterdir():
        path.unlink()
    for name in ("a", "b", "c"):
        device_file(name)
    try:
        ctl("start", UNIT)
        assert exposure(UNIT) < EXPOSURE_BELOW
        for name in ("a", "b", "c"):
            assert status(name)["sandbox_lacks"] == [], status(name)
        assert status("a")["standby_master"] is not None
        run("vuproc", "status", str(ETC))
        with driver("a") as guest, under_load(guest) as one_more:
            one_more()
            before = status("a")["pid"]
            os.kill(before, signal.SIGKILL)
            one_more()
            assert status("a")["pid"] != before
            device_file("d")
            wait_for("its socket", socket_of("d").exists)
            with driver("d") as other:
                reads_and_writes(other)
            ctl("reload", UNIT)
            one_more()
        path = ETC / "b.yaml"
        path.write_text(path.read_text() + "nonsense: 1\n")
        refused("reload", UNIT)
        device_file("b", kept=True)
        parent = main_pid(UNIT)
        os.kill(parent, signal.SIGKILL)
        wait_for_another(UNIT, parent)
        with driver("a") as guest:
            reads_and_writes(guest)
        ctl("restart", UNIT)
        with driver("a") as guest:
            reads_and_writes(guest)
    finally:
        ctl("stop", UNIT)
        for path in ETC.iterdir():
            path.unlink()
    assert prop(UNIT, "Result") == "success"
    assert not socket_of("a").exists()
    said = texts(UNIT)
    assert not [line for line in said if "took no" in line], said
