"""Runs the steps, one after the other, and tells of each on the console.

begin NAME / ok NAME / failed NAME, and what failed
"""

from __future__ import annotations

import sys
import time
import traceback

from tests.systemd.inside import ending, steps
from tests.systemd.inside.console import say
from tests.systemd.inside.manager import run


def main(wanted: list[str]) -> int:
    """Run those that are wanted; all if none are named. The exit code."""
    failed = 0
    say(run("systemctl", "--version").partition(" (")[0])
    for name, step in steps.all_steps().items():
        if wanted and name not in wanted:
            continue
        say(f"begin {name}")
        began = time.monotonic()
        try:
            step()
        except BaseException:
            failed += 1
            say(f"failed {name}")
            for line in traceback.format_exc().splitlines():
                say(f"| {line}")
            ending.show_journal()
        else:
            say(f"ok {name} {time.monotonic() - began:.1f} s")
    say(f"exit {min(failed, 1)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
