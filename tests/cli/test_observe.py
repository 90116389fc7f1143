"""The verbs that look at a running device, as processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.field.events import status
from vuproc import Device, Request
from vuproc.cli.stats_table import duration, number
from vuproc.testing.block import Block
from vuproc.testing.job import Job
from vuproc.testing.serve import Served, serve

BOUND_S = 60.0
DISK = {"type": "blk", "ram": "64MiB"}
REQUESTS = 200

pytestmark = pytest.mark.timeout(180)


def job() -> Job:
    return Job(count=REQUESTS, start=0, span=1 << 20, stall_s=BOUND_S)


def vuproc(*arguments: object, code: int = 0, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "vuproc", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=BOUND_S,
        check=False,
        env={**os.environ, **(env or {})},
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stderr


def events_of(served: Served, *arguments: object) -> list[dict[str, Any]]:
    return [json.loads(line) for line in vuproc("events", *arguments, served.socket).splitlines()]


def names_of(served: Served) -> set[str]:
    return {event["event"] for event in events_of(served)}


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + BOUND_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextmanager
def followed(served: Served, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "vuproc", "events", "--follow", *map(str, arguments)]
    process = subprocess.Popen([*command, str(served.socket)], stdout=subprocess.PIPE, text=True)
    with process:
        try:
            yield process
        finally:
            process.kill()


def next_event(process: subprocess.Popen[str], name: str) -> dict[str, Any]:
    """The next event of that name. The test's timeout is the bound."""
    assert process.stdout is not None
    for line in process.stdout:
        event: dict[str, Any] = json.loads(line)
        if event["event"] == name:
            return event
    raise AssertionError(f"ended without {name}")


def test_stats_are_what_the_driver_did() -> None:
    with serve(DISK, queues=2) as served, served.guest(queues=2, memory=64 << 20) as guest:
        guest.load(1, job())
        text = vuproc("stats", served.socket)
        assert "blk: connected" in text and "ram: " in text
        row = next(line.split() for line in text.splitlines() if line.split()[:1] == ["1"])
        assert row[:4] == ["1", "running", "0", str(REQUESTS)]
        stats = json.loads(vuproc("stats", "--json", served.socket))
        queues = stats["queues"]
        assert [queue["counters"]["requests"] for queue in queues] == [0, REQUESTS]
        assert sum(queues[1]["latency"]) == REQUESTS


def test_rates_are_those_between_two_looks() -> None:
    with serve(DISK) as served, served.guest(memory=64 << 20) as guest:
        guest.load(0, job())
        arguments = ("stats", "--json", "--interval", "0.3", "--count", "2", served.socket)
        lines = [json.loads(line) for line in vuproc(*arguments).splitlines()]
        assert len(lines) == 2
        for line in lines:  # what was before is in none of them
            assert line["queues"][0]["rates"]["requests"] == 0
            assert line["queues"][0]["p99_ns"] == 0
        table = vuproc("stats", "--interval", "0.1", "--count", "1", served.socket)
        assert "requests/s" in table and "running" in table


@pytest.mark.parametrize("interval", ["0", "nan", "1e9", "x"])
def test_an_interval_that_is_none_is_refused(interval: str, tmp_path: Path) -> None:
    assert "no number of seconds" in vuproc("stats", "--interval", interval, tmp_path, code=2)


@pytest.mark.parametrize("verb", ["stats", "events", "trace", "autopsy"])
def test_no_device_is_an_error(verb: str, tmp_path: Path) -> None:
    assert "no such device file" in vuproc(verb, tmp_path / "s", code=2)


def test_top_shows_rates_and_events() -> None:
    with serve(DISK) as served, served.guest(memory=64 << 20):
        wide = {"COLUMNS": "200"}
        text = vuproc("top", "--interval", "0.1", "--count", "2", served.socket, env=wide)
        assert "requests/s" in text and "front-end connected" in text


def test_top_says_how_to_have_rich(tmp_path: Path) -> None:
    (tmp_path / "rich").mkdir()
    (tmp_path / "rich" / "__init__.py").write_text("raise ImportError('none here')\n")
    error = vuproc("top", tmp_path / "s", code=1, env={"PYTHONPATH": str(tmp_path)})
    assert "pip install 'vuproc[top]'" in error


def test_events_tell_of_a_death_and_its_stall() -> None:
    with serve(DISK) as served:
        with served.guest(memory=64 << 20) as guest:
            guest.load(0, job())
            pid = served.kill_worker(0)
            guest.load(0, job())
            until(lambda: {"worker_died", "worker_replaced"} <= names_of(served))
            found = {event["event"]: event for event in events_of(served)}
        assert found["worker_died"]["pid"] == pid and found["worker_died"]["queues"] == [0]
        assert 0 < found["worker_replaced"]["stall_s"] < BOUND_S
        assert found["ready"]["device"] == "blk"
        until(lambda: events_of(served)[-1]["event"] == "disconnected")
        numbers = [event["number"] for event in events_of(served)]
        assert numbers == list(range(1, 1 + len(numbers)))
        assert events_of(served, "--after", numbers[-2])[0]["number"] == numbers[-1]


def test_several_follow_over_the_death_of_a_master() -> None:
    with serve(DISK, arguments=("--supervised",)) as served:
        with followed(served) as one, followed(served) as other:
            for follower in (one, other):
                assert next_event(follower, "ready")["number"] == 1
            os.kill(status(served.socket)["pid"], signal.SIGKILL)
            with served.guest():
                for follower in (one, other):
                    assert next_event(follower, "ready")["number"] > 1
                    next_event(follower, "connected")
            for follower in (one, other):
                next_event(follower, "disconnected")


def test_a_slow_follower_is_told_what_it_has_lost() -> None:
    with serve(DISK) as served:
        with followed(served) as follower:
            first = next_event(follower, "ready")
            follower.send_signal(signal.SIGSTOP)
            for _ in range(100):  # two events each
                served.guest().close()
            until(lambda: events_of(served)[-1]["number"] > 190)
            follower.send_signal(signal.SIGCONT)
            lost = next_event(follower, "events_lost")["lost"]
            following = next_event(follower, "connected")
            assert following["number"] > first["number"] + lost > first["number"] + 30


def test_a_trace_says_what_requests_were() -> None:
    with serve({**DISK, "trace": 8}) as served:
        with served.guest(memory=64 << 20) as guest:
            block = Block(guest)
            block.write(40, b"w" * 512)
            block.read(48, 1024)
            text = vuproc("trace", served.socket)
            assert "write sector 40: done, 1 bytes written" in text
            assert "read sector 48: done, 1025 bytes written" in text
            assert text.index("sector 40") < text.index("sector 48")
            for _ in range(20):
                block.read(0, 512)
            answer = json.loads(vuproc("trace", "--json", served.socket))
            assert [each["order"] for each in answer["requests"]] == list(range(15, 23))
            assert {each["written"] for each in answer["requests"]} == {513}
            assert "no queue 7" in vuproc("trace", "--queue", 7, served.socket, code=1)


def test_a_trace_outlives_the_master() -> None:
    with serve({**DISK, "trace": 8}, arguments=("--supervised",)) as served:
        with served.guest(memory=64 << 20) as guest:
            block = Block(guest)
            block.read(40, 512)
            started = status(served.socket)["started"]
            os.kill(status(served.socket)["pid"], signal.SIGKILL)
            block.read(48, 512)
            until(lambda: bool(status(served.socket)["started"] != started))
            text = vuproc("trace", served.socket)
            assert text.index("read sector 40: done") < text.index("read sector 48: done")


def test_a_reload_begins_to_trace(tmp_path: Path) -> None:
    path = tmp_path / "disk.yaml"
    content = {"socket": str(tmp_path / "s"), "device": dict(DISK)}
    path.write_text(json.dumps(content))
    with serve(path) as served, served.guest(memory=64 << 20) as guest:
        assert "nothing is traced" in vuproc("trace", path, code=1)
        content["device"] = {**DISK, "trace": 4}
        path.write_text(json.dumps(content))
        assert "applied by new workers" in vuproc("reload", path)
        served.wait_for_line("every worker is new")
        Block(guest).read(8, 512)
        assert "read sector 8" in vuproc("trace", path)


class Mortal(Device):
    """Its first worker dies over a request that says so."""

    device_id = 45

    def handle(self, request: Request) -> None:
        if request.read(4) == b"die!" and not self.recovered:
            os.kill(os.getpid(), signal.SIGSEGV)


def test_an_autopsy_says_what_a_worker_died_over() -> None:
    with serve(Mortal, trace=16) as served, served.guest() as guest:
        assert "no worker has died" in vuproc("autopsy", served.socket)
        guest.do(out=[b"live" + bytes(28)])
        guest.do(out=[b"die!" + bytes(28)])
        until(lambda: any(e["event"] == "worker_replaced" for e in events_of(served)))
        text = vuproc("autopsy", served.socket)
        assert "killed by SIGSEGV" in text
        assert "in the device's code: head " in text
        assert "queue 0: 1 in flight when worker 1 of the queue ended" in text
        before, at = text.index(b"live".hex()), text.index(b"die!".hex())
        assert before < at
        assert "in flight when its worker ended" in text[at:].splitlines()[0]
        again = vuproc("trace", served.socket).splitlines()[-1]
        assert b"die!".hex() in again and again.endswith(", once more")


def test_an_autopsy_without_a_trace_says_how_to_have_one() -> None:
    with serve(DISK) as served, served.guest(memory=64 << 20) as guest:
        served.kill_worker(0)
        guest.load(0, job())
        until(lambda: any(e["event"] == "worker_died" for e in events_of(served)))
        text = vuproc("autopsy", served.socket)
        assert "killed by SIGKILL" in text and "`trace: 64`" in text


def test_numbers_are_short() -> None:
    assert [number(value) for value in (0, 7, 999, 1000, 1234567, 0.25)] == [
        "0", "7", "999", "1k", "1.23M", "0.25",
    ]  # fmt: skip
    assert [duration(value) for value in (0, 12, 1500, 2.5e6, 3e9)] == [
        "-", "12 ns", "1.5 us", "2.5 ms", "3 s",
    ]  # fmt: skip
