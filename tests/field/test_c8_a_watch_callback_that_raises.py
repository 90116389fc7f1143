"""A callback that raises and has read nothing is not called again and again."""

from __future__ import annotations

import os
import select
import time

from tests.field.talkative import Talkative
from vuproc.testing.guest import Guest
from vuproc.testing.plugin import ServeDevice

BOUND_S = 30.0
IDLE_S = 0.3


def say(guest: Guest, text: str) -> str:
    done = guest.do(0, [text.encode()], [64], timeout_s=BOUND_S)
    return done.content[: done.written].decode()


def cpu_s(pid: int) -> float:
    """Seconds of processor time that a process has used."""
    return time.clock_gettime(~pid << 3 | 2)  # CLOCK_PROCESS_CPUTIME_ID of another (clock_gettime)


def test_c8_a_callback_that_raises_is_named_once_and_not_called_again(
    vuproc_device: ServeDevice,
) -> None:
    served = vuproc_device(Talkative)
    with served.guest() as guest:
        pid = int(say(guest, "pid"))
        say(guest, "badwatch")
        line = served.wait_for_line("Talkative.raises: ArithmeticError: in a callback; descriptor ")
        assert line.endswith(" is no longer watched")
        pidfd = os.pidfd_open(pid)
        try:
            before = cpu_s(pid)
            poller = select.poll()
            poller.register(pidfd, select.POLLIN)
            assert poller.poll(IDLE_S * 1000) == []
            assert cpu_s(pid) - before < IDLE_S / 10
        finally:
            os.close(pidfd)
        # It may be watched anew.
        say(guest, "rewatch")
        served.wait_for_line("read b'x'")
        assert say(guest, "pid") == str(pid)
    served.wait_for_line("disconnected")
    served.stop()
    assert sum("no longer watched" in line for line in served.lines) == 1
    assert not [line for line in served.lines if "more like this" in line]


def test_c8_a_callback_that_has_read_before_it_raises_is_called_for_more(
    vuproc_device: ServeDevice,
) -> None:
    served = vuproc_device(Talkative)
    with served.guest() as guest:
        assert say(guest, "readfirst 1") == "written"
        served.wait_for_line("Talkative.reads_first: ArithmeticError: with b'1'")
        assert say(guest, "readfirst 2") == "written"
    served.stop()
    # It is the same kind of failure, so it is counted.
    assert [line for line in served.lines if "1 more like this" in line]
    assert not [line for line in served.lines if "no longer watched" in line]
