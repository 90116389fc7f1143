"""Parts of the keeper of many devices, without the devices."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vuproc.handover.keeper import PROGRAM
from vuproc.handover.keeper.control import CLIENTS_MOST, Control, address_of
from vuproc.handover.keeper.folder import Places, Watch, identity
from vuproc.handover.keeper.service import Service

BOUND_S = 60.0


def test_device_files_go_by_their_endings(tmp_path: Path) -> None:
    for name in ("a.yaml", "b.yml", ".c.yaml", "d.yaml~", "e.txt", "a.yml"):
        (tmp_path / name).touch()
    files, wrong = Places([str(tmp_path)]).files()
    assert files == {"a": f"{tmp_path}/a.yaml", "b": f"{tmp_path}/b.yml"}
    assert wrong == [f"{tmp_path}/a.yml: not served: {tmp_path}/a.yaml has the same name"]


def test_a_file_that_is_named_is_served_whatever_it_is_called(tmp_path: Path) -> None:
    places = Places([str(tmp_path / "x.conf"), str(tmp_path / "y")])
    assert places.files() == ({"x": f"{tmp_path}/x.conf", "y": f"{tmp_path}/y"}, [])
    assert places.folders == []


def test_a_changed_file_has_another_identity(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    assert identity(str(file)) is None
    file.write_text("a")
    before = identity(str(file))
    assert before is not None and identity(str(file)) == before
    file.write_text("ab")
    assert identity(str(file)) != before


def test_a_change_in_a_folder_is_told(tmp_path: Path) -> None:
    watch = Watch([str(tmp_path)])
    assert watch.works
    try:
        assert not watch.take()
        for change in (
            (tmp_path / "a.yaml").touch,
            lambda: (tmp_path / "a.yaml").rename(tmp_path / "b.yaml"),
            (tmp_path / "b.yaml").unlink,
        ):
            change()
            assert select.select([watch.fileno()], [], [], BOUND_S)[0]
            assert watch.take()
    finally:
        os.close(watch.fileno())


def test_a_folder_that_is_gone_cannot_be_watched(tmp_path: Path) -> None:
    assert not Watch([str(tmp_path / "gone")]).works


@pytest.fixture
def control(tmp_path: Path) -> Iterator[Control]:
    made = Control(str(tmp_path), {"say": lambda: {"said": 1}, "last": dict}, ("last",))
    yield made
    made.close()


def asked(control: Control, folder: Path, line: bytes) -> tuple[bytes, bool]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(BOUND_S)
        client.connect(address_of(str(folder)))
        served = control.accept()
        assert served is not None
        client.sendall(line)
        stays = control.hear(served)
        control.drop(served)
        return client.recv(65536), stays


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        (b'{"verb": "say"}\n', {"ok": True, "said": 1}),
        (b'{"verb": "last"}\n', {"ok": True}),
        (b'{"verb": "other"}\n', {"ok": False, "error": "not understood: 'other'"}),
        (b"[]", {"ok": False}),
        (b"\xff", {"ok": False}),
    ],
)
def test_the_parent_answers(control: Control, tmp_path: Path, line: bytes, answer: object) -> None:
    said, stays = asked(control, tmp_path, line)
    found = json.loads(said)
    assert isinstance(answer, dict)
    assert {key: found[key] for key in answer} == answer
    assert stays == (b"last" in line)


def test_a_client_that_says_nothing_is_dropped(control: Control, tmp_path: Path) -> None:
    assert asked(control, tmp_path, b"") == (b"", True)


def test_clients_are_bounded(control: Control, tmp_path: Path) -> None:
    clients = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(CLIENTS_MOST + 1)]
    for client in clients:
        assert control.surplus() is None
        client.connect(address_of(str(tmp_path)))
        assert control.accept() is not None
    oldest = control.surplus()
    assert oldest is not None
    control.drop(oldest)
    assert clients[0].recv(1) == b""
    for client in clients:
        client.close()


def test_a_folder_has_one_parent(control: Control, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="in use"):
        Control(str(tmp_path), {}, ())


def test_the_service_manager_hears_once_all_are_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as inbox:
        inbox.bind("")
        inbox.settimeout(BOUND_S)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + inbox.getsockname()[1:].decode())
        monkeypatch.setenv("WATCHDOG_USEC", "3000000")
        monkeypatch.delenv("WATCHDOG_PID", raising=False)
        service = Service()
        assert "NOTIFY_SOCKET" not in os.environ and "WATCHDOG_USEC" not in os.environ
        service.tell(lambda: "none", lambda: False)
        assert inbox.recv(99) == b"WATCHDOG=1"
        due = service.due()
        assert due is not None and 0 < due <= 1
        service.tell(lambda: "one", lambda: True)
        service.tell(lambda: "one", lambda: True)
        service.tell(lambda: "two", lambda: True)
        service.stopping()
        said = [inbox.recv(99) for _ in range(4)]
        assert said == [b"READY=1", b"STATUS=one", b"STATUS=two", b"STOPPING=1"]
        service.close()


def test_without_a_shared_forkserver_masters_are_executed(tmp_path: Path) -> None:
    """The command refuses to be one: after two tries it is run for the file alone."""
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys\n"
        "sys.exit(3) if 'forkserver' in os.environ.get('LISTEN_FDNAMES', '') else None\n"
        "print('master', sys.argv[1:], os.getpgrp() == os.getpid(), flush=True)\n"
    )
    file = tmp_path / "a.yaml"
    file.touch()
    command = [sys.executable, "-I", "-S", PROGRAM, "--devices", str(file)]
    done = subprocess.run(
        [*command, sys.executable, str(program), "run"],
        capture_output=True,
        text=True,
        timeout=BOUND_S,
    )
    assert done.stdout == f"master ['run', '{file}'] True\n"
    assert done.returncode == 0
    assert done.stderr.count("the shared forkserver ended (exit code 3)") == 1


def test_a_folder_that_is_empty_is_waited_for(tmp_path: Path) -> None:
    command = [sys.executable, "-I", "-S", PROGRAM, "--devices", str(tmp_path), "/bin/false"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as keeper:
        assert keeper.stderr is not None
        assert "the shared forkserver ended" in keeper.stderr.readline()
        keeper.send_signal(signal.SIGTERM)
        assert keeper.wait(BOUND_S) == 0
