"""What a device's code says and how it fails, many times a second: no place hides another."""

from __future__ import annotations

import os
import select
from pathlib import Path

from tests.field.talkative import PERIOD_S, Talkative
from vuproc.log_limit import BURST
from vuproc.testing.guest import Guest
from vuproc.testing.plugin import ServeDevice

BOUND_S = 30.0


def say(guest: Guest, text: str) -> str:
    done = guest.do(0, [text.encode()], [64], timeout_s=BOUND_S)
    return done.content[: done.written].decode()


def switches(pid: int) -> int:
    """How often the process has gone to sleep."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("voluntary_ctxt")))


def test_c7_failures_are_told_apart_counted_and_the_worker_sleeps_again(
    vuproc_device: ServeDevice,
) -> None:
    served = vuproc_device(Talkative, quick=True)
    with served.guest() as guest:
        pid = int(say(guest, "pid"))
        for number in range(15):
            say(guest, f"raise part {number}")
        say(guest, "raise_here other")
        first = served.wait_for_line("LookupError: part 0")
        assert "Talkative.handle: queue 0, head " in first
        served.wait_for_line("Talkative.handle: queue 0, head 0: LookupError: other")
        count = served.wait_for_line("14 more like this in 1 s: Talkative.handle: queue 0, head ")
        assert count.endswith(": LookupError: part 1")
        pidfd = os.pidfd_open(pid)
        try:
            before = switches(pid)
            poller = select.poll()
            poller.register(pidfd, select.POLLIN)
            assert poller.poll(2 * PERIOD_S * 1000) == []
            assert switches(pid) - before <= 2
        finally:
            os.close(pidfd)
    assert sum("LookupError: part" in line for line in served.lines) == 3  # with its traceback's


def test_c7_a_device_that_never_stops_talking_is_not_held_up_and_hides_no_failure(
    vuproc_device: ServeDevice,
) -> None:
    served = vuproc_device(Talkative)
    with served.guest() as guest:
        pid = say(guest, "pid")
        say(guest, "chatter_aside 20000")
        served.wait_for_line("LookupError: after all that was said")
        assert say(guest, "pid") == pid
    served.stop()
    assert sum("line " in line and "INFO" in line for line in served.lines) == BURST
    assert [line for line in served.lines if f"{20000 - BURST} more like this" in line]


def test_c12_a_traceback_is_printed_as_python_prints_it(vuproc_device: ServeDevice) -> None:
    served = vuproc_device(Talkative)
    with served.guest() as guest:
        say(guest, "raise_here part")
        # Not what the first line says of it, but the traceback's last.
        served.wait_for_line(lambda line: line.strip() == "LookupError: part")
    first = next(n for n, line in enumerate(served.lines) if "ERROR: Talkative.handle" in line)
    printed = [line.removeprefix("  ") for line in served.lines[first + 1 :]]
    end = printed.index("LookupError: part") + 1
    assert printed[0] == "Traceback (most recent call last):"
    assert "" not in printed[:end]
    frames = [line for line in printed[:end] if line.startswith("  File ")]
    assert [frame.rpartition(" in ")[2] for frame in frames[-2:]] == ["handle", "do_raise_here"]
