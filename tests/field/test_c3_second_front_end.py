"""A second front-end: it waits for the first, and everybody is told."""

from __future__ import annotations

import os
from typing import Any

import msgspec

from tests.pool.scripted import Scripted
from vuproc.ops.admin import Request, ask
from vuproc.ops.status import Status
from vuproc.testing.serve import Served, serve

BOUND_S = 20.0
WAITS = "another front-end waits"


def status(served: Served) -> Any:
    return ask(served.socket, Request("status"))


def said(served: Served) -> int:
    return sum(WAITS in line for line in served.lines)


def cpu_seconds(pid: int) -> float:
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_c3_a_second_front_end_that_waits_is_in_the_log_and_in_the_status() -> None:
    with serve(Scripted) as served, served.guest() as first:
        assert not status(served)["waiting"]
        with served.connect() as second, served.connect() as third:
            served.wait_for_line(WAITS, BOUND_S)
            answer = status(served)
            assert answer["waiting"] and answer["connected"]
            assert f"connected, {WAITS}" in msgspec.convert(answer, Status).table()
            # They cost nothing, and the first does not notice.
            before = cpu_seconds(served.pid)
            for _ in range(5):
                assert first.do(0, [b"nap 0.05"], [64]).written == 0
            assert cpu_seconds(served.pid) - before < 0.1
            assert said(served) == 1
            lines = len(served.lines)
            first.front_end.close()
            # Now the second is served, while the third waits, and then the third.
            second.negotiate()
            served.wait_for_line(WAITS, BOUND_S, after=lines)
            assert status(served)["waiting"]
            second.close()
            third.negotiate()
            assert not status(served)["waiting"] and said(served) == 2
