"""Where the device's own code stands when it does not get on: file, line and method."""

from __future__ import annotations

import inspect
import os
import signal
from pathlib import Path

import pytest

from tests.field.events import say
from tests.pool import scripted
from tests.pool.scripted import Scripted
from vuproc.testing.errors import ServeFailed
from vuproc.testing.serve import serve


def test_c9_the_stack_of_a_stuck_worker_is_logged_at_the_first_timeout(tmp_path: Path) -> None:
    with serve(Scripted, file={"stall_timeout": 0.5}) as served, served.guest() as guest:
        stuck = guest.submit(0, [f"spin {tmp_path / 'count'}".encode()], [64])
        served.wait_for_line("no progress for 0.5 s with head")
        line = served.wait_for_line(" in do_spin").lstrip()
        first = inspect.getsourcelines(Scripted.do_spin)[1]
        assert line in [f"{scripted.__file__}:{first + offset} in do_spin" for offset in (2, 3)]
        assert served.wait_for_line(" in handle").lstrip().startswith(scripted.__file__)
        assert b"abandoned" in guest.wait(stuck, 30.0).content
        assert say(guest, "echo on") == "on"
    assert not [line for line in served.lines if "workers/loop.py" in line]


def test_c9_an_exception_in_setup_is_told_once_with_its_place() -> None:
    with pytest.raises(ServeFailed) as failed, serve(Scripted, broken_setup=True):
        pass
    text = str(failed.value)
    assert text.count("no such hardware") == 1
    line = inspect.getsourcelines(Scripted.setup)[1] + 2
    assert f"{scripted.__file__}:{line} in setup: RuntimeError: no such hardware" in text


def test_c9_d13_a_worker_that_is_stopped_while_it_has_nothing_to_do_is_replaced() -> None:
    with serve(Scripted, file={"stall_timeout": 0.2}) as served, served.guest() as guest:
        stopped = served.status().queues[0].pid
        assert stopped is not None and say(guest, "echo on") == "on"
        os.kill(stopped, signal.SIGSTOP)
        assert say(guest, "echo still on") == "still on"
        served.wait_for_line(f"worker {stopped} has been stopped by a signal for 0.2 s")
        assert served.status().queues[0].pid != stopped
