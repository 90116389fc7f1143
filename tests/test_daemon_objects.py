"""What a daemon of a program makes of its device object, and of what its caller gives it."""

from __future__ import annotations

import asyncio
import functools
import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, cast

import pytest
from msgspec import Meta, Struct, field

from tests.daemon_devices import Mark, MarkOptions
from tests.leaks import Holdings
from tests.test_daemon_programs import line, program, said
from vuproc import Daemon, Device, FilePath, Options, Request, device_object
from vuproc.devices.blk import Blk, BlkOptions
from vuproc.errors import (
    ConfigErrors,
    DaemonRefused,
    DaemonSilent,
    DeviceRefused,
    HostRefused,
    SocketRefused,
)
from vuproc.ops.admin import Request as AdminRequest
from vuproc.ops.admin import ask
from vuproc.program.absolute import absolute
from vuproc.program.messages import Answer, Ask, ProgramChannel
from vuproc.program.requests import Requests
from vuproc.testing.guest import Guest

BOUND_S = 20.0


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path) -> Iterator[None]:
    before = Holdings.now()
    yield
    assert before.leaked() == []
    assert [path for path in tmp_path.iterdir() if path.is_socket()] == []


# Relative paths.


class Part(Struct, frozen=True):
    at: FilePath
    note: str = "plain"


class PathOptions(Options):
    one: FilePath = ""
    maybe: FilePath | None = None
    bounded: Annotated[FilePath, Meta(min_length=1)] = "b"
    several: tuple[FilePath, ...] = ()
    pair: tuple[str, FilePath] = ("x", "y")
    named: dict[str, FilePath] = field(default_factory=dict)
    parts: list[Part] = field(default_factory=list)
    text: str = "t"


def test_every_path_of_options_is_made_absolute_in_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = PathOptions(
        maybe="m", several=("/s", "s"), named={"n": "d"}, parts=[Part("p", note="q")]
    )
    after = absolute(before)
    here = str(tmp_path)
    assert after == PathOptions(
        one="",
        maybe=f"{here}/m",
        bounded=f"{here}/b",
        several=("/s", f"{here}/s"),
        pair=("x", f"{here}/y"),
        named={"n": f"{here}/d"},
        parts=[Part(f"{here}/p", note="q")],
        text="t",
    )
    assert before.maybe == "m" and before.parts == [Part("p", note="q")]
    assert absolute(after) is after


def test_a_relative_path_is_one_of_the_programs_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FileOptions(Options):
        source: FilePath

    class Says(Device):
        device_id = 42
        options_type = FileOptions
        options: FileOptions

        def setup(self, queue: int) -> None:
            self.content = Path(self.options.source).read_bytes()

        def handle(self, request: Request) -> None:
            request.finish(request.write(self.content))

    (tmp_path / "first").write_bytes(b"first")
    (tmp_path / "second").write_bytes(b"second")
    monkeypatch.chdir(tmp_path)
    device = Says(FileOptions(source="first"))
    with Daemon(device, "s") as daemon:
        assert said(tmp_path / "s") == "first"
        assert device.options.source == "first", "the caller's object stays as it is"
        daemon.reload(Says(FileOptions(source="second")))
        deadline = time.monotonic() + BOUND_S
        while (now := said(tmp_path / "s")) != "second":
            assert now == "first" and time.monotonic() < deadline


def test_a_disk_of_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "disk.img").write_bytes(bytes(1 << 20))
    monkeypatch.chdir(tmp_path)
    with Daemon(Blk(BlkOptions(image="disk.img")), "s") as daemon:
        assert daemon.status().device == "Blk"
    with pytest.raises(DeviceRefused, match=f"{tmp_path}/none"):
        Daemon(Blk(BlkOptions(image="none")), "s").start()


# What is refused.


def test_a_number_that_is_no_queues_ends_no_conversation(tmp_path: Path) -> None:
    with Daemon(Mark(), tmp_path / "s") as daemon:
        for number in ("0", 1.5, None):
            with pytest.raises(TypeError):
                daemon.restart_queue(number)  # type: ignore[arg-type]
        for too_much in (-1, 256, 1 << 70):
            with pytest.raises(DaemonRefused, match=f"no queue {too_much}"):
                daemon.restart_queue(too_much)
        assert daemon.status().device == "Mark"


def test_arguments_of_a_wrong_type_are_errors_at_once(tmp_path: Path) -> None:
    for place in (b"/x", 1.5, None):
        with pytest.raises(TypeError):
            Daemon(Mark(), place)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="name is a text, not 7"):
        Daemon(Mark(), tmp_path / "s", name=7)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="open file"):
        Daemon(Mark(), tmp_path / "s", output="log")  # type: ignore[arg-type]


def test_what_was_closed_since_is_refused(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    given = Daemon(Mark(), theirs)
    ours.close()
    theirs.close()
    with pytest.raises(SocketRefused, match="closed"):
        given.start()
    with open(tmp_path / "log", "w") as log:
        daemon = Daemon(Mark(), tmp_path / "s", output=log)
    with pytest.raises(HostRefused, match="closed"):
        daemon.start()


@pytest.mark.parametrize("name", ["vuproc-daemon", "vuproc-events"])
def test_a_thread_that_cannot_be_started_is_the_hosts_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == name:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    daemon = Daemon(Mark(), tmp_path / "s", on_event=lambda event: None)
    with pytest.raises(HostRefused, match="no thread can be started"):
        daemon.start()
    assert not daemon.running and os.listdir(tmp_path) == []


def test_many_long_errors_of_a_device_file_are_config_errors(tmp_path: Path) -> None:
    keys = "".join(f"{number:03}{'x' * 1000}: 1\n" for number in range(100))
    file = tmp_path / "device.yaml"
    file.write_text(f"socket: ./s\n{keys}device: {{type: blk, ram: 1MiB}}\n")
    with pytest.raises(ConfigErrors) as caught:
        Daemon.from_file(file).start()
    assert 10 < len(caught.value.errors) <= 64


# A program without a free descriptor.


@contextmanager
def no_descriptor() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 8, before[1]))
    taken: list[int] = []
    try:
        while True:
            try:
                taken.append(os.open(os.devnull, os.O_RDONLY))
            except OSError:
                break
        yield
    finally:
        for number in taken:
            os.close(number)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_waiting_takes_no_descriptor_and_no_cpu(tmp_path: Path) -> None:
    async def wait(daemon: Daemon) -> Any:
        with no_descriptor():
            return await daemon.wait_async(0.5)

    with Daemon(Mark(), tmp_path / "s") as daemon:
        with no_descriptor():
            spent, begun = time.process_time(), time.monotonic()
            assert daemon.wait(1.0) is None
            assert time.monotonic() - begun >= 1.0
            assert time.process_time() - spent < 0.5
        begun = time.monotonic()
        assert asyncio.run(wait(daemon)) is None
        assert time.monotonic() - begun >= 0.5


def test_an_answer_for_which_no_descriptor_is_free_makes_nobody_deaf(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []
    with Daemon(Mark(), tmp_path / "s", on_event=lambda e: heard.append(str(e))) as daemon:
        running = daemon._run()
        with no_descriptor(), pytest.raises(DaemonSilent):
            running.ask("status", timeout=1.0)
        assert daemon.status().device == "Mark"
        with Guest(tmp_path / "s"):
            pass
    assert "front-end connected" in heard


# Reloads.


def test_a_reload_that_is_refused_takes_back_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = Daemon(Mark(MarkOptions(mark="first")), tmp_path / "s")
    with daemon:
        running = daemon._run()
        asking = running.ask
        entered, gate = threading.Event(), threading.Event()

        def ask_late(*given: Any, **keys: Any) -> Any:
            if threading.current_thread() is refused:
                entered.set()
                gate.wait(2)
                raise DaemonRefused("late")
            return asking(*given, **keys)

        def reload_in_vain() -> None:
            with pytest.raises(DaemonRefused, match="late"):
                daemon.reload(Mark(MarkOptions(mark="refused")))

        refused = threading.Thread(target=reload_in_vain)
        monkeypatch.setattr(running, "ask", ask_late)
        refused.start()
        assert entered.wait(BOUND_S)
        threading.Timer(0.3, gate.set).start()
        daemon.reload(Mark(MarkOptions(mark="second")))
        refused.join(BOUND_S)
    with daemon:
        assert said(tmp_path / "s").startswith("second ")


def test_a_reload_that_is_carried_out_late_is_what_the_next_start_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = Daemon(Mark(MarkOptions(mark="first")), tmp_path / "s")
    with daemon:
        running = daemon._run()
        ask = running.ask
        monkeypatch.setattr(running, "ask", functools.partial(ask, timeout=0.1))
        os.kill(daemon.pid, signal.SIGSTOP)
        try:
            with pytest.raises(DaemonSilent):
                daemon.reload(Mark(MarkOptions(mark="second")))
        finally:
            os.kill(daemon.pid, signal.SIGCONT)
        # Answers come in the order of the requests, so this one after the other.
        assert ask("status", timeout=BOUND_S)["device"] == "Mark"
    with daemon:
        assert said(tmp_path / "s").startswith("second ")


class Unheard:
    """A channel at whose other end nobody answers."""

    def __init__(self) -> None:
        self.asked: list[Ask] = []

    def send(self, ask: Ask) -> None:
        self.asked.append(ask)


@pytest.mark.parametrize("carried_out", [True, False])
def test_only_what_was_carried_out_late_is_told(carried_out: bool) -> None:
    channel, told = Unheard(), threading.Event()
    requests = Requests(cast(ProgramChannel, channel))
    with pytest.raises(DaemonSilent):
        requests.ask("reload", None, None, 0.01, told.set)
    with device_object.sealed(b"", "answer") as result:
        serial = channel.asked[0].serial
        late = Answer(serial, result=result) if carried_out else Answer(serial, "refused")
        for _ in range(2):
            assert not requests.answered(late)
            assert told.is_set() is carried_out
            told.clear()
            carried_out = False


def test_a_reload_by_an_operator_keeps_what_was_in_force_at_the_masters_death(
    tmp_path: Path,
) -> None:
    path = tmp_path / "s"

    def await_mark(mark: str) -> None:
        deadline = time.monotonic() + BOUND_S
        while not said(path).startswith(f"{mark} "):
            assert time.monotonic() < deadline

    with Daemon(Mark(MarkOptions(mark="first")), path, supervised=True) as daemon:
        daemon.reload(Mark(MarkOptions(mark="second")))
        await_mark("second")
        master = daemon.status().pid
        os.kill(master, signal.SIGKILL)
        deadline = time.monotonic() + BOUND_S
        while True:
            try:
                if daemon.status().pid != master:
                    break
            except DaemonSilent:
                pass
            assert time.monotonic() < deadline
        assert said(path).startswith("second ")
        answer = ask(path, AdminRequest("reload"))
        assert "first" not in str(answer)
        assert said(path).startswith("second ")
        assert daemon.status().queues[0].pid is not None


def test_a_class_of_options_with_a_dictionary_travels(tmp_path: Path) -> None:
    text = """
        class LooseOptions(Options, dict=True, weakref=True, omit_defaults=True):
            word: str = "loose"

            def __post_init__(self):
                self.twice = self.word * 2

        class Loose(Mine):
            options_type = LooseOptions

            def handle(self, request):
                request.finish(request.write(LooseOptions(word=self.options.word).twice.encode()))

        with Daemon(Loose(LooseOptions()), "./s") as daemon:
            print("up")
            daemon.wait(60)
    """
    with program(tmp_path, text) as process:
        assert line(process) == "up"
        assert said(tmp_path / "s") == "looseloose"
        process.terminate()
        process.wait(BOUND_S)
        deadline = time.monotonic() + BOUND_S
        while (tmp_path / "s").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_packing_leaves_the_callers_options_alone() -> None:
    device = Mark(MarkOptions(mark="own"))
    pickled = device_object.pickled(device, MarkOptions(mark="other"))
    made = device_object.unpickled(pickled)
    assert made.options == MarkOptions(mark="other")
    assert device.options.mark == "own"
