"""A master keeps no memory that it needs no more: it stays as large, whatever happens to it."""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vuproc.garbage import TURNS, Garbage
from vuproc.handover.standby_master import PROCESS_NAME, ready_standby
from vuproc.testing.serve import serve

LENGTH = 3
MANY = 1000
FEW = 200
LINE = "searched for garbage"
SEARCHED = f"""
import gc, os
from vuproc.devices.blk import Blk

MASTER = os.getpid()

def note(phase, info):
    if phase == "stop" and info["generation"] == 2 and os.getpid() == MASTER:
        os.write(2, b"{LINE}\\n")

gc.callbacks.append(note)

class Searched(Blk):
    pass
"""
"""A disk that writes a line whenever all of its master's memory was searched."""


@pytest.fixture
def garbage() -> Iterator[Garbage]:
    try:
        yield Garbage()
    finally:
        gc.unfreeze()


def kept(capfd: pytest.CaptureFixture[str]) -> int:
    """Dropped tuples of that length that Python keeps."""
    capfd.readouterr()
    sys._debugmallocstats()
    found = re.search(rf"(\d+) free {LENGTH}-sized PyTupleObject", capfd.readouterr().err)
    assert found is not None
    return int(found[1])


def test_dropped_tuples_are_given_back(garbage: Garbage, capfd: pytest.CaptureFixture[str]) -> None:
    tuples = [tuple(number for number in range(LENGTH)) for _ in range(MANY)]
    del tuples
    assert kept(capfd) >= MANY
    assert gc.get_freeze_count() > 0  # what stays is not searched
    for _ in range(TURNS):
        garbage.tend()
    assert kept(capfd) < FEW
    assert garbage.due() is None


def test_a_master_does_so(tmp_path: Path) -> None:
    tmp_path.joinpath("searched.py").write_text(SEARCHED, encoding="utf-8")
    with serve({"type": f"{tmp_path}/searched.py:Searched", "ram": "1MiB"}) as served:
        for _ in range(TURNS + 1):
            served.status()
            if any(LINE in line for line in served.lines):
                break
        served.wait_for_line(LINE)


def test_a_look_for_the_standby_master_interns_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    # The table of interned strings only grows, by an entry each, until it is made anew.
    program = f"open('/proc/self/comm', 'w').write({PROCESS_NAME!r}); print(flush=True); input()"
    interned: list[str] = []

    def spy(text: str) -> str:
        interned.append(text)
        return text

    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdout.readline()
        with monkeypatch.context() as patched:
            patched.setattr(sys, "intern", spy)
            found = ready_standby(os.getpid())
        process.stdin.write(b"\n")
        process.stdin.flush()
        process.wait(30)
    assert found == process.pid
    assert interned == []
