"""`log_format: journald`, in systemd's own journal."""

from __future__ import annotations

import os
import signal
from typing import Any

from tests.systemd.inside.disks import disk, driver, reads_and_writes, status
from tests.systemd.inside.manager import journal, wait_for


def step_journal() -> None:
    """Entries have their priority, device and queue; and are those of the unit."""
    with disk("logged", extra="log_format: journald\n") as unit:
        with driver("logged") as guest:
            reads_and_writes(guest)
            worker = status("logged")["queues"][1]["pid"]
            os.kill(worker, signal.SIGKILL)
            reads_and_writes(guest)

            def entries(*match: str) -> list[dict[str, Any]]:
                return journal("VUPROC_DEVICE=logged", *match)

            died = wait_for("it in the journal", lambda: entries("VUPROC_EVENT=worker_died"))[0]
            replaced = wait_for("it", lambda: entries("VUPROC_EVENT=worker_replaced"))[0]
        assert died["PRIORITY"] == "4"
        assert died["VUPROC_QUEUE"] == "1" and died["VUPROC_PID"] == str(worker), died
        assert "killed by SIGKILL" in died["MESSAGE"]
        assert replaced["PRIORITY"] == "6" and replaced["VUPROC_QUEUE"] == "1", replaced
        ready = entries("VUPROC_EVENT=ready")[0]
        for entry in (died, replaced, ready):
            assert entry["VUPROC_DEVICE"] == "logged"
            assert entry["SYSLOG_IDENTIFIER"] == "vuproc"
            assert entry["_SYSTEMD_UNIT"] == unit, entry
            assert entry["_TRANSPORT"] == "journal"
        assert journal("VUPROC_DEVICE=logged", "VUPROC_QUEUE=1", "-p", "info")
        assert not journal("VUPROC_DEVICE=logged", "_TRANSPORT=stdout")
