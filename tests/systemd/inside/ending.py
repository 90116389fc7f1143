"""The end of the machine, whatever became of the steps; and the journal, for whoever looks on."""

from __future__ import annotations

import os
import subprocess

from tests.systemd.inside.console import say

LINES = 150


def show_journal(lines: int = LINES) -> None:
    """The last lines of the journal, on the console."""
    command = [
        "journalctl",
        "--no-pager",
        "-o",
        "short-monotonic",
        "-n",
        str(lines),
        "--no-hostname",
    ]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60)
    for line in (shown.stdout + shown.stderr).splitlines():
        if " tests[" not in line:
            say(f"| {line[:300]}")


if __name__ == "__main__":
    if os.environ.get("SERVICE_RESULT") != "success":
        say(f"ended {os.environ.get('SERVICE_RESULT')} {os.environ.get('EXIT_STATUS')}")
        show_journal(400)
    subprocess.run(["systemctl", "--force", "--force", "poweroff"], timeout=60, check=True)
