"""The console with the built-in driver: its ends, its ports, and deaths while bytes pass."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import pytest

from vuproc.devices.console import Console
from vuproc.devices.console_options import ConsoleOptions
from vuproc.spec.console import (
    CONFIG,
    CONTROL,
    CONTROL_RECEIVE,
    CONTROL_TRANSMIT,
    RESIZE,
    ConsoleEvent,
    ConsoleFeature,
)
from vuproc.testing import Guest, Served, serve
from vuproc.testing.errors import ServeFailed

pytestmark = pytest.mark.timeout(120)

RECEIVE, TRANSMIT = 0, 1
PORT_RECEIVE, PORT_TRANSMIT = 4, 5
BOUND_S = 60.0


def console(**options: Any) -> AbstractContextManager[Served]:
    return serve({"type": "console", **options})


def connected(path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.settimeout(BOUND_S)
    made.connect(str(path))
    return made


def read(file: int | socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = os.read(file, count) if isinstance(file, int) else file.recv(count - len(data))
        assert more, f"it ended after {data!r}"
        data += more
    return data


def received(guest: Guest, queue: int, count: int) -> bytes:
    data = b""
    while len(data) < count:
        data += guest.receive(queue)
    return data


def until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + BOUND_S
    while not what():
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)


class Driver:
    """What Linux says of ports, and what it is told."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        guest.keep_filled(CONTROL_RECEIVE, count=16, size=80)

    def say(self, event: ConsoleEvent, value: int, port: int = 0) -> None:
        self.guest.do(CONTROL_TRANSMIT, [CONTROL.pack(id=port, event=event, value=value)])

    def told(self) -> tuple[int, ConsoleEvent, int, bytes]:
        data = self.guest.receive(CONTROL_RECEIVE)
        head = CONTROL.unpack(data[: CONTROL.size])
        event = ConsoleEvent(head["event"])
        return head["id"], event, head["value"], data[CONTROL.size :]


# Ends.


@pytest.mark.parametrize("packed", [False, True])
def test_a_terminal_has_both_ways_and_its_link(tmp_path: Path, packed: bool) -> None:
    link = tmp_path / "console"
    with console(path=str(link)) as served, served.guest(queues=2, packed=packed) as guest:
        assert served.wait_for_line("port 0 is at /dev/pts/").endswith(os.readlink(link))
        guest.keep_filled(RECEIVE, count=8, size=64)
        terminal = os.open(link, os.O_RDWR | os.O_NOCTTY)
        try:
            guest.do(TRANSMIT, [b"login", b": "])
            assert read(terminal, 7) == b"login: "
            os.write(terminal, b"root\n")
            assert guest.receive(RECEIVE) == b"root\n"
            served.wait_worker(other_than=served.kill_worker())
            guest.do(TRANSMIT, [b"# "])
            assert read(terminal, 2) == b"# "
            os.write(terminal, b"x" * 200)
            assert received(guest, RECEIVE, 200) == b"x" * 200
        finally:
            os.close(terminal)


def test_a_link_takes_no_place_that_is_somebodys(tmp_path: Path) -> None:
    file = tmp_path / "console"
    file.write_text("mine")
    with console(path=str(file)) as served:
        served.wait_for_line(f"port 0: no link at {file}: File exists")
    assert file.read_text() == "mine"


def test_a_file_has_all_that_was_said_whoever_dies(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("before\n")
    file = {"type": "console", "backend": "file", "path": str(log)}
    with serve(file, arguments=["--supervised"]) as served, served.guest(queues=2) as guest:
        guest.do(TRANSMIT, [b"one\n"])
        served.wait_worker(other_than=served.kill_worker())
        guest.do(TRANSMIT, [b"two\n"])
        before = served.status().pid
        os.kill(before, signal.SIGKILL)
        guest.do(TRANSMIT, [b"three\n"])
        assert served.status().pid != before
    assert log.read_text() == "before\none\ntwo\nthree\n"


def test_a_log_that_was_moved_is_said_at_a_reload(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with console(backend="file", path=str(log)) as served, served.guest(queues=2) as guest:
        guest.do(TRANSMIT, [b"one"])
        log.rename(tmp_path / "log.1")
        log.touch()
        assert any("another file is there now" in line for line in served.reload())
        guest.do(TRANSMIT, [b"two"])
        until(lambda: (tmp_path / "log.1").read_text() == "onetwo")
    assert log.read_text() == ""


def test_one_client_at_a_time_has_the_socket(tmp_path: Path) -> None:
    path = tmp_path / "console.sock"
    with console(backend="socket", path=str(path)) as served, served.guest(queues=2) as guest:
        guest.keep_filled(RECEIVE, count=8, size=64)
        guest.do(TRANSMIT, [b"nobody hears this"])
        with connected(path) as first:
            first.sendall(b"first")
            assert guest.receive(RECEIVE) == b"first"
            guest.do(TRANSMIT, [b"to the first"])
            assert read(first, 12) == b"to the first"
            with connected(path) as second:
                second.sendall(b"second")
                guest.do(TRANSMIT, [b"again"])
                assert read(first, 5) == b"again"
                first.close()
                assert guest.receive(RECEIVE) == b"second"
                guest.do(TRANSMIT, [b"to the second"])
                assert read(second, 13) == b"to the second"
        assert not [line for line in served.lines if "ERROR" in line]


def test_standard_input_and_output_are_those_of_vuproc(tmp_path: Path) -> None:
    file = tmp_path / "console.yaml"
    file.write_text("socket: ./s\ndevice: {type: console, backend: stdio}\n")
    command = [sys.executable, "-m", "vuproc", "run", str(file)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        assert process.stdin and process.stdout and process.stderr
        for line in process.stderr:
            if b"serving" in line:
                break
        with Guest(tmp_path / "s", queues=2) as guest:
            guest.keep_filled(RECEIVE, count=2, size=64)
            guest.do(TRANSMIT, [b"login: "])
            assert read(process.stdout.fileno(), 7) == b"login: "
            process.stdin.write(b"root\n")
            process.stdin.flush()
            assert guest.receive(RECEIVE) == b"root\n"
            # At its end there is no more input; output goes on.
            process.stdin.close()
            guest.do(TRANSMIT, [b"# "])
            assert read(process.stdout.fileno(), 2) == b"# "
        process.terminate()
        process.stderr.read()
        assert process.wait(BOUND_S) == 0


def test_standard_input_may_be_nothing_and_output_be_appended(tmp_path: Path) -> None:
    """As under a service manager: epoll(7) has no /dev/null, splice(2) no file to append to."""
    file, log = tmp_path / "console.yaml", tmp_path / "log"
    file.write_text("socket: ./s\ndevice: {type: console, backend: stdio}\n")
    log.write_text("before\n")
    command = [sys.executable, "-m", "vuproc", "run", str(file)]
    with (
        log.open("ab") as output,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.PIPE
        ) as process,
    ):
        assert process.stderr
        for line in process.stderr:
            if b"serving" in line:
                break
        with Guest(tmp_path / "s", queues=2) as guest:
            guest.keep_filled(RECEIVE, count=2, size=64)
            guest.do(TRANSMIT, [b"x" * 10000])
            until(lambda: log.read_bytes() == b"before\n" + b"x" * 10000)
        process.terminate()
        assert b"ERROR" not in process.stderr.read()
        assert process.wait(BOUND_S) == 0


@pytest.mark.parametrize("packed", [False, True])
def test_every_byte_passes_once_while_workers_are_killed(tmp_path: Path, packed: bool) -> None:
    """What is sent both ways at the same time, over a connection that outlives them."""
    path, total = tmp_path / "console.sock", 1 << 20
    chance = random.Random(1)
    there, back = chance.randbytes(total), chance.randbytes(total)
    came = hashlib.sha256()
    with (
        console(backend="socket", path=str(path)) as served,
        served.guest(queues=2, packed=packed, timeout_s=BOUND_S) as guest,
        connected(path) as host,
    ):
        guest.keep_filled(RECEIVE, count=16, size=512)
        # Somebody is heard, so the connection is there.
        host.sendall(b"!")
        assert guest.receive(RECEIVE) == b"!"
        sender = threading.Thread(target=host.sendall, args=(there,))
        reader = threading.Thread(target=lambda: came.update(read(host, total)))
        sender.start()
        reader.start()
        sent, heard, pid = 0, b"", None
        while sent < total or len(heard) < total:
            if sent < total:
                count = chance.randrange(1, 20_000)
                guest.do(TRANSMIT, [back[sent : sent + count]])
                sent += count
            if len(heard) < total:
                heard += guest.receive(RECEIVE)
            if chance.random() < 0.02:
                pid = served.kill_worker()
        for thread in (sender, reader):
            thread.join(BOUND_S)
            assert not thread.is_alive()
        assert pid is not None
    assert heard == there
    assert came.digest() == hashlib.sha256(back).digest()


def test_a_console_that_nobody_reads_does_not_hold_the_guest_up() -> None:
    """A Linux guest goes round in circles until a console has taken its text."""
    with console() as served, served.guest(queues=2) as guest:
        where = served.wait_for_line("port 0 is at ").rpartition(" ")[2]
        deadline = time.monotonic() + BOUND_S
        while not any("its output is not taken" in line for line in served.lines):
            guest.do(TRANSMIT, [b"x" * 4096])
            assert time.monotonic() < deadline
        for _ in range(20):
            guest.do(TRANSMIT, [b"x" * 4096])
        assert served.status().queues[TRANSMIT].counters["dropped"] >= 20
        terminal = os.open(where, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)

        def taken_again() -> bool:
            with suppress(BlockingIOError):
                os.read(terminal, 4096)
            return any("its output is taken again" in line for line in served.lines)

        try:
            until(taken_again)
        finally:
            os.close(terminal)


def test_a_request_longer_than_all_the_room_passes_in_parts(tmp_path: Path) -> None:
    path = tmp_path / "console.sock"
    data = os.urandom(300_000)
    with (
        console(backend="socket", path=str(path)) as served,
        served.guest(queues=2) as guest,
        connected(path) as host,
    ):
        guest.keep_filled(RECEIVE, count=2, size=64)
        host.sendall(b"!")
        assert guest.receive(RECEIVE) == b"!"
        token = guest.submit(TRANSMIT, [data])
        assert read(host, 200_000) == data[:200_000]
        served.wait_worker(other_than=served.kill_worker())
        assert read(host, 100_000) == data[200_000:]
        guest.wait(token)


def test_a_stop_is_quick_with_output_that_waits(tmp_path: Path) -> None:
    path = tmp_path / "port.sock"
    data = os.urandom(1 << 20)
    with (
        console(backend="socket", path=str(path)) as served,
        served.guest(queues=2) as guest,
        connected(path) as host,
    ):
        guest.keep_filled(RECEIVE, count=2, size=64)
        host.sendall(b"!")
        assert guest.receive(RECEIVE) == b"!"
        pid = served.status().queues[0].pid
        for at in range(0, 1 << 20, 60_000):
            guest.submit(TRANSMIT, [data[at : at + 60_000]])
        began = time.monotonic()
        guest.stop_queue(RECEIVE)
        guest.stop_queue(TRANSMIT)
        assert time.monotonic() - began < 1.5
        assert served.status().queues[0].pid == pid


# What the driver is told.


def test_the_size_is_in_the_configuration_space_and_follows_a_reload(tmp_path: Path) -> None:
    file = tmp_path / "console.yaml"
    text = "socket: ./s\ndevice: {type: console, backend: 'null', columns: %d, rows: 50}\n"
    file.write_text(text % 132)
    with serve(file) as served, served.guest(queues=2, channel=True) as guest:
        assert guest.front_end.features & ConsoleFeature.SIZE
        config = CONFIG.unpack(guest.config(CONFIG.size))
        assert (config["cols"], config["rows"], config["max_nr_ports"]) == (132, 50, 1)
        file.write_text(text % 80)
        served.reload()
        assert CONFIG.unpack(guest.wait_config_change(size=CONFIG.size))["cols"] == 80


def test_ports_are_told_with_name_kind_size_and_who_is_there(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    ports = [
        {"name": "org.example.agent.0", "path": str(path)},
        {"name": "second", "backend": "null", "console": True},
    ]
    options = {"backend": "null", "columns": 80, "rows": 24, "ports": ports}
    with console(**options) as served, served.guest(queues=8) as guest:
        driver = Driver(guest)
        driver.say(ConsoleEvent.DEVICE_READY, 1)
        added = [driver.told() for _ in range(3)]
        assert added == [(port, ConsoleEvent.DEVICE_ADD, 0, b"") for port in range(3)]
        driver.say(ConsoleEvent.PORT_READY, 1, port=1)
        assert driver.told() == (1, ConsoleEvent.PORT_NAME, 0, b"org.example.agent.0")
        driver.say(ConsoleEvent.PORT_READY, 1, port=2)
        size = RESIZE.pack(cols=80, rows=24)
        assert [driver.told() for _ in range(4)] == [
            (2, ConsoleEvent.CONSOLE_PORT, 1, b""),
            (2, ConsoleEvent.PORT_NAME, 0, b"second"),
            (2, ConsoleEvent.RESIZE, 0, size),
            (2, ConsoleEvent.PORT_OPEN, 1, b""),
        ]
        # Nothing is told twice, by another worker neither; whoever comes and goes is.
        served.wait_worker(other_than=served.kill_worker())
        with connected(path) as host:
            assert driver.told() == (1, ConsoleEvent.PORT_OPEN, 1, b"")
            guest.keep_filled(PORT_RECEIVE, count=4, size=64)
            host.sendall(b"early")
            driver.say(ConsoleEvent.PORT_OPEN, 1, port=1)
            assert guest.receive(PORT_RECEIVE) == b"early"
            served.wait_worker(other_than=served.kill_worker())
            guest.do(PORT_TRANSMIT, [b"answer"])
            assert read(host, 6) == b"answer"
            # A port that the guest has closed keeps what comes for the next who opens it.
            driver.say(ConsoleEvent.PORT_OPEN, 0, port=1)
            host.sendall(b"late")
            driver.say(ConsoleEvent.PORT_OPEN, 1, port=1)
            assert guest.receive(PORT_RECEIVE) == b"late"
        assert driver.told() == (1, ConsoleEvent.PORT_OPEN, 0, b"")
        # Another driver begins anew.
        driver.say(ConsoleEvent.DEVICE_READY, 1)
        assert [driver.told()[:2] for _ in range(3)] == [
            (port, ConsoleEvent.DEVICE_ADD) for port in range(3)
        ]


def test_an_old_driver_is_told_rows_first(tmp_path: Path) -> None:
    ports = [{"name": "other", "backend": "null"}]
    options = {"backend": "null", "columns": 80, "rows": 24, "resize": "rows-first"}
    with console(**options, ports=ports) as served, served.guest(queues=6) as guest:
        driver = Driver(guest)
        driver.say(ConsoleEvent.DEVICE_READY, 1)
        driver.say(ConsoleEvent.PORT_READY, 1, port=0)
        told = [driver.told() for _ in range(4)]
        assert (0, ConsoleEvent.RESIZE, 0, RESIZE.pack(cols=24, rows=80)) in told


def test_a_driver_without_ports_has_the_first_one_alone(tmp_path: Path) -> None:
    link = tmp_path / "console"
    ports = [{"name": "other", "backend": "null"}]
    with (
        console(path=str(link), ports=ports) as served,
        served.guest(queues=2, without=int(ConsoleFeature.MULTIPORT)) as guest,
    ):
        guest.keep_filled(RECEIVE, count=2, size=64)
        terminal = os.open(link, os.O_RDWR | os.O_NOCTTY)
        os.write(terminal, b"typed")
        assert guest.receive(RECEIVE) == b"typed"
        os.close(terminal)


# Hostile drivers, and emergencies.


def test_c40_what_makes_no_sense_on_the_control_queue_is_passed_over() -> None:
    ports = [{"name": "other", "backend": "null"}]
    with console(backend="null", ports=ports) as served, served.guest(queues=6) as guest:
        ready = CONTROL.pack(id=0, event=ConsoleEvent.DEVICE_READY, value=1)
        for said in (b"", b"short", CONTROL.pack(id=99, event=3, value=1), ready[:7]):
            guest.do(CONTROL_TRANSMIT, [said] if said else [], [4])
        guest.do(CONTROL_TRANSMIT, [CONTROL.pack(id=1, event=999, value=9) + bytes(1000)])
        # Buffers in which no message has room come back empty.
        small = [guest.submit(CONTROL_RECEIVE, [], [7]) for _ in range(3)]
        large = [guest.submit(CONTROL_RECEIVE, [], [8]) for _ in range(2)]
        guest.do(CONTROL_TRANSMIT, [ready])
        assert [guest.wait(token).written for token in small] == [0, 0, 0]
        assert [guest.wait(token).written for token in large] == [8, 8]
        guest.do(TRANSMIT, [], [16])
        assert not [line for line in served.lines if "ERROR" in line]


def test_an_emergency_is_heard_before_there_is_a_driver_and_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    at = CONFIG.offsets["emerg_wr"]
    file = console(backend="file", path=str(log))
    with file as served, served.guest(queues=2, start=False) as guest:
        guest.setup()
        for character in b"Oops":
            guest.front_end.set_config(at, bytes([character, 0, 0, 0]))
        until(lambda: log.read_text() == "Oops")
        served.wait_worker(other_than=served.kill_worker())
        for character in b"ss":
            guest.front_end.set_config(at, bytes([character, 0, 0, 0]))
        guest.start_queue(TRANSMIT)
        guest.do(TRANSMIT, [b"!"])
        until(lambda: log.read_text() == "Oopsss!")


# Options.


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"backend": "socket"}, "socket needs a path"),
        ({"backend": "null", "path": "x"}, "null has no path"),
        ({"columns": 80}, "columns and rows go together"),
        ({"ports": [{"name": ""}]}, "name"),
        ({"ports": [{"name": "a", "backend": "file"}]}, "a: file needs a path"),
        ({"ports": [{"name": "a", "backend": "null"}] * 2}, "two ports have the name a"),
        (
            {"backend": "stdio", "ports": [{"name": "a", "backend": "stdio"}]},
            "there is one standard input and output",
        ),
        ({"backend": "file", "path": "/nowhere/log"}, "/nowhere/log: No such file"),
        ({"queues": 2}, "queues"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ServeFailed, match=reason), console(**options):
        pass


def test_two_ports_cannot_have_one_path(tmp_path: Path) -> None:
    with (
        pytest.raises(ServeFailed, match="is another port's"),
        console(
            backend="file",
            path=str(tmp_path / "a"),
            ports=[{"name": "a", "path": str(tmp_path / "a")}],
        ),
    ):
        pass


def test_nobody_goes_on_with_the_files_of_other_ports(tmp_path: Path) -> None:
    one = ConsoleOptions(backend="file", path=str(tmp_path / "one"))
    two = ConsoleOptions(backend="file", path=str(tmp_path / "two"))
    left = Console(one).shared_files()
    assert Console(one).goes_on_with(left)
    assert not Console(two).goes_on_with(left)
    for file in left.values():
        file.close()
