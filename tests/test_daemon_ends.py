"""How a daemon of a program ends: once, in order while there is time, and whoever asks for it."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from tests.daemon_devices import Mark
from tests.leaks import Holdings
from tests.test_daemon_programs import line, program
from vuproc import Daemon, Needs, Request, events
from vuproc.errors import StartRefused, StartTimeout
from vuproc.fd import Fd
from vuproc.program import at_exit, launch, running
from vuproc.testing.guest import Guest

BOUND_S = 20.0
LONG_S = 1.6
"""Seconds of a request that an end in order waits for: more than two of `signals.ECHO_S`."""


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path) -> Iterator[None]:
    before = Holdings.now()
    yield
    assert before.leaked() == []
    assert [path for path in tmp_path.iterdir() if path.is_socket()] == []


class Slow(Mark):
    """Takes its time for every request, and says by a file that it has begun."""

    def __init__(self, begun: Path, seconds: float = LONG_S) -> None:
        super().__init__()
        self.begun, self.seconds = str(begun), seconds

    def sandbox_needs(self) -> Needs:
        return Needs(files=(os.path.dirname(self.begun),))

    def handle(self, request: Request) -> None:
        open(self.begun, "w").close()
        time.sleep(self.seconds)
        request.finish(request.write(b"done"))


def await_file(path: Path) -> None:
    deadline = time.monotonic() + BOUND_S
    while not path.exists():
        assert time.monotonic() < deadline, f"no {path}"
        time.sleep(0.01)


@contextmanager
def under_way(path: Path, begun: Path, patience_s: float = BOUND_S) -> Iterator[list[bytes]]:
    """A guest with a request in the device's hands; what it got, once the block has ended.

    `patience_s`: how long it waits for that.
    """
    got: list[bytes] = []

    def ask() -> None:
        with Guest(path) as guest:
            try:
                got.append(guest.do(0, [], [32], timeout_s=patience_s).content[:4])
            except Exception:
                got.append(b"")

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        await_file(begun)
        yield got
    finally:
        thread.join(BOUND_S)
        assert not thread.is_alive()


def test_a_second_stop_does_not_cut_the_first_short(tmp_path: Path) -> None:
    died: list[events.AnyEvent] = []
    begun = tmp_path / "begun"
    daemon = Daemon(Slow(begun), tmp_path / "s", on_event=died.append).start()
    with under_way(tmp_path / "s", begun):
        first = threading.Thread(target=daemon.stop)
        first.start()
        # Later than any echo of the first.
        assert daemon.wait(0.8) is None
        stopped = daemon.stop()
        first.join(BOUND_S)
    assert stopped is not None and stopped.ok
    assert not [event for event in died if isinstance(event, events.WorkerDied)]


def test_the_end_of_the_program_waits_for_each_of_its_daemons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    died: list[events.AnyEvent] = []
    names = ("a", "b", "c")
    devices = [Slow(tmp_path / f"{name}.begun", LONG_S + i * 0.4) for i, name in enumerate(names)]
    daemons = [
        Daemon(device, tmp_path / name, on_event=died.append)
        for device, name in zip(devices, names, strict=True)
    ]
    with daemons[0], daemons[1], daemons[2]:
        alive = [daemon._run() for daemon in daemons]
        monkeypatch.setattr(at_exit, "_to_stop", alive)
        with (
            under_way(tmp_path / "a", tmp_path / "a.begun"),
            under_way(tmp_path / "b", tmp_path / "b.begun"),
            under_way(tmp_path / "c", tmp_path / "c.begun"),
        ):
            at_exit._stop_all()
    assert not [event for event in died if isinstance(event, events.WorkerDied)]


@pytest.mark.parametrize("timeout", [0.0, 0.2])
def test_a_short_stop_is_urgent_and_leaves_nothing(tmp_path: Path, timeout: float) -> None:
    begun = tmp_path / "begun"
    daemon = Daemon(Slow(begun, 15.0), tmp_path / "s").start()
    with under_way(tmp_path / "s", begun, patience_s=1.0):
        stopped = daemon.stop(timeout)
    assert stopped is not None and stopped.code == 0, "it was not killed"
    assert os.listdir(tmp_path) == ["begun"]


def overtaken(monkeypatch: pytest.MonkeyPatch, what: Callable[[], Any]) -> None:
    """Have something happen while a process is launched."""
    before = launch.launched

    def launched(*given: Any, **keys: Any) -> subprocess.Popen[bytes]:
        what()
        return before(*given, **keys)

    monkeypatch.setattr(running, "launched", launched)


def test_a_stop_during_the_launch_ends_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = Daemon(Mark(), tmp_path / "s")
    overtaken(monkeypatch, daemon.stop)
    with pytest.raises(StartRefused, match="asked to stop"):
        daemon.start()
    assert not daemon.running
    monkeypatch.undo()
    with daemon, Guest(tmp_path / "s") as guest:
        assert guest.do(0, [], [32], timeout_s=BOUND_S).written, "the wish is of that start alone"


def test_one_start_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = Daemon(Mark(), tmp_path / "s")
    refused: list[str] = []

    def start_again() -> None:
        try:
            daemon.start()
        except RuntimeError as error:
            refused.append(str(error))

    def from_another_thread() -> None:
        thread = threading.Thread(target=start_again)
        thread.start()
        thread.join(BOUND_S)

    overtaken(monkeypatch, from_another_thread)
    with daemon:
        assert refused == ["the daemon is being started already"]
        assert daemon.running


class Setting(Mark):
    """Says by a file that it is being set up, and never is."""

    def __init__(self, begun: Path) -> None:
        super().__init__()
        self.begun = str(begun)

    def setup(self, queue: int) -> None:
        open(self.begun, "w").close()
        time.sleep(60)


def when_it_is_there(path: Path, number: int) -> threading.Thread:
    """Signals this process once the file is there."""

    def signal_it() -> None:
        await_file(path)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=signal_it)
    thread.start()
    return thread


def test_an_interrupted_start_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    daemon = Daemon(Setting(tmp_path / "begun"), tmp_path / "s")
    before = signal.signal(signal.SIGUSR1, interrupt)
    thread = when_it_is_there(tmp_path / "begun", signal.SIGUSR1)
    try:
        with pytest.raises(KeyboardInterrupt):
            daemon.start()
    finally:
        signal.signal(signal.SIGUSR1, before)
        thread.join(BOUND_S)
    assert not daemon.running
    assert os.listdir(tmp_path) == ["begun"]


def test_a_cancelled_start_leaves_nothing(tmp_path: Path) -> None:
    text = """
        import asyncio, os, time
        class Setting(Mine):
            def setup(self, queue):
                open(__file__ + ".begun", "w").close()
                time.sleep(60)
        async def main():
            daemon = Daemon(Setting(), "./s")
            start = asyncio.create_task(daemon.start_async())
            while not os.path.exists(__file__ + ".begun"):
                await asyncio.sleep(0.01)
            start.cancel()
            try:
                await start
            except asyncio.CancelledError:
                print("cancelled", daemon.running, sorted(os.listdir()))
        asyncio.run(main())
    """
    with program(tmp_path, text) as process:
        assert line(process) == "cancelled False ['program.py', 'program.py.begun']"
        assert process.wait(BOUND_S) == 0


def test_serve_heeds_a_signal_during_the_start(tmp_path: Path) -> None:
    text = """
        import sys, time
        class Setting(Mine):
            def setup(self, queue):
                print("setting up", flush=True)
                time.sleep(60)
        sys.exit(Daemon(Setting(), "./s").serve())
    """
    with program(tmp_path, text) as process:
        assert line(process) == "setting up"
        begun = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(BOUND_S) == 0
        assert time.monotonic() - begun < BOUND_S
    assert os.listdir(tmp_path) == ["program.py"]


class Stuck(Mark):
    """Its master never gets further than to make it."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        Path(state["pids"]).write_text(f"{os.getpid()}\n")
        time.sleep(60)


def test_nothing_is_left_of_a_supervised_start_that_takes_too_long(tmp_path: Path) -> None:
    device = Stuck()
    pids = tmp_path / "pids"
    device.pids = str(pids)  # type: ignore[attr-defined]
    daemon = Daemon(device, tmp_path / "s", supervised=True)
    with pytest.raises(StartTimeout):
        daemon.start(timeout=4)
    try:
        pidfd = os.pidfd_open(int(pids.read_text()))
    except ProcessLookupError:
        return
    with Fd(pidfd):
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        assert poller.poll(5000), "its master is there still"


def test_the_end_of_a_killed_one_is_no_end_in_order_where_children_are_reaped_by_the_kernel(
    tmp_path: Path,
) -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        daemon = Daemon(Mark(), tmp_path / "s").start()
        os.kill(daemon.pid, signal.SIGKILL)
        stopped = daemon.wait(BOUND_S)
        assert stopped is not None and not stopped.ok
        with Daemon(Mark(), tmp_path / "s") as daemon:
            stopped = daemon.stop()
            assert stopped is not None and stopped.ok, "that one has said so itself"
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_a_callback_that_exits_ends_nothing(tmp_path: Path) -> None:
    seen: list[str] = []

    def exit_at(event: events.AnyEvent) -> None:
        seen.append(type(event).__name__)
        raise SystemExit(1)

    with Daemon(Mark(), tmp_path / "s", on_event=exit_at):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as front_end:
            front_end.connect(str(tmp_path / "s"))
    assert seen[0] == "Ready" and seen[-1] == "Stopped"
