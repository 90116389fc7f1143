"""A signal to the whole process group, or to all processes of a service, is the master's."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.conformance.processes import family
from tests.field.events import queue_status, say, status
from tests.pool.scripted import Scripted
from vuproc.testing.serve import serve

BOTH = pytest.mark.parametrize("arguments", [(), ("--supervised",)], ids=["alone", "supervised"])


def signal_all(leader: int, number: signal.Signals) -> None:
    """Helpers first, so that they would be gone before the master acts."""
    for pid in sorted(family(leader), reverse=True):
        os.kill(pid, number)


@BOTH
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a8_a_signal_that_ends_all_drains_as_for_the_master_alone(
    arguments: tuple[str, ...], number: signal.Signals, tmp_path: Path
) -> None:
    began = tmp_path / "began"
    os.mkfifo(began)
    with serve(Scripted, arguments=arguments) as served:
        with served.guest() as guest:
            kept = guest.submit(0, [f"tell {began} 0.5".encode()], [64])
            with open(began, "rb"):  # it has been begun
                pass
            signal_all(served.pid, number)
            done = guest.wait(kept, 30.0)
            assert done.content[: done.written] == b"told"
        assert served.wait() == 0
    assert not [line for line in served.lines if "ended (" in line]


@BOTH
def test_a8_hangups_and_the_like_cost_no_worker(arguments: tuple[str, ...]) -> None:
    with serve(Scripted, arguments=arguments) as served:
        with served.guest() as guest:
            before = say(guest, "pid")
            master = status(served)["pid"]
            helpers = family(served.pid).keys() - {served.pid, master}
            assert len(helpers) >= 3  # the forkserver, the worker, the standby
            for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT) * 6:
                for pid in helpers:
                    os.kill(pid, number)
            assert say(guest, "pid") == before
            assert queue_status(served)["restarts"] == 0
