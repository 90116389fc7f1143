"""One device, by `vuproc@.service`: start, stop, reload, what is refused."""

from __future__ import annotations

from tests.systemd.inside import disks
from tests.systemd.inside.disks import device_file, disk, driver, reads_and_writes, status
from tests.systemd.inside.manager import (
    ctl,
    exposure,
    main_pid,
    prop,
    refused,
    show,
    texts,
    wait_for,
)
from vuproc.testing.block import Block

EXPOSURE_BELOW = 2.0


def step_started_and_stopped() -> None:
    """All settings hold, and nothing of vuproc's own sandbox is missing."""
    with disk("first", options="  engine: io_uring\n") as unit:
        assert prop(unit, "StatusText") == "serving blk, 2 queues in 2 workers"
        found = status("first")
        assert found["sandbox_lacks"] == [], found
        with driver("first") as guest:
            reads_and_writes(guest)
            stored = int(prop(unit, "NFileDescriptorStore"))
            assert stored > 15, stored
        assert exposure(unit) < EXPOSURE_BELOW
    after = show(unit, "ActiveState", "Result", "NFileDescriptorStore", "NRestarts")
    assert after == {
        "ActiveState": "inactive",
        "Result": "success",
        "NFileDescriptorStore": "0",
        "NRestarts": "0",
    }, after
    assert not [path for path in disks.RUN.iterdir() if "first" in path.name]
    said = texts(unit)
    assert not [line for line in said if "sandbox" in line or "service manager" in line], said
    assert not [line for line in said if "Unknown" in line or "ERROR" in line], said


def step_reloaded() -> None:
    """`systemctl reload` fails if the device file is wrong; else new workers take over."""
    with disk("reloaded") as unit:
        before = main_pid(unit)
        with driver("reloaded") as guest:
            block = Block(guest)
            capacity = block.config()["capacity"]
            with open(disks.IMAGES / "reloaded.raw", "r+b") as file:
                file.truncate(2 * disks.SIZE)
            ctl("reload", unit)
            wait_for("the new size", lambda: block.config()["capacity"] == 2 * capacity)
            path = device_file("reloaded", size=2 * disks.SIZE)
            path.write_text(path.read_text() + "nonsense: 1\n")

            def is_named() -> bool:
                refused("reload", unit)
                return any("nonsense" in line for line in texts(unit))

            # On a machine that stands still for a while it may fail for another reason first.
            wait_for("the reason", is_named)
            reads_and_writes(guest)
        assert main_pid(unit) == before
        assert prop(unit, "ActiveState") == "active"


def step_refused() -> None:
    """What is wrong in a device file is said once, and nobody tries again."""
    path = device_file("wrong")
    path.write_text(path.read_text() + "nonsense: 1\n")
    unit = "vuproc@wrong.service"
    try:
        refused("start", unit)
        wait_for("the end", lambda: prop(unit, "ActiveState") == "failed")
        assert prop(unit, "NRestarts") == "0"
        assert prop(unit, "ExecMainStatus") == "2"
        assert len([line for line in texts(unit) if "nonsense" in line]) == 1, texts(unit)
    finally:
        path.unlink()
        ctl("reset-failed", unit)


def step_upgraded() -> None:
    """SIGUSR2: another program in the same process, and the front-end goes on."""
    with disk("upgraded") as unit:
        before = main_pid(unit)
        with driver("upgraded") as guest, disks.under_load(guest) as one_more:
            one_more()
            ctl("kill", "--kill-whom=main", "--signal=SIGUSR2", unit)
            wait_for(
                "the new program",
                lambda: any("went on with the session" in line for line in texts(unit)),
            )
            one_more()
        assert main_pid(unit) == before
        assert prop(unit, "NRestarts") == "0"
