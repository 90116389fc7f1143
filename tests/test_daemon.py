"""`vuproc.Daemon`: a device of this program, started, asked, reloaded and stopped by it."""

from __future__ import annotations

import os
import queue
import signal
import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.daemon_devices import Failing, Hopeless, Mark, MarkOptions
from tests.leaks import Holdings
from vuproc import Connect, Daemon, Device, Options, Request, events
from vuproc.errors import (
    ConfigErrors,
    DaemonRefused,
    DeviceRefused,
    NotRunning,
    SocketRefused,
    StartTimeout,
)
from vuproc.ops.admin import AdminError, ask
from vuproc.ops.admin import Request as AdminRequest
from vuproc.testing.guest import Guest

BOUND_S = 20.0
Kind = TypeVar("Kind")


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path) -> Iterator[None]:
    """No open file, process or segment, and nothing beside the socket."""
    before = Holdings.now()
    yield
    assert before.leaked() == []
    assert [path for path in tmp_path.iterdir() if path.is_socket()] == []


class Heard:
    """The events of a daemon, in their order."""

    def __init__(self) -> None:
        self.all: list[events.AnyEvent] = []
        self._news: queue.SimpleQueue[events.AnyEvent] = queue.SimpleQueue()

    def __call__(self, event: events.AnyEvent) -> None:
        self.all.append(event)
        self._news.put(event)

    def next(self, kind: type[Kind]) -> Kind:
        """The next event of a kind; others before it are passed over."""
        deadline = time.monotonic() + BOUND_S
        while True:
            event = self._news.get(timeout=max(0.0, deadline - time.monotonic()))
            if isinstance(event, kind):
                return event


def said(guest: Guest, queue: int = 0, text: bytes = b"") -> str:
    """The mark of the worker that answers a request, and its process id."""
    done = guest.do(queue, [text] if text else [], [32], timeout_s=BOUND_S)
    return done.content[: done.written].decode()


def worker_of(daemon: Daemon) -> int:
    """The process that serves queue 0."""
    pid = daemon.status().queues[0].pid
    assert pid is not None
    return pid


def test_it_accepts_when_start_returns_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "mark.sock"
    with Daemon(Mark(MarkOptions(mark="one", queues=2)), path, permissions=0o640) as daemon:
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        with Guest(path, queues=2) as guest:
            assert said(guest).startswith("one ")
            status = daemon.status()
            assert status.connected and status.device == "Mark" and status.pid == daemon.pid
            assert [each.requests for each in status.queues] == [1, 0]
        assert daemon.running
    stopped = daemon.wait(0)
    assert stopped is not None and stopped.ok and stopped.reason == "it was asked to stop"
    assert daemon.stop() == stopped
    assert os.listdir(tmp_path) == []


def test_it_is_started_again_after_its_end(tmp_path: Path) -> None:
    daemon = Daemon(Mark(), tmp_path / "mark.sock")
    for _ in range(2):
        with daemon, Guest(tmp_path / "mark.sock") as guest:
            assert said(guest)
        assert not daemon.running


def test_two_daemons_of_one_program(tmp_path: Path) -> None:
    paths = [tmp_path / "a.sock", tmp_path / "b.sock"]
    with (
        Daemon(Mark(MarkOptions(mark="a")), paths[0]) as first,
        Daemon(Mark(MarkOptions(mark="b")), paths[1]) as second,
        Guest(paths[0]) as one,
        Guest(paths[1]) as other,
    ):
        assert said(one).startswith("a ")
        assert said(other).startswith("b ")
        assert first.pid != second.pid
        first.stop()
        assert said(other).startswith("b ")


def test_a_class_of_a_function_with_what_it_refers_to(tmp_path: Path) -> None:
    class LocalOptions(Options):
        times: int

        def word(self, text: str) -> str:
            return text * self.times

    def device(prefix: str) -> Device:
        class Local(Device):
            device_id = 42
            options_type = LocalOptions

            def handle(self, request: Request) -> None:
                assert isinstance(self.options, LocalOptions)
                request.finish(request.write(self.options.word(prefix).encode()))

        return Local(LocalOptions(times=3))

    with Daemon(device("ab"), tmp_path / "s"), Guest(tmp_path / "s") as guest:
        assert said(guest) == "ababab"


def test_what_an_object_has_beside_its_options_travels_too(tmp_path: Path) -> None:
    device = Mark()
    device.options = MarkOptions(mark="late")
    with Daemon(device, tmp_path / "s"), Guest(tmp_path / "s") as guest:
        assert said(guest).startswith("late ")


def test_client_mode(tmp_path: Path) -> None:
    path = tmp_path / "vmm.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as vmm, Daemon(Mark(), Connect(path)):
        vmm.settimeout(BOUND_S)
        vmm.bind(str(path))
        vmm.listen()
        for _ in range(2):
            connection, _ = vmm.accept()
            with Guest(connection) as guest:
                assert said(guest)
    path.unlink()


def test_a_connected_socket_is_served_until_it_ends() -> None:
    ours, theirs = socket.socketpair()
    with theirs, Daemon(Mark(), theirs) as daemon:
        with Guest(ours) as guest:
            assert said(guest)
        stopped = daemon.wait(BOUND_S)
        assert stopped is not None and stopped.ok
        assert stopped.reason.startswith("the front-end is gone")


def test_a_listening_descriptor_stays_the_callers(tmp_path: Path) -> None:
    path = tmp_path / "given.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(str(path))
        listening.listen()
        for _ in range(2):
            with Daemon(Mark(), listening.fileno()), Guest(path) as guest:
                assert said(guest)
    path.unlink()


def test_the_end_of_the_last_front_end(tmp_path: Path) -> None:
    with Daemon(Mark(), tmp_path / "s", exit_on_disconnect=True) as daemon:
        with Guest(tmp_path / "s") as guest:
            assert said(guest)
        stopped = daemon.wait(BOUND_S)
    assert stopped is not None and stopped.ok


def test_wait_is_bounded_and_stop_comes_from_another_thread(tmp_path: Path) -> None:
    with Daemon(Mark(), tmp_path / "s") as daemon:
        assert daemon.wait(0.01) is None
        threading.Timer(0.1, daemon.stop).start()
        stopped = daemon.wait(BOUND_S)
        assert stopped is not None and stopped.ok


def test_stop_from_a_signal_handler_that_interrupts_wait(tmp_path: Path) -> None:
    with Daemon(Mark(), tmp_path / "s") as daemon:
        before = signal.signal(signal.SIGUSR1, lambda *_: daemon.stop())
        try:
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1)).start()
            stopped = daemon.wait(BOUND_S)
        finally:
            signal.signal(signal.SIGUSR1, before)
        assert stopped is not None and stopped.ok


@pytest.mark.parametrize("supervised", [False, True])
def test_stop_kills_what_does_not_end(tmp_path: Path, supervised: bool) -> None:
    daemon = Daemon(Mark(), tmp_path / "s", supervised=supervised).start()
    os.kill(daemon.status().pid, signal.SIGSTOP)
    begun = time.monotonic()
    stopped = daemon.stop(0.2)
    assert stopped is not None and stopped.code == -signal.SIGKILL and not stopped.ok
    assert "SIGKILL" in stopped.reason
    assert time.monotonic() - begun < BOUND_S
    with Daemon(Mark(), tmp_path / "s"), Guest(tmp_path / "s") as guest:
        assert said(guest), "what the killed one has left is replaced"


def test_the_masters_death_is_the_end_and_is_explained(tmp_path: Path) -> None:
    heard = Heard()
    with Daemon(Mark(), tmp_path / "s", on_event=heard) as daemon:
        os.kill(daemon.pid, signal.SIGKILL)
        stopped = daemon.wait(BOUND_S)
        assert stopped is not None and stopped.code == -signal.SIGKILL
        assert heard.next(events.Stopped) == stopped
        with pytest.raises(NotRunning):
            daemon.status()
    with Daemon(Mark(), tmp_path / "s"):
        pass  # it removes what the dead one has left


# What keeps it from starting.


def test_a_setup_that_fails_is_the_devices_matter(tmp_path: Path) -> None:
    daemon = Daemon(Failing(), tmp_path / "s")
    with pytest.raises(DeviceRefused, match="no hardware"):
        daemon.start()
    assert not daemon.running
    assert os.listdir(tmp_path) == []


def test_a_class_that_is_no_device_is_refused_with_its_line(tmp_path: Path) -> None:
    class NoHandle(Device):
        device_id = 4

    with pytest.raises(DeviceRefused, match=r"test_daemon.py:\d+: NoHandle has no method handle"):
        Daemon(NoHandle(), tmp_path / "s").start()


def test_an_object_that_cannot_travel_is_refused(tmp_path: Path) -> None:
    class Generating(Mark):
        def __init__(self, most: int) -> None:
            super().__init__()
            self.numbers = (number for number in range(most))

    with pytest.raises(DeviceRefused, match=r"Generating cannot be handed .* make it in setup"):
        Daemon(Generating(3), tmp_path / "s").start()


def test_a_description_that_is_wrong_is_refused(tmp_path: Path) -> None:
    class TooMany(Mark):
        def num_queues(self) -> int:
            return 1000

    with pytest.raises(DeviceRefused, match="num_queues"):
        Daemon(TooMany(), tmp_path / "s").start()
    with pytest.raises(DeviceRefused, match="workers: the device has no queue 7"):
        Daemon(Mark(), tmp_path / "s", workers=[[0, 7]]).start()


def test_a_socket_that_is_served_already_is_refused(tmp_path: Path) -> None:
    with Daemon(Mark(), tmp_path / "s"):
        with pytest.raises(SocketRefused, match="another vuproc is serving this socket"):
            Daemon(Mark(), tmp_path / "s").start()
        with Guest(tmp_path / "s") as guest:
            assert said(guest)
    with pytest.raises(SocketRefused, match="does not exist"):
        Daemon(Mark(), tmp_path / "no" / "s").start()


def test_what_no_device_file_could_say_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stall_timeout"):
        Daemon(Mark(), tmp_path / "s", stall_timeout=-1)
    with pytest.raises(ValueError, match="log_level"):
        Daemon(Mark(), tmp_path / "s", log_level="loud")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"write Mark\(\)"):
        Daemon(Mark, tmp_path / "s")  # type: ignore[arg-type]
    with open(os.devnull) as file, pytest.raises(ValueError, match="descriptor"):
        Daemon(Mark(), file)


def test_a_start_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    class Slow(Mark):
        def setup(self, queue: int) -> None:
            time.sleep(60)

    begun = time.monotonic()
    with pytest.raises(StartTimeout):
        Daemon(Slow(), tmp_path / "s").start(timeout=1.5)
    assert time.monotonic() - begun < BOUND_S


def test_a_device_file_as_vuproc_run_takes_it(tmp_path: Path) -> None:
    file = tmp_path / "disk.yaml"
    file.write_text("socket: ./disk.sock\ndevice: {type: blk, ram: 1MiB}\n")
    with Daemon.from_file(file) as daemon, Guest(tmp_path / "disk.sock"):
        assert daemon.status().device == "blk"
        file.write_text("socket: ./disk.sock\nstall_timeout: 9\ndevice: {type: blk, ram: 1MiB}\n")
        assert "stall_timeout: 30.0 becomes 9.0" in daemon.reload()[0]
    file.write_text("socket: ./disk.sock\ndevice: {type: blk, rom: 1MiB}\n")
    with pytest.raises(ConfigErrors) as caught:
        Daemon.from_file(file).start()
    assert [error.line for error in caught.value.errors][:1] == [2]


# What happens meanwhile.


def test_events_come_in_order_as_structs(tmp_path: Path) -> None:
    heard = Heard()
    with Daemon(Mark(), tmp_path / "s", on_event=heard) as daemon:
        with Guest(tmp_path / "s") as guest:
            assert said(guest)
            worker = worker_of(daemon)
            os.kill(worker, signal.SIGKILL)
            died = heard.next(events.WorkerDied)
            assert (died.queues, died.pid, died.how) == ((0,), worker, "killed by SIGKILL")
            assert said(guest)
            replaced = heard.next(events.WorkerReplaced)
            assert replaced.queues == (0,) and replaced.pid != worker and replaced.stall_s > 0
        assert heard.next(events.Disconnected).ours is False
    kinds = [type(event).__name__ for event in heard.all]
    assert kinds == [
        "Ready",
        "Connected",
        "WorkerDied",
        "WorkerReplaced",
        "Disconnected",
        "Stopped",
    ]
    assert str(heard.all[0]) == "serving Mark, 1 queue in 1 worker"


def test_a_broken_queue_is_told_and_restarted(tmp_path: Path) -> None:
    heard, trap = Heard(), tmp_path / "trap"
    device = Hopeless(MarkOptions(trap=str(trap)))
    with Daemon(device, tmp_path / "s", on_event=heard) as daemon:
        with Guest(tmp_path / "s") as guest:
            trap.touch()
            os.kill(worker_of(daemon), signal.SIGKILL)
            broken = heard.next(events.RingBroken)
            assert broken.queue == 0 and "5 deaths" in broken.cause
            assert daemon.status().queues[0].state == "broken"
            with pytest.raises(DaemonRefused, match="no queue 5"):
                daemon.restart_queue(5)
            trap.unlink()
            daemon.restart_queue(0)
            heard.next(events.QueueRestarted)
            assert said(guest)
            with pytest.raises(DaemonRefused, match="is not broken"):
                daemon.restart_queue(0)


def test_a_callback_that_raises_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seen = []

    def raise_at(event: events.AnyEvent) -> None:
        seen.append(event)
        raise KeyError("mine")

    with Daemon(Mark(), tmp_path / "s", on_event=raise_at):
        with Guest(tmp_path / "s") as guest:
            assert said(guest)
    assert [type(event) for event in seen][-1] is events.Stopped
    assert "on_event raised" in caplog.text


def test_a_callback_may_ask_and_stop(tmp_path: Path) -> None:
    answers: list[Any] = []

    def ask(event: events.AnyEvent) -> None:
        if isinstance(event, events.Connected):
            answers.append(daemon.status().connected)
            answers.append(daemon.stop())

    daemon = Daemon(Mark(), tmp_path / "s", on_event=ask)
    with daemon, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as front_end:
        front_end.connect(str(tmp_path / "s"))
        stopped = daemon.wait(BOUND_S)
    assert answers == [True, stopped]


# Reloads.


def test_a_reload_brings_new_workers_and_loses_no_request(tmp_path: Path) -> None:
    heard = Heard()
    device = Mark(MarkOptions(mark="old"))
    with Daemon(device, tmp_path / "s", on_event=heard) as daemon:
        with Guest(tmp_path / "s") as guest:
            assert said(guest).startswith("old ")
            lines = daemon.reload(Mark(MarkOptions(mark="new")))
            assert any("old becomes new" in line for line in lines)
            marks = [said(guest) for _ in range(20)]
            heard.next(events.Reloaded)
            assert said(guest).startswith("new ")
            assert all(mark.startswith(("old ", "new ")) for mark in marks)
            assert daemon.status().connected


def test_a_reload_of_another_class_of_a_function(tmp_path: Path) -> None:
    def device(text: str) -> Device:
        class Says(Device):
            device_id = 42

            def handle(self, request: Request) -> None:
                request.finish(request.write(text.encode()))

        return Says()

    heard = Heard()
    with Daemon(device("first"), tmp_path / "s", on_event=heard) as daemon:
        with Guest(tmp_path / "s") as guest:
            assert said(guest) == "first"
            assert any("the object has changed" in line for line in daemon.reload(device("2nd")))
            assert heard.next(events.Reloaded).ok
            assert said(guest) == "2nd"


def test_a_reload_that_needs_another_session_waits_for_it(tmp_path: Path) -> None:
    heard = Heard()
    with Daemon(Mark(MarkOptions(size=1)), tmp_path / "s", on_event=heard) as daemon:
        heard.next(events.Ready)
        with Guest(tmp_path / "s") as guest:
            lines = daemon.reload(Mark(MarkOptions(size=2, mark="two")))
            assert any("takes effect with the next front-end" in line for line in lines)
            assert said(guest).startswith("m ")
        ready = heard.next(events.Ready)
        assert ready.pid == daemon.pid
        with Guest(tmp_path / "s") as guest:
            assert said(guest).startswith("two ")


def test_a_reload_that_is_refused_changes_nothing(tmp_path: Path) -> None:
    class Wrong(Mark):
        def queue_size(self) -> int:
            return 3

    ours, theirs = socket.socketpair()
    with theirs, Daemon(Mark(), theirs) as daemon, Guest(ours) as guest:
        with pytest.raises(DeviceRefused, match="queue_size"):
            daemon.reload(Wrong())
        with pytest.raises(DaemonRefused, match="cannot begin anew"):
            daemon.reload(Mark(MarkOptions(size=2)))
        assert said(guest).startswith("m ")
        assert daemon.reload() == ["Mark: nothing has changed"]


# The program.


def test_a_fork_of_the_program_has_no_part_in_it(tmp_path: Path) -> None:
    with Daemon(Mark(), tmp_path / "s") as daemon:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                with pytest.raises(NotRunning):
                    daemon.status()
                code = 0 if daemon.stop() is None and not daemon.running else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        with Guest(tmp_path / "s") as guest:
            assert said(guest)
            assert daemon.status().connected


def test_a_supervised_daemon_outlives_its_master(tmp_path: Path) -> None:
    heard = Heard()
    with Daemon(Mark(), tmp_path / "s", supervised=True, on_event=heard) as daemon:
        first = heard.next(events.Ready)
        with Guest(tmp_path / "s") as guest:
            assert said(guest)
            os.kill(first.pid, signal.SIGKILL)
            second = heard.next(events.Ready)
            assert second.pid != first.pid and daemon.pid not in (first.pid, second.pid)
            assert daemon.status().pid == second.pid
            assert said(guest), "the front-end has not noticed"
            assert daemon.status().connected
        assert daemon.running
    stopped = daemon.wait(0)
    assert stopped is not None and stopped.ok


def test_a_supervised_daemon_goes_on_with_what_was_reloaded(tmp_path: Path) -> None:
    heard = Heard()
    device = Mark(MarkOptions(mark="old"))
    with Daemon(device, tmp_path / "s", supervised=True, on_event=heard) as daemon:
        first = heard.next(events.Ready)
        daemon.reload(Mark(MarkOptions(mark="new")))
        assert heard.next(events.Reloaded).ok
        with Guest(tmp_path / "s") as guest:
            os.kill(first.pid, signal.SIGKILL)
            heard.next(events.Ready)
            assert said(guest).startswith("new ")


def test_a_device_file_of_a_daemon_is_upgraded_as_any(tmp_path: Path) -> None:
    file, heard = tmp_path / "disk.yaml", Heard()
    file.write_text("socket: ./s\ndevice: {type: blk, ram: 1MiB}\n")
    with Daemon.from_file(file, on_event=heard) as daemon:
        before = heard.next(events.Ready)
        started = daemon.status().started
        with Guest(tmp_path / "s"):
            ask(tmp_path / "s", AdminRequest("upgrade"))
            assert heard.next(events.Ready) == before
            after = daemon.status()
            assert after.started > started and after.connected and after.pid == before.pid
    with Daemon(Mark(), tmp_path / "s"), pytest.raises(AdminError, match="a program has made"):
        ask(tmp_path / "s", AdminRequest("upgrade"))
